"""Ray Tune over the board: every trial is one of Tune's, and a lane trains it. All that is overridden of Ray Tune.

Tune as it comes gives each trial under way an actor, a process that trains. Here lanes train, and such an actor would
only hand messages on: a process a lane, all of them on the driver's node. So Tune's controller has a manager of actors
that starts none: where Tune would start one, the trial is posted to the board; what Tune waits for is the board's next
message. Nor does Tune write its state: what a sweep resumes from lies in the trials' folders.

Seen on Ray 2.60; tests/unit/test_tuning.py notices when Tune asks its manager for something else.
"""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Experiment
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import BasicVariantGenerator

from jobs.yardsticks import YARDSTICKS
from sweeper.board import ENDS, Message

NAME = "tune"  # of the experiment, and so of its folder


def tune_round(
    keys: Sequence[str],
    board: Any,
    most: int,
    scheduler: TrialScheduler | None,
    callback: tune.Callback,
    folder: Path,
) -> None:
    """Have these trials trained, in this order; returns when all are at their end, or held.

    board:  the sweep's board, a Ray actor
    most:   trials posted at once
    folder: where Tune may keep a folder of its own meanwhile
    Raises RayActorError where the board has died.
    """
    experiment = Experiment(
        NAME,
        Cell,
        config={"key": tune.grid_search(list(keys))},
        storage_path=str(folder),
        checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        trial_dirname_creator=lambda trial: trial.trial_id,
    )
    search = BasicVariantGenerator(max_concurrent=most)
    controller = _Controller(
        search_alg=search,
        scheduler=scheduler or FIFOScheduler(),
        callbacks=[callback],
        storage=experiment.storage,
        trial_checkpoint_config=experiment.checkpoint_config,
    )
    controller._actor_manager = Posts(board)
    search.add_configurations([experiment])
    controller.update_max_pending_trials()
    controller.setup_experiments([experiment], total_num_samples=search.total_samples)
    try:
        while not controller.is_finished():
            controller.step()
        controller.cleanup()
    finally:
        shutil.rmtree(folder / NAME, ignore_errors=True)


class Cell(tune.Trainable):
    """What Tune knows trials by. None is ever made."""


class _Controller(TuneController):
    def checkpoint(self, force: bool = False, wait: bool = False) -> None:
        pass


@dataclass(eq=False)
class Post:
    """A trial that Tune has under way, in the place of an actor of Tune's.

    asked: whether it is on the board; over: whether its end was read; results: how many Tune has had
    """

    key: str
    on_start: Callable[[Post], None] | None
    on_stop: Callable[[Post], None] | None
    on_error: Callable[[Post, Exception], None] | None
    asked: bool = False
    over: bool = False
    results: int = 0
    started: float = 0.0

    def set_on_stop(self, on_stop: Callable[[Post], None] | None) -> None:
        self.on_stop = on_stop

    def set_on_error(self, on_error: Callable[[Post, Exception], None] | None) -> None:
        self.on_error = on_error


@dataclass(frozen=True)
class _Wait:
    """For a trial's next message, and who is to hear of it."""

    post: Post
    on_result: Callable[[Post, Any], None]


