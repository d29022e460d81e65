"""Run a sweep: plan -> prepared backbones -> Tune over lanes -> MLflow -> report. Running it again continues it."""

from __future__ import annotations

import gc
import importlib.util
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.connect import HEAD, connected, nodes
from cluster.resources import Node, Shape, lanes_that_fit, total
from jobs.backbone import check_backbone, convert_gguf, has_chat_template, positions_of
from jobs.pretrain import pretrain
from jobs.sources import NO_TEMPLATE, TaskError
from jobs.spec import BackboneSpec, TrialSpec
from jobs.task_spec import TaskSpec
from sweeper import control
from sweeper.fitting import fitting
from sweeper.gpu_memory import placed, shape_of, smallest_shape
from sweeper.grouping import in_order, kin_of
from sweeper.plan import Plan
from sweeper.progress import Progress, bar
from sweeper.race import standing
from sweeper.results import status_of
from sweeper.shared import Shared
from sweeper.spec import SpecError
from sweeper.store import Claims, Store
from sweeper.tracking import TrackingThread

if TYPE_CHECKING:
    from jobs.corpus import Reader

AT_BOARD = 100_000  # who may wait at the board at once: every trial under way, and every worker of every lane twice
BOARD_DIED = "the sweep's board, Ray's actor Board, has died; run it again: trials go on from their newest checkpoints"
OVER = ("finished", "stopped")


def pending_trials(store: Store, plan: Plan) -> list[TrialSpec]:
    """What is still to do: trials without a last word, and those that failed; the largest first, like beside like."""
    todo = [t for t in plan.trials if status_of(store.trial(t.key).result()) not in OVER]
    return sorted(todo, key=lambda t: shape_of(t.execution), reverse=True)


def run_sweep(plan: Plan, store: Store, uri: str, address: str | None, data_root: Path) -> int:
    """Train what is not finished yet. Returns the number of trials that failed or did not end."""
    name = plan.spec.settings.name
    with store.lock(name), Claims(store.root) as claims:
        pending = pending_trials(store, plan)
        read = check_inputs(pending, store.root)
        facts = {"source": plan.spec.source, "tracking_uri": uri, "data_root": str(data_root.resolve())}
        store.save_plan(name, plan.spec.text, plan.trials, facts)
        say = Progress(plan, len(plan.trials) - len(pending))
        with TrackingThread(store, name, uri) as tracking:
            if pending:
                with connected(address, preload="jobs.preload"):
                    _tune_or_say_why_not(plan, pending, store, say, address, read, claims)
        if tracking.error is not None:
            print(
                f"MLflow at {uri} could not be written ({tracking.error}); later: sweeper sync {name}", file=sys.stderr
            )
        return len(pending_trials(store, plan))


def check_inputs(trials: list[TrialSpec], root: Path) -> Reader:
    """Read every backbone's files, and the rows of tasks that no earlier run has read, before anything starts.

    Weights and rows are read once a storage.
    Returns what has read them, for `prepare`, so that nothing is read twice.
    Raises TaskError, BackboneError or SpecError.
    """
    if any(trial.evaluation.engine == "vllm" for trial in trials) and importlib.util.find_spec("vllm") is None:
        reason = "vllm is not installed; pip install 'objective-continuum[vllm]', or leave engine out for transformers"
        raise SpecError("evaluation.engine", [reason])
    from jobs.corpus import Reader

    read = Reader(root)
    for task in dict.fromkeys(trial.task for trial in trials):
        read.check(task)
    for backbone, length in {(trial.backbone, trial.train.max_length) for trial in trials}:
        check_backbone(backbone, root, length)
    for backbone, task in dict.fromkeys((trial.backbone.bare(), trial.task) for trial in trials):
        if _has_chats(task) and not has_chat_template(backbone, root):
            raise TaskError(f"task '{task.name}', backbone '{backbone.name}': {NO_TEMPLATE}")
    for backbone in dict.fromkeys(trial.backbone for trial in trials):
        if backbone.gguf is None:  # which is unpacked first
            _check_weights(backbone, root)
    return read


def _check_weights(backbone: BackboneSpec, root: Path) -> int | None:
    from jobs.weights_check import check_weights

    with bar(f"checking the weights of {backbone.name}", "tensor") as progress:
        return check_weights(backbone, root, progress)


def _has_chats(task: TaskSpec) -> bool:
    return any(one.messages or one.system for one in (task, *task.benchmarks)) or any(map(_has_chats, task.parts))


