"""What follows from a failure: only errors use up max_failures; what fails alike is paused, and nothing else."""

import itertools
from typing import Any

import pytest

from jobs.failure import Failure, Kind
from jobs.spec import TrialSpec
from sweeper.retries import ALIKE, DEATHS, Breaker, Retries


def failure(kind: Kind = Kind.ERROR, message: str = "wrong", step: int = 0) -> Failure:
    died = kind in (Kind.WORKER_DIED, Kind.NODE_LOST, Kind.PREEMPTED)
    return Failure(kind, "WorkerDied" if died else "ValueError", message, step=step)


@pytest.mark.parametrize("allowed", [0, 1, 3])
def test_an_error_is_tried_again_max_failures_times(allowed: int) -> None:
    retries = Retries(allowed)
    assert [retries.again("a", failure()) for _ in range(allowed + 1)] == [True] * allowed + [False]
    assert retries.again("b", failure()) is (allowed > 0)  # each trial has its own


@pytest.mark.parametrize("kind", [Kind.NODE_LOST, Kind.PREEMPTED])
def test_machines_that_go_are_no_fault_of_the_trial(kind: Kind) -> None:
    retries = Retries(0)
    assert all(retries.again("a", failure(kind)) for _ in range(50))
    assert retries.errors["a"] == 0


def test_a_trial_that_dies_without_a_new_row_gives_up_and_one_that_comes_on_does_not() -> None:
    stuck, moving = Retries(0), Retries(0)
    assert [stuck.again("a", failure(Kind.WORKER_DIED, step=20)) for _ in range(DEATHS)] == [True] * (DEATHS - 1) + [
        False
    ]
    assert all(moving.again("a", failure(Kind.WORKER_DIED, step=step)) for step in range(0, 500, 10))


@pytest.mark.parametrize("kind", [Kind.DISK_FULL, Kind.NOT_STARTED, Kind.OUT_OF_MEMORY])
def test_what_would_only_happen_again_is_not_tried_again(kind: Kind) -> None:
    assert not Retries(5).again("a", failure(kind))


def trials(backbones: str = "AB", tasks: tuple[str, ...] = ("addition", "reversal")) -> dict[str, TrialSpec]:
    """'A addition nll 1' and so on; 'A addition backbone 0' measures."""
    found = {}
    for backbone, task, objective, seed in itertools.product(
        backbones, tasks, (None, "nll", "one-minus-p", "dft"), (1, 2, 3, 4)
    ):
        if objective is None and seed > 1:
            continue
        parts: dict[str, Any] = {
            "backbone": {"name": backbone, "builtin": "char-llama", "pretrain_steps": 1 + ord(backbone)},
            "task": {"builtin": task}, "objective": objective and {"name": objective}, "seed": seed,
            "train": {"lr": 1e-3, "steps": 10}, "evaluation": {},
        }  # fmt: skip
        found[f"{backbone} {task} {objective or 'backbone'} {seed}"] = TrialSpec.model_validate(parts)
    return found


def fail(breaker: Breaker, *keys: str, finished: tuple[str, ...] = (), message: str = "wrong") -> list[set[str] | None]:
    found = [breaker.failed(key, failure(message=f"{message} {number}"), finished) for number, key in enumerate(keys)]
    return [None if pause is None else set(pause.trials) for pause in found]


def those(*words: str) -> set[str]:
    return {key for key in trials() if all(word in key.split() for word in words)}


def test_seeds_of_one_objective_pause_that_objective_there_alone() -> None:
    paused = fail(Breaker(trials()), *(f"A addition nll {seed}" for seed in (1, 2, 3)))
    assert paused == [None, None, those("A", "addition", "nll")]


def test_a_backbone_whose_every_trial_fails_is_paused_with_its_measure_only_if_that_failed_too() -> None:
    objectives = ("nll", "one-minus-p", "power")
    keys = ["A addition nll 1", "A reversal one-minus-p 1", "A addition nll 2"]
    assert fail(Breaker(trials()), *keys)[-1] == those("A") - those("backbone")
    keys = ["A addition backbone 1", "A reversal backbone 1", "A addition nll 2"]
    assert fail(Breaker(trials()), *keys)[-1] == those("A")
    assert len(objectives) == ALIKE


def test_what_works_for_others_of_the_kind_is_not_paused() -> None:
    keys = ["A addition nll 1", "A reversal one-minus-p 1", "A addition nll 2"]
    assert fail(Breaker(trials()), *keys, finished=("A reversal nll 3",))[-1] is None
    # the measure of the untrained backbone shows nothing of its training
    assert fail(Breaker(trials()), *keys, finished=("A addition backbone 1",))[-1] == those("A") - those("backbone")


def test_a_smaller_kind_is_paused_where_the_larger_one_works() -> None:
    breaker, finished = Breaker(trials()), ("A reversal nll 1",)
    keys = ["A addition nll 1", "A addition one-minus-p 1", "A addition nll 2"]
    assert fail(breaker, "A reversal nll 2", *keys, finished=finished)[-1] == those("A", "addition") - those("backbone")


def test_an_objective_that_fails_on_the_next_backbone_too_is_paused_everywhere() -> None:
    breaker = Breaker(trials())
    keys = [*(f"A addition nll {seed}" for seed in (1, 2, 3)), "B addition nll 1"]
    assert fail(breaker, *keys)[-1] == those("addition", "nll")


def test_what_fails_in_other_ways_or_in_other_places_is_no_kind() -> None:
    breaker = Breaker(trials())
    keys = [f"A addition nll {seed}" for seed in (1, 2, 3)]
    assert [breaker.failed(key, failure(message=word), ()) for key, word in zip(keys, "xyz", strict=True)] == [None] * 3
    apart = Breaker(trials())
    assert fail(apart, "A addition nll 1", "B reversal dft 1", "A reversal one-minus-p 1") == [None] * 3


def test_a_full_disk_pauses_all() -> None:
    pause = Breaker(trials()).failed("A addition nll 1", failure(Kind.DISK_FULL, "No space left"), ())
    assert pause is not None
    assert set(pause.trials) == set(trials())
    assert pause.reason.startswith("the disk is full")
    assert Breaker(trials()).failed("A addition nll 1", failure(Kind.NOT_STARTED), ()) is None
