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
ON_CLUSTER = (
    "SWEEPER_ON_CLUSTER"  # set for what runs there as a job: its defaults are the cluster's, never a job's folder
)

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

On a cluster: submit instead of run; then status, logs, stop, resume, wait, list, report with the same --address.

  sweeper submit my-sweep.yaml --address http://HEAD:8265 --storage /shared/sweeps
  sweeper logs -f my-sweep --address http://HEAD:8265
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

SUBMIT = """\
Start a sweep on a Ray cluster and return at once. The sweep's driver runs there, as a job of Ray's Jobs API.

The sweep file and this package travel along (--no-ship: only the file; the cluster has the package). Storage, data
and MLflow are those of the cluster: --storage and --data-root are paths that all of its nodes share, by default its own
$SWEEPER_STORAGE and $SWEEPER_DATA. Files that a spec names must lie in them. Submitting the same file again continues.

Ray's token (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token) is needed, unless --insecure is said.
"""

STOP = """\
End a sweep that is under way: its driver is told, workers go, MLflow runs are closed as KILLED, and this waits for it.
Unfinished trials continue from their newest checkpoint when it is resumed. Stopping what does not run is no error.
"""

RESUME = "Run a sweep again as it was last run, from the storage: what is finished stays, the rest continues."

LIST = "List the sweeps of a storage, or those submitted to a cluster with the status of each job."

WAIT = "Wait until no driver runs the sweep any more. Exit status 0 if all of its trials are done."

LOGS = """\
Print what a trial has recorded, a line a row, and its failures; -f follows until the trial is over.
With --address and no TRIAL: what the sweep's driver on the cluster has printed.
"""

SYNC = "Bring MLflow up to the storage: what a tracking server that was down has missed. Writing twice adds nothing."

UI = "Serve the MLflow UI on loopback over the storage's MLflow store. Ctrl-C ends it."


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = args.command
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if _is_remote(args) and command in (_status, _report, _stop):
            return _ask(args, list(sys.argv[1:] if argv is None else argv))
        args.given_storage, args.storage = args.storage, _storage(args)
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
    sub = _add(commands, "plan", PLAN, _plan)
    _spec_options(sub)
    sub.add_argument("--json", action="store_true", help="for programs")
    sub = _add(commands, "run", RUN, _run)
    _spec_options(sub)
    _tracking_options(sub)
    sub.add_argument("--address", metavar="ADDR", help="a running Ray cluster (host:port or auto)")
    sub = _add(commands, "status", STATUS, _status)
    _sweep_options(sub)
    _cluster_options(sub)
    sub.add_argument("--json", action="store_true", help="for programs")
    sub = _add(commands, "report", REPORT, _report)
    _sweep_options(sub)
    _tracking_options(sub)
    _cluster_options(sub)
    sub.add_argument("--out", metavar="DIR", type=Path, help="default: <storage>/sweeps/<sweep>/report")
    sub.add_argument("--json", action="store_true", help="print report.json")
    sub = _add(commands, "sync", SYNC, _sync)
    _sweep_options(sub)
    _tracking_options(sub)
    sub = _add(commands, "ui", UI, _ui)
    _tracking_options(sub)
    sub.add_argument("--port", type=int, default=5000, help="default: 5000")
    _add_cluster_commands(commands)
    return parser


def _add_cluster_commands(commands: Any) -> None:
    sub = _add(commands, "submit", SUBMIT, _submit)
    _spec_options(sub)
    _tracking_options(sub)
    _cluster_options(sub, needed=True)
    sub.add_argument("--json", action="store_true", help="for programs")
    sub = _add(commands, "resume", RESUME, _resume)
    _sweep_options(sub)
    _tracking_options(sub)
    _cluster_options(sub)
    sub = _add(commands, "stop", STOP, _stop)
    _sweep_options(sub)
    _cluster_options(sub)
    sub = _add(commands, "wait", WAIT, _wait)
    _sweep_options(sub)
    _cluster_options(sub)
    sub = _add(commands, "list", LIST, _list)
    _cluster_options(sub)
    sub.add_argument("--json", action="store_true", help="for programs")
    sub = _add(commands, "logs", LOGS, _logs)
    _sweep_options(sub)
    sub.add_argument("trial", metavar="TRIAL", nargs="?", help="a trial's name, or the beginning of one")
    sub.add_argument("-f", "--follow", action="store_true", help="go on until the end")
    _cluster_options(sub)