def prepare(trials: list[TrialSpec], root: Path, read: Reader | None = None) -> None:
    """Make what trials load, once a storage: built-in backbones, unpacked GGUF files, tasks as token ids.

    Raises TaskError where examples do not fit in a trial's max_length, problems and their answers in the backbone's
    positions, or tokens in its embeddings; BackboneError for a GGUF that cannot be trained, and for weights that are
    not those of the model.
    """
    from jobs.corpus import Reader, corpus_for

    builtin: dict[str, set[int]] = {}
    for trial in trials:
        backbone = trial.backbone
        if backbone.builtin is not None:
            builtin.setdefault(backbone.builtin, set()).add(backbone.pretrain_steps or 0)
        elif backbone.gguf is not None:
            convert_gguf(backbone, root)
            check_backbone(backbone, root, trial.train.max_length)
    for name, steps in builtin.items():
        with bar(f"pre-training {name}", "step") as progress:
            pretrain(root, name, steps, progress)
    rows: dict[BackboneSpec, int | None] = {}
    for backbone in dict.fromkeys(trial.backbone for trial in trials):
        rows[backbone.bare()] = _check_weights(backbone, root)
    made, read = {}, read or Reader(root)
    for backbone, task in dict.fromkeys((trial.backbone.bare(), trial.task) for trial in trials):
        with bar(f"tokenising {task.name} for {backbone.name}", "example") as progress:
            made[backbone, task] = corpus_for(backbone, task, root, progress, read)
        made[backbone, task].check_ids(backbone.name, rows[backbone])
    cuts = {(t.backbone.bare(), t.task, t.train.max_length, t.train.overlong) for t in trials}
    with warnings.catch_warnings(action="ignore"):  # what is cut is said with the backbone's measure
        for backbone, task, max_length, overlong in cuts:
            made[backbone, task].rows("train", max_length, overlong)
            made[backbone, task].heldout_rows(max_length, overlong)
    for backbone, task, longest in {(t.backbone.bare(), t.task, t.evaluation.max_new_tokens) for t in trials}:
        made[backbone, task].check_positions(backbone.name, positions_of(backbone, root), longest)


def _tune_or_say_why_not(plan: Plan, pending: list[TrialSpec], store: Store, say: Progress, *more: Any) -> None:
    from ray.exceptions import RayActorError

    try:
        _tune(plan, pending, store, say, *more)
    except RayActorError as error:
        say.line(f"{BOARD_DIED} ({str(error).splitlines()[0]})")


def _tune(
    plan: Plan, pending: list[TrialSpec], store: Store, say: Progress, address: str | None, read: Reader, claims: Claims
) -> None:
    import ray

    from cluster.broker import Share
    from sweeper import watch
    from sweeper.board import Board
    from sweeper.lanes import LanePool
    from sweeper.scheduler import make_scheduler
    from sweeper.tuning import tune_round

    gc.freeze()  # all that was imported: when Ray is shut down, only what came after it is looked through
    settings = plan.spec.settings

    def ended_elsewhere(key: str, names: str) -> None:
        result, rows = store.trial(key).result() or {}, store.trial(key).rows()
        row = (rows[-1] if rows else {}) | {"error": result.get("error", "")}
        say.ended(key, status_of(result), row, names)

    shared = Shared(store, settings.name, claims, [t.key for t in pending], ended_elsewhere, say.line)
    scheduler = make_scheduler(plan, store)
    trials = {trial.key: fitting(trial, store.root) for trial in pending}
    places = {key: placed(trial, store.root) for key, trial in trials.items()}
    shapes = {shape for trial in pending for shape in (shape_of(trial.execution), smallest_shape(trial))}
    specs = {key: trial.model_dump_json() for key, trial in trials.items()}
    count = _most_lanes(shapes, settings.concurrency or len(pending), grows=address is not None)
    if (idle := gpus_left_idle(pending, nodes())) is not None:
        say.line(idle)
    kin = kin_of(trials, settings.together, count, store.root)
    # on the head, which a sweep cannot do without; any other node may go
    board: Any = ray.remote(num_cpus=0, resources=HEAD, max_concurrency=AT_BOARD)(Board).remote(
        specs, places, scheduler is not None, None if settings.lanes else 1, kin
    )
    ray.get(board.hold.remote(dict.fromkeys(shared.mine)))  # for the others no lanes
    share = Share(f"{settings.name}-{time.time_ns()}", settings.name, settings.priority, alone=address is None)
    with LanePool(
        board, trials, places, store.root, settings.name, share, settings.concurrency,
        partial(_stop_requests, store, settings.name, shared, say), say.line,
    ):  # fmt: skip
        prepare(pending, store.root, read)  # while the lanes come up
        # one more than lanes train, so that the next trial is posted when a lane comes free
        most = count * max([1, *(one.most for one in kin.values())]) + 1
        callback, folder = _callback(store, say), store.sweep_dir(settings.name)
        with watch.beside(store, settings.name):
            for round_ in _rounds(plan, store, list(specs), say, shared):
                keys = in_order(list(round_), kin)
                ray.get(board.hold.remote(round_))
                tune_round(keys, board, settings.max_failures, most, scheduler, callback, folder)


