"""Commands of a sweep under way, here or on a cluster: submit, resume, stop, wait, list, watch, logs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeper import commands_local
from sweeper.options import (
    ON_CLUSTER,
    OWNER,
    add,
    cluster_options,
    given_uri,
    is_remote,
    json_option,
    owner,
    spec_options,
    sweep_of,
    sweep_options,
    tracking_options,
)
from sweeper.results import EARLY
from sweeper.store import Store, StoreError

if TYPE_CHECKING:
    from cluster.submit import Job

WATCH = """\
Show a sweep while it runs: what is best so far for each backbone and task, what runs and how fast, what is left, what
failed and why. Redrawn in place on a terminal; elsewhere a line whenever something has changed. Ends with the sweep's
driver. Exit status 0 if all trials are done.
"""

SUBMIT = """\
Start a sweep on a Ray cluster and return at once. The sweep's driver runs there, as a job of Ray's Jobs API.

The sweep file and this package travel along (--no-ship: only the file; the cluster has the package). Storage, data
and MLflow are those of the cluster: --storage and --data-root are paths that all of its nodes share, by default its own
$SWEEPER_STORAGE and $SWEEPER_DATA. Files that a spec names must lie in them. MLflow is that of the
cluster's own $MLFLOW_TRACKING_URI, unless --tracking-uri names another. Submitting the same file again continues.

Ray's token (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token) is needed, unless --insecure is said.
"""

STOP = """\
End a sweep that is under way, and wait for it: its trials write a checkpoint at their next row, workers go, MLflow runs
are closed as KILLED. `sweeper resume` continues. Stopping again while that lasts ends it at once, from the newest
checkpoints. Stopping what does not run is no error.

