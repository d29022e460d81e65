"""Early stopping by race, on scores written down here."""

import random
from collections.abc import Mapping, Sequence

import pytest

from sweeper.race import Runner, Score, promoted, rungs, standing

SURE = 0.8


def runner(objective: str, seed: int, scores: Mapping[int, float], steps: int = 90, exempt: bool = False) -> Runner:
    known = {step: Score(value) for step, value in scores.items()}
    return Runner(f"{objective}-{seed}", objective, steps, known, exempt or objective == "nll")


def arms(**values: Sequence[float]) -> dict[str, list[Score]]:
    return {name: [Score(v) for v in scores] for name, scores in values.items()}


def test_rungs_are_multiples_of_the_grace_below_the_end() -> None:
    assert rungs(10, 3, 90) == [10, 30]
    assert rungs(10, 3, 91) == [10, 30, 90]
    assert rungs(100, 3, 90) == []


def test_nobody_goes_past_a_rung_before_all_are_there() -> None:
    cell = [runner("nll", 1, {10: 0.5}), runner("dft", 1, {}), runner("talr", 1, {10: 0.1})]
    found = standing(cell, 10, 3, SURE)
    assert (found.run, found.stop) == ({"dft-1": 10}, {})


def test_who_is_surely_behind_stops_at_its_rung_and_the_rest_runs_on() -> None:
    cell = [runner("nll", s, {10: 0.5 + s / 100, 30: 0.6}) for s in (1, 2)]
    cell += [runner("dft", s, {10: 0.9 + s / 100, 30: 0.95}) for s in (1, 2)]
    cell += [runner("talr", s, {10: 0.1 + s / 100}) for s in (1, 2)]
    cell += [runner("focal", s, {10: 0.89 + s / 100, 30: 0.2 + s / 100}) for s in (1, 2)]
    found = standing(cell, 10, 3, SURE)
    assert found.stop == {"talr-1": 10, "talr-2": 10, "focal-1": 30, "focal-2": 30}
    assert found.run == dict.fromkeys(["nll-1", "nll-2", "dft-1", "dft-2"])  # the anchor is behind, and stays


def test_a_difference_within_the_noise_stops_nobody() -> None:
    noisy = arms(a=[0.2, 0.8], b=[0.3, 0.6], c=[0.1, 0.7])
    assert promoted(noisy, 1, SURE) == {"a", "b", "c"}
    calm = arms(a=[0.50, 0.51], b=[0.40, 0.41], c=[0.10, 0.11])
    assert promoted(calm, 1, SURE) == {"a"}
    assert promoted(calm, 2, SURE) == {"a", "b"}


def test_equal_scores_all_go_on() -> None:
    assert promoted(arms(a=[0.0], b=[0.0], c=[0.0]), 1, SURE) == {"a", "b", "c"}


def test_with_one_seed_the_problems_error_keeps_close_ones_in() -> None:
    few = {name: [Score(value, 0.05)] for name, value in {"a": 0.50, "b": 0.47, "c": 0.10}.items()}
    assert promoted(few, 1, SURE) == {"a", "b"}
    assert promoted(arms(a=[0.50], b=[0.47], c=[0.10]), 1, SURE) == {"a"}


def test_what_has_failed_holds_nobody_up_and_what_was_revived_is_spared() -> None:
    failed = Runner("talr-1", "talr", 90, {}, out=True)
    cell = [runner("nll", 1, {10: 0.5}), failed, runner("dft", 1, {10: 0.9}), runner("eaft", 1, {10: 0.1}, exempt=True)]
    found = standing(cell, 10, 3, SURE)
    assert found.stop == {}
    assert found.run == {"nll-1": 30, "dft-1": 30, "eaft-1": 30}


@pytest.mark.parametrize("seed", range(20))
def test_the_best_and_the_anchor_always_survive_and_rungs_only_shrink(seed: int) -> None:
    """Whatever the scores: decisions are the same in any order, and taking one more row never takes one back."""
    draw = random.Random(seed)
    names = ["nll", *"abcdef"]
    scores = {(n, s): {step: draw.random() for step in (10, 30)} for n in names for s in (1, 2, 3)}
    cell = [runner(n, s, scores[n, s]) for n, s in scores]
    found = standing(cell, 10, 3, SURE)
    assert standing(draw.sample(cell, len(cell)), 10, 3, SURE) == found
    early = standing([runner(n, s, {10: scores[n, s][10]}) for n, s in scores], 10, 3, SURE)
    assert early.stop.items() <= found.stop.items()
    means = {n: sum(scores[n, s][10] for s in (1, 2, 3)) for n in names}
    best = max(means, key=lambda n: means[n])
    assert not {f"{n}-{s}" for n in ("nll", best) for s in (1, 2, 3)} & early.stop.keys()


def test_no_cell_no_standing() -> None:
    assert standing([], 10, 3, SURE).run == {}
