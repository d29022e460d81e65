"""Run a sweep: plan -> prepared backbones -> Tune over lanes -> MLflow -> report. Running it again continues it."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.connect import HEAD, connected, nodes
from cluster.resources import Node, Shape, lanes_that_fit, total
from jobs.failure import Failure, Kind
from jobs.record import DAMAGED
from jobs.spec import TrialSpec
from sweeper import control
from sweeper.fitting import fitting
from sweeper.gpu_memory import placed, shape_of, smallest_shape
from sweeper.grouping import in_order, kin_of
from sweeper.inputs import Refused, checked, prepared
from sweeper.kept import weights_not_kept
from sweeper.plan import Plan
from sweeper.progress import Progress
from sweeper.race import standing
from sweeper.results import OVER, status_of
from sweeper.retries import Retries
from sweeper.shared import Shared
from sweeper.spec import SpecError
from sweeper.store import Claims, Store
from sweeper.tracking_thread import TrackingThread

if TYPE_CHECKING:
    from jobs.corpus import Reader

AT_BOARD = 100_000  # who may wait at the board at once: every trial under way, and every worker of every lane twice
BOARD_DIED = "the sweep's board, Ray's actor Board, has died; run it again: trials go on from their newest checkpoints"


def pending_trials(store: Store, plan: Plan) -> list[TrialSpec]:
    """Trials without a result, and those that failed or were paused; the largest first, like beside like."""
    todo = [t for t in plan.trials if status_of(store.trial(t.key).result()) not in (*OVER, DAMAGED)]
    return sorted(todo, key=lambda t: shape_of(t.execution), reverse=True)


def run_sweep(plan: Plan, store: Store, uri: str, address: str | None, data_root: Path, owner: str = "") -> int:
    """Train what is not finished yet. Returns the number of trials that failed or did not end.

    owner: who runs it; the sweep of that name may be somebody else's (StoreError)
    """
    name = plan.spec.settings.name
    with store.lock(name), Claims(store.root) as claims:
        store.check_owner(name, owner)
        if (reason := weights_not_kept(store, plan)) is not None:
            raise SpecError(plan.spec.source, [reason])
        damaged = _damaged(store, plan)
        pending = [trial for trial in pending_trials(store, plan) if trial.key not in damaged]
        read, refused = checked(pending, store.root)
        if len(pending) == len(plan.trials):  # else something was trained, and the report stands
            refused.raise_if_all(pending)
        facts = {"source": plan.spec.source, "tracking_uri": uri, "data_root": str(data_root.resolve()), "owner": owner}
        store.save_plan(name, plan.spec.text, plan.trials, facts)
        say = Progress(plan, len(plan.trials) - len(pending))
        _turned_away(refused, store, say)
        pending = refused.left(pending)
        with TrackingThread(store, name, uri, say.line) as tracking:
            if pending:
                with connected(address, preload="jobs.preload"):
                    _tune_or_say_why_not(plan, pending, store, say, address, read, claims)
        if tracking.reason is not None:
            print(
                f"MLflow at {uri} could not be written ({tracking.reason}); later: sweeper sync {name}", file=sys.stderr
            )
        return len({trial.key for trial in pending_trials(store, plan)} | damaged.keys())


def _damaged(store: Store, plan: Plan) -> dict[str, str]:
    """Trials whose record cannot be read, and what to do; each is said in a line, and all others are trained."""
    found = {trial.key: damage for trial in plan.trials if (damage := store.trial(trial.key).damage()) is not None}
    for key, damage in found.items():
        print(f"damaged: {key}: {damage}", file=sys.stderr)
    return found


def _turned_away(refused: Refused, store: Store, say: Progress) -> None:
    """Record the trials whose backbone refuses the task: they failed, and no worker has to find out."""
    for key, reason in refused.reasons.items():
        folder = store.trial(key)
        folder.create(say.trials[key])
        failure = Failure(Kind.ERROR, "TaskError", reason, "", "", None)
        folder.finish("failed", error=failure.line, failure=failure.record())
        say.ended(key, "failed", {"error": reason})


def _tune_or_say_why_not(plan: Plan, pending: list[TrialSpec], store: Store, say: Progress, *more: Any) -> None:
    from sweeper.lanes import BOARD_LOST

    try:
        _tune(plan, pending, store, say, *more)
    except BOARD_LOST as error:
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
        board, trials, places, store.root, settings.name, share, settings.concurrency, Retries(settings.max_failures),
        partial(_stop_requests, store, settings.name, shared, say), say.line,
    ):  # fmt: skip
        refused = prepared(pending, store.root, read)  # while the lanes come up
        refused.raise_if_all(plan.trials)
        _turned_away(refused, store, say)
        keys = [trial.key for trial in refused.left(pending)]
        # one more than lanes train, so that the next trial is posted when a lane comes free
        most = count * max([1, *(one.most for one in kin.values())]) + 1
        callback, folder = _callback(store, say), store.sweep_dir(settings.name)
        with watch.beside(store, settings.name):
            for round_ in _rounds(plan, store, keys, say, shared):
                ray.get(board.hold.remote(round_))
                tune_round(in_order(list(round_), kin), board, most, scheduler, callback, folder)


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
                failure = Failure.read(result["failure"]).at(folder.last_step())
                folder.finish("failed", error=failure.line, failure=failure.record())
            if result.get("status") == "paused" and folder.result() is None:
                folder.finish("paused", error=result["error"])
            if result.get("status") in ("held", "paused"):
                return  # a race decides between its rounds; the pool of lanes has said why others are paused
            if result.get("status") == "stopped":  # by hand, while its worker had died
                folder.stop_by_hand()
            say.ended(key, status_of(folder.result()), result | {"error": (folder.result() or {}).get("error")})

    return Ends()
