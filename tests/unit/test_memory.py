"""What a trial leaves in its process: given back, or noticed."""

import gc

import pytest

from jobs.memory import HOST_SLACK, Floor, grown, resident

pytestmark = pytest.mark.skipif(not resident(), reason="this system does not say what a process holds")


def test_what_stays_after_a_trial_is_noticed_and_what_goes_is_not() -> None:
    floor = Floor()
    assert not floor.left()  # the first trial makes the floor
    held = [b"\1" * (HOST_SLACK // 2 + floor.host // 2) for _ in range(3)]
    assert floor.left()
    held.clear()
    assert not floor.left()
    gc.unfreeze()


def test_a_cycle_is_collected_before_anything_is_measured() -> None:
    floor = Floor()
    floor.left()
    cycle: list[object] = [b"\1" * (2 * HOST_SLACK + floor.host)]
    cycle.append(cycle)
    del cycle
    assert not floor.left()
    gc.unfreeze()


@pytest.mark.parametrize(
    ("floor", "now", "much"), [(100, 149, False), (100, 160, True), (10, 29, False), (10, 31, True)]
)
def test_growth_counts_beyond_half_the_floor_and_beyond_the_slack(floor: int, now: int, much: bool) -> None:
    assert grown(floor, now, slack=20) is much
