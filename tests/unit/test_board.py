"""The board: every trial runs once, ranks agree, failures reach the one who waits."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from jobs.failure import Failure, Kind
from sweeper.board import Board, Ended, Place
from sweeper.grouping import Kin

KILLED = Failure(Kind.WORKER_DIED, "WorkerDied", "killed").record()


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 5))


def board(wait: bool = False, jobs_per_lane: int | None = None, big: tuple[str, ...] = ()) -> Board:
    """Two trials; those in `big` need a lane of another shape."""
    places = {key: Place("big" if key in big else "small") for key in ("a", "b")}
    made = Board({"a": "{}", "b": "{}"}, places, wait, jobs_per_lane)
    made.lane_shape = {"lane": "small", "other": "small", "wide": "big"}
    return made


def test_both_ranks_of_a_lane_get_the_same_trial() -> None:
    async def scene() -> None:
        b = board()
        asks = [asyncio.create_task(b.next_jobs("lane", 0)) for _ in range(2)]
        await asyncio.sleep(0)
        await b.post("a")
        await b.post("b")
        assert [(await ask or [{}])[0]["key"] for ask in asks] == ["a", "a"]
        assert (await b.next_jobs("other", 0) or [{}])[0]["key"] == "b"

    run(scene())


def test_workers_of_a_lane_meet_and_hear_what_rank_0_has_brought() -> None:
    async def scene() -> None:
        b = board()
        early = asyncio.create_task(b.meet("lane", 1, 1, 2, "mine"))
        await asyncio.sleep(0)
        assert not early.done()
        assert await b.meet("other", 1, 0, 1, "alone") == "alone"
        assert await b.meet("lane", 1, 0, 2, "theirs") == "theirs"
        assert await early == "theirs"
        assert not b.meetings["lane"]

        lost = asyncio.create_task(b.meet("lane", 2, 1, 2, None))
        await asyncio.sleep(0)
        await b.up("lane", "group")  # of other workers, with whom nobody has met
        again = asyncio.create_task(b.meet("lane", 2, 0, 2, "new"))
        await asyncio.sleep(0)
        assert not again.done()
        assert await b.meet("lane", 2, 1, 2, None) == await again == "new"
        lost.cancel()

    run(scene())


def test_a_closed_lane_ends_and_an_unlaned_one_ends_after_one_trial() -> None:
    async def scene() -> None:
        b = board()
        waiting = asyncio.create_task(b.next_jobs("lane", 0))
        await asyncio.sleep(0)
        await b.close("lane")
        assert await waiting is None
        single = board(jobs_per_lane=1)
        await single.post("a")
        await single.post("b")
        assert (await single.next_jobs("lane", 0) or [{}])[0]["key"] == "a"
        assert await single.next_jobs("lane", 1) is None

    run(scene())


def test_a_dead_lane_tells_its_trial_and_names_it() -> None:
    async def scene() -> None:
        b = board()
        await b.post("a")
        await b.next_jobs("lane", 0)
        heard = asyncio.create_task(b.listen("a"))
        assert await b.lane_ended("lane", KILLED) == Ended(["a"], came_up=True, beside=False)
        assert (await heard) == {"kind": "failed", "failure": KILLED}

    run(scene())


def test_a_lane_that_ends_after_its_trial_fails_nothing() -> None:
    async def scene() -> None:
        b = board()
        await b.post("a")
        await b.next_jobs("lane", 0)
        await b.say("a", {"kind": "finished", "row": {}})
        assert (await b.lane_ended("lane", KILLED)).left == []
        assert await b.lane_ended("other", None) == Ended([], came_up=False, beside=False)

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
        waiting = asyncio.create_task(b.next_jobs("lane", 0))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        waiting.cancel()

    run(scene())


def test_a_lane_is_given_only_trials_of_its_shape() -> None:
    async def scene() -> None:
        b = board(big=("a",))
        await b.post("a")
        await b.post("b")
        assert (await b.next_jobs("lane", 0) or [{}])[0]["key"] == "b"
        assert (await b.next_jobs("wide", 0) or [{}])[0]["key"] == "a"
        assert (await b.state()).left == {"big": 1, "small": 1}

    run(scene())


def test_a_lane_that_must_go_gives_its_trial_back_to_the_next() -> None:
    async def scene() -> None:
        b = board()
        await b.post("a")
        await b.post("b")
        await b.next_jobs("lane", 0)
        await b.close("lane", break_off=True)
        assert await b.next_word("lane", 0) == "a"
        assert await b.gave_back("a") is False  # not its end
        assert (await b.state()).left == {"small": 2}
        assert await b.next_jobs("lane", 1) is None
        assert (await b.lane_ended("lane", KILLED)).left == []
        assert (await b.next_jobs("other", 0) or [{}])[0]["key"] == "a"  # before b, which came later

    run(scene())


@pytest.mark.parametrize("under_way", [False, True])
def test_a_trial_stopped_by_hand_ends_and_the_others_go_on(under_way: bool) -> None:
    async def scene() -> None:
        b = board()
        await b.post("a")
        if under_way:
            await b.next_jobs("lane", 0)
        assert await b.drop("a") is under_way
        if under_way:
            assert await b.next_word("lane", 0) == "a"
            assert await b.gave_back("a") is True  # the worker writes its last word
            await b.say("a", {"kind": "stopped", "row": {}})
        assert (await b.listen("a"))["kind"] == "stopped"
        await b.post("b")
        assert (await b.next_jobs("lane", int(under_way)) or [{}])[0]["key"] == "b"

    run(scene())


def test_a_trial_stopped_by_hand_before_tune_knows_it_never_starts() -> None:
    async def scene() -> None:
        b = board()
        assert await b.drop("a") is False
        await b.post("a")
        assert (await b.listen("a"))["kind"] == "stopped"
        assert (await b.state()).left == {"small": 1}

    run(scene())


@pytest.mark.parametrize("at_once", [False, True])
def test_the_end_of_a_sweep_reaches_every_lane(at_once: bool) -> None:
    async def scene() -> None:
        b = board(wait=True)
        await b.post("a")
        await b.next_jobs("lane", 0)
        verdict = asyncio.create_task(b.ask("a", {"kind": "row"}, wait=True))
        await asyncio.sleep(0.01)
        await b.end(at_once)
        assert await verdict  # nobody judges it any more
        assert await b.next_word("lane", 0) == (None if at_once else "a")
        if not at_once:
            await b.gave_back("a")
            assert not b.posted
            assert await b.next_jobs("other", 0) is None

    run(scene())


def test_when_no_lane_comes_up_every_trial_fails_with_the_reason() -> None:
    async def scene() -> None:
        b = board()
        await b.post("a")
        await b.give_up(KILLED)
        await b.post("b")
        for key in "ab":
            assert await b.listen(key) == {"kind": "failed", "failure": KILLED}
        assert (await b.state()).left == {}

    run(scene())


def test_a_trial_tried_again_after_a_death_counts_as_left() -> None:
    async def scene() -> None:
        b = board()
        await b.post("a")
        await b.next_jobs("lane", 0)
        await b.lane_ended("lane", KILLED, again=["a"])
        assert b.messages["a"] == []  # Tune hears nothing of it
        await b.next_jobs("other", 0)
        assert (await b.state()).left == {"small": 2}
        assert (await b.state()).busy == {"other": "a"}

    run(scene())


def test_what_ran_out_of_memory_comes_again_first_with_its_new_spec_and_nobody_hears_of_a_failure() -> None:
    async def scene() -> None:
        b = board()
        await b.post("a")
        await b.post("b")
        await b.next_jobs("lane", 0)
        assert await b.running_in("lane") == {"a": "{}"}
        await b.try_again("lane", ["a"], {"a": "less", "b": "less"}, {}, {})
        assert (await b.lane_ended("lane", KILLED)).left == []
        assert await b.running_in("lane") == {}
        jobs = [(await b.next_jobs("other", index) or [{}])[0] for index in range(2)]
        assert [(job["key"], job["spec"]) for job in jobs] == [("a", "less"), ("b", "less")]
        assert b.messages["a"] == []

    run(scene())


def test_a_trial_is_held_where_the_driver_said_so() -> None:
    async def scene() -> None:
        b = board()
        await b.hold({"a": 10, "b": None})
        await b.post("a")
        assert (await b.next_jobs("lane", 0) or [{}])[0]["hold_at"] == 10
        await b.say("a", {"kind": "held", "row": {}})
        assert (await b.state()).left == {"small": 1}
        await b.hold({"a": None})
        await b.post("a")
        assert (await b.next_jobs("lane", 1) or [{}])[0]["hold_at"] is None

    run(scene())


def family(most: int, keys: str = "abcd") -> Board:
    """Trials that may be trained together, and one, z, that may not."""
    specs = dict.fromkeys([*keys, "z"], "{}")
    made = Board(specs, dict.fromkeys(specs, Place("small")), False, None, dict.fromkeys(keys, Kin("kin", most)))
    made.lane_shape = {"lane": "small", "other": "small"}
    return made


async def keys_of(b: Board, lane: str, index: int) -> list[str]:
    return [job["key"] for job in await b.next_jobs(lane, index) or []]


def test_a_lane_waits_until_its_group_is_posted_and_takes_others_meanwhile() -> None:
    async def scene() -> None:
        b = family(most=3)
        await b.post("a")
        await b.post("z")
        assert await keys_of(b, "lane", 0) == ["z"]
        waiting = asyncio.create_task(keys_of(b, "other", 0))
        await b.post("b")
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await b.post("c")
        assert await waiting == ["a", "b", "c"]
        await b.post("d")
        assert await keys_of(b, "lane", 1) == ["d"]  # nobody is left to join it
        assert (await b.state()).left == {"small": 3}  # two groups and one alone

    run(scene())


def test_a_group_of_those_that_a_round_has_does_not_wait_for_others() -> None:
    async def scene() -> None:
        b = family(most=3)
        await b.hold({"a": None, "b": None})  # a race's round without the others
        await b.post("a")
        await b.post("b")
        assert await keys_of(b, "lane", 0) == ["a", "b"]

    run(scene())


def test_of_a_group_that_failed_each_goes_on_alone_and_nobody_hears_of_it() -> None:
    async def scene() -> None:
        b = family(most=4)
        for key in "abcd":
            await b.post(key)
        assert await keys_of(b, "lane", 0) == ["a", "b", "c", "d"]
        await b.say("b", {"kind": "finished", "row": {}})
        assert (await b.lane_ended("lane", KILLED)).left == ["a", "c", "d"]
        assert b.messages["a"] == []
        assert [await keys_of(b, "other", index) for index in range(2)] == [["a"], ["c"]]
        await b.lane_ended("other", KILLED)
        assert (await b.listen("c"))["failure"] == KILLED
        assert (await b.state()).left == {"small": 3}  # a, d, z

    run(scene())


def test_a_group_that_ran_out_of_memory_comes_again_as_smaller_ones() -> None:
    async def scene() -> None:
        b = family(most=4)
        for key in "abcd":
            await b.post(key)
        await b.next_jobs("lane", 0)
        await b.try_again("lane", list("abcd"), {}, {}, dict.fromkeys("abcd", Kin("kin-2", 2)))
        assert (await b.lane_ended("lane", KILLED)).left == []
        assert [await keys_of(b, "other", index) for index in range(2)] == [["a", "b"], ["c", "d"]]

    run(scene())


def test_one_of_a_group_is_stopped_and_a_lane_that_goes_gives_all_back() -> None:
    async def scene() -> None:
        b = family(most=2, keys="ab")
        for key in "ab":
            await b.post(key)
        await b.next_jobs("lane", 0)
        assert await b.drop("a")
        assert await b.next_word("lane", 0) == "a"
        assert await b.gave_back("a")
        await b.say("a", {"kind": "stopped", "row": {}})
        await b.close("lane", break_off=True)
        assert await b.next_word("lane", 1) == "b"
        assert not await b.gave_back("b")
        assert await keys_of(b, "other", 0) == ["b"]

    run(scene())


@pytest.mark.parametrize("end", ["held", "given back"])
def test_a_trial_that_went_to_another_lane_is_not_its_first_ones_any_more(end: str) -> None:
    async def scene() -> None:
        b = board()
        await b.post("a")
        await b.next_jobs("lane", 0)
        if end == "held":
            await b.say("a", {"kind": "held", "row": {}})
            await b.hold({"a": None})
            await b.post("a")
        else:
            assert not await b.gave_back("a")
        await b.next_jobs("other", 0)
        assert (await b.state()).busy == {"lane": None, "other": "a"}
        said = len(b.messages["a"])
        assert (await b.lane_ended("lane", KILLED)).left == []
        assert len(b.messages["a"]) == said
        assert await b.running_in("other") == {"a": "{}"}

    run(scene())


def test_the_second_round_of_a_race_gathers_its_group_too() -> None:
    async def scene() -> None:
        b = family(most=2, keys="ab")
        for index, step in enumerate((10, None)):
            await b.hold({"a": step, "b": step})
            await b.post("a")
            waiting = asyncio.create_task(keys_of(b, "lane", index))
            await asyncio.sleep(0.01)
            assert not waiting.done()  # b is about to be posted
            await b.post("b")
            assert await waiting == ["a", "b"]
            for key in "ab":
                await b.say(key, {"kind": "held", "row": {}})

    run(scene())


@pytest.mark.parametrize("memory", [True, False])
def test_what_was_stopped_by_hand_is_not_tried_again_when_its_lane_fails_first(memory: bool) -> None:
    async def scene() -> None:
        b = family(most=2, keys="ab")
        for key in "ab":
            await b.post(key)
        await b.next_jobs("lane", 0)
        assert await b.drop("a")
        if memory:
            await b.try_again("lane", ["a", "b"], {}, {}, {"a": None, "b": None})
        await b.lane_ended("lane", KILLED)
        assert (await b.listen("a"))["kind"] == "stopped"
        assert list(b.posted) == ["b"]
        assert (await b.state()).left == {"small": 2}  # b and z

    run(scene())


def test_what_ran_out_of_memory_is_asked_for_its_phase_and_a_new_attempt_begins_without_one() -> None:
    async def scene() -> None:
        b = family(most=2, keys="ab")
        for key in "ab":
            await b.post(key)
        await b.next_jobs("lane", 0)
        await b.now("a", "train")
        await b.now("b", "evaluate")
        assert await b.phases_in("lane") == {"train", "evaluate"}
        await b.try_again("lane", ["a", "b"], {}, {}, {})
        assert await b.phases_in("lane") == set()
        assert await keys_of(b, "other", 0) == ["a", "b"]
        assert await b.phases_in("other") == set()

    run(scene())


def test_giving_a_shape_up_fails_what_waits_for_it_and_nothing_else() -> None:
    async def scene() -> None:
        places = {key: Place("big" if key in "cd" else "small") for key in "abcd"}
        b = Board(dict.fromkeys(places, "{}"), places, False, None)
        b.lane_shape = {"lane": "small", "wide": "big"}
        for key in "acd":
            await b.post(key)
        assert (await b.next_jobs("wide", 0) or [{}])[0]["key"] == "c"
        await b.give_up(KILLED, "big")
        assert await b.listen("d") == {"kind": "failed", "failure": KILLED}
        assert await b.running_in("wide") == {"c": "{}"}  # what runs goes on
        assert (await b.next_jobs("lane", 0) or [{}])[0]["key"] == "a"
        await b.post("b")
        assert list(b.posted) == ["b"]

    run(scene())


def test_whether_a_lane_has_come_up_is_known_as_soon_as_it_asks_for_a_trial() -> None:
    async def scene() -> None:
        b = board()
        await b.post("a")
        assert not await b.has_come_up("lane")
        await b.next_jobs("lane", 0)
        assert await b.has_come_up("lane")
        assert await b.lane_ended("other", KILLED) == Ended([], came_up=False, beside=True)
        assert await b.lane_ended("lane", KILLED) == Ended(["a"], came_up=True, beside=False)

    run(scene())


def test_paused_trials_do_not_begin_and_what_runs_goes_on() -> None:
    async def scene() -> None:
        b = board()
        await b.post("a")
        await b.next_jobs("lane", 0)
        assert await b.pause(["a", "b"], "all alike") == ["b"]
        await b.post("b")
        assert await b.listen("b") == {"kind": "paused", "error": "all alike"}
        assert (await b.state()).left == {"small": 1}  # a
        assert await b.pause(["b"], "again") == []

    run(scene())


def test_what_ranks_raise_is_kept_in_the_order_in_which_it_was_told() -> None:
    async def scene() -> None:
        b = board()
        for number in range(3):
            await b.raised("lane", {"number": number})
        assert await b.told_by("lane") == [{"number": number} for number in range(3)]
        assert await b.told_by("other") == []

    run(scene())