def _add(commands: Any, name: str, text: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
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
        default=None,
        help="where trials are recorded (default: $SWEEPER_STORAGE or ./sweeps)",
    )
    return sub


def _spec_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("spec", metavar="SPEC", type=Path, help="the sweep's YAML file")
    sub.add_argument(
        "--data-root",
        metavar="DIR",
        type=Path,
        help="where relative paths in SPEC start (default: $SWEEPER_DATA or the folder of SPEC)",
    )


def _sweep_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("sweep", metavar="SWEEP", help="the sweep's name")


def _tracking_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--tracking-uri",
        metavar="URI",
        default=os.environ.get("MLFLOW_TRACKING_URI"),
        help="MLflow (default: $MLFLOW_TRACKING_URI, else the sweep's own, else sqlite in the storage)",
    )


def _cluster_options(sub: argparse.ArgumentParser, needed: bool = False) -> None:
    sub.add_argument(
        "--address",
        metavar="URL",
        required=needed,
        help="of a cluster's Jobs API, http://HEAD:8265" + ("" if needed else " (default: this machine's storage)"),
    )
    sub.add_argument("--python", default="python", metavar="PATH", help="interpreter on the cluster")
    sub.add_argument("--no-ship", action="store_true", help="use the package that the cluster has")
    sub.add_argument("--insecure", action="store_true", help="the cluster asks for no token, and that is meant")


def _storage(args: argparse.Namespace) -> Path:
    """--storage, else $SWEEPER_STORAGE, else ./sweeps; on a cluster the last would be a job's own folder."""
    if args.storage is not None:
        return Path(args.storage)
    if "SWEEPER_STORAGE" not in os.environ and ON_CLUSTER in os.environ:
        raise StoreError("the cluster declares no storage ($SWEEPER_STORAGE on its nodes); name one with --storage")
    return Path(os.environ.get("SWEEPER_STORAGE", "sweeps"))


def _data_root(args: argparse.Namespace) -> Path:
    if args.data_root is not None:
        return Path(args.data_root)
    return Path(os.environ["SWEEPER_DATA"]) if "SWEEPER_DATA" in os.environ else Path(args.spec).parent


def _is_remote(args: argparse.Namespace) -> bool:
    return str(getattr(args, "address", None) or "").startswith(("http://", "https://"))


def _cluster(args: argparse.Namespace) -> Any:
    from cluster.submit import Cluster

    return Cluster(args.address, args.python, args.insecure)


def _ask(args: argparse.Namespace, argv: list[str]) -> int:
    """The same command, run on the cluster without what names the cluster."""
    from sweeper.remote import ask

    plain, drop = [], False
    for word in argv:
        if drop:
            drop = False
        elif word in ("--address", "--python"):
            drop = True
        elif not word.startswith(("--address=", "--python=")) and word not in ("--no-ship", "--insecure"):
            plain.append(word)
    text, code = ask(_cluster(args), plain, {ON_CLUSTER: "1"}, not args.no_ship)
    print(text, end="", file=sys.stderr if code == 2 else sys.stdout)
    return code


def _remote_options(args: argparse.Namespace) -> list[str]:
    """Storage, tracking and data root for a driver on the cluster, where they were given."""
    given = {"--storage": args.given_storage, "--tracking-uri": args.tracking_uri}
    given |= {"--data-root": getattr(args, "data_root", None)}
    options = [word for name, value in given.items() if value is not None for word in (name, str(value))]
    return [*options, "--address", "auto"]


