"""Scorers against published cases and against answers that are out to mislead them."""

import json
import os
import threading
import time
from importlib.util import find_spec
from itertools import pairwise
from math import comb
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from jobs.choices import options_of
from jobs.judge import _Judge
from jobs.sampling_statistics import bootstrap_interval, pass_at_k
from jobs.scores import ScoreSpec, score
from jobs.task_spec import Benchmark, TaskSpec

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("SWEEPER_DATA", ROOT.parent / "shared" / "data"))
EXACT = ScoreSpec(marker="####")
MATH = ScoreSpec(kind="math")
LETTERS = ScoreSpec(kind="choice", options="A-D")
WORDS = ScoreSpec(kind="choice", options="yes|no|maybe")


def rows(name: str) -> list[dict[str, str]]:
    file = DATA / name
    if not file.exists():
        pytest.skip(f"{file} is not here")
    return [json.loads(line) for line in file.read_text().splitlines()]


def needs_reasoning_gym() -> None:
    if find_spec("reasoning_gym") is None:
        pytest.skip("reasoning-gym is not installed")


# answer, value; the reference is 1234
EXACT_ANSWERS = [
    ("#### 1234", 1), ("#### 1,234", 1), ("so\n#### 1234\n", 1), ("####1234", 1), ("####  1234  ", 1),
    ("#### 1\n234", 0), ("#### 1234.", 0), ("#### 1234.0", 0), ("#### $1234", 0), ("#### 1234 dollars", 0),
    ("1234", 0), ("The answer is 1234", 0), ("", 0), ("####", 0), ("#### ", 0), ("### 1234", 0), ("#### 1235", 0),
    ("#### 12340", 0), ("#### 01234", 0), ("#### -1234", 0), ("#### 1234 #### 5", 0), ("#### 5 #### 1234", 1),
    ("#### 1234 ####", 0), ("#### one thousand", 0), ("####1,2,3,4", 1), ("#### 1 234", 0), ("#### 1234\u200b", 0),
    ("#### １２３４", 0), ("####\n1234", 1), ("####\t1234", 1), ("#### **1234**", 0), ("#### \\boxed{1234}", 0),
    ("#### 1234%", 0), ("#### 1.234", 0), ("#### 1234/1", 0), ("#### =1234", 0), ("#### +1234", 0),
    ("x" * 10**6 + "#### 1234", 1), ("#### 1234" + " " * 100, 1), ("#### 1234\x00", 0), ("#" * 8 + " 1234", 1),
    ("#### 1234 (approximately)", 0), ("#### 1e3", 0),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), EXACT_ANSWERS)
def test_exact(text: str, value: float) -> None:
    assert score(EXACT, text, "it is #### 1234").value == value


def test_exact_has_no_answer_where_the_marker_is_missing_and_folds_case_only_when_asked() -> None:
    assert score(EXACT, "1234", "#### 1234").answer is None
    assert score(ScoreSpec(), "Yes", "yes").value == 0
    assert score(ScoreSpec(ignore_case=True), "Yes", "yes").value == 1
    assert score(EXACT, "#### 7", "7").value == 1  # a reference may be bare


