"""What answers come to: accuracy, pass@k and the rates of hand-made problems, and the mean over benchmarks."""

import pytest

from jobs.evaluate import Problem, answer_yardsticks, task_yardsticks
from jobs.scores import Score, ScoreSpec, score

WANTED = "#### 7"
MARKED = ScoreSpec(marker="####")


def problem(number: int, *answers: tuple[str, int, bool]) -> Problem:
    """The greedy answer, then the sampled ones: text, tokens, whether it ended with EOS; scored as gsm8k is."""
    texts, tokens, ended = zip(*answers, strict=True)
    return Problem(number, list(texts), [score(MARKED, text, WANTED) for text in texts], list(tokens), list(ended))


RIGHT, WRONG = ("so #### 7", 5, True), ("so #### 8", 4, True)
EMPTY, BLANK = ("", 0, True), (" \n", 2, True)  # both say nothing
CUT = ("it goes on and on", 16, False)  # no answer, and cut off by max_new_tokens
CUT_AFTER_ANSWER = ("#### 7 and", 16, False)  # an answer, though a wrong one
UNMARKED = ("seven", 1, True)  # no answer where a marker is asked for


def test_every_rate_counts_sampled_answers_alone() -> None:
    row = answer_yardsticks(
        [problem(0, CUT, RIGHT, EMPTY, BLANK, CUT), problem(1, RIGHT, RIGHT, RIGHT, UNMARKED, WRONG)], "t"
    )
    assert row["t/empty_rate"] == 2 / 8
    assert row["t/no_answer_rate"] == 4 / 8  # EMPTY, BLANK, CUT, UNMARKED
    assert row["t/truncated_rate"] == 1 / 8
    assert row["t/answer_tokens"] == (5 + 0 + 2 + 16 + 5 + 5 + 1 + 4) / 8
    assert row["t/accuracy_greedy"] == 1 / 2
    assert row["t/accuracy_sampled"] == (1 / 4 + 2 / 4) / 2
    assert row["t/pass_at_2"] == pytest.approx((1 / 2 + 5 / 6) / 2)  # 1 - C(wrong, 2) / C(4, 2)
    assert row["t/pass_at_4"] == 1
    assert row["t/accuracy_sampled_low"] <= row["t/accuracy_sampled"] <= row["t/accuracy_sampled_high"]
    assert row.keys() == {
        f"t/{name}" for name in (
            "accuracy_sampled", "accuracy_sampled_low", "accuracy_sampled_high", "accuracy_greedy", "empty_rate",
            "no_answer_rate", "truncated_rate", "answer_tokens", "pass_at_2", "pass_at_4",
        )
    }  # fmt: skip


def test_a_cut_answer_may_hold_an_answer_and_an_ended_one_none() -> None:
    assert score(MARKED, CUT_AFTER_ANSWER[0], WANTED) == Score(0.0, "7 and")
    row = answer_yardsticks([problem(0, RIGHT, CUT_AFTER_ANSWER, UNMARKED)], "t")
    assert (row["t/truncated_rate"], row["t/no_answer_rate"], row["t/empty_rate"]) == (0.5, 0.5, 0)


@pytest.mark.parametrize(
    ("answer", "rates"),
    [(EMPTY, (1, 1, 0, 0)), (CUT, (0, 1, 1, 16)), (RIGHT, (0, 0, 0, 5))],
    ids=["empty", "cut", "right"],
)
def test_answers_of_one_sort_give_whole_rates(answer: tuple[str, int, bool], rates: tuple[int, ...]) -> None:
    row = answer_yardsticks([problem(n, WRONG, answer, answer) for n in range(3)], "t")
    names = ("empty_rate", "no_answer_rate", "truncated_rate", "answer_tokens")
    assert tuple(row[f"t/{name}"] for name in names) == rates


def test_of_two_benchmarks_the_task_is_the_unweighted_mean_and_each_stands_beside_it() -> None:
    """A benchmark of one problem weighs as much as one of four."""
    answered = {
        "small": [problem(0, RIGHT, RIGHT, CUT)],
        "large": [problem(n, WRONG, WRONG, EMPTY if n == 0 else WRONG) for n in range(4)],
    }
    row = task_yardsticks(answered)
    each = {name: answer_yardsticks(problems, f"benchmark/{name}") for name, problems in answered.items()}
    for name, own in each.items():
        assert {key: row[key] for key in own} == own, name
    wanted = {
        "accuracy_sampled": 0.25, "accuracy_greedy": 0.5, "empty_rate": 1 / 16, "no_answer_rate": (1 / 2 + 1 / 8) / 2,
        "truncated_rate": 0.25, "answer_tokens": ((5 + 16) / 2 + (7 * 4 + 0) / 8) / 2, "pass_at_2": 0.5,
    }  # fmt: skip
    for key, value in wanted.items():
        assert row[f"task/{key}"] == pytest.approx(value), key
    # every problem of either has the same mean, so that no draw of problems moves the mean over both
    assert (row["task/accuracy_sampled_low"], row["task/accuracy_sampled_high"]) == (0.25, 0.25)
    assert row.keys() == {f"task/{key}" for key in (*wanted, "accuracy_sampled_low", "accuracy_sampled_high")} | {
        key for own in each.values() for key in own
    }


def test_a_task_with_one_set_of_problems_is_that_set() -> None:
    problems = [problem(0, RIGHT, RIGHT, EMPTY), problem(1, WRONG, CUT, WRONG)]
    assert task_yardsticks({"heldout": problems}) == answer_yardsticks(problems, "task")
