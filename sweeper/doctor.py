"""What a sweep needs besides a healthy cluster: room for its trials, disk for what they write, its data, MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cluster.facts import ClusterFacts
from cluster.finding import Finding, size
from cluster.resources import PlacementError, Shape, lanes_that_fit
from sweeper.disk_need import DiskNeed, disk_need
from sweeper.gpu_memory import shape_of
from sweeper.plan import Plan, named_files
from sweeper.run import pending_trials
from sweeper.store import Store

LITTLE = 1 << 30  # bytes: less than this free is worth a word whatever the plan
LATER = "a sweep would train all the same, and `sweeper sync` brings MLflow up to date afterwards"


def room(facts: ClusterFacts, plan: Plan | None, storage: Path) -> list[Finding]:
    """Whether the trials that are still to run can be placed, and have space to write."""
    if plan is None:
        return [disk(facts, None)]
    settings, pending = plan.spec.settings, pending_trials(Store(storage), plan)
    shapes = sorted({shape_of(trial.execution) for trial in pending})
    if not shapes:
        return [disk(facts, None)]
    placed = [placing(facts, shape) for shape in shapes]
    at_once = max(count for _, count in placed)
    need = disk_need(pending, storage, min(at_once, settings.concurrency or at_once))
    return [*(finding for finding, _ in placed), disk(facts, need)]


def placing(facts: ClusterFacts, shape: Shape) -> tuple[Finding, int]:
    """Whether the workers of a trial find room, all of them together; and how many trials do at once. Pure."""
    nodes = [{"CPU": float(node.cpus), "GPU": float(node.gpus)} for node in facts.nodes if not node.error]
    try:
        at_once = lanes_that_fit(nodes, shape)
    except PlacementError as error:
        what, _, remedy = str(error).partition("; lower ")
        return Finding("error", "plan", what, "cluster", f"lower {remedy}"), 0
    return Finding("ok", "plan", f"room for {at_once} trial(s) at once, of {shape} each", "cluster"), at_once


def disk(facts: ClusterFacts, need: DiskNeed | None) -> Finding:
    """Free space of the storage, as who has the least sees it, against what a plan takes at its peak. Pure."""
    seen = [facts.driver_storage.free, *(node.storage.free for node in facts.nodes if node.storage)]
    free = min((value for value in seen if value is not None), default=0)
    text, peak = f"{size(free)} free", 0
    if need is not None:
        peak = need.peak_bytes
        text += f", the plan takes about {size(peak)} at its peak"
        if need.unknown:
            text += f", and what {', '.join(need.unknown)} takes, not known before it is there"
    if free < peak:
        remedy = "free some, or name a larger --storage; train.keep_model: false, zero_stage: 3 and a smaller "
        return Finding("error", "disk", text, "cluster", f"{remedy}concurrency take less")
    if free < LITTLE:
        return Finding("warning", "disk", text, "cluster", "free some, or name a larger --storage")
    return Finding("ok", "disk", text, "cluster")


def data_files(plan: Plan) -> list[str]:
    """Files and model directories that the plan names and that the driver finds: its workers need them, too."""
    named = [path for trial in plan.trials for part in (trial.backbone, trial.task) for path in named_files(part)]
    return [path for path in dict.fromkeys(named) if Path(path).exists()]


def data(notes: Sequence[str], files: Sequence[str]) -> list[Finding]:
    """notes: what the plan says of files that the driver does not find; files: those that it does. Pure."""
    if not notes:
        return [Finding("ok", "data", f"{len(files)} files of the plan are there", "driver")] if files else []
    remedy = "put it where the driver runs, or correct the sweep file or --data-root"
    return [Finding("error", "data", note, "driver", remedy) for note in notes]


def tracking(uri: str, status: int | None, words: str) -> Finding:
    """status: of HTTP, None where nobody answered; words: of the server, or the reason. Pure."""
    if status == 200:
        return Finding("ok", "MLflow", f"{uri} {words or 'answers'}", "driver")
    if status is None:
        words = "connection refused" if "refused" in words else words
        remedy = "start the server, open its port to the driver's node, or name another with --tracking-uri"
        return Finding("error", "MLflow", f"{uri} does not answer: {words}", "driver", f"{remedy}; {LATER}")
    if "host header" in words.lower():
        remedy = "start the server with --allowed-hosts and the name (with port) by which the driver calls it"
    else:
        remedy = {
            401: "give the driver MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
            403: "give the driver's user the right to make experiments there",
            404: "is this an MLflow server's address, path and all?",
        }.get(status, "look into the server's log")
    return Finding("error", "MLflow", f"{uri} answers {status}: {words}", "driver", f"{remedy}; {LATER}")
