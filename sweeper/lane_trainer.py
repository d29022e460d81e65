"""A lane as a run of Ray Train, without the processes that a lane never uses. All that we override of Ray Train.

Seen on Ray 2.60; tests/unit/test_lanes.py notices when a part is no longer there. A run as it comes starts four
processes beside its workers, and they stand on the driver's node, however many lanes there are. Here is none left:

- workers wait for each other at the board, which is there in any case, not in an actor of their own;
- the controller runs in the thread that calls fit(): what it does is to look at its workers four times a second;
- the autoscaler's coordinator is not asked: a lane never changes its size, and its placement group says what it needs;
- no manager of data-set shards, and nobody who asks the dashboard every second whether the controller lives.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import Any

import ray
from ray.train import Result
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup, state, worker_group
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from sweeper.board import Barrier

# It would speak on the terminal of a sweep; why a lane ended stands in the records of its trials.
logging.getLogger("ray.train").setLevel(logging.CRITICAL)

ASK_S = 0.5  # between two looks whether a lane that waits for room is wanted still
UNUSED = {"DatasetsCallback", "PlacementGroupCleanerCallback"}


class LaneTrainer(DataParallelTrainer):
    """fit() trains until the lane ends, in the calling thread.

    board, lane: where its workers wait for each other, and under which name
    unwanted: once it is set, fit() waits for room no longer and raises TrainingFailedError
    """

    def __init__(self, *args: Any, board: Any, lane: str, unwanted: threading.Event, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.board, self.lane, self.unwanted = board, lane, unwanted

    def _create_default_callbacks(self) -> list[Any]:
        return [c for c in super()._create_default_callbacks() if type(c).__name__ not in UNUSED]

    def _initialize_and_run_controller(self, **parts: Any) -> Result:
        controller = TrainController(**parts | {"scaling_policy": _Fixed(self.scaling_config)})
        controller.worker_group_cls = _Start(Barrier(self.board, self.lane), self.unwanted)
        asyncio.run(controller.run())
        return controller.get_result()


class _Fixed(FixedScalingPolicy):
    """Asks nobody."""

    def after_controller_start(self, train_run_context: Any) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass


class _Workers(WorkerGroup):
    """Of a controller that is no actor: upstream hands on its handle, through which workers list checkpoints.

    And a group that breaks after its workers are there, and before they train, gives back what it holds: upstream
    forgets it with all its CPUs.
    """

    barrier: Barrier
    unwanted: threading.Event

    def _create_placement_group(self, scaling_config: Any, worker_group_context: Any) -> Any:
        return _Room(super()._create_placement_group(scaling_config, worker_group_context), self.unwanted)

    def _start(self) -> None:
        try:
            super()._start()
        except Exception:
            if self.has_started():
                self._worker_group_state.shutdown()
            raise

    def _init_train_context_on_workers(self, workers: Any, sync_actor: Any, train_context_args: Any) -> None:
        given = [{name: values[i] for name, values in train_context_args.items()} for i in range(len(workers))]
        ray.get(
            [
                worker.actor.init_train_context.remote(
                    train_run_context=self._train_run_context,
                    distributed_context=worker.distributed_context,
                    synchronization_actor=self.barrier,
                    storage_context=self._storage_context,
                    worker_callbacks=self._worker_callbacks_to_propagate,
                    controller_actor=None,
                    **more,
                )
                for worker, more in zip(workers, given, strict=True)
            ]
        )
        self._decorate_worker_log_file_paths(workers)


class _Start:
    """What a controller has a worker group from: the same call as its class upstream."""

    def __init__(self, barrier: Barrier, unwanted: threading.Event) -> None:
        self.barrier, self.unwanted = barrier, unwanted

    def create(self, **parts: Any) -> WorkerGroup:
        group = _Workers(**parts)
        group.barrier, group.unwanted = self.barrier, self.unwanted
        group._start()
        return group


class _Nobody:
    """Where upstream starts its actor for the barrier, and ends it."""

    @classmethod
    def options(cls, **_: Any) -> type[_Nobody]:
        return cls

    @classmethod
    def remote(cls, **_: Any) -> _Nobody:
        return cls()


def _end_nobody(sync_actor: Any) -> None:
    pass


# for the whole process: every group of workers in it is a lane
worker_group.SynchronizationActor = _Nobody
state._shutdown_sync_actor = _end_nobody


class _Room:
    """A placement group that is waited for only while somebody wants it."""

    def __init__(self, group: Any, unwanted: threading.Event) -> None:
        self.group, self.unwanted = group, unwanted

    def wait(self, timeout_s: float) -> bool:
        end = time.monotonic() + timeout_s
        while not self.unwanted.is_set() and time.monotonic() < end:
            if self.group.wait(ASK_S):
                return True
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.group, name)
