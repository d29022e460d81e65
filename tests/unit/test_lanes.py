"""What ended a lane: a death, which is worth another try, or something raised, which would be raised again."""

import inspect
import threading
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.train import RunConfig, ScalingConfig, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2._internal.execution import collective_impl, context
from ray.train.v2._internal.execution.checkpoint.sync_actor import SynchronizationActor
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup, state, worker_group
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from jobs.failure import Failure, Kind
from jobs.process_group import serve
from sweeper import lane_trainer
from sweeper.board import Barrier
from sweeper.lane_trainer import UNUSED, LaneTrainer
from sweeper.lanes import why_ended

DEATH = WorkerHealthCheckFailedError("worker 1", ray.exceptions.RayActorError())
GLOO = RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1")
NCCL = RuntimeError("NCCL error: remote process exited")


def told(*errors: Exception) -> list[dict[str, Any]]:
    return [Failure.of(error, rank).record() for rank, error in enumerate(errors)]


@pytest.mark.parametrize("peer", [GLOO, NCCL])
def test_a_peer_that_is_gone_is_the_death_of_that_peer(peer: Exception) -> None:
    failure = why_ended(WorkerGroupError("two failed", {0: peer, 1: DEATH}), told(peer))
    assert (failure.kind, failure.rank) == (Kind.WORKER_DIED, 1)


def test_what_a_rank_has_raised_is_the_reason_whatever_became_of_the_others() -> None:
    failures = {0: GLOO, 1: ValueError("no such layer"), 2: DEATH}
    failure = why_ended(WorkerGroupError("three failed", failures), told(GLOO, ValueError("no such layer")))
    assert (failure.kind, failure.rank, failure.line) == (Kind.ERROR, 1, "ValueError: no such layer")


def test_deaths_of_machines_memory_and_processes_are_told_apart() -> None:
    words = {
        Kind.NODE_LOST: "The actor died because its node has died. Node Id: 12",
        Kind.OUT_OF_MEMORY: "Task was killed due to the node running low on memory.",
        Kind.WORKER_DIED: "Worker unexpectedly exits with a connection error code 2. SIGKILL",
    }
    for kind, text in words.items():
        failure = why_ended(WorkerGroupError("one failed", {0: ray.exceptions.RayActorError(error_msg=text)}), [])
        assert (failure.kind, failure.rank, failure.traceback) == (kind, 0, text)
        assert failure.line


def test_a_node_that_was_taken_back_is_no_death() -> None:
    gone = WorkerHealthCheckFailedError("worker 0", ray.exceptions.RayActorError(preempted=True))
    assert why_ended(WorkerGroupError("one failed", {0: gone}), []).kind is Kind.PREEMPTED


def test_what_a_lane_does_without_is_there_upstream_and_left_out(tmp_path: Path) -> None:
    """Another Ray may rename it, and then start its processes again."""
    trainer = LaneTrainer(
        serve,
        board=None,
        lane="lane-0",
        unwanted=threading.Event(),
        scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(name="lane", storage_path=str(tmp_path)),
    )
    upstream = {type(callback).__name__ for callback in DataParallelTrainer._create_default_callbacks(trainer)}
    ours = {type(callback).__name__ for callback in trainer._create_default_callbacks()}
    assert upstream - ours == UNUSED
    assert ours


@pytest.mark.parametrize(
    ("ours", "upstream"),
    [
        (LaneTrainer, DataParallelTrainer),
        (lane_trainer._Workers, WorkerGroup),
        (lane_trainer._Fixed, FixedScalingPolicy),
    ],
)
def test_whatever_a_lane_overrides_is_there_upstream_with_the_same_arguments(ours: type, upstream: type) -> None:
    changed = {name: value for name, value in vars(ours).items() if not name.startswith("__")}
    assert TrainController.worker_group_cls is WorkerGroup
    for name, value in changed.items():
        if callable(value) and not isinstance(value, type):
            theirs = inspect.signature(getattr(upstream, name)).parameters
            assert [(p.name, p.kind) for p in inspect.signature(value).parameters.values()] == [
                (p.name, p.kind) for p in theirs.values()
            ] or any(p.kind is p.VAR_KEYWORD for p in theirs.values()), name
        else:
            assert name in vars(upstream), name
    assert changed.keys() - {"_abc_impl"}


def test_the_barrier_of_workers_is_called_as_upstream_calls_its_actor_and_starts_none() -> None:
    """The names that stand in for upstream's are those which it looks up, and a barrier takes what it is given."""
    starts, ends = inspect.getsource(WorkerGroup), inspect.getsource(state)
    assert "SynchronizationActor.options(" in starts
    assert ends.count("_shutdown_sync_actor(self.sync_actor)") == 2
    assert worker_group.SynchronizationActor.options(label_selector={}).remote(timeout_s=1) is not None
    given = inspect.signature(SynchronizationActor.__ray_metadata__.modified_class.broadcast_from_rank_zero).parameters
    wanted = inspect.signature(Barrier.remote).parameters
    assert {name for name, p in wanted.items() if p.kind is p.KEYWORD_ONLY} <= given.keys()
    calls = inspect.getsource(collective_impl) + inspect.getsource(context)
    assert calls.count(".broadcast_from_rank_zero.remote(") == calls.count("get_synchronization_actor()") == 3