def _submit(args: argparse.Namespace) -> int:
    from sweeper.remote import check_paths, job_facts, submit

    if not _is_remote(args):
        raise ConnectionError(f"{args.address}: submit needs the Jobs API's address, such as http://HEAD:8265")
    data_root = args.data_root or Path("/data")  # only the cluster knows its own; relative paths cannot leave it
    from sweeper.plan import make_plan
    from sweeper.spec import load_sweep

    plan = make_plan(load_sweep(args.spec), data_root)
    check_paths(plan, [data_root, *([args.given_storage] if args.given_storage else [])])
    job = submit(_cluster(args), plan, _remote_options(args), {ON_CLUSTER: "1"}, not args.no_ship)
    if args.json:
        print(json.dumps(job_facts(job) | {"trials": len(plan.trials)}, indent=1))
    else:
        print(f"{job.id}: {len(plan.trials)} trials, submitted to {args.address}")
        print(f"follow:  sweeper logs -f {job.sweep} --address {args.address}")
    return 0


def _resume(args: argparse.Namespace) -> int:
    if _is_remote(args):
        from sweeper.remote import bundle

        with bundle(None, not args.no_ship) as folder:
            command = ["resume", args.sweep, *_remote_options(args)]
            job = _cluster(args).submit(args.sweep, command, folder, {ON_CLUSTER: "1"})
        print(job.id)
        return 0
    store = Store(args.storage.resolve())
    facts = store.plan(args.sweep)
    args.spec = store.sweep_dir(args.sweep) / "sweep.yaml"
    args.data_root = Path(facts.get("data_root", args.spec.parent))
    args.tracking_uri = args.tracking_uri or facts["tracking_uri"]
    return _run(args)


def _stop(args: argparse.Namespace) -> int:
    from sweeper.control import stop

    stopped = stop(Store(args.storage), args.sweep)
    print(f"{args.sweep}: stopped; sweeper resume {args.sweep} continues" if stopped else f"{args.sweep}: not running")
    return 0


def _wait(args: argparse.Namespace) -> int:
    if _is_remote(args):
        job = _cluster(args).wait(args.sweep)
        print(f"{job.id}: {job.status}")
        return job.exit_code if job.exit_code is not None else int(job.status != "SUCCEEDED")
    from sweeper.control import wait

    wait(Store(args.storage), args.sweep)
    args.json = False
    return _status(args)


def _list(args: argparse.Namespace) -> int:
    if _is_remote(args):
        from sweeper.remote import print_jobs

        print_jobs(_cluster(args).jobs(), args.json)
        return 0
    from sweeper.control import driver
    from sweeper.table import status_facts

    store = Store(args.storage)
    found = [status_facts(store, name) | {"running": driver(store, name) is not None} for name in store.sweeps()]
    if args.json:
        print(json.dumps([{k: f[k] for k in ("sweep", "done", "counts", "running")} for f in found], indent=1))
        return 0
    for facts in found:
        state = "done" if facts["done"] else "running" if facts["running"] else "not running"
        print(f"{facts['sweep']:32} {state:12} " + ", ".join(f"{n} {s}" for s, n in sorted(facts["counts"].items())))
    if not found:
        print(f"no sweep in {store.root}")
    return 0


def _logs(args: argparse.Namespace) -> int:
    if _is_remote(args) and args.trial is None:
        cluster = _cluster(args)
        job = cluster.newest(args.sweep)
        for text in cluster.follow(job) if args.follow else [cluster.logs(job)]:
            print(text, end="", flush=True)
        return 0
    if _is_remote(args):
        if args.follow:
            raise StoreError("a trial on a cluster is not followed; leave -f out, or follow the sweep")
        return _ask(args, ["logs", args.sweep, args.trial, *_only_storage(args)])
    from sweeper.table import trial_log

    if args.trial is None:
        raise StoreError("a local run prints to its own terminal; name a TRIAL, or a cluster with --address")
    for line in trial_log(Store(args.storage), args.sweep, args.trial, args.follow):
        print(line, flush=True)
    return 0


def _only_storage(args: argparse.Namespace) -> list[str]:
    return ["--storage", str(args.given_storage)] if args.given_storage else []


def _make_plan(args: argparse.Namespace, require_files: bool) -> Any:
    from sweeper.plan import make_plan
    from sweeper.spec import load_sweep

    return make_plan(load_sweep(args.spec), _data_root(args), require_files)


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
    unfinished = run_sweep(plan, store, uri, args.address, _data_root(args))
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
