"""Commands for a sweep on a cluster: submit it, and ask it what the same command would answer where the storage is."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.submit import Cluster, Job
from sweeper.plan import Plan, named_files
from sweeper.spec import SpecError

PACKAGES = ("cluster", "jobs", "sweeper")
SPEC = "sweep.yaml"


@contextmanager
def bundle(text: str | None, ship: bool) -> Iterator[Path | None]:
    """What travels with a job: the sweep file, and this package's own sources unless the cluster has them."""
    if text is None and not ship:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if text is not None:
            (root / SPEC).write_text(text)
        for name in PACKAGES if ship else ():
            source = Path(__file__).parents[1] / name
            shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        yield root


def check_paths(plan: Plan, roots: list[Path]) -> None:
    """Refuse a spec whose files lie outside the roots that a cluster declares. Raises SpecError."""
    said: list[str] = []
    for block in plan.spec.grid:
        said += [path for backbone in block.backbone for path in named_files(backbone)]
        said += [path for task in block.task for path in named_files(task)]
    # what '..' leads to is known only where the root is
    problems = [
        f"{path} has '..' in it; say where below the data root it is" for path in said if ".." in Path(path).parts
    ]
    found = {path for trial in plan.trials for part in (trial.backbone, trial.task) for path in named_files(part)}
    wrong = sorted(p for p in found if not any(Path(p).is_relative_to(root) for root in roots))
    allowed = " and ".join(map(str, roots))
    problems += [f"{path} lies outside {allowed}, the cluster's data and storage" for path in wrong]
    if problems:
        raise SpecError(plan.spec.source, list(dict.fromkeys(problems)))


def submit(cluster: Cluster, plan: Plan, arguments: list[str], env: dict[str, str], ship: bool) -> Job:
    """Start the sweep's driver on the cluster and return at once."""
    with bundle(plan.spec.text, ship) as folder:
        return cluster.submit(plan.spec.settings.name, ["run", SPEC, *arguments], folder, env)


def ask(
    cluster: Cluster,
    arguments: list[str],
    env: dict[str, str],
    ship: bool,
    text: str | None = None,
    limit_s: float = math.inf,
) -> tuple[str, int]:
    """Run a command of this program on the cluster: (what it printed, its exit status). Raises JobTimeout.

    text: a sweep file for it; limit_s: how long it may take
    """
    with bundle(text, ship) as folder:
        return cluster.run(arguments, folder, env, limit_s)


@contextmanager
def streamed(cluster: Cluster, arguments: list[str], env: dict[str, str], ship: bool) -> Iterator[Iterator[str]]:
    """What a command on the cluster prints, as it comes; leaving the block ends it there."""
    with bundle(None, ship) as folder, cluster.streamed(arguments, folder, env) as lines:
        yield lines


def job_facts(job: Job) -> dict[str, object]:
    return {"sweep": job.sweep, "job": job.id, "status": job.status, "message": job.message, "started": job.started}


def print_jobs(jobs: list[Job], as_json: bool) -> None:
    if as_json:
        print(json.dumps([job_facts(job) for job in jobs], indent=1))
        return
    for job in jobs:
        print(f"{job.sweep:32} {job.id:36} {job.status}")
    if not jobs:
        print("no sweep was submitted to this cluster")
