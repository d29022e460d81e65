"""The command line. Exit status: 0 all trials done, 1 some failed or are not done, 2 the input was wrong."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cluster.resources import PlacementError
from jobs.backbone import BackboneError
from jobs.tasks import TaskError
from sweeper.spec import SpecError
from sweeper.store import Store, StoreError

INPUT_ERRORS = (SpecError, TaskError, BackboneError, StoreError, PlacementError, ConnectionError)

DESCRIPTION = """\
Which SFT objective should I use for this backbone on this task? Measure it.

A sweep is a YAML file: backbones x tasks x objectives (with alpha and gate) x seeds. sweeper plans it,
trains each trial with DeepSpeed on Ray, records it in MLflow, and reports which objective wins where,
and how sure that is.

  sweeper plan examples/quickstart.yaml     what would be trained, and what it costs
  sweeper run examples/quickstart.yaml      train it; run it again to continue after any death
  sweeper status quickstart                 where it stands
  sweeper report quickstart                 the answer: HTML, PNG, CSV
  sweeper ui                                compare the runs in MLflow
"""

PLAN = """\
Print the trials of a sweep: how many, which cells of the grid train identically and became one, which are
finished already in this storage, and an estimate of each trial's training tokens, memory a worker and time.

Nothing is trained and no GPU is needed. Times come from finished trials of the same backbone and task
where this storage has some, else from a formula (6 x parameters x tokens over 15 GFLOP/s a core or
200 TFLOP/s a GPU): take those as an order of magnitude.
"""

RUN = """\
Train every trial of a sweep that is not finished yet, record all in MLflow, and write the report.

Each trial is named by what it is made of (backbone, task, objective, seed, training settings). So running the
same file again trains only what is missing: after a kill, unfinished trials go on from their newest
checkpoint; a trial that failed is tried again; a value added to the grid costs only its own trials.

