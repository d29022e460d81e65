"""Tune over the board: what its controller asks of a manager of actors, and how it hears of trials."""

from __future__ import annotations

import asyncio
import inspect
import math
import re
import threading
from concurrent.futures import Future
from typing import Any

import pytest
import ray
from ray.air.execution._internal import RayActorManager
from ray.tune.execution.tune_controller import TuneController

from sweeper import tuning
from sweeper.board import Board, Place
from sweeper.tuning import Post, Posts, result_of

NEVER = {"_actor_task_events"}  # for trials that are exported, which none of ours is


def test_whatever_tune_asks_of_its_manager_of_actors_is_there_with_the_same_arguments() -> None:
    asked = set(re.findall(r"self\._actor_manager\s*\.(\w+)", inspect.getsource(TuneController)))
    posts = Posts(board=None)
    assert len(asked) > 10
    assert {name for name in asked if not hasattr(posts, name)} == NEVER
    for name, ours in vars(Posts).items():
        if inspect.isfunction(ours) and not name.startswith("_"):
            theirs = inspect.signature(getattr(RayActorManager, name)).parameters
            assert list(inspect.signature(ours).parameters) == list(theirs), name


def test_whatever_is_overridden_of_the_controller_is_there_upstream() -> None:
    for name, ours in vars(tuning._Controller).items():
        if inspect.isfunction(ours):
            theirs = inspect.signature(getattr(TuneController, name)).parameters
            assert list(inspect.signature(ours).parameters) == list(theirs), name
    assert "self._actor_manager = " in inspect.getsource(TuneController.__init__)


def test_what_is_asked_of_a_tracked_actor_is_there() -> None:
    asked = set(re.findall(r"tracked_actor\.(\w+)\(", inspect.getsource(TuneController)))
    assert asked <= set(dir(Post))


def test_a_message_is_a_result_with_every_yardstick() -> None:
    found = result_of({"kind": "row", "row": {"step": 3, "heldout/nll": 0.5}}, 2, 1.5)
    assert (found["step"], found["heldout/nll"], found["done"], found["training_iteration"]) == (3, 0.5, False, 2)
    assert math.isnan(found["task/accuracy_greedy"])
    assert result_of({"kind": "failed", "error": "no memory"}, 1, 0.0)["error"] == "no memory"
    assert [result_of({"kind": kind}, 1, 0.0)["done"] for kind in ("finished", "stopped", "held")] == [True] * 3


class Local:
    """A board in a thread of this process, called as Ray calls an actor; its answers are futures."""

    def __init__(self, board: Board, loop: asyncio.AbstractEventLoop) -> None:
        self.board, self.loop = board, loop

    def __getattr__(self, name: str) -> Any:
        method, loop = getattr(self.board, name), self.loop

        class Call:
            @staticmethod
            def remote(*args: Any) -> Future[Any]:
                return asyncio.run_coroutine_threadsafe(method(*args), loop)

        return Call


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> Any:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    board = asyncio.run_coroutine_threadsafe(_board(), loop).result(5)

    def wait(futures: list[Future[Any]], num_returns: int, timeout: float | None) -> tuple[list[Any], list[Any]]:
        done = [one for one in futures if _done(one, 0.0)] or [one for one in futures if _done(one, timeout or 5.0)]
        return done[:1], []

    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "get", lambda future: future.result(5))
    yield Local(board, loop)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)


async def _board() -> Board:
    board = Board({"a": "{}", "b": "{}"}, {key: Place("small") for key in ("a", "b")}, False, None)
    board.lane_shape = {"lane": "small"}
    return board


def _done(future: Future[Any], timeout: float) -> bool:
    try:
        future.exception(timeout)
    except TimeoutError:
        return False
    return True


def start(posts: Posts, key: str, heard: list[Any]) -> Post:
    post = posts.add_actor(tuning.Cell, {"config": {"key": key}}, None, on_start=lambda one: heard.append(one.key))
    assert heard == []  # not before Tune knows the post
    assert posts.next()
    posts.schedule_actor_task(
        post, "train", on_result=lambda one, result: heard.append(result["status"]), on_error=fail
    )
    return post


def fail(post: Post, error: Exception) -> None:
    raise AssertionError(f"{post.key}: {error}")


def test_of_a_trial_that_is_tried_again_tune_hears_its_end_alone(local: Local) -> None:
    posts, heard = Posts(local), []
    post = start(posts, "a", heard)
    for again in (["a"], []):
        jobs = local.next_jobs.remote("lane", 0).result(5)
        assert [job["key"] for job in jobs] == ["a"]
        local.lane_ended.remote("lane", {"kind": "worker died"}, again).result(5)
        local.open.remote("lane", "small").result(5)
    assert posts.next(5)
    assert heard == ["a", "failed"]
    assert post.over


def test_a_trial_that_diverged_is_worse_than_any_other() -> None:
    result = result_of({"kind": "diverged", "row": {"heldout/nll": 0.1}, "error": "loss is nan"}, 3, 1.0)
    assert (result["task/accuracy_sampled"], result["heldout/nll"], result["done"]) == (0.0, float("inf"), True)


def test_a_trial_that_tune_stops_ends_at_its_next_evaluation_and_one_that_is_over_is_left_alone(local: Local) -> None:
    posts, heard = Posts(local), []
    post = start(posts, "a", heard)
    local.next_jobs.remote("lane", 0).result(5)
    assert local.ask.remote("a", {"kind": "row", "row": {"step": 1}}, False).result(5)
    assert posts.next(5)
    posts.schedule_actor_task(post, "stop")
    assert posts.remove_actor(post)
    assert not posts.is_actor_started(post)
    assert not posts.remove_actor(post)
    assert not local.ask.remote("a", {"kind": "row", "row": {"step": 2}}, False).result(5)
    assert (heard, posts.num_total_actors, posts.num_actor_tasks) == (["a", "row"], 0, 0)


def test_what_no_trial_of_ours_does_is_refused() -> None:
    posts = Posts(board=None)
    post = posts.add_actor(tuning.Cell, {"config": {"key": "a"}}, None)
    with pytest.raises(RuntimeError, match="a to 'save'"):
        posts.schedule_actor_task(post, "save")
