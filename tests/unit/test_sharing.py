"""Placement and sharing as arithmetic: workers together or not at all, and no sweep starves another."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import broker
from cluster.broker import Broker
from cluster.resources import PlacementError, Room, Shape, lanes_that_fit, place, total
from cluster.sharing import Claim, shares

ONE, PAIR = Shape(1, 1), Shape(2, 1)


def claim(name: str, *wants: tuple[Shape, int], priority: float = 1, since: float = 0, **rest: object) -> Claim:
    return Claim(name, name, priority, since, wants, **rest)  # type: ignore[arg-type]


def test_workers_of_a_trial_fit_together_or_not_at_all() -> None:
    left = [Room({"CPU": 1.0}), Room({"CPU": 2.0})]
    assert place(PAIR, left)
    assert [room.cpus for room in left] == [1, 0]  # on one node where one has the room
    assert not place(PAIR, left)
    assert [room.cpus for room in left] == [1, 0]


def test_two_worker_trials_on_three_slots_run_one_at_a_time() -> None:
    assert lanes_that_fit([{"CPU": 3}], PAIR) == 1
    assert lanes_that_fit([{"CPU": 1}, {"CPU": 1}, {"CPU": 1}], PAIR) == 1


def test_lanes_are_limited_by_the_scarcest_resource() -> None:
    assert lanes_that_fit([{"CPU": 8, "GPU": 2}], Shape(1, 1, 0.5)) == 4
    assert lanes_that_fit([{"CPU": 10}], Shape(1, 0.1)) == 100


def test_shares_lie_on_cards_and_a_whole_card_is_a_free_one() -> None:
    """Ray gives shares so: two cards with a half each are no place for a whole one."""
    assert lanes_that_fit([{"CPU": 8, "GPU": 2}], Shape(1, 1, 2 / 3)) == 2  # not 3, which would lie on two cards
    assert lanes_that_fit([{"CPU": 8, "GPU": 1}], Shape(1, 1, 1 / 3)) == 3
    assert lanes_that_fit([{"CPU": 8, "GPU": 4}], Shape(2, 1, 1)) == 2
    left = [Room({"CPU": 9, "GPU": 2})]
    assert place(Shape(1, 1, 0.5), left)
    assert place(Shape(1, 1, 1), left)
    assert not place(Shape(1, 1, 1), left)
    assert place(Shape(1, 1, 0.25), left)
    assert left[0].cards == [0.25, 0]


def test_a_worker_does_not_span_nodes() -> None:
    """Three CPUs on each of two nodes are six, but not three workers of two."""
    assert lanes_that_fit([{"CPU": 3}, {"CPU": 3}], Shape(1, 2)) == 2
    with pytest.raises(PlacementError, match=r"3 workers with 2 CPU each find no places.* the nodes have 3 CPU, 3 CPU"):
        lanes_that_fit([{"CPU": 3}, {"CPU": 3}], Shape(3, 2))


def test_a_trial_that_can_never_fit_names_the_resource() -> None:
    with pytest.raises(PlacementError, match=r"a trial needs 4 CPU \(2 workers x 2\), the cluster has 3"):
        lanes_that_fit([{"CPU": 3}], Shape(2, 2))
    with pytest.raises(PlacementError, match="needs 1 GPU .* the cluster has 0"):
        lanes_that_fit([{"CPU": 3}], Shape(1, 1, 1))


def test_a_sweep_alone_has_the_cluster() -> None:
    assert shares([{"CPU": 4}], [claim("a", (ONE, 9))])["a"] == {ONE: 4}


def test_two_sweeps_have_half_each_and_what_one_leaves_the_other_takes() -> None:
    both = shares([{"CPU": 4}], [claim("a", (ONE, 9)), claim("b", (ONE, 9), since=1)])
    assert both == {"a": {ONE: 2}, "b": {ONE: 2}}
    assert shares([{"CPU": 4}], [claim("a", (ONE, 9)), claim("b", (ONE, 1))]) == {"a": {ONE: 3}, "b": {ONE: 1}}


def test_priority_is_a_weight_and_never_a_wall() -> None:
    granted = shares([{"CPU": 8}], [claim("a", (ONE, 99)), claim("b", (ONE, 99), priority=3)])
    assert granted == {"a": {ONE: 2}, "b": {ONE: 6}}
    tiny = shares([{"CPU": 8}], [claim("a", (ONE, 99), priority=0.01), claim("b", (ONE, 99))])
    assert tiny["a"] == {ONE: 1}


def test_shares_are_of_the_scarcest_resource() -> None:
    """One sweep is bound by GPUs, the other by CPUs: the first has all GPUs without being the greedier."""
    granted = shares([{"CPU": 16, "GPU": 4}], [claim("gpu", (Shape(1, 1, 1), 99)), claim("cpu", (Shape(1, 4), 99))])
    assert granted == {"gpu": {Shape(1, 1, 1): 4}, "cpu": {Shape(1, 4): 3}}


def test_warm_lanes_yield_to_anybody_who_has_trials() -> None:
    idle = claim("a", (ONE, 1), spare=((ONE, 3),))
    assert shares([{"CPU": 4}], [idle]) == {"a": {ONE: 4}}
    assert shares([{"CPU": 4}], [idle, claim("b", (ONE, 3))]) == {"a": {ONE: 1}, "b": {ONE: 3}}


def test_a_sweep_of_two_shapes_takes_the_first_that_fits() -> None:
    assert shares([{"CPU": 3}], [claim("a", (PAIR, 2), (ONE, 5))])["a"] == {PAIR: 1, ONE: 1}


@given(
    st.lists(st.integers(1, 8), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 6), st.floats(0.1, 10)), min_size=1, max_size=4),
)
def test_no_more_is_given_than_there_is_and_no_room_is_left_that_somebody_wants(
    cpus: list[int], wanted: list[tuple[int, int, float]]
) -> None:
    nodes = [{"CPU": float(n)} for n in cpus]
    claims = [claim(str(i), (Shape(w), n), priority=p, since=i) for i, (w, n, p) in enumerate(wanted)]
    granted = shares(nodes, claims)
    used = sum(shape.workers * n for grant in granted.values() for shape, n in grant.items())
    free = total(nodes)["CPU"] - used
    assert free >= 0
    for one in claims:
        ((shape, want),) = one.wants
        assert granted[one.id][shape] <= want
        assert granted[one.id][shape] == want or free < shape.workers  # one-CPU workers fit anywhere


def test_a_new_broker_listens_before_it_grants() -> None:
    """Else the first driver to speak would be given the whole cluster."""
    now = [0.0]
    one = Broker(lambda: now[0])
    assert one.share(claim("a", (ONE, 9)), [{"CPU": 4}]) is None
    one.share(claim("b", (ONE, 9), since=1), [{"CPU": 4}])
    now[0] = broker.SETTLE_S
    granted = one.share(claim("a", (ONE, 9)), [{"CPU": 4}])
    assert granted is not None
    assert granted[0] == {ONE: 2}
    assert [c.sweep for c in granted[1]] == ["b"]
    now[0] += broker.EXPIRE_S  # b has fallen silent
    again = one.share(claim("a", (ONE, 9)), [{"CPU": 4}])
    assert again is not None
    assert again[0] == {ONE: 4}