Without --address, Ray is started inside this process and ends with it. Ctrl-C stops; run again to continue.
"""

STATUS = "Count the trials of a sweep by status, and show the reason of each failure. Reads the storage only."

REPORT = """\
Write the report of a sweep from what is recorded, also while it runs and on another machine that sees the storage:
report.html (one file, opens offline), continuum.png, alpha.png, weights.png, trials.csv, leaderboard.csv, report.json.
"""

SYNC = "Bring MLflow up to the storage: what a tracking server that was down has missed. Writing twice adds nothing."

UI = "Serve the MLflow UI on loopback over the storage's MLflow store. Ctrl-C ends it."


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = args.command
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return command(args)
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 1
    except INPUT_ERRORS as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:  # `sweeper plan | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _interrupt(*_: object) -> None:
    """SIGTERM ends like Ctrl-C: MLflow runs are closed and Ray goes down with us."""
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("sweeper", description=DESCRIPTION, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, text: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=text.split(":", maxsplit=1)[0].split(".", maxsplit=1)[0],
            description=text,
            formatter_class=argparse.RawTextHelpFormatter,
        )
        sub.set_defaults(command=run)
        sub.add_argument(
            "--storage",
            metavar="DIR",
            type=Path,
            default=Path(os.environ.get("SWEEPER_STORAGE", "sweeps")),
            help="where trials are recorded (default: $SWEEPER_STORAGE or ./sweeps)",
        )
        return sub

    def tracking(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--tracking-uri",
            metavar="URI",
            default=os.environ.get("MLFLOW_TRACKING_URI"),
            help="MLflow (default: $MLFLOW_TRACKING_URI, else the sweep's own, else sqlite in the storage)",
        )

    def spec(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("spec", metavar="SPEC", type=Path, help="the sweep's YAML file")
        sub.add_argument(
            "--data-root",
            metavar="DIR",
            type=Path,
            default=Path(os.environ["SWEEPER_DATA"]) if "SWEEPER_DATA" in os.environ else None,
            help="where relative paths in SPEC start (default: $SWEEPER_DATA or the folder of SPEC)",
        )

    def sweep(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("sweep", metavar="SWEEP", help="the sweep's name")

    sub = add("plan", PLAN, _plan)
    spec(sub)
    sub.add_argument("--json", action="store_true", help="for programs")
    sub = add("run", RUN, _run)
    spec(sub)
    tracking(sub)
    sub.add_argument("--address", metavar="ADDR", help="a running Ray cluster (host:port or auto)")
    sub = add("status", STATUS, _status)
    sweep(sub)
    sub.add_argument("--json", action="store_true", help="for programs")
    sub = add("report", REPORT, _report)
    sweep(sub)
    tracking(sub)
    sub.add_argument("--out", metavar="DIR", type=Path, help="default: <storage>/sweeps/<sweep>/report")
    sub.add_argument("--json", action="store_true", help="print report.json")
    sub = add("sync", SYNC, _sync)
    sweep(sub)
    tracking(sub)
    sub = add("ui", UI, _ui)
    tracking(sub)
    sub.add_argument("--port", type=int, default=5000, help="default: 5000")
    return parser


def _make_plan(args: argparse.Namespace, require_files: bool) -> Any:
    from sweeper.plan import make_plan
    from sweeper.spec import load_sweep

    return make_plan(load_sweep(args.spec), args.data_root or args.spec.parent, require_files)


def _plan(args: argparse.Namespace) -> int:
    from sweeper.table import plan_facts, print_plan

    plan = _make_plan(args, require_files=False)
    facts = plan_facts(plan, Store(args.storage))
    if args.json:
        print(json.dumps(facts, indent=1))
    else:
        print_plan(facts)
    return 0


def _run(args: argparse.Namespace) -> int:
    plan = _make_plan(args, require_files=True)
    from sweeper.run import run_sweep

    store = Store(args.storage.resolve())
    uri = _tracking_uri(args, store, None)
    unfinished = run_sweep(plan, store, uri, args.address)
    name = plan.spec.settings.name
    paths = _write_report(store, name, uri, None)
    print(f"report:  {paths['report.html']}\nfigure:  {paths['continuum.png']}\nMLflow:  {uri}")
    print(f"look:    sweeper ui --storage {args.storage}")
    if unfinished:
        print(f"{unfinished} trials failed or are not done; see sweeper status {name}", file=sys.stderr)
    return 1 if unfinished else 0


def _status(args: argparse.Namespace) -> int:
    from sweeper.table import print_status, status_facts

    facts = status_facts(Store(args.storage), args.sweep)
    if args.json:
        print(json.dumps(facts, indent=1))
    else:
        print_status(facts)
    return 0 if facts["done"] else 1


def _report(args: argparse.Namespace) -> int:
    store = Store(args.storage.resolve())
    paths = _write_report(store, args.sweep, _tracking_uri(args, store, args.sweep), args.out)
    if args.json:
        print(paths["report.json"].read_text())
    else:
        print(paths["report.html"])
    return 0


def _write_report(store: Store, sweep: str, uri: str, out: Path | None) -> dict[str, Path]:
    from sweeper.report import write_report
    from sweeper.results import results
    from sweeper.tracking import open_tracking

    tracking = open_tracking(store, sweep, uri)
    table = results(store, sweep, tracking.run_ids() if tracking else None)
    folder = out or store.sweep_dir(sweep) / "report"
    mlflow_url = tracking.run_url if tracking and uri.startswith("http") else None
    paths = write_report(table, folder, sweep, _provenance(store, sweep, uri), mlflow_url)
    if tracking:
        tracking.add_artifacts(folder)
    return paths


def _provenance(store: Store, sweep: str, uri: str) -> dict[str, str]:
    from importlib.metadata import version

    packages = ("objective-continuum", "torch", "ray", "deepspeed", "transformers", "mlflow")
    return {
        "sweep": sweep,
        "spec": str(store.plan(sweep)["source"]),
        "storage": str(store.root),
        "MLflow": uri,
        "versions": ", ".join(f"{p} {version(p)}" for p in packages),
    }


def _sync(args: argparse.Namespace) -> int:
    from sweeper.tracking import open_tracking

    store = Store(args.storage.resolve())
    uri = _tracking_uri(args, store, args.sweep)
    with store.lock(args.sweep):
        tracking = open_tracking(store, args.sweep, uri)
        if tracking is None:
            return 2
        tracking.sync(over=True)
    print(f"{len(tracking.run_ids())} trials are in {uri}")
    return 0


def _ui(args: argparse.Namespace) -> int:
    from sweeper.tracking import experiment_urls

    store = Store(args.storage.resolve())
    uri = _tracking_uri(args, store, None)
    server = f"http://127.0.0.1:{args.port}"
    print(f"{server} shows {uri}")
    for sweep, url in experiment_urls(store, uri, server).items():
        print(f"  {sweep}: {url}")
    sys.stdout.flush()
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(args.port)]
    os.execv(sys.executable, [*command, "--workers", "1", "--backend-store-uri", uri])


def _tracking_uri(args: argparse.Namespace, store: Store, sweep: str | None) -> str:
    from sweeper.tracking import default_uri

    if args.tracking_uri:
        return str(args.tracking_uri)
    return str(store.plan(sweep)["tracking_uri"]) if sweep else default_uri(store.root)
