"""Which lanes open and close: warm ones stay while nobody needs the room, busy ones are moved only with patience."""

from __future__ import annotations

from cluster.resources import Shape
from cluster.sharing import Claim
from sweeper.lane_policy import PATIENCE_S, Lane, changes, lanes_wanted, why_waiting

ONE, PAIR = Shape(1, 1), Shape(2, 1)


def lane(name: str, shape: Shape = ONE, key: str | None = None, opened: float = 0.0) -> Lane:
    return Lane(name, shape, opened, up=True, key=key)


def test_lanes_are_wanted_for_trials_that_are_left_up_to_the_concurrency() -> None:
    assert lanes_wanted({PAIR: 1, ONE: 9}, [], None) == ([(PAIR, 1), (ONE, 9)], [])
    assert lanes_wanted({PAIR: 1, ONE: 9}, [], 3) == ([(PAIR, 1), (ONE, 2)], [])


def test_idle_lanes_are_kept_as_spare() -> None:
    assert lanes_wanted({ONE: 1}, [lane("a", key="t"), lane("b")], None) == ([(ONE, 1)], [(ONE, 1)])


def test_new_lanes_open_for_what_is_granted_and_wanted() -> None:
    assert changes({ONE: 3}, {ONE: 9}, [lane("a")], 0).open == [ONE, ONE]
    assert changes({ONE: 3}, {ONE: 1}, [lane("a"), lane("b")], 0) == changes({}, {}, [], 0)


def test_an_idle_lane_gives_way_at_once_and_a_busy_one_after_a_while() -> None:
    lanes = [lane("busy", key="t"), lane("young", key="u", opened=9), lane("idle")]
    assert changes({ONE: 1}, {ONE: 2}, lanes, 10).close == ["idle"]
    lanes[2].asked_to_end = True
    assert changes({ONE: 1}, {ONE: 2}, lanes, 10 + PATIENCE_S).close == ["young"]


def test_a_grant_that_shrinks_for_a_moment_moves_nothing() -> None:
    lanes = [lane("a", key="t"), lane("b", key="u")]
    assert not changes({ONE: 1}, {ONE: 2}, lanes, 0).close
    assert not changes({ONE: 2}, {ONE: 2}, lanes, 1).close
    assert not changes({ONE: 1}, {ONE: 2}, lanes, PATIENCE_S + 0.5).close


def test_lanes_of_one_shape_make_room_for_another() -> None:
    todo = changes({PAIR: 1}, {PAIR: 1}, [lane("a"), lane("b")], 0)
    assert todo.open == [PAIR]
    assert todo.close == ["a", "b"]


def test_shares_that_give_way_leave_a_whole_card() -> None:
    """The two lanes of one card, however idle others are: two halves of two cards are no place for a whole one."""
    half = Shape(1, 1, 0.5)
    lanes = [lane(name, half, key="t") for name in "abcd"]
    for one, card in zip(lanes, ("n 0", "n 1", "n 0", "n 1"), strict=True):
        one.card = card
    lanes[2].key = None  # c, so that card 0 is the idler one
    changes({half: 2}, {half: 4}, lanes, 0)
    assert sorted(changes({half: 2}, {half: 4}, lanes, PATIENCE_S).close) == ["a", "c"]


def test_waiting_is_explained_by_the_resource_and_by_who_holds_it() -> None:
    other = Claim("x", "big-one", 2.0, 0.0, ())
    wants = [(PAIR, 1)]
    share = why_waiting(wants, {}, [], {"CPU": 0}, False, [other])
    assert share == (
        "waiting for a share of the cluster: a trial needs 2 CPU (2 workers x 1); beside us: big-one (priority 2)"
    )
    late = [Lane("a", PAIR, 0.0)]
    room = why_waiting(wants, {PAIR: 1}, late, {"CPU": 1}, True, [])
    assert room.startswith("waiting: a trial needs 2 CPU (2 workers x 1), free are 1 CPU;")
    assert not why_waiting(wants, {PAIR: 1}, late, {"CPU": 1}, False, [])  # coming up
    assert not why_waiting(wants, {PAIR: 1}, [lane("a", PAIR)], {"CPU": 0}, True, [])
    assert not why_waiting([(PAIR, 0)], {}, [], {}, False, [other])