With TRIAL only that one ends, and stays ended, with its checkpoint; the sweep goes on.
"""

RESUME = """\
Run a sweep again as it was last run, from the storage: what is finished stays, the rest continues.
A trial that was stopped stays so, unless it is named.
"""

REVIVE = """\
Take stopped trials back and run the sweep again: each goes on from its checkpoint, and early stopping leaves it alone.
Without TRIAL: every trial that early stopping has ended, so that the grid becomes complete.
"""

LIST = "List the sweeps of a storage, or those submitted to a cluster with the status of each job."

WAIT = "Wait until no driver runs the sweep any more. Exit status 0 if all of its trials are done."

LOGS = """\
Print what a trial has recorded, a line a row, and its failures; -f follows until the trial is over.
With --address and no TRIAL: what the sweep's driver on the cluster has printed.
"""


def add_commands(commands: Any) -> None:
    sub = add(commands, "submit", SUBMIT, submit)
    spec_options(sub)
    tracking_options(sub)
    cluster_options(sub, needed=True)
    sub.add_argument("-f", "--follow", action="store_true", help="print what the driver prints, until the sweep ends")
    json_option(sub)
    sub = add(commands, "resume", RESUME, resume)
    sweep_options(sub)
    sub.add_argument("trial", metavar="TRIAL", nargs="*", help="trials that were stopped and are wanted after all")
    tracking_options(sub)
    cluster_options(sub, or_ray=True)
    json_option(sub, "on a cluster: its job")
    sub = add(commands, "revive", REVIVE, revive)
    sweep_options(sub)
    sub.add_argument("trial", metavar="TRIAL", nargs="*", help="a trial's name, or the beginning of one")
    tracking_options(sub)
    cluster_options(sub, or_ray=True)
    json_option(sub, "on a cluster: its job")
    sub = add(commands, "stop", STOP, stop, on_cluster=True)
    sweep_options(sub)
    sub.add_argument("trial", metavar="TRIAL", nargs="?", help="a trial's name, or the beginning of one")
    cluster_options(sub)
    json_option(sub)
    sub = add(commands, "wait", WAIT, wait)
    sweep_options(sub)
    cluster_options(sub)
    json_option(sub, "its job on a cluster, its status here")
    sub = add(commands, "list", LIST, list_)
    cluster_options(sub)
    json_option(sub)
    sub = add(commands, "watch", WATCH, watch)
    sweep_options(sub)
    cluster_options(sub)
    json_option(sub, "a line of JSON every two seconds")
    sub = add(commands, "logs", LOGS, logs)
    sweep_options(sub)
    sub.add_argument("trial", metavar="TRIAL", nargs="?", help="a trial's name, or the beginning of one")
    sub.add_argument("-f", "--follow", action="store_true", help="go on until the end")
    cluster_options(sub)
    json_option(sub, "of a trial: a line of JSON a row, its last word at the end")


def _cluster(args: argparse.Namespace) -> Any:
    from cluster.submit import Cluster

    return Cluster(args.address, args.python, args.insecure)


def ask(args: argparse.Namespace, argv: list[str]) -> int:
    """The same command, run on the cluster without what names the cluster."""
    from sweeper import remote

    plain, drop = [], False
    for word in argv:
        if drop:
            drop = False
        elif word in ("--address", "--python"):
            drop = True
        elif not word.startswith(("--address=", "--python=")) and word not in ("--no-ship", "--insecure"):
            plain.append(word)
    text, code = remote.ask(_cluster(args), plain, {ON_CLUSTER: "1"}, not args.no_ship)
    print(text, end="", file=sys.stderr if code == 2 else sys.stdout)
    return code


def _remote_options(args: argparse.Namespace) -> list[str]:
    """Storage, tracking and data root for a driver on the cluster, where they were given."""
    given = {"--storage": args.given_storage, "--tracking-uri": args.tracking_uri}
    given |= {"--data-root": getattr(args, "data_root", None)}
    options = [word for name, value in given.items() if value is not None for word in (name, str(value))]
    return [*options, "--address", "auto"]


def submit(args: argparse.Namespace) -> int:
    from sweeper import remote

    if not is_remote(args):
        raise ConnectionError(f"{args.address}: submit needs the Jobs API's address, such as http://HEAD:8265")
    data_root = args.data_root or Path("/data")  # only the cluster knows its own; relative paths cannot leave it
    from sweeper.plan import make_plan

    plan = make_plan(sweep_of(args), data_root)
    remote.check_paths(plan, [data_root, *([args.given_storage] if args.given_storage else [])])
    cluster = _cluster(args)
    job = remote.submit(cluster, plan, _remote_options(args), {ON_CLUSTER: "1", OWNER: owner()}, not args.no_ship)
    if args.json:
        print(json.dumps(remote.job_facts(job) | {"trials": len(plan.trials)}, indent=1))
    else:
        print(f"{job.id}: {len(plan.trials)} trials, submitted to {args.address}", flush=True)
        print(f"follow:  sweeper logs -f {job.sweep} --address {args.address}", flush=True)
    if not args.follow:
        return 0
    for text in cluster.follow(job):
        print(text, end="", flush=True)
    return _exit_status(cluster.wait(job.sweep))


def _exit_status(job: Job) -> int:
    """Of a sweep's driver: 0 all trials done, 1 not, 2 the input was wrong there, 130 stopped."""
    return job.exit_code if job.exit_code is not None else int(job.status != "SUCCEEDED")


def resume(args: argparse.Namespace) -> int:
    return _run_again(args, "resume")


def revive(args: argparse.Namespace) -> int:
    return _run_again(args, "revive")


def _run_again(args: argparse.Namespace, name: str) -> int:
    if is_remote(args):
        from sweeper.remote import bundle, job_facts

        with bundle(None, not args.no_ship) as folder:
            command = [name, args.sweep, *args.trial, *_remote_options(args)]
            job = _cluster(args).submit(args.sweep, command, folder, {ON_CLUSTER: "1", OWNER: owner()})
        print(json.dumps(job_facts(job), indent=1) if args.json else job.id)
        return 0
    if args.json:
        raise StoreError(
            f"--json is of a job on a cluster; here the sweep runs, and sweeper status {args.sweep} --json is"
        )
    store = Store(args.storage.resolve())
    facts = store.plan(args.sweep)
    keys = [store.find_trial(args.sweep, trial) for trial in args.trial]
    if name == "revive" and not keys:
        keys = [k for k in store.trials(args.sweep) if (store.trial(k).result() or {}).get("by") in EARLY]
    records = [store.trial(key) for key in keys]
    for record in records:
        if (record.result() or {}).get("status") == "finished":
            raise StoreError(f"{record.key} is finished; only what was stopped or has failed is resumed")
    with store.lock(args.sweep):  # refuses beside a driver, before anything is taken back
        for record in records:
            record.revive()
    args.spec = store.sweep_dir(args.sweep) / "sweep.yaml"
    args.data_root = Path(facts.get("data_root", args.spec.parent))
    args.tracking_uri = given_uri(args) or facts["tracking_uri"]
    if facts.get("owner"):  # whoever resumes it, it stays theirs
        os.environ[OWNER] = facts["owner"]
    return commands_local.run(args)


