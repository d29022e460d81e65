"""What ended a lane: a death, which is worth another try, or something raised, which would be raised again."""

import inspect
import threading
from pathlib import Path

import pytest
import ray
from ray.train import RunConfig, ScalingConfig, WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError
from ray.train.v2._internal.execution import collective_impl, context
from ray.train.v2._internal.execution.checkpoint.sync_actor import SynchronizationActor
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup, state, worker_group
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from jobs.process_group import serve
from sweeper import lane_trainer
from sweeper.board import Barrier
from sweeper.lane_trainer import UNUSED, LaneTrainer
from sweeper.lanes import _reason, is_death

DEATH = WorkerHealthCheckFailedError("worker 1", ray.exceptions.RayActorError())
GLOO = RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1")
NCCL = RuntimeError("NCCL error: remote process exited")


@pytest.mark.parametrize("error", [DEATH, ray.exceptions.RayActorError(), GLOO, NCCL])
def test_a_dead_worker_or_a_peer_that_is_gone_is_a_death(error: Exception) -> None:
    assert is_death(error)


@pytest.mark.parametrize("wrapped", [True, False])
def test_what_a_trial_raised_is_none_however_it_is_handed_on(wrapped: bool) -> None:
    raised = ValueError("no such layer")
    assert not is_death(UserExceptionWithTraceback(raised, "Traceback ...") if wrapped else raised)


def test_one_death_among_the_workers_is_the_reason_for_all() -> None:
    assert _reason(WorkerGroupError("two failed", {0: ValueError("broken off"), 1: DEATH}))[1]
    text, died = _reason(WorkerGroupError("one failed", {0: ValueError("no such layer")}))
    assert not died
    assert "no such layer" in text


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