# text, reference, value
MATH_ANSWERS = [
    # math-verify's own examples
    ("$1/3$", "${1,3} \\cup {2,4}$", 0), ("${1,2,3,4}$", "${1,3} \\cup {2,4}$", 1), ("$(1,2)$", "$[1,2]$", 0),
    ("\\boxed{\\frac{1}{2}}", "0.5", 1), ("\\boxed{0.5}", "\\frac{1}{2}", 1), ("\\boxed{\\dfrac12}", "\\frac{1}{2}", 1),
    ("\\boxed{1/2}", "\\frac{1}{2}", 1), ("\\boxed{50\\%}", "\\frac{1}{2}", 1), ("\\boxed{0.333}", "\\frac{1}{3}", 0),
    ("\\boxed{\\sqrt{8}}", "2\\sqrt{2}", 1), ("\\boxed{2\\sqrt2}", "2\\sqrt{2}", 1),
    ("\\boxed{2.828}", "2\\sqrt{2}", 0),
    ("\\boxed{x^2+2x+1}", "(x+1)^2", 1), ("\\boxed{(x+1)^2}", "x^2+2x+1", 1), ("\\boxed{x^2+1}", "(x+1)^2", 0),
    ("\\boxed{(3,\\frac{\\pi}{2})}", "\\left( 3, \\frac{\\pi}{2} \\right)", 1),
    ("\\boxed{(\\frac{\\pi}{2},3)}", "\\left( 3, \\frac{\\pi}{2} \\right)", 0),
    ("\\boxed{12}", "12", 1), ("\\boxed{12.0}", "12", 1), ("\\boxed{1,200}", "1200", 1), ("\\boxed{-12}", "12", 0),
    ("\\boxed{\u221212}", "-12", 1), ("\\boxed{12 \\text{ cm}}", "12", 1), ("\\boxed{\\$12}", "12", 1),
    ("\\boxed{12^\\circ}", "12", 1), ("\\boxed{120}", "12", 0), ("The answer is 12.", "12", 1), ("12", "12", 1),
    ("I get $x = 12$.", "12", 1), ("\\boxed{x=12}", "12", 1), ("\\boxed{3} no, \\boxed{4}", "4", 1),
    ("\\boxed{4} no, \\boxed{3}", "4", 0), ("", "12", 0), ("no idea", "12", 0), ("\\boxed{}", "12", 0),
    ("\\boxed{\\boxed{12}}", "12", 1), ("\\boxed{12", "12", 0), ("\\boxed{\\{1,2\\}}", "\\{2,1\\}", 1),
    ("\\boxed{(1,2)}", "(2,1)", 0), ("\\boxed{1 \\text{ or } 2}", "1,2", 1), ("\\boxed{A}", "B", 0),
    ("\\boxed{10^{3}}", "1000", 1), ("\\boxed{1e3}", "1000", 0), ("x" * 10**6 + "\\boxed{12}", "12", 1),
    ("\\boxed{12} " + "and so on " * 10, "12", 1), ("\\boxed{\\infty}", "\\infty", 1),
    ("\\boxed{-\\infty}", "\\infty", 0),
    ("\\boxed{[0,1)}", "[0,1)", 1), ("\\boxed{(0,1)}", "[0,1)", 0), ("{{{{{ \\boxed{12}", "12", 1),
    ("\\boxed{\\begin{pmatrix}1\\\\2\\end{pmatrix}}", "\\begin{pmatrix}1\\\\2\\end{pmatrix}", 1),
    ("\\boxed{\\begin{pmatrix}2\\\\1\\end{pmatrix}}", "\\begin{pmatrix}1\\\\2\\end{pmatrix}", 0),
]  # fmt: skip


@pytest.mark.parametrize(("text", "wanted", "value"), MATH_ANSWERS)
def test_math(text: str, wanted: str, value: float) -> None:
    assert score(MATH, text, wanted).value == value


def test_published_solutions_are_right_against_themselves_and_wrong_against_the_next() -> None:
    problems = rows("math500/test.jsonl")[::5]
    right = sum(score(MATH, p["solution"], p["answer"]).value for p in problems)
    wrong = sum(score(MATH, p["solution"], q["answer"]).value for p, q in pairwise(problems))
    assert right >= 0.98 * len(problems)
    assert wrong <= 0.05 * len(problems)
    for problem in rows("gsm8k/test.jsonl")[:50]:
        assert score(EXACT, problem["answer"], problem["answer"]).value == 1
        assert score(EXACT, problem["question"], problem["answer"]).answer is None