def stop(args: argparse.Namespace) -> int:
    from sweeper import control

    if args.trial:
        key, what = control.stop_trial(Store(args.storage), args.sweep, args.trial)
        facts = {"sweep": args.sweep, "trial": key, "stopped": what == "stopped", "what": what}
        print(json.dumps(facts) if args.json else f"{key}: {what}" if what == "stopped" else f"{key} {what}")
        return 0
    stopped = control.stop(Store(args.storage), args.sweep)
    if args.json:
        print(json.dumps({"sweep": args.sweep, "stopped": stopped}))
        return 0
    print(f"{args.sweep}: stopped; sweeper resume {args.sweep} continues" if stopped else f"{args.sweep}: not running")
    return 0


def wait(args: argparse.Namespace) -> int:
    if is_remote(args):
        cluster = _cluster(args)
        job = cluster.wait(args.sweep)
        if args.json:
            from sweeper.remote import job_facts

            print(json.dumps(job_facts(job), indent=1))
        else:
            print(f"{job.id}: {job.status}")
        if status := _exit_status(job):
            print("".join(cluster.logs(job).splitlines(keepends=True)[-5:]), end="", file=sys.stderr)
        return status
    from sweeper import control

    control.wait(Store(args.storage), args.sweep)
    return commands_local.status(args)


def list_(args: argparse.Namespace) -> int:
    if is_remote(args):
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


def logs(args: argparse.Namespace) -> int:
    if args.json and args.trial is None:
        raise StoreError("--json is of a trial's rows; name a TRIAL, or take sweeper status SWEEP --json")
    if is_remote(args) and args.trial is None:
        cluster = _cluster(args)
        job = cluster.newest(args.sweep)
        for text in cluster.follow(job) if args.follow else [cluster.logs(job)]:
            print(text, end="", flush=True)
        return 0
    if is_remote(args):
        from sweeper import remote

        command = ["logs", args.sweep, args.trial, *(["--json"] if args.json else []), *_only_storage(args)]
        if not args.follow:
            return ask(args, command)
        with remote.streamed(_cluster(args), [*command, "--follow"], {ON_CLUSTER: "1"}, not args.no_ship) as lines:
            for text in lines:
                print(text, end="", flush=True)
        return 0
    from sweeper.table import trial_log

    if args.trial is None:
        raise StoreError("a local run prints to its own terminal; name a TRIAL, or a cluster with --address")
    for line in trial_log(Store(args.storage), args.sweep, args.trial, args.follow, args.json):
        print(line, flush=True)
    return 0


def _only_storage(args: argparse.Namespace) -> list[str]:
    return ["--storage", str(args.given_storage)] if args.given_storage else []


def watch(args: argparse.Namespace) -> int:
    from sweeper import watch as live

    if is_remote(args):
        from sweeper import remote

        command = ["watch", args.sweep, "--json", *_only_storage(args)]
        with remote.streamed(_cluster(args), command, {ON_CLUSTER: "1"}, not args.no_ship) as lines:
            if args.json:
                for text in lines:
                    print(text, end="", flush=True)
                return 0
            last = live.show(live.from_lines(lines))
    elif args.json:
        for facts in live.stream(Store(args.storage), args.sweep):
            print(json.dumps(facts), flush=True)
        return 0
    else:
        last = live.show(live.stream(Store(args.storage), args.sweep))
    return 0 if last and last["over"] == last["trials"] and not last["failures"] else 1
