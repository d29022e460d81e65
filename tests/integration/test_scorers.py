"""Answers that a scorer cannot finish, or that are out to run: a verdict in time, and no harm."""

import os
import time
from pathlib import Path

import pytest

from jobs.scores import ScoreSpec, score

MATH = ScoreSpec(kind="math")


def test_an_expression_that_no_one_can_evaluate_ends_in_time_and_the_next_one_is_judged() -> None:
    since = time.monotonic()
    assert score(MATH, "\\boxed{9^{9^{9^{9^9}}}}", "3").value == 0
    assert time.monotonic() - since < 30
    assert score(MATH, "\\boxed{3}", "3").value == 1


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("binary_matrix", "open({!r}, 'w')"), ("countdown", "open({!r}, 'w')"), ("binary_matrix", "exit()"),
        ("binary_matrix", "[0] * 10 ** 10"), ("countdown", "9**9**9**9**9"), ("countdown", "((((" * 500),
        ("basic_arithmetic", "\x00\ud800"), ("spell_backward", "x" * 10**6), ("leg_counting", "nan"),
    ],
)  # fmt: skip
def test_what_a_scorer_evaluates_hurts_no_one(
    name: str, answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.judge.DEADLINE_S", 8)
    gym = pytest.importorskip("reasoning_gym")
    item = gym.create_dataset(name, seed=7, size=1)[0]
    entry, spec, file = {**item, "generator": name}, ScoreSpec(kind="generator"), tmp_path / "written"
    since = time.monotonic()
    assert score(spec, answer.replace("{!r}", repr(str(file))), item["answer"], entry).value == 0
    assert time.monotonic() - since < 60
    assert os.geteuid() != 0 or not file.exists()
    assert score(spec, item["answer"], item["answer"], entry).value == 1
