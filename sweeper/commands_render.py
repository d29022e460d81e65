"""Commands about a cluster's own files: cluster render."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cluster.values import TARGETS, Target, Values

CLUSTER = "Files from which a cluster is made: render. Nothing is started."

RENDER = """\
Write the files of a cluster from one set of values: KubeRay manifests, and files for Ray's cluster launcher (`ray up`)
on AWS, on Google Cloud, and on machines that are there already. Storage, data, MLflow and the token's place come from
the values, so they are the same everywhere; the token itself is in none of the files.

What the values have no key for (kubernetes, aws, gcp, local) is left out. cluster/values.yaml is an example;
docs/kubernetes.md explains every key, and how to go on from the files. Nothing is started.
"""


def add_commands(commands: Any) -> None:
    group = commands.add_parser("cluster", help=CLUSTER.split(":", maxsplit=1)[0], description=CLUSTER)
    sub = group.add_subparsers(metavar="COMMAND", required=True).add_parser(
        "render",
        help="KubeRay manifests and `ray up` files from one set of values",
        description=RENDER,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    sub.set_defaults(command=render, on_cluster=False)
    sub.add_argument("--values", metavar="FILE", type=Path, required=True, help="the values, YAML")
    sub.add_argument("--out", metavar="DIR", type=Path, help="where to write (default: all files to the terminal)")
    sub.add_argument("--only", choices=TARGETS, help="one of what the values have")


def render(args: argparse.Namespace) -> int:
    from cluster.render import load_values, render, targets, write

    values = load_values(args.values)
    wanted = targets(values, args.only, args.values.name)
    files = render(values, wanted, _sweep(values, wanted, args.values.parent))
    if args.out is None:
        for name, text in files.items():
            print(f"--- # {name}\n{text}", end="")
        return 0
    for path in write(files, args.out):
        print(path)
    return 0


def _sweep(values: Values, wanted: tuple[Target, ...], folder: Path) -> str | None:
    """The sweep file of kubernetes.job, checked as `submit` checks it. Raises SpecError."""
    job = values.kubernetes.job if values.kubernetes and "kuberay" in wanted else None
    if job is None:
        return None
    from sweeper.plan import make_plan
    from sweeper.remote import check_paths
    from sweeper.spec import load_sweep

    plan = make_plan(load_sweep(folder / job.sweep), Path(values.data_root))
    check_paths(plan, [Path(values.data_root), Path(values.storage.path)])
    return plan.spec.text