# text, what is chosen of A to D
CHOICES = [
    ("The answer is B.", "B"), ("the answer is (B)", "B"), ("Answer: B", "B"), ("ANSWER: B", "B"), ("answer:B", "B"),
    ("\\boxed{B}", "B"), ("\\boxed{\\text{B}}", "B"), ("\\boxed{(B)}", "B"), ("**Answer:** **B**", "B"), ("B", "B"),
    ("B.", "B"), ("(B)", "B"), ("B)", "B"), ("B: because it is", "B"), ("B. The cat", "B"), ("\n\nB\n", "B"),
    ("The correct option is B", "B"), ("So the correct choice is B.", "B"), ("I choose option C.", "C"),
    ("The answer is A. Wait, the answer is B.", "B"), ("\\boxed{A} ... the answer is B", "B"),
    ("the answer is B ... \\boxed{A}", "A"), ("A. no\nB. yes\nThe answer is B", "B"), ("Thinking...\n\nC", "C"),
    ("`D`", "D"), ("$D$", "D"), ("'D'", "D"), ("answer = D", "D"), ("The answer is: D", "D"),
    ('The answer is "D"', "D"),
    ("A man went home", None), ("a", None), ("the answer is a", None), ("", None), ("   ", None), ("E", None),
    ("Answer: E", None), ("The answer is Bob", None), ("The answer is Dogs", None), ("I like B best", None),
    ("Answer: none of them", None), ("A or B", None), ("\\boxed{}", None), ("\\boxed{E}", None), ("B-complex", None),
    ("The answer is A's", None), ("x" * 10**6 + " The answer is B", "B"), ("ABCD", None),
    ("Either way, B is wrong", None),
    # what is denied, asked, hedged, listed, or only looks like a letter
    ("The answer is C. Option A is wrong because it is red.", "C"), ("Option A is incorrect. Option B is too.", None),
    ("The answer is not B", None), ("I don't think the answer is B", None), ("The wrong answer is C", None),
    ("The correct answer cannot be A", None), ("So B is not the right answer", None), ("Answer: D, not B", "D"),
    ("Is the answer B? No.", None), ("If the answer is B then x. But no.", None), ("Statement A is correct", None),
    ("The answer is B or C", None), ("Answer: A and B", None), ("\\boxed{A, C}", None), ("Answer: A, B, C", None),
    ("\\boxed{A\\text{ and }C}", None), ("The answer is A/B", None), ("The answer is A. Or the answer is B or C", None),
    ("A) red B) blue", None), ("A. red\nB. blue\nC. green", None), ("A\nB\nC\nD", None), ("A, B, C are wrong", None),
    ("Which option: A, B, C or D?", None), ("answer choices: A) red B) blue", None), ("The answer is A.5", None),
    ("The answer is A man named Bob", None), ("Answer: B, since A is wrong", "B"), ("The answer is (A) Paris", "A"),
    ("B is the correct answer", "B"), ("Option B is correct.", "B"), ("I would go with D!", "D"), ("Answer: [B]", "B"),
    ("\\boxed{\\textbf{(C)}}", "C"), ("<answer>B</answer>", "B"), ("### Answer\nB", "B"), ("Answer：B", "B"),
    ("Answer: \u0412", None), ("Answer: Ｂ", None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "chosen"), CHOICES)
def test_choice(text: str, chosen: str | None) -> None:
    found = score(LETTERS, text, "B")
    assert found.answer == chosen
    assert found.value == (chosen == "B")


