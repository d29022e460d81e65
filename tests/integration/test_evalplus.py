"""Code judged by the `evalplus` package in our sandbox (score evalplus), and our own verdicts (score code) beside it.

The package is installed without what its checker does not need (`make evalplus`). Its problems are fetched from the
web, so these are problems of our own in its forms: a row of its released files, and the `test` of its data sets on the
hub.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jobs.scores import ScoreSpec, score
from jobs.task_spec import TaskSpec
from jobs.tasks import TaskError, load_task

CODE = ScoreSpec(kind="code", timeout_s=3, memory_mb=1024)
EVALPLUS = ScoreSpec(kind="evalplus", timeout_s=8, memory_mb=1024)
CHECK = """import numpy as np

def is_floats(x):
    if isinstance(x, float):
        return True
    return isinstance(x, (list, tuple)) and bool(x) and all(isinstance(i, float) for i in x)

def assertion(out, exp, atol):
    exact = out == exp
    if atol == 0 and is_floats(exp):
        atol = 1e-6
    if not exact and atol != 0:
        np.testing.assert_allclose(out, exp, atol=atol)
    else:
        assert exact

"""


@dataclass(frozen=True)
class Coding:
    """A problem: what is defined under which name, what it is called with, and a solution."""

    name: str
    inputs: list[list[Any]]
    solution: str
    atol: float = 0.0

    def expected(self) -> list[Any]:
        space: dict[str, Any] = {}
        exec(self.solution, space)
        return [space[self.name](*given) for given in self.inputs]

    def released(self, number: int = 0) -> dict[str, Any]:
        """A row of HumanEvalPlus.jsonl: its solution completes the prompt."""
        prompt, solution = self.solution.split("\n    ", 1)
        return {
            "task_id": f"HumanEval/{number}", "prompt": f"{prompt}\n", "canonical_solution": f"    {solution}",
            "entry_point": self.name, "base_input": self.inputs[:1], "plus_input": self.inputs[1:], "atol": self.atol,
        }  # fmt: skip

    def entry(self, form: str) -> dict[str, Any]:
        """A row of the published data set: humaneval-plus has check(candidate), mbpp-plus a plain loop."""
        rows = f"inputs = {self.inputs!r}\nresults = {self.expected()!r}\n"
        call = f"for i, (inp, exp) in enumerate(zip(inputs, results)):\n    assertion(NAME(*inp), exp, {self.atol})\n"
        if form == "mbpp":
            return {"prompt": "Write it.", "test_list": [], "test": CHECK + rows + call.replace("NAME", self.name)}
        body = (rows + call).replace("NAME", "candidate").replace("\n", "\n    ").rstrip()
        return {
            "prompt": f"def {self.name}(*args):\n", "entry_point": self.name,
            "test": f"{CHECK}def check(candidate):\n    {body}\n",
        }  # fmt: skip


MEAN = Coding(
    "mean", [[[1.0]], [[1.0, 2.0]], [[0.1] * 10], [[1e6, 1.0, -1e6]]], "def mean(x):\n    return sum(x) / len(x)\n"
)
ROOTS = Coding(
    "roots", [[[4.0, 9.0]], [[2.0]], [[0.0]]], "def roots(x):\n    return [i ** 0.5 for i in x]\n", atol=1e-4,
)  # fmt: skip
LARGEST = Coding(
    "largest", [[[3, 1, 2]], [[-5, -7]], [[0]], [[]]], "def largest(x):\n    return max(x) if x else None\n",
)  # fmt: skip
COMMON = Coding(
    "common", [[[1, 2, 2], [2, 3]], [[], [1]], [[5], [5]]], "def common(a, b):\n    return sorted(set(a) & set(b))\n",
)  # fmt: skip
WORDS = Coding(
    "words", [["a b"], [""], ["x  y"], ["é\tz"]], "def words(s):\n    return tuple(s.split())\n",
)  # fmt: skip

ANSWERS: list[tuple[Coding, str]] = [
    *((problem, problem.solution) for problem in (MEAN, ROOTS, LARGEST, COMMON, WORDS)),
    (MEAN, "import statistics\ndef mean(x):\n    return statistics.fmean(x)\n"),
    (MEAN, "def mean(x):\n    total = 0\n    for i in x: total += i\n    return total / len(x)\n"),
    (MEAN, "def mean(x):\n    return round(sum(x) / len(x), 1)\n"),  # right for the simple ones
    (MEAN, "def mean(x):\n    return sum(x) / len(x) + 1e-9\n"),
    (MEAN, "def mean(x):\n    return sum(x) / len(x) + 1e-3\n"),
    (MEAN, "def mean(x):\n    return sum(x) // len(x)\n"),
    (MEAN, "def mean(x):\n    return str(sum(x) / len(x))\n"),
    (MEAN, "def mean(x):\n    return float('nan')\n"),
    (MEAN, "mean = lambda x: sum(x) / len(x)\n"),
    (ROOTS, "import math\ndef roots(x):\n    return [math.sqrt(i) for i in x]\n"),
    (ROOTS, "def roots(x):\n    return [i ** 0.5 + 5e-5 for i in x]\n"),
    (ROOTS, "def roots(x):\n    return [i ** 0.5 + 5e-3 for i in x]\n"),
    (ROOTS, "def roots(x):\n    return [i ** 0.5 for i in x][:1]\n"),
    (ROOTS, "def roots(x):\n    return []\n"),
    (LARGEST, "def largest(x):\n    return max(x)\n"),  # the plus input: an empty list
    (LARGEST, "def largest(x):\n    return max(x, default=None)\n"),
    (LARGEST, "def largest(x):\n    best = 0\n    for i in x: best = max(best, i)\n    return best\n"),
    (LARGEST, "def largest(x):\n    return sorted(x)[-1] if x else None\n"),
    (LARGEST, "def largest(x):\n    x.sort()\n    return x[-1] if len(x) else None\n"),
    (LARGEST, "def largest(x):\n    while True: pass\n"),
    (LARGEST, "def largest(x):\n    return largest(x)\n"),
    (LARGEST, "def largest(x) return max(x)\n"),
    (LARGEST, "def biggest(x):\n    return max(x) if x else None\n"),
    (LARGEST, "import sys\nsys.exit(0)\n"),
    (LARGEST, "raise SystemExit(0)\n"),
    (LARGEST, "print('noise')\nimport sys\nsys.stderr.write('more')\n" + LARGEST.solution),
    (LARGEST, "def largest(x):\n    raise SystemExit(0)\n"),
    (LARGEST, "def largest(x):\n    return input()\n"),
    (COMMON, "def common(a, b):\n    return list(set(a) & set(b))\n"),
    (COMMON, "def common(a, b):\n    return [i for i in a if i in b]\n"),  # twice what is there twice
    (COMMON, "def common(a, b):\n    return set(a) & set(b)\n"),
    (COMMON, "def common(a, b):\n    return sorted(set(a).intersection(b))\n"),
    (COMMON, "def common(a):\n    return a\n"),
    (COMMON, "import nothing_like_this\n" + COMMON.solution),
    (WORDS, "def words(s):\n    return s.split()\n"),  # a list is no tuple
    (WORDS, "def words(s):\n    return tuple(s.split(' '))\n"),
    (WORDS, "import re\ndef words(s):\n    return tuple(re.findall(r'\\S+', s))\n"),
    (WORDS, "def words(s):\n    return tuple(w for w in s.split() if w.isascii())\n"),
    (WORDS, ""),
]  # fmt: skip


@pytest.mark.parametrize(("problem", "answer"), ANSWERS)
def test_three_verdicts_on_an_answer_are_one(problem: Coding, answer: str) -> None:
    """The package alone, which knows no sandbox; the package in ours, on a row as released; the published tests."""
    right = verdict_of_evalplus("humaneval", problem, answer)
    assert score(EVALPLUS, answer, "", problem.released()).value == right
    assert score(CODE, answer, "", problem.entry("humaneval")).value == right


@pytest.mark.parametrize(("problem", "answer"), ANSWERS[::3])  # each takes a second or two
def test_verdicts_on_the_form_of_mbpp(problem: Coding, answer: str) -> None:
    right = verdict_of_evalplus("mbpp", problem, answer)
    assert score(CODE, answer, "", problem.entry("mbpp")).value == right


def verdict_of_evalplus(form: str, problem: Coding, answer: str) -> float:
    checker = pytest.importorskip("evalplus.eval")
    verdict, _ = checker.untrusted_check(
        form, answer, problem.inputs, problem.name, problem.expected(), problem.atol, [0.01] * len(problem.inputs),
        fast_check=True, min_time_limit=1.0,
    )  # fmt: skip
    return float(verdict == "pass")


def test_where_the_package_asks_for_more_than_its_published_tests() -> None:
    """Nearly equal floats in a tuple where a list is wanted: refused by the package, taken by its data sets' tests."""
    answer = "def roots(x):\n    return tuple(i ** 0.5 + 5e-5 for i in x)\n"
    assert verdict_of_evalplus("humaneval", ROOTS, answer) == score(EVALPLUS, answer, "", ROOTS.released()).value == 0
    assert score(CODE, answer, "", ROOTS.entry("humaneval")).value == 1


