"""Lanes under way: each slot is a thread that runs one Ray Train run after another until the sweep closes."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path
from typing import Any

import ray
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

from jobs.record import TrialFolder
from jobs.spec import Execution
from jobs.worker import serve

IDLE_S = 0.1
START_ATTEMPTS = 10  # of a lane whose workers cannot be placed; Ray Train's default is without end


class LanePool:
    """`count` lanes of one shape. A lane that dies tells the board and is replaced while trials are posted."""

    def __init__(self, board: Any, root: Path, sweep: str, execution: Execution, count: int) -> None:
        self.board, self.root, self.sweep, self.execution = board, root, sweep, execution
        self.folder = root / "lanes" / f"{sweep}-{time.time_ns()}"
        self.closing = threading.Event()
        self.aborted = False
        self.current: dict[int, str] = {}
        self.threads = [threading.Thread(target=self._slot, args=(i,), daemon=True) for i in range(count)]

    def __enter__(self) -> LanePool:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Ask every lane to end after its trial; those that do not within a minute go down with Ray.

        After an error or Ctrl-C the workers exit where they are: what is under way continues from its checkpoint
        another time. The threads must be over before Ray is shut down under them.
        """
        self.closing.set()
        if kind is not None:
            self.aborted = True
            ray.get(self.board.abort.remote())
        for name in list(self.current.values()):
            ray.get(self.board.close.remote(name))
        for thread in self.threads:
            thread.join(timeout=60)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _slot(self, slot: int) -> None:
        number = 0
        while not self.closing.is_set():
            if number == 0 or ray.get(self.board.num_posted.remote()):
                self._lane(slot, f"lane{slot}-{number}")
                number += 1
            else:
                time.sleep(IDLE_S)

    def _lane(self, slot: int, name: str) -> None:
        self.current[slot] = name
        error, died = None, False
        try:
            self._trainer(name).fit()
        except TrainingFailedError as failure:
            error, died = _reason(failure)
        key = ray.get(self.board.lane_ended.remote(name, error, died))
        if key is not None and not self.aborted:
            TrialFolder(self.root / "trials" / key).add_failure(str(error))

    def _trainer(self, name: str) -> TorchTrainer:
        execution = self.execution
        resources = {"CPU": execution.cpus_per_worker}
        if execution.gpus_per_worker:
            resources["GPU"] = execution.gpus_per_worker
        return TorchTrainer(
            serve,
            train_loop_config={
                "board": self.board,
                "lane": name,
                "root": str(self.root),
                "cpus": execution.cpus_per_worker,
            },
            scaling_config=ScalingConfig(
                num_workers=execution.workers,
                use_gpu=execution.gpus_per_worker > 0,
                resources_per_worker=resources,
            ),
            torch_config=TorchConfig(backend="nccl" if execution.gpus_per_worker else "gloo"),
            run_config=RunConfig(
                name=name,
                storage_path=str(self.folder),
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=START_ATTEMPTS),
                checkpoint_config=CheckpointConfig(num_to_keep=1),
            ),
        )


def _reason(failure: TrainingFailedError) -> tuple[str, bool]:
    """Text of the failure, and whether a worker died (worth another try) rather than raised (not worth one)."""
    if not isinstance(failure, WorkerGroupError):
        return str(failure), True
    raised = [e for e in failure.worker_failures.values() if isinstance(e, UserExceptionWithTraceback)]
    died = len(raised) < len(failure.worker_failures)
    return "\n".join(str(e) for e in failure.worker_failures.values()), died