# how languages say it: cues and denials; those of the presets are read from them below
LANGUAGES = {
    "ja": (["答えは", "{}が正解"], ["ではない", "ですか"]), "zh": (["答案是", "答案", "{}是正确答案"], ["不是", "不"]),
    "ru": (["ответ"], ["не"]), "ar": (["الإجابة هي"], ["ليست"]), "ko": (["정답은"], ["아니"]),
    "th": (["คำตอบคือ"], ["ไม่"]),
}  # fmt: skip
ABROAD = [
    ("sw", "Jibu ni (B).", "B"), ("sw", "Jibu ni A kwa sababu ni kubwa", "A"), ("sw", "Jibu si B", None),
    ("sw", "jibu: C", "C"), ("sw", "Jibu ni B au C", None), ("sw", "Je, jibu ni B?", None),
    ("sw", "Jibu ni Bara", None), ("sw", "Jibu ni A. Hapana, jibu ni C.", "C"), ("sw", "Sijui", None),
    ("sw", "Jibu sahihi ni B.", "B"), ("sw", "Jibu lililo sahihi ni (C).", "C"), ("sw", "Chaguo sahihi ni D", "D"),
    ("sw", "Kwa hiyo B ni jibu sahihi.", "B"), ("sw", "F ndilo jibu sahihi", "F"), ("sw", "Jibu sahihi si B", None),
    ("sw", "Jibu sahihi ni B au C", None), ("sw", "Jibu sahihi: E", "E"), ("zu", "Impendulo ngu-G.", "G"),
    ("zu", "Ngakho impendulo elungile ngu-A", "A"), ("zu", "Impendulo elungile ithi (C).", "C"),
    ("zu", "Impendulo ngumuntu", None), ("mr", "पर्याय B बरोबर आहे.", "B"), ("mr", "पर्याय B बरोबर नाही.", None),
    ("mr", "योग्य उत्तर पर्याय C आहे", "C"), ("ne", "विकल्प D सही हो।", "D"), ("ne", "सही उत्तर विकल्प B हो", "B"),
    ("ne", "विकल्प D सही होइन।", None), ("te", "B సరైన సమాధానం.", "B"), ("te", "సరైన సమాధానం: C", "C"),
    ("yo", "Ìdáhùn ni B.", "B"), ("yo", "Ìdáhùn tó tọ́ ni (C).", "C"), ("yo", "Ìdáhùn tí ó tọ́ ni D", "D"),
    ("sw", "The answer is D", "D"), ("mr", "उत्तर आहे (D)", "D"), ("mr", "म्हणून उत्तर B आहे.", "B"),
    ("mr", "उत्तर B नाही", None), ("mr", "उत्तर A किंवा B", None), ("mr", "मला माहीत नाही", None),
    ("ne", "उत्तर (J) हो।", "J"), ("ne", "उत्तर B होइन।", None), ("te", "సమాధానం (C).", "C"),
    ("te", "సమాధానం C కాదు", None), ("wo", "Tontu bi mooy (E).", "E"), ("yo", "Ìdáhùn náà ni (F).", "F"),
    ("yo", "I\u0300da\u0301hu\u0300n na\u0301a\u0300 ni (F).", "F"), ("zu", "Impendulo ithi (G).", "G"),
    ("zu", "C", "C"), ("ja", "よって答えはBです。", "B"), ("ja", "答えは（C）です", "C"),
    ("ja", "Dが正解です", "D"), ("ja", "答えはBではない", None), ("ja", "答えはBですか？", None),
    ("ja", "答えはBかC", None), ("zh", "所以答案是B。", "B"), ("zh", "答案：C", "C"),
    ("zh", "答案是B或C", None), ("zh", "B是正确答案", "B"), ("zh", "答案不是B", None), ("zh", "不知道", None),
    ("ru", "Правильный ответ: B", "B"), ("ru", "ответ В", None), ("ru", "не ответ B", None),
    ("ru", "безответ B", None), ("ar", "الإجابة هي B", "B"), ("ar", "الإجابة هي B؟", None),
    ("ko", "정답은 B입니다", "B"), ("ko", "정답은 (A)입니다.", "A"), ("th", "คำตอบคือB", "B"),
    ("th", "ไม่คำตอบคือB", None), ("th", "\\boxed{B}", "B"),
]  # fmt: skip


@pytest.mark.parametrize(("language", "text", "chosen"), ABROAD)
def test_choice_in_other_languages(language: str, text: str, chosen: str | None) -> None:
    """The Cyrillic В is no B; without cues of their own none of these statements would count."""
    if language in LANGUAGES:
        cues, denials = LANGUAGES[language]
        spec = ScoreSpec.model_validate({"kind": "choice", "cues": cues, "denials": denials})
    else:
        spec = Benchmark.model_validate(f"mmlu-prox-{language}").score
        assert spec.cues
    assert score(spec, text, "B").answer == chosen


