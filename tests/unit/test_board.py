"""The board: every trial runs once, ranks agree, failures reach the one who waits."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from sweeper.board import Board


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 5))


def board(wait: bool = False, jobs_per_lane: int | None = None) -> Board:
    return Board({"a": "{}", "b": "{}"}, wait, jobs_per_lane)


def test_both_ranks_of_a_lane_get_the_same_trial() -> None:
    async def scene() -> None:
        b = board()
        asks = [asyncio.create_task(b.next_job("lane", 0)) for _ in range(2)]
        await asyncio.sleep(0)
        await b.post("a")
        await b.post("b")
        assert [(await ask or {})["key"] for ask in asks] == ["a", "a"]
        assert (await b.next_job("other", 0) or {})["key"] == "b"

    run(scene())


def test_a_closed_lane_ends_and_an_unlaned_one_ends_after_one_trial() -> None:
    async def scene() -> None:
        b = board()
        waiting = asyncio.create_task(b.next_job("lane", 0))
        await asyncio.sleep(0)
        await b.close("lane")
        assert await waiting is None
        single = board(jobs_per_lane=1)
        await single.post("a")
        await single.post("b")
        assert (await single.next_job("lane", 0) or {})["key"] == "a"
        assert await single.next_job("lane", 1) is None

    run(scene())


def test_a_dead_lane_tells_its_trial_and_names_it() -> None:
    async def scene() -> None:
        b = board()
        await b.post("a")
        await b.next_job("lane", 0)
        heard = asyncio.create_task(b.listen("a"))
        assert await b.lane_ended("lane", "killed", died=True) == "a"
        assert (await heard) == {"kind": "failed", "error": "killed", "died": True}

    run(scene())


def test_a_lane_that_ends_after_its_trial_fails_nothing() -> None:
    async def scene() -> None:
        b = board()
        await b.post("a")
        await b.next_job("lane", 0)
        await b.say("a", {"kind": "finished", "row": {}})
        assert await b.lane_ended("lane", "died while idle", died=True) is None
        assert await b.lane_ended("other", None, died=False) is None

    run(scene())


@pytest.mark.parametrize("stop", [False, True])
def test_with_a_scheduler_a_trial_waits_for_its_word(stop: bool) -> None:
    async def scene() -> None:
        b = board(wait=True)
        verdict = asyncio.create_task(b.ask("a", {"kind": "row"}, wait=True))
        assert (await b.listen("a"))["kind"] == "row"
        await asyncio.sleep(0.01)
        assert not verdict.done()
        if stop:
            await b.cancel("a")
        else:
            more = asyncio.create_task(b.listen("a"))
        assert await verdict is not stop
        if not stop:
            more.cancel()

    run(scene())


def test_a_trial_cancelled_before_its_start_is_not_run() -> None:
    async def scene() -> None:
        b = board()
        await b.post("a")
        await b.cancel("a")
        assert await b.num_posted() == 0

    run(scene())