def _stop_requests(store: Store, sweep: str, shared: Shared, say: Progress) -> list[str]:
    """Keys of trials that somebody wants stopped and that are this driver's."""
    asked = control.stop_requests(store, sweep)
    mine = [key for key in asked if shared.take(key)]
    for key in asked:
        if key in shared.theirs:
            say.line(f"{key} is under way in {shared.names}; stop it there")
    return mine


def _rounds(
    plan: Plan, store: Store, keys: list[str], say: Progress, shared: Shared
) -> Iterator[dict[str, int | None]]:
    """What to train next, each trial to its end or to the step at which it is held: one round, or as a race goes.

    keys: what is to do; every round is in their order. Between rounds the race's losers get their last word. All is
    read from the record, so a killed race goes on.
    """
    spec = plan.spec.settings.scheduler
    if spec.name != "race":
        left = keys
        while left:
            if able := [key for key in left if shared.take(key)]:
                yield dict.fromkeys(able)
            else:
                shared.wait()
            still = set(shared.left())
            left = [key for key in left if key in still]
        return
    from sweeper.scheduler import cells_of

    tried: dict[str, int | None] = {}
    first: dict[str, int | None] = dict.fromkeys(t.key for t in plan.trials if t.objective is None and t.key in keys)
    while True:
        todo, others = first, shared.left()
        for runners in cells_of(plan, store).values():
            found = standing(runners, spec.grace_steps, spec.reduction_factor, spec.confidence)
            for key, rung in found.stop.items():
                if shared.take(key) and store.trial(key).result() is None:
                    store.trial(key).finish("stopped", by="race", step=rung)
                    say.ended(key, "stopped", {"step": rung})
            todo |= found.run
        # a trial that did not come to where it was sent has no worker any more (the sweep is being stopped)
        todo = {key: todo[key] for key in keys if key in todo and (key not in tried or tried[key] != todo[key])}
        mine = {key: to for key, to in todo.items() if shared.take(key)}
        if mine:
            yield mine
        elif others:  # to come to a rung, or to their end
            shared.wait()
        else:
            return
        tried |= mine
        first = {key: None for key in first if key not in mine}


def _most_lanes(shapes: set[Shape], most: int, grows: bool) -> int:
    """Lanes that there may be at once, over all shapes; a cluster may come to twice its size while the sweep runs.

    Raises PlacementError where a shape can never be placed.
    """
    fit = max([lanes_that_fit(nodes(), shape) for shape in sorted(shapes)])
    return min(most, 2 * fit if grows else fit)


def gpus_left_idle(trials: list[TrialSpec], nodes: Sequence[Node]) -> str | None:
    """What to say where the cluster has GPUs and all trials are for CPUs."""
    gpus = total(nodes).get("GPU", 0.0)
    if not gpus or any(shape_of(trial.execution).gpus for trial in trials):
        return None
    return f"the cluster has {gpus:g} GPU that no trial asks for; execution.gpus_per_worker: auto trains on them"


def _callback(store: Store, say: Progress) -> Any:
    from ray import tune

    class Ends(tune.Callback):
        """Every end of a trial goes to the record (failures: only the driver knows) and to the terminal."""

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
            key, result = trial.config["key"], trial.last_result or {}
            folder = store.trial(key)
            if result.get("status") == "failed" and folder.result() is None:
                folder.finish("failed", error=last_lines(str(result["error"])))
            if result.get("status") == "held":
                return  # of a race: it goes on, or its last word comes, when the others are there
            if result.get("status") == "stopped":  # by hand, while its worker had died
                folder.stop_by_hand()
            say.ended(key, status_of(folder.result()), result)

    return Ends()


def last_lines(error: str, count: int = 30) -> str:
    """The end of a traceback, where the reason stands."""
    return "\n".join(error.strip().splitlines()[-count:])