def test_cues_without_words_are_refused_and_no_other_kind_has_them() -> None:
    for cue in ("", "{}", "{} ni {}"):
        with pytest.raises(ValidationError, match="at most one {} for the option"):
            ScoreSpec.model_validate({"kind": "choice", "cues": [cue]})
    with pytest.raises(ValidationError, match="exact has no cues"):
        ScoreSpec.model_validate({"cues": ["Jibu ni"]})


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("Answer: yes", "yes"), ("Yes.", "yes"), ("No, it does not", "no"), ("The answer is Maybe", "maybe"),
        ("nobody knows", None), ("yesterday", None), ("No one knows", None), ("Answer: not yet", None), ("", None),
        ("Answer: no one", None), ("yes/no", None), ("yes or no", None), ("Yes, no, maybe", None),
        ("answer is no.", "no"),
    ],
)  # fmt: skip
def test_choice_of_words(text: str, chosen: str | None) -> None:
    assert score(WORDS, text, "yes").answer == chosen


def test_the_letter_i_is_a_word_first() -> None:
    ten = ScoreSpec(kind="choice")
    for text in ("Answer: I don't know", "I think so", "I, personally, cannot tell", "The answer is I think C"):
        assert score(ten, text, "I").answer is None
    assert score(ten, "The answer is I.", "I").value == 1


def test_a_reference_that_is_no_option_is_refused() -> None:
    with pytest.raises(ValueError, match=r"reference answer 'E' is none of A-D"):
        score(LETTERS, "B", "E")


@pytest.mark.parametrize(
    "part",
    [
        "jibu ni ",
        "jibu ni B ",
        "jibu,",
        "si ",
        "answer ",
        " ",
        "\n",
        " \n",
        "A,",
        "A) ",
        "answer is ",
        "\\boxed{",
        "A or ",
        "*",
        "if ",
        ":",
        "(",
    ],
)
def test_the_time_of_a_choice_is_linear_in_the_text(part: str) -> None:
    text = "answer" + part * (50_000 // len(part)) + "x"
    since = time.process_time()
    score(ScoreSpec(kind="choice", cues=("jibu ni", "jibu", "{} ni jibu"), denials=("si",)), text, "B")
    assert time.process_time() - since < 5


@settings(deadline=None)  # the first one imports what the scorer needs
@given(st.text(max_size=200))
def test_no_text_breaks_a_scorer(text: str) -> None:
    for spec, wanted in ((EXACT, "#### 1"), (LETTERS, "B"), (WORDS, "yes"), (ScoreSpec(kind="similarity"), "cat")):
        assert 0 <= score(spec, text, wanted).value <= 1


# text, value; the word is USNIC
FIGLET = [
    ("USNIC", 1), ("usnic", 1), (" USNIC \n", 1), ("U S N I C", 1), ("Usnic", 1), ("\tUSNIC", 1),
    ("USNIC.", 0), ("USNI", 0), ("USNICS", 0), ("SUNIC", 0), ("The word is USNIC", 0), ("USNIC USNIC", 0), ("", 0),
    ("USN1C", 0), ("USИIC", 0), ("U-S-N-I-C", 0), ("'USNIC'", 0), ("**USNIC**", 0), ("USNIC\nUSNIC", 0), ("CINSU", 0),
    ("USNIC!", 0), ("USNIC?", 0), ("<b>USNIC</b>", 0), ("usnic acid", 0), ("U", 0), ("US", 0), ("USNIK", 0),
    ("UZNIC", 0), ("answer: USNIC", 0), ("USNIC" * 1000, 0), ("ＵＳＮＩＣ", 0), ("\u200bUSNIC", 0), ("USNIC,", 0),
    ("(USNIC)", 0), ("USNIC or UNSIC", 0), ("0", 0), ("null", 0), ("None", 0), ("USnIc", 1), ("U  SNIC", 1),
    ("\\boxed{USNIC}", 0),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), FIGLET)