class Posts:
    """What Tune's controller asks of its manager of actors (ray.air.execution.RayActorManager), on a board."""

    num_pending_actors = 0  # a trial is posted at once; whether a lane is free is the board's affair

    def __init__(self, board: Any) -> None:
        self.board = board
        self.waits: dict[ray.ObjectRef, _Wait] = {}  # the oldest first, so that none is passed over
        self.events: deque[Callable[[], None]] = deque()
        self._live_actors_to_ray_actors_resources: dict[Post, tuple[None, None]] = {}  # Tune looks its actors up here

    @property
    def num_live_actors(self) -> int:
        return len(self._live_actors_to_ray_actors_resources)

    @property
    def num_total_actors(self) -> int:
        return self.num_live_actors

    @property
    def num_actor_tasks(self) -> int:
        return len(self.waits)

    def get_live_actors_resources(self) -> dict[str, float]:
        return {}

    def is_actor_started(self, tracked_actor: Post) -> bool:
        return tracked_actor in self._live_actors_to_ray_actors_resources

    def is_actor_failed(self, tracked_actor: Post) -> bool:
        return False

    def add_actor(
        self,
        cls: type,
        kwargs: Mapping[str, Any],
        resource_request: Any,
        *,
        on_start: Callable[[Post], None] | None = None,
        on_stop: Callable[[Post], None] | None = None,
        on_error: Callable[[Post, Exception], None] | None = None,
    ) -> Post:
        post = Post(kwargs["config"]["key"], on_start, on_stop, on_error)
        self._live_actors_to_ray_actors_resources[post] = (None, None)
        self.events.append(lambda: post.on_start and post.on_start(post))
        return post

    def remove_actor(self, tracked_actor: Post, kill: bool = False, stop_future: Any = None) -> bool:
        if self._live_actors_to_ray_actors_resources.pop(tracked_actor, False) is False:
            return False
        self.clear_actor_task_futures(tracked_actor)
        self.events.append(lambda: tracked_actor.on_stop and tracked_actor.on_stop(tracked_actor))
        return True

    def schedule_actor_task(
        self,
        tracked_actor: Post,
        method_name: str,
        args: tuple[Any, ...] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        on_result: Callable[[Post, Any], None] | None = None,
        on_error: Callable[[Post, Exception], None] | None = None,
        _return_future: bool = False,
    ) -> Any:
        """'train': wait for the next message. 'stop': what is not over ends at its next evaluation."""
        if method_name == "train" and on_result:
            if not tracked_actor.asked:
                tracked_actor.asked, tracked_actor.started = True, time.monotonic()
                self.board.post.remote(tracked_actor.key)
            self._listen(_Wait(tracked_actor, on_result))
        elif method_name == "stop":
            if tracked_actor.asked and not tracked_actor.over:
                self.board.cancel.remote(tracked_actor.key)
        else:
            raise RuntimeError(f"Tune asks {tracked_actor.key} to '{method_name}', which no trial of ours does")

    def clear_actor_task_futures(self, tracked_actor: Post) -> None:
        self.waits = {future: wait for future, wait in self.waits.items() if wait.post is not tracked_actor}

    def next(self, timeout: float | None = None) -> bool:
        """Hand on one event. False where none came within `timeout` seconds. Raises RayActorError."""
        if self.events:
            self.events.popleft()()
            return True
        if not self.waits:
            time.sleep(timeout or 0.0)
            return False
        ready, _ = ray.wait(list(self.waits), num_returns=1, timeout=timeout)
        if not ready:
            return False
        self._read(self.waits.pop(ready[0]), ray.get(ready[0]))
        return True

    def cleanup(self) -> None:
        """At the end of a round."""
        self.waits.clear()
        self.events.clear()

    def _listen(self, wait: _Wait) -> None:
        self.waits[self.board.listen.remote(wait.post.key)] = wait

    def _read(self, wait: _Wait, message: Message) -> None:
        post = wait.post
        post.over = message["kind"] in ENDS
        post.results += 1
        wait.on_result(post, result_of(message, post.results, time.monotonic() - post.started))


def result_of(message: Message, number: int, seconds: float) -> dict[str, Any]:
    """A message of the board as Tune's result: every yardstick (NaN where it was not measured), our step, the end.

    A trial that diverged has the worst value of each.
    """
    row = message.get("row", {})
    if message["kind"] == "diverged":
        row = row | {name: yardstick.worst for name, yardstick in YARDSTICKS.items()}
    return {
        **{name: row.get(name, float("nan")) for name in (*YARDSTICKS, "data/train_cut", "data/invalid")},
        "step": int(row.get("step", 0)),
        "status": message["kind"],
        "error": message.get("error", ""),
        "failure": message.get("failure"),
        "done": message["kind"] in ENDS,
        "training_iteration": number,
        "time_total_s": seconds,
    }
