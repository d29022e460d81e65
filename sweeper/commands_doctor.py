"""sweeper doctor: is this cluster fit for a sweep, and for this one?"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.connect import ConnectError, connected, http_status
from cluster.finding import Finding, Level, exit_status, lines, verdict
from cluster.submit import READY_S, Cluster, ClusterError, JobTimeout, has_token
from sweeper.options import (
    ON_CLUSTER,
    add,
    cluster_options,
    data_root_of,
    given_uri,
    is_remote,
    json_option,
    sweep_of,
    tracking_options,
)

if TYPE_CHECKING:
    from sweeper.spec import SweepSpec

DOCTOR = """\
Look a cluster over before a sweep: every finding with what to do about it.

Asked of every node: does it answer, versions of packages, clock, /dev/shm, GPUs, is the storage there, writable and
the same everywhere. Of all of them: a token, an all-reduce between workers (gloo, and NCCL where there are GPUs).
Of the driver: MLflow. With SPEC also: room for its trials, disk for what they write, its data files on every node.

Exit status: 0 healthy (there may be warnings), 1 a sweep would break or not be recorded, 2 the input was wrong.
"""

ADDRESS = """\
http://HEAD:8265 (the doctor runs there, as a short job), host:port or auto
(it joins from here); default: Ray inside this process, on this machine"""

TOKEN = (
    "set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token (`ray get-auth-token` there prints it); "
    "a cluster that asks for none: --insecure"
)
UP = "is the head up, is this its address, and does a firewall let this port through? (`ray status` on the head)"
HANGS = "`ray status` on the head, and what the head's /tmp/ray/session_latest/logs say of this job"
STEPS = 5  # more than the steps of the doctor on a cluster that may take --time-limit each
PYTHON = "name an interpreter that has the packages of constraints.txt with --python (and leave --no-ship out)"


def add_commands(commands: Any) -> None:
    sub = add(commands, "doctor", DOCTOR, doctor)
    sub.add_argument("spec", metavar="SPEC", type=Path, nargs="?", help="a sweep file: is there room for it?")
    sub.add_argument("--data-root", metavar="DIR", type=Path, help="where relative paths in SPEC start")
    tracking_options(sub)
    cluster_options(sub, address=ADDRESS)
    sub.add_argument(
        "--time-limit",
        metavar="SECONDS",
        type=float,
        default=60.0,
        help="for a node's answer (default: 60); a doctor that runs as a job gets a minute and five times as long",
    )
    json_option(sub)


def doctor(args: argparse.Namespace) -> int:
    spec = None
    if args.spec is not None:
        spec = sweep_of(args)
    if is_remote(args):
        findings = _ask(args, None if spec is None else spec.text)
        if findings is None:
            return 2
    else:
        findings = _look(args, spec)
    if args.json:
        facts = {"healthy": not exit_status(findings), "verdict": verdict(findings)}
        print(json.dumps(facts | {"findings": [asdict(finding) for finding in findings]}, indent=1))
    else:
        print("\n".join(lines(findings)))
    return exit_status(findings)


def _look(args: argparse.Namespace, spec: SweepSpec | None) -> list[Finding]:
    """From this process, which is the driver."""
    from cluster.diagnosis import diagnose
    from cluster.doctor import examine
    from sweeper import doctor as sweep
    from sweeper.plan import make_plan
    from sweeper.tracking import default_uri, reach

    storage = args.storage.resolve()
    plan = None if spec is None else make_plan(spec, data_root_of(args))
    files = [] if plan is None else sweep.data_files(plan)
    if args.address is not None and has_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        with connected(args.address):
            facts = examine(storage, files, args.time_limit)
    except ConnectError as error:
        findings = [refused(str(error), "driver")]
    else:
        findings = diagnose(facts, args.insecure) + sweep.room(facts, plan, storage)
    if plan is not None:
        findings += sweep.data(plan.missing, files)
    uri = given_uri(args) or default_uri(storage)
    return [*findings, sweep.tracking(uri, *reach(uri))]


def _ask(args: argparse.Namespace, text: str | None) -> list[Finding] | None:
    """On the cluster, by a short job that travels with the sweep file. None: the job says that the input was wrong."""
    from sweeper import remote

    findings = [token(args.address, http_status(f"{args.address}/api/version"), args.insecure)]
    if findings[0].level == "error" and not (findings[0].check == "token" and has_token()):
        return findings
    words = ["doctor", *([remote.SPEC] if text is not None else []), "--address", "auto", "--json"]
    given = {"--storage": args.given_storage, "--tracking-uri": args.tracking_uri, "--data-root": args.data_root}
    given["--time-limit"] = args.time_limit
    words += [word for name, value in given.items() if value is not None for word in (name, str(value))]
    try:
        cluster = Cluster(args.address, args.python, insecure=True)  # whether that is meant was judged above
        words += ["--insecure"] if args.insecure else []
        limit_s = READY_S + STEPS * args.time_limit
        printed, code = remote.ask(cluster, words, {ON_CLUSTER: "1"}, not args.no_ship, text, limit_s)
    except JobTimeout as error:
        return [*findings, Finding("error", "job", str(error), "client", HANGS)]
    except ClusterError as error:
        return [*findings, refused(str(error), "client")]
    start = printed.find('{\n "healthy"')
    if start >= 0:
        facts, _ = json.JSONDecoder().raw_decode(printed[start:])
        return findings + [Finding(**finding) for finding in facts["findings"]]
    if code == 2:
        print(printed, end="", file=sys.stderr)
        return None
    last = (printed.strip().splitlines() or ["it printed nothing"])[-1]
    return [*findings, Finding("error", "job", f"the doctor does not run on the cluster: {last}", "client", PYTHON)]


def token(address: str, answer: tuple[int | None, str], insecure: bool) -> Finding:
    """answer: of the Jobs API to a request without a token, see http_status."""
    status, reason = answer
    if status is None:
        return Finding("error", "connection", f"nobody answers at {address}: {reason}", "client", UP)
    if status == 401:
        if has_token():
            return Finding("ok", "token", f"{address} asks for one", "client")
        return Finding("error", "token", f"{address} asks for one, and none is at hand", "client", TOKEN)
    if status != 200:
        return Finding(
            "error", "connection", f"{address} answers {status}, which Ray's Jobs API does not", "client", UP
        )
    level: Level = "warning" if insecure else "error"
    what = f"{address} asks for none: whoever reaches it runs what they like there"
    remedy = "start Ray with RAY_AUTH_MODE=token and a token on every node" + (
        "" if insecure else ", or say --insecure"
    )
    return Finding(level, "token", what, "client", remedy)


def refused(reason: str, where: str) -> Finding:
    """A connection that failed, by what Ray says of it."""
    from cluster.versions import REMEDY

    line = " ".join(reason.split())[:300]
    if "ersion mismatch" in reason:
        return Finding("error", "versions", line, where, REMEDY)
    if "uthenticat" in reason or "oken" in reason:
        return Finding("error", "token", line, where, TOKEN)
    return Finding("error", "connection", line, where, UP)