def test_the_generators_own_scorer(text: str, value: float) -> None:
    needs_reasoning_gym()
    entry = {"generator": "figlet_font", "question": "?", "answer": "USNIC", "metadata": {}}
    found = score(ScoreSpec(kind="generator"), text, "USNIC", entry)
    assert found.value == value
    assert (found.answer is None) == (not text.strip())


def test_half_right_counts_only_when_asked() -> None:
    needs_reasoning_gym()
    entry = {"generator": "figlet_font", "question": "?", "answer": "USNIC", "metadata": {}}
    assert score(ScoreSpec(kind="generator"), "USNXX", "", entry).value == 0
    assert score(ScoreSpec(kind="generator", partial=True), "USNXX", "", entry).value == pytest.approx(0.3)


def test_a_library_that_is_not_there_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = _Judge("math")
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(RuntimeError, match=r"the scorer of math answers did not start"):
        judge.ask({"text": "1", "wanted": "1"})


def test_a_thread_may_ask_and_the_folder_of_a_trial_is_of_no_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    judge, said = _Judge("math"), []
    thread = threading.Thread(target=lambda: said.append(judge.ask({"text": "$1/2$", "wanted": "0.5"})))
    thread.start()
    thread.join()
    judge.end()
    assert said == [(1.0, "\\frac{1}{2}")]


def test_integer_answers_of_competitions_are_right_as_they_are_written_in_the_data() -> None:
    for name in ("aime24", "amc23"):
        for problem in rows(f"{name}/test.jsonl")[:20]:
            answer = str(problem["answer"])  # "27.0" in amc23
            assert score(MATH, f"\\boxed{{{answer.removesuffix('.0')}}}", answer).value == 1
            assert score(MATH, f"\\boxed{{{float(answer) + 1:g}}}", answer).value == 0


def test_every_item_of_a_generator_is_right_against_itself() -> None:
    gym = pytest.importorskip("reasoning_gym")
    for name in ("figlet_font", "basic_arithmetic", "spell_backward", "countdown", "leg_counting"):
        for item in gym.create_dataset(name, seed=7, size=5):
            entry = {**item, "generator": name}
            assert score(ScoreSpec(kind="generator"), item["answer"], item["answer"], entry).value == 1, name


@pytest.mark.parametrize(
    ("a", "b", "value"),  # Winkler's own table, as every implementation cites it
    [
        ("MARTHA", "MARHTA", 0.9611), ("DWAYNE", "DUANE", 0.84), ("DIXON", "DICKSONX", 0.8133), ("martha", "MARTHA", 1),
        ("JONES", "JOHNSON", 0.8324), ("ABROMS", "ABRAMS", 0.9222), ("SHACKLEFORD", "SHACKELFORD", 0.9818),
        ("DUNNINGHAM", "CUNNIGHAM", 0.8963), ("NICHLESON", "NICHULSON", 0.9556), ("MASSEY", "MASSIE", 0.9333),
        ("HARDIN", "MARTINEZ", 0.7222), ("ITMAN", "SMITH", 0.4667), ("JERALDINE", "GERALDINE", 0.9259),
        ("MICHELLE", "MICHAEL", 0.9214), ("JULIES", "JULIUS", 0.9333), ("TANYA", "TONYA", 0.88),
        ("SEAN", "SUSAN", 0.805), ("JON", "JOHN", 0.9333),
    ],
)  # fmt: skip
def test_similarity_is_jaro_winkler(a: str, b: str, value: float) -> None:
    assert score(ScoreSpec(kind="similarity"), a, b).value == pytest.approx(value, abs=1e-4)