def mbpp(number: int, name: str, solution: str, inputs: list[Any]) -> dict[str, Any]:
    """A row of MbppPlus.jsonl: what JSON does not have is made of its inputs by the package, by their number."""
    return {
        "task_id": f"Mbpp/{number}", "prompt": f'"""Write {name}."""\n', "canonical_solution": solution,
        "entry_point": name, "base_input": inputs[:1], "plus_input": inputs[1:], "atol": 0,
    }  # fmt: skip


SIMILAR = mbpp(
    2, "similar_elements", "def similar_elements(a, b):\n    return tuple(set(a) & set(b))\n",
    [[[3, 4, 5], [5, 4, 7]], [[], [1]]],
)  # fmt: skip
ANGLE = mbpp(
    124, "angle", "import cmath\ndef angle(a, b):\n    return cmath.phase(a + b)\n", [["0", "1j"], ["1", "2j"]]
)
MATCH = mbpp(
    434, "text_match_three", "import re\ndef text_match_three(s):\n    return re.search('ab{3}', s)\n",
    [["abbb"], ["ab"]],
)  # fmt: skip
REACHES_OUT = """import socket
try:
    socket.create_connection(("127.0.0.1", 9), timeout=1)
except ConnectionRefusedError:
    def largest(x): return max(x) if x else None
except OSError:
    def largest(x): return "no network"
"""


