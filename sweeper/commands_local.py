"""Commands of a sweep on this machine's storage: plan, run, status, report, sync, ui."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from sweeper.options import (
    ON_CLUSTER,
    add,
    cluster_options,
    data_root_of,
    json_option,
    owner,
    spec_options,
    sweep_of,
    sweep_options,
    tracking_options,
    tracking_uri_of,
)
from sweeper.store import FORECAST, Store, StoreError

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

SYNC = """\
Bring MLflow up to the storage: what a tracking server that was down has missed. Writing twice adds nothing.
What was deleted in MLflow stays deleted, unless --restore is given.
"""

UI = "Serve the MLflow UI on loopback over the storage's MLflow store. Ctrl-C ends it."


def add_commands(commands: Any) -> None:
    sub = add(commands, "plan", PLAN, plan)
    spec_options(sub)
    json_option(sub)
    sub = add(commands, "run", RUN, run)
    spec_options(sub)
    tracking_options(sub)
    sub.add_argument("--address", metavar="ADDR", help="a running Ray cluster (host:port or auto)")
    sub = add(commands, "status", STATUS, status, on_cluster=True)
    sweep_options(sub)
    cluster_options(sub)
    json_option(sub)
    sub = add(commands, "report", REPORT, report, on_cluster=True)
    sweep_options(sub)
    tracking_options(sub)
    cluster_options(sub)
    sub.add_argument("--out", metavar="DIR", type=Path, help="default: <storage>/sweeps/<sweep>/report")
    json_option(sub, "print report.json")
    sub = add(commands, "sync", SYNC, sync)
    sweep_options(sub)
    tracking_options(sub)
    sub.add_argument("--restore", action="store_true", help="bring back what was deleted in MLflow")
    sub = add(commands, "ui", UI, ui)
    tracking_options(sub)
    sub.add_argument("--port", type=int, default=5000, help="default: 5000")


def _make_plan(args: argparse.Namespace, require_files: bool) -> Any:
    from sweeper.plan import make_plan

    return make_plan(sweep_of(args), data_root_of(args), require_files)


def plan(args: argparse.Namespace) -> int:
    from sweeper.table import plan_facts, print_plan

    plan = _make_plan(args, require_files=False)
    facts = plan_facts(plan, Store(args.storage))
    if args.json:
        print(json.dumps(facts, indent=1))
    else:
        print_plan(facts)
    return 0


def run(args: argparse.Namespace) -> int:
    plan = _make_plan(args, require_files=True)
    from sweeper.run import run_sweep

    store = Store(args.storage.resolve())
    if ON_CLUSTER in os.environ:  # whoever submitted it could not see what its paths lead to here
        from sweeper.remote import check_paths

        check_paths(plan, [data_root_of(args).resolve(), store.root])
    uri = tracking_uri_of(args, store, None)
    unfinished = run_sweep(plan, store, uri, args.address, data_root_of(args), owner())
    name = plan.spec.settings.name
    paths = _write_report(store, name, uri, None)
    print(f"report:  {paths['report.html']}\nfigure:  {paths['continuum.png']}\nMLflow:  {uri}")
    print(f"look:    sweeper ui --storage {args.storage}")
    if unfinished:
        print(f"{unfinished} trials failed or are not done; see sweeper status {name}", file=sys.stderr)
    return 1 if unfinished else 0


def status(args: argparse.Namespace) -> int:
    from sweeper.table import print_status, status_facts

    facts = status_facts(Store(args.storage), args.sweep)
    if args.json:
        print(json.dumps(facts, indent=1))
    else:
        print_status(facts)
    return 0 if facts["done"] else 1


def report(args: argparse.Namespace) -> int:
    store = Store(args.storage.resolve())
    paths = _write_report(store, args.sweep, tracking_uri_of(args, store, args.sweep), args.out)
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
    kept = store.sweep_dir(sweep) / FORECAST
    forecasts = json.loads(kept.read_text()) if kept.exists() else []
    paths = write_report(table, folder, sweep, _provenance(store, sweep, uri), mlflow_url, forecasts)
    if tracking and (reason := tracking.add_artifacts(folder)) is not None:
        print(f"the report is not in MLflow ({reason}); sweeper report {sweep} tries again", file=sys.stderr)
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


def sync(args: argparse.Namespace) -> int:
    from sweeper.tracking import open_tracking

    store = Store(args.storage.resolve())
    uri = tracking_uri_of(args, store, args.sweep)
    with store.lock(args.sweep):
        tracking = open_tracking(store, args.sweep, uri, args.restore)
        if tracking is None:
            return 2
        tracking.sync(over=True)
    print(f"{len(tracking.run_ids())} trials are in {uri}")
    return 0


def ui(args: argparse.Namespace) -> int:
    import socket

    from sweeper.tracking import default_uri, experiment_urls

    store = Store(args.storage.resolve())
    uri = tracking_uri_of(args, store, None)
    if uri == default_uri(store.root) and not store.sweeps():
        raise StoreError(f"no sweep in {store.root}, so there is nothing to show; --storage names another folder")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", args.port))
        except OSError as error:
            raise StoreError(f"port {args.port} of this machine: {error.strerror}; --port names another") from None
    server = f"http://127.0.0.1:{args.port}"
    print(f"{server} shows {uri}")
    for sweep, url in experiment_urls(store, uri, server).items():
        print(f"  {sweep}: {url}")
    sys.stdout.flush()
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(args.port)]
    os.execv(sys.executable, [*command, "--workers", "1", "--backend-store-uri", uri])
