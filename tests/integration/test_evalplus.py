"""Our verdicts on code beside those of the `evalplus` package itself, answer by answer.

It is installed without what it depends on (`make evalplus`): its checker needs numpy and psutil alone. Its problems are
fetched from the web, so these are problems of our own in its two forms: inputs with expected results and a tolerance,
as its checker takes them, and the `test` of its published data sets, which our sandbox runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from jobs.scores import ScoreSpec, score

CODE = ScoreSpec(kind="code", timeout_s=3, memory_mb=1024)
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


@pytest.mark.parametrize(
    ("problem", "answer", "form"),
    # each takes a second or two: every third in the other form, too
    [(*one, "humaneval") for one in ANSWERS] + [(*one, "mbpp") for one in ANSWERS[::3]],
)
def test_the_verdict_is_that_of_evalplus(problem: Coding, answer: str, form: str) -> None:
    checker = pytest.importorskip("evalplus.eval")
    verdict, _ = checker.untrusted_check(
        form, answer, problem.inputs, problem.name, problem.expected(), problem.atol, [0.01] * len(problem.inputs),
        fast_check=True, min_time_limit=1.0,
    )  # fmt: skip
    assert score(CODE, answer, "", problem.entry(form)).value == float(verdict == "pass")


def test_where_the_package_asks_for_more_than_its_published_tests() -> None:
    """Nearly equal floats in a tuple where a list is wanted: refused by the package, taken by its data sets' tests."""
    checker = pytest.importorskip("evalplus.eval")
    answer = "def roots(x):\n    return tuple(i ** 0.5 + 5e-5 for i in x)\n"
    verdict, _ = checker.untrusted_check(
        "humaneval", answer, ROOTS.inputs, "roots", ROOTS.expected(), ROOTS.atol, [0.01] * 3, fast_check=True
    )
    assert verdict == "fail"
    assert score(CODE, answer, "", ROOTS.entry("humaneval")).value == 1
