"""Which option a text chooses: how models put it, and what stays no choice. More of both: tests/unit/test_scores.py."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.choices import chosen

# text, what is chosen of A to D
SAID = [
    # conclusions
    ("Therefore, option B.", "B"),
    ("Hence (B).", "B"),
    ("So, B.", "B"),
    ("Thus B is correct.", "B"),
    ("Thus, (B)", "B"),
    ("Red is no fruit. Therefore, option B.", "B"),
    ("Therefore B", "B"),
    ("So it's B.", "B"),
    ("So the answer must be B", "B"),
    ("Hence, the correct option is (B) Paris.", "B"),
    ("Consequently: B", "B"),
    ("In conclusion, B.", "B"),
    ("Therefore, B is the answer.", "B"),
    ("Thus we have option B.", "B"),
    ("So that is option (B).", "B"),
    ("Conclusion: B", "B"),
    ("Finally, B.", "B"),
    ("Therefore, **B**.", "B"),
    ("Therefore, it must be B because A is red.", "B"),
    ("Therefore A and B are wrong.", None),
    ("So A man walks.", None),
    ("Thus B is too large.", None),
    ("Hence B or C.", None),
    ("So, A or B?", None),
    ("So is it B?", None),
    ("Therefore, B is wrong.", None),
    ("So not B.", None),
    ("Therefore, options B and C.", None),
    ("Thus A, B and D.", None),
    ("So A.5 is left", None),
    # small letters
    ("The answer is (b)", "B"),
    ("the answer is b", "B"),
    ("Answer: b", "B"),
    ("answer: (a)", "A"),
    ("b)", "B"),
    ("(b)", "B"),
    ("b", "B"),
    ("b.", "B"),
    ("\\boxed{b}", "B"),
    ("\\boxed{a}", "A"),
    ("b) Paris", "B"),
    ("Therefore, option (c).", "C"),
    ("The correct answer is d.", "D"),
    ("the answer is b because it is blue", "B"),
    ("Option (d) is correct", "D"),
    ("ANSWER: c", "C"),
    ("<answer>b</answer>", "B"),
    ('{"answer": "b"}', "B"),
    ("hence (b).", "B"),
    ("**c**", "C"),
    ("a", None),
    ("the answer is a car", None),
    ("the answer is b or c", None),
    ("answer: (a) or (b)", None),
    ("a) red b) blue", None),
    ("the answer is d'Artagnan", None),
    ("answer: be careful", None),
    ("Answer: B because a car moves", "B"),
    ("I would pick B, a safe one.", "B"),
    ("I like b best", None),
    ("a. red", None),
    ("is it (b)?", None),
    ("The answer is b? No.", None),
    # a change of mind
    ("A. Wait, no: B", "B"),
    ("The answer is A. Wait, no: B.", "B"),
    ("The answer is A... actually, the correct answer is C", "C"),
    ("Answer: A\nAfter checking the reasoning, I need to correct this.\nAnswer: B", "B"),
    ("A. Actually, it's C.", "C"),
    ("The answer is A. No, B.", "B"),
    ("The answer is A. Sorry, I meant B.", "B"),
    ("The answer is A. Correction: D.", "D"),
    ("The answer is A. Hmm, wait, that should be B.", "B"),
    ("The answer is A, make that B.", "B"),
    ("A. On second thought, B.", "B"),
    ("The answer is not A but B.", "B"),
    ("The answer isn't A, it's B.", "B"),
    ("Not A but B.", "B"),
    ("B, not A", "B"),
    ("The answer is A. Therefore, option B.", "B"),
    ("Therefore, option B. Wait, actually (C).", "C"),
    ("The answer is A. Wait, that's wrong.", None),
    ("A. No, that is incorrect.", None),
    ("The answer is B. Hmm, this isn't right.", None),
    ("Answer: A. Actually, I was mistaken.", None),
    ("The answer is B. A is wrong, that is clear.", "B"),
    ("The answer is B. No doubt.", "B"),
    ("The answer is B. Actually quite simple.", "B"),
    ("The answer is A. No, A is right.", "A"),
    # another question after the answer
    ("B\n\nQuestion: What is red?\nA. x\nB. y\nAnswer: D", "B"),
    (" B\nQ: Which?\nA: C", "B"),
    ("The answer is B.\n\nQuestion: Which?\nThe answer is C.\n\nQuestion: x\nThe answer is D.", "B"),
    ("B. Paris\n\nQuestion 2: Which?\nAnswer: A", "B"),
    ("Answer: B\n\n### Question\nWhich?\n### Answer\nD", "B"),
    ("B\n\nProblem: Which?\nAnswer: C", "B"),
    ("B.\n\nHuman: And now?\nAssistant: Answer: C", "B"),
    ("B\n\n12. Which city is it?\nAnswer: D", "B"),
    ("(B)\n<|endoftext|>Question: x\nAnswer: C", "B"),
    ("A or B\n\nQuestion: Which?\nAnswer: C", None),
    ("I do not know.\n\nQuestion: x\nAnswer: C\n\nQuestion: y\nAnswer: D", None),
    ("b\n\nQuestion: x\nAnswer: C", "B"),
    ("Let me look at it again.\n\nQuestion: Which?\n\nThe answer is C.", "C"),
    ("Question: Which is it?\nAnswer: B", "B"),
    ("1. What is asked? A city.\n2. Which is one?\nParis.\nAnswer: C", "C"),
    # wrapped and named
    ("<answer>B</answer>", "B"),
    ("<final_answer>B</final_answer>", "B"),
    ('{"answer": "B"}', "B"),
    ('```json\n{"answer": "C"}\n```', "C"),
    ("Final answer: B", "B"),
    ("Final Answer: \\boxed{\\text{B}}", "B"),
    ("\\boxed{B. Paris}", "B"),
    ("The answer is **B) Paris**.", "B"),
    ("Ans: B", "B"),
    ("Answer - B", "B"),
    ("Answer – B", "B"),
    ("Answer => B", "B"),
    ("The answer's B.", "B"),
    ("I'd say B.", "B"),
    ("I guess C", "C"),
    ("My guess is D.", "D"),
    ("The answer turns out to be B.", "B"),
    ("The answer is the option B", "B"),
    ("The answer seems to be A.\n\nAnswer: B", "B"),
    ("The answer is: **Option B: Paris**", "B"),
    ("Answer\n\nB", "B"),
    ("The only one left is option B.", "B"),
    ("This corresponds to option (C).", "C"),
    ("It's B.", "B"),
    ("That leaves D.", "D"),
    ("The answer is B. The most tempting mistake is option A.", "B"),
    ("The wrong one is option A.", None),
    ("It is not B.", None),
    ("It's A. It's B.", None),
    ("If it's B, then no.", None),
    ("It is A man's world.", None),
    ("It's A-one", None),
    ("The answer is all of the above", None),
    ("Both A and B", None),
    ("Neither A nor B", None),
    ("A and B", None),
    ("None", None),
    ("The answer is B. Note that A is a common distractor.", "B"),
    ("I considered (A), but it is incorrect. Final answer: D.", "D"),
    ("Antwort: C", None),
    ("Answer seems to be A.\n\nAnswer: A", "A"),
]
WORDS = [
    ("Therefore, yes.", "yes"),
    ("So the answer is no.", "no"),
    ("Yes, because it heals.", "yes"),
    ("No. Wait, actually yes.", "yes"),
    ("Hence no.", "no"),
    ("The study shows it works. Therefore, maybe.", "maybe"),
    ("yes\n\nQuestion: x\nAnswer: no", "yes"),
    ("So, yes or no?", None),
    ("It is no surprise.", None),
    ("There is no effect.", None),
    ("<answer>Yes</answer>", "yes"),
    ("So no one knows.", None),
    ("maybe not", None),
    ("YES", "yes"),
    ("Therefore no effect was found.", None),
]


@pytest.mark.parametrize(("text", "option"), SAID)
def test_letters(text: str, option: str | None) -> None:
    assert chosen("A-D", text) == option


@pytest.mark.parametrize(("text", "option"), WORDS)
def test_words(text: str, option: str | None) -> None:
    assert chosen("yes|no|maybe", text) == option


# what is known to be missed: docs/scores.md lists these, and each is tried here so that the list stays true
MISSED = [
    ("the option's text without its letter", "The answer is Paris.", "B"),
    ("the option by its place", "The answer is the second option.", "B"),
    ("small a and i without a bracket", "The answer is a.", "A"),
    ("letters of another script or width", "Answer: Ｂ", "B"),
    ("an answer in the middle of a sentence that goes on", "I believe B fits best here, as in the text.", "B"),
    ("options ruled out one by one", "A is wrong. C is wrong. D is wrong.", "B"),
]
MISTAKEN = [("another question without a mark of its own", "B\nWhich river is long?\nAnswer: D", "B")]


@pytest.mark.parametrize(("what", "text", "meant"), MISSED)
def test_what_is_known_to_be_missed_is_no_answer(what: str, text: str, meant: str) -> None:
    assert chosen("A-D", text) is None


@pytest.mark.parametrize(("what", "text", "meant"), MISTAKEN)
def test_what_is_known_to_be_taken_for_another_answer(what: str, text: str, meant: str) -> None:
    assert chosen("A-D", text) not in (None, meant)


@settings(deadline=None)
@given(
    st.sampled_from([text for text, option in SAID if option is not None and "Q" not in text]),
    st.sampled_from(
        ["Question: Which?\nThe answer is C.", "Q: x\nAnswer: D\n\nQ: y\nAnswer: A", "### Instruction:\nAnswer: A"]
    ),
)
def test_another_question_never_changes_an_answer(text: str, rest: str) -> None:
    assert chosen("A-D", f"{text}\n\n{rest}") == chosen("A-D", text)
