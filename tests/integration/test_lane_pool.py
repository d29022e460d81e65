"""The pool of lanes beside its board, a real actor, without lanes: what it does with what it is told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.util import placement_group, placement_group_table, remove_placement_group

from cluster.broker import Share
from jobs.record import TrialFolder
from jobs.spec import TrialSpec
from sweeper.board import Board
from sweeper.gpu_memory import placed, remember
from sweeper.gpu_share import Measure
from sweeper.lane_trainer import LaneTrainer
from sweeper.lanes import LanePool
from sweeper.retries import Retries

from ..unit.test_gpu_share import auto, trial
from .conftest import until

GIB = 1 << 30


@pytest.fixture(scope="module")
def embedded() -> Iterator[None]:
    """Plain: this process has read Ray's settings already, so it could not get in by the token of an own one."""
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def pool_of(trials: list[TrialSpec], root: Path) -> tuple[LanePool, Any]:
    """With its board; every trial is posted."""
    by_key = {trial.key: trial for trial in trials}
    places = {key: placed(trial, root) for key, trial in by_key.items()}
    specs = {key: trial.model_dump_json() for key, trial in by_key.items()}
    board: Any = ray.remote(num_cpus=0)(Board).remote(specs, places, False, None)
    for key in by_key:
        ray.get(board.post.remote(key))
    share = Share("pool", "pool", 1, alone=True)
    return LanePool(board, by_key, places, root, "pool", share, None, Retries(0), list, lambda line: None), board


def keys(board: Any, lane: str, index: int) -> list[str]:
    return [job["key"] for job in ray.get(board.next_jobs.remote(lane, index), timeout=10)]


@pytest.mark.usefixtures("embedded")
def test_a_kind_that_another_sweep_has_measured_first_is_placed_all_the_same(tmp_path: Path) -> None:
    """Two sweeps on a storage measure a kind at once; the second one's trials wait for no measure any more."""
    one, two = auto(seed=1), auto(seed=2)
    pool, board = pool_of([one, two], tmp_path)
    ray.get(board.open.remote("whole", placed(one, tmp_path).shape))
    assert keys(board, "whole", 0) == [one.key]
    measure = {"peak_bytes": 10 * GIB, "outside_bytes": 0, "total_bytes": 80 * GIB}
    remember(one, Measure(**measure), tmp_path)  # by the other sweep
    ray.get(board.measured.remote(one.key, measure))
    ray.get(board.say.remote(one.key, {"kind": "finished", "row": {}}))
    for key, taken in ray.get(board.take_measures.remote()):
        pool._note(key, Measure(**taken))
    ray.get(board.open.remote("part", placed(two, tmp_path).shape))
    assert keys(board, "part", 0) == [two.key]


@pytest.mark.usefixtures("embedded")
def test_what_ends_between_a_request_to_stop_it_and_the_stop_keeps_its_result(tmp_path: Path) -> None:
    spec = auto()
    pool, board = pool_of([spec], tmp_path)
    ray.get(board.open.remote("whole", placed(spec, tmp_path).shape))
    keys(board, "whole", 0)
    folder = TrialFolder(tmp_path / "trials" / spec.key)
    folder.finish("finished", step=8)
    ray.get(board.say.remote(spec.key, {"kind": "finished", "row": {}}))
    pool._drop(spec.key)
    assert (folder.result() or {})["status"] == "finished"


class Breaks(WorkerGroupCallback):
    """As the death of a worker at that moment does."""

    def after_worker_group_start(self, worker_group: Any) -> None:
        raise ray.exceptions.RayActorError


@pytest.mark.usefixtures("embedded")
def test_a_group_that_breaks_between_its_workers_start_and_their_training_gives_back_its_cpus(tmp_path: Path) -> None:
    """Nobody has such a group any more: the next one of the same lane would wait for its CPUs for ever."""
    trainer = LaneTrainer(
        print,
        board=None,
        lane="lane-0",
        unwanted=threading.Event(),
        scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(
            storage_path=str(tmp_path), callbacks=[Breaks()], failure_config=FailureConfig(controller_failure_limit=1)
        ),
    )
    with pytest.raises(TrainingFailedError, match="failed to initialize"):
        trainer.fit()
    groups = [group["state"] for group in placement_group_table().values()]
    assert groups == ["REMOVED"] * 2  # of the first attempt, and of the second


@pytest.mark.usefixtures("embedded")
@pytest.mark.parametrize("how", [None, KeyboardInterrupt])
def test_a_sweep_that_ends_or_is_stopped_while_a_lane_waits_for_room_waits_for_nobody(
    tmp_path: Path, how: type[BaseException] | None
) -> None:
    """Somebody else has all CPUs, and keeps them."""
    spec = trial(batch_size=8)
    holder = placement_group([{"CPU": 1}])
    ray.get(holder.ready(), timeout=60)
    pool, _ = pool_of([spec], tmp_path)
    left, anothers = tmp_path / "lanes" / "pool-17", tmp_path / "lanes" / "pool-x-17"
    for folder in (left, anothers):
        folder.mkdir(parents=True, exist_ok=True)

    def waiting() -> bool:
        return any(group["state"] == "PENDING" for group in placement_group_table().values())

    with nullcontext() if how is None else pytest.raises(how), pool:
        until("a lane that waits", waiting, timeout_s=60)
        if how is not None:
            raise how
    assert (left.exists(), anothers.exists()) == (False, True)  # of a dead driver of this sweep; of another sweep
    assert not pool.lanes
    assert not any(thread.is_alive() for thread in pool.threads)
    assert not waiting()
    assert not pool.fruitless
    remove_placement_group(holder)
