"""Score kind `number`: how models write the number that they answer with, and what is no answer."""

import json
import os
import time
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from jobs.numbers import number_of, written
from jobs.scores import ScoreSpec, score, unusable_reference
from jobs.task_spec import TaskSpec

GSM8K = Path(os.environ.get("SWEEPER_DATA", Path(__file__).parents[3] / "shared" / "data")) / "gsm8k" / "test.jsonl"
NUMBER = ScoreSpec(kind="number")
MARKED = ScoreSpec(kind="number", marker="####")

# text, the number that is read
ANSWERS = [
    ("18", "18"),
    ("18.", "18"),
    ("$18", "18"),
    ("$18.00", "18"),
    ("18.0", "18"),
    ("1,234.50", "1234.5"),
    ("1,234,567", "1234567"),
    ("The answer is 18 dollars.", "18"),
    ("The answer is $18. There are 3 left.", "18"),
    ("#### 18", "18"),
    ("#### $1,234.", "1234"),
    ("5 + 13 = 18", "18"),
    ("So she makes 9 * 2 = $18 every day.", "18"),
    ("-3", "-3"),
    ("\u22123", "-3"),
    ("$-18", "-18"),
    ("-$18", "-18"),
    ("The answer is -3.75.", "-3.75"),
    ("x=-3", "-3"),
    ("5-3", None),
    ("It takes 5-6 hours", None),
    ("10^{3}", None),
    ("18 cm^2", "18"),
    ("18^\\circ", "18"),
    ("3^2 = 9", "9"),
    ("10-3=7", "7"),
    ("(18)", "18"),
    ('{"answer": "18"}', "18"),
    ("#### 18\n\n#### 20", "20"),
    ("He needs 18 more.", "18"),
    ("3/4", "0.75"),
    ("1 1/2", "1.5"),
    ("\\frac{3}{4}", "0.75"),
    ("1/3", "1/3"),
    ("\\boxed{18}", "18"),
    ("\\boxed{\\$1{,}234}", "1234"),
    ("\\boxed{x = 5} of 7", "5"),
    ("18%", "18"),
    ("18 \\%", "18"),
    ("1e3", "1000"),
    ("1.5 × 10^3", "1500"),
    ("3x10^2", "300"),
    ("\\(2 \\times 10^{-2}\\)", "0.02"),
    ("**18**", "18"),
    ("£5", "5"),
    ("The total is 72 clips, altogether.", "72"),
    ("The total cost of the order is $29.00.", "29"),
    ("Answer:\n42", "42"),
    ("answer: 5 + 13 = 18", "18"),
    ("The answer is 18 / 2 = 9", "9"),
    (".5", "0.5"),
    ("1\u202f234", "1234"),
    ("007", "7"),
    ("18th", "18"),
    ("The answer is 5. Wait, no. The answer is 6.", "6"),
    ("The answer is 42.\nQuestion: another uses 100.\nThe answer is 100.", "42"),
    ("Let me see.\n\nQuestion: She has 5 and buys 2.\n\n5 + 2 = 7.", "7"),
    ("<think>It is 5?</think>The answer is 6.", "6"),
    ("no", None),
    ("", None),
    ("eighteen", None),
    ("H2O", None),
    ("The answer is 3 or 4.", None),
    ("The answer is 3 to 5.", None),
    ("3,5", None),
    ("10/0", None),
    ("1e999", None),
    ("9" * 5000, None),
    ("<think>It is 5", None),
]


@pytest.mark.parametrize(("text", "read"), ANSWERS)
def test_a_number_is_read(text: str, read: str | None) -> None:
    assert score(NUMBER, text, "1").answer == read


@pytest.mark.parametrize(
    ("text", "wanted", "value"),
    [
        ("The answer is $18.00.", "9 * 2 = <<9*2=18>>18\n#### 18", 1),
        ("18", "18.0", 1),
        ("1,000", "1000", 1),
        ("0.5", "1/2", 1),
        ("0.33", "1/3", 0),
        ("-18", "18", 0),
        ("180", "18", 0),
        ("18 or 19", "19", 1),
        ("no idea", "18", 0),
    ],
)
def test_numbers_are_compared_by_value(text: str, wanted: str, value: float) -> None:
    assert score(NUMBER, text, wanted).value == value


def test_with_a_marker_only_what_follows_it_counts() -> None:
    assert score(MARKED, "5 + 13 = 18\n#### 18.", "so\n#### 18").value == 1
    assert score(MARKED, "#### 5 #### $18 dollars", "18").value == 1
    assert score(MARKED, "The answer is 18", "#### 18").answer is None
    assert score(MARKED, "18 ####", "#### 18").answer is None


def test_published_answers_are_right_against_themselves_and_wrong_against_the_next() -> None:
    if not GSM8K.exists():
        pytest.skip(f"{GSM8K} is not here")
    answers = [json.loads(line)["answer"] for line in GSM8K.read_text().splitlines()[:300]]
    assert all(score(spec, answer, answer).value == 1 for answer in answers for spec in (NUMBER, MARKED))
    assert sum(score(NUMBER, a, b).value for a, b in pairwise(answers)) < 15  # some neighbours have the same answer


def test_a_reference_without_a_number_is_refused() -> None:
    assert "'none' has no number in it" in (unusable_reference(NUMBER, "none") or "")
    assert unusable_reference(MARKED, "18") is None
    with pytest.raises(ValueError, match="has no number in it"):
        score(NUMBER, "5", "none")


def test_answer_marker_is_its_marker_and_belongs_to_no_other_kind() -> None:
    task = {"path": "a.jsonl", "answer_marker": "####"}
    assert TaskSpec.model_validate(task | {"score": {"kind": "number"}}).answer_marker == "####"
    with pytest.raises(ValidationError, match="answer_marker goes with score exact or number, not math"):
        TaskSpec.model_validate(task | {"score": {"kind": "math"}})


@given(st.fractions(max_denominator=1000))
def test_what_is_written_is_read_again(value: Fraction) -> None:
    assert number_of(f"So the answer is {written(value)}.", None) == value


# right answers that are known to score 0, or to be read as another number: docs/scores.md lists these
MISSED = {
    "powers": ("10^3", "1000"),
    "numbers in words": ("The answer is eighteen.", "18"),
    "thousands by a blank": ("1 234", "1234"),
    "2.5 million": ("2.5 million", "2500000"),
    "a decimal comma": ("3,5", "3.5"),
    "times and dates": ("It is 3:30.", "3.5"),
    "a number that follows the last one": ("18 (2 boxes of 9)", "18"),
    "a percentage as a share": ("50%", "0.5"),
}


@pytest.mark.parametrize("what", MISSED)
def test_what_is_known_to_be_missed(what: str) -> None:
    text, wanted = MISSED[what]
    assert score(NUMBER, text, wanted).value == 0


@pytest.mark.parametrize(
    "part", ["1", "1 ", "1,", "1/", "1e", "answer ", "answer is ", "\\boxed{", "{", "-", "1\n", "#### ", "Q: 1\n"]
)
def test_the_time_is_linear_in_the_text(part: str) -> None:
    since = time.process_time()
    score(NUMBER, "answer" + part * (50_000 // len(part)) + "x", "1")
    assert time.process_time() - since < 5