@pytest.mark.parametrize(
    ("row", "answer", "passes"),
    [
        (SIMILAR, "def similar_elements(a, b):\n    return [i for i in b if i in a]\n", True),  # compared as sets
        (SIMILAR, "def similar_elements(a, b):\n    return a\n", False),
        (SIMILAR, "def similar_elements(a, b):\n    assert type(a) is tuple\n    return {*a} & {*b}\n", True),
        (ANGLE, "import cmath\ndef angle(a, b):\n    return cmath.polar(complex(a) + b)[1]\n", True),
        (ANGLE, "def angle(a, b):\n    return b.imag\n", False),
        (MATCH, "def text_match_three(s):\n    return 0\n", False),  # it is not None, where nothing is to be found
        (MATCH, "def text_match_three(s):\n    return 'found' if 'abbb' in s else None\n", True),
        (LARGEST.released(), REACHES_OUT, False),  # a refused connection would be a network
        (LARGEST.released(), "```python\ndef largest(x):\n    return max(x, default=None)\n```", True),
        (LARGEST.released(), "    return max(x) if x else None\n", True),  # a completion of the prompt
        (LARGEST.released(), "def largest(x):\n    return [0] * 10**9 and max(x, default=None)\n", False),  # memory
    ],
)  # fmt: skip
def test_rows_of_its_released_files(row: dict[str, Any], answer: str, passes: bool) -> None:
    pytest.importorskip("evalplus.eval")
    assert score(EVALPLUS, answer, "", json.loads(json.dumps(row))).value == passes


def test_the_presets_read_its_released_files(tmp_path: Path) -> None:
    pytest.importorskip("evalplus.eval")
    rows = {"HumanEvalPlus": [problem.released(i) for i, problem in enumerate((MEAN, LARGEST))], "MbppPlus": [SIMILAR]}
    for name, lines in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    benchmarks = [
        {"preset": preset, "path": str(tmp_path / f"{name}.jsonl")}
        for preset, name in (("humaneval-evalplus", "HumanEvalPlus"), ("mbpp-evalplus", "MbppPlus"))
    ]
    data = load_task(TaskSpec.model_validate({"builtin": "addition", "benchmarks": benchmarks}))
    assert [len(examples) for examples in data.benchmarks.values()] == [2, 1]
    for example in [*data.benchmarks["humaneval-evalplus"], *data.benchmarks["mbpp-evalplus"]]:
        assert example.entry is not None
        assert example.prompt.endswith(f"```python\n{example.entry['prompt']}\n```")
        assert score(example.score, example.wanted, example.wanted, example.entry).value == 1


def test_rows_of_another_form_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("evalplus.eval")
    (tmp_path / "rows.jsonl").write_text(json.dumps(MEAN.entry("humaneval") | {"canonical_solution": "x"}))
    benchmark = {"preset": "humaneval-evalplus", "path": str(tmp_path / "rows.jsonl")}
    with pytest.raises(
        TaskError, match="rows.jsonl:1: score evalplus reads rows of EvalPlus' released files; task_id, base"
    ):
        load_task(TaskSpec.model_validate({"builtin": "addition", "benchmarks": [benchmark]}))