# text, value; the word is USNIC. (m/a + m/5 + (m - t)/m) / 3 of m common letters in a, t swapped pairs; where that is
# above 0.7 a tenth of what is missing for each letter of the common prefix, at most four
SIMILAR = [
    ("USNIC", 1), ("usnic", 1), (" USNIC \n", 1), ("Usnic", 1), ("\tuSnIc\r\n", 1),
    ("USNI", 0.96), ("USN", 0.9067), ("US", 0.84), ("U", 0.76), ("USNIC.", 0.9667), ("USNICS", 0.9667),
    ("SUNIC", 0.9333), ("UNSIC", 0.94), ("USINC", 0.9467), ("USNCI", 0.9533), ("CINSU", 0.4667), ("SNIC", 0.9333),
    ("XSNIC", 0.8667), ("UZNIC", 0.88), ("USN1C", 0.9067), ("USNIK", 0.92), ("USИIC", 0.8933), ("UŚNIĆ", 0.76),
    ("USN IC", 0.9611), ("U S N I C", 0.7733), ("U-S-N-I-C", 0.7733), ("'USNIC'", 0.9048), ("(USNIC)", 0.9048),
    ("**USNIC**", 0.8519), ("\u200bUSNIC", 0.9444), ("USNIC USNIC", 0.8909), ("USNIC\nUSNIC", 0.8909),
    ("USNIC or UNSIC", 0.8714), ("usnic acid", 0.9), ("The word is USNIC", 0.4196), ("answer: USNIC", 0.3513),
    ("USNIC" * 1000, 0.667), ("UUUUU", 0.4667), ("null", 0.4833), ("None", 0.4833),
    # nothing in common within half a word's length, or nothing at all
    ("NIC", 0), ("C", 0), ("0", 0), ("xyz", 0), ("ＵＳＮＩＣ", 0), ("\\boxed{USNIC}", 0), ("x" * 10**6 + "USNIC", 0),
    ("", 0), ("   ", 0), ("\n\t", 0),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), SIMILAR)
def test_similarity_of_answers_that_are_nearly_right(text: str, value: float) -> None:
    found = score(ScoreSpec(kind="similarity"), text, "USNIC")
    assert found.value == pytest.approx(value, abs=1e-4)
    assert (found.answer is None) == (not text.strip())


def test_a_setting_of_another_kind_is_refused() -> None:
    with pytest.raises(ValidationError, match="math has no marker"):
        ScoreSpec(kind="math", marker="####")
    with pytest.raises(ValidationError, match="a range of letters such as A-D"):
        ScoreSpec(kind="choice", options="A")
    assert options_of("A-D") == ("A", "B", "C", "D")


def test_how_answers_are_read_belongs_to_the_key_where_it_has_changed() -> None:
    """Trials that were scored by the first reading of these kinds are not taken for new ones; others keep theirs."""
    for kind, version in (
        ("choice", 2),
        ("code", 2),
        ("evalplus", 2),
        ("exact", None),
        ("math", None),
        ("number", None),
    ):
        source = {"path": "a.jsonl", "score": {"kind": kind}}
        assert TaskSpec.model_validate(source).identity().get("scoring") == version
        assert Benchmark.model_validate(source).identity().get("scoring") == version


def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_answer() -> None:
    assert pass_at_k(5, 0, 3) == 0
    assert pass_at_k(5, 5, 1) == 1
    assert pass_at_k(4, 1, 2) == pytest.approx(1 / 2)
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3)
    assert pass_at_k(200, 7, 100) == pytest.approx(1 - comb(193, 100) / comb(200, 100))
    with pytest.raises(ValueError, match="pass@5 needs at least 5"):
        pass_at_k(4, 1, 5)


def test_the_bootstrap_interval_is_that_of_a_mean_and_repeats_itself() -> None:
    values = [1.0] * 30 + [0.0] * 70
    low, high = bootstrap_interval(values)
    half = 1.96 * (0.3 * 0.7 / 100) ** 0.5  # the normal interval of a share
    assert (low, high) == pytest.approx((0.3 - half, 0.3 + half), abs=0.02)
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval([0.5, 0.5]) == (0.5, 0.5)
    two = bootstrap_interval(values, [1.0] * 100)
    assert two == pytest.approx((0.65 - half / 2, 0.65 + half / 2), abs=0.02)
