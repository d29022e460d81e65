"""The program in an answer: the shapes that models write, a right and a wrong program in each.

The programs are run here, in this process: every answer of this file is harmless. tests/integration/test_sandbox.py
runs the same kinds through the real sandbox.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs import sandbox
from jobs.answers import without_thinking
from jobs.programs import asked_names, program_of

ROOT = Path(__file__).parents[2]
CASES = Path(os.environ.get("SWEEPER_CASES", ROOT.parent / "shared" / "cases")) / "code_answers.json"
ASSERTS = {"test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"]}
PROMPT = 'from typing import List\nimport math\n\n\ndef add(a, b):\n    """The sum.\n\n    >>> add(1, 2)\n    3\n    """\n'
CHECK = {
    "prompt": PROMPT,
    "entry_point": "add",
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(0, 0) == 0\n",
}
GOOD = "def add(a, b):\n    return a + b\n"
BAD = "def add(a, b):\n    return a - b - 1\n"
USAGE = "```python\nprint(add(1, 2))\n```\n"


def passes(text: str, entry: dict[str, Any]) -> bool:
    """The verdict of the problem's tests on the program in `text`."""
    program = program_of(without_thinking(text), entry)
    if program is None:
        return False
    try:
        exec(compile(program + "\n\n" + sandbox.tests_of(entry), "answer", "exec"), {"__name__": "answer"})
    except (Exception, SystemExit):
        return False
    return True


def block(code: str, info: str = "python") -> str:
    return f"```{info}\n{code}```\n"


# In each shape CODE stands for the program; a right program has to stay right in it and a wrong one wrong.
SHAPES = {
    "alone": "CODE",
    "fence": "Here it is:\n```python\nCODE```\nThat is all.",
    "fence without a language": "```\nCODE```",
    "py": "```py\nCODE```", "Python3": "```Python3\nCODE```", "blank before the language": "``` python\nCODE```",
    "attributes": '```python title="add.py" linenums=1\nCODE```', "pandoc": "```{.python}\nCODE```",
    "four backticks": "````python\nCODE````", "tildes": "~~~python\nCODE~~~", "unclosed": "```python\nCODE",
    "a language that is wrong": "```text\nCODE```",
    "fence behind words": "Here is the code: ```python\nCODE```", "closed behind words": "```python\nCODE``` This adds.",
    "fence in a list": "1. Code:\n   ```python\nINDENT3   ```\n", "bullet before the fence": "- ```python\nINDENT2  ```",
    "fence in a quotation": "> Sure:\n> ```python\nQUOTE> ```\n", "tab before the fence": "\t```python\nTAB\t```\n",
    "prose before": "Sure! Here is the code:\n\nCODE", "prose after": "CODE\nThis function adds two numbers.\n",
    "prose around": "Sure, here's the code (in Python):\n\nCODE\nExplanation: it's the sum of both.\n\n- a: first\n",
    "indented as a whole": "The code:\n\nINDENT4\n", "usage block": "```python\nCODE```\n\nExample usage:\n\n" + USAGE,
    "usage in the same block": "```python\nCODE\nprint(add(1, 2))\n```",
    "usage that fails": "```python\nCODE\nresult = add(1, 2, 3)\nprint(result[0])\nassert result == 7\n```",
    "usage in a loop": "```python\nCODE\nfor case in [(1,), (2,)]:\n    print(add(*case))\n```",
    "usage in a main": "```python\nCODE\ndef main():\n    a = int(input())\n    print(add(a))\n\nmain()\n```",
    "input": "```python\nCODE\na, b = map(int, input().split())\nprint(add(a, b))\n```",
    "sys.stdin": "```python\nimport sys\nCODE\ndata = sys.stdin.read().split()\nn = int(data[0])\nprint(add(n, n))\n```",
    "name guard": "```python\nCODE\nif __name__ == '__main__':\n    raise SystemExit(1)\n```",
    "unittest": "```python\nimport unittest\nCODE\nclass T(unittest.TestCase):\n    def test(self):\n        "
    "self.assertEqual(add(1), 1)\n\nunittest.main()\n```",
    "own asserts, wrong": "```python\nCODE\nassert add(1, 2) == 4\n```",
    "own tests in a block": "```python\nCODE```\nTests:\n```python\nfrom solution import add\nassert add(1, 2) == 4\n```",
    "own tests by pytest": "```python\nCODE```\n```python\nimport pytest, my_module\n\ndef test_add():\n    "
    "assert my_module.add(1, 2) == 3\n```",
    "plot in a usage block": "```python\nCODE```\n```python\nimport no_such_plot as plt\nplt.plot(add(1, 2))\n```",
    "output block": "```python\nCODE```\nOutput:\n```\n3\n```", "output of a repr": "```python\nCODE```\n```\nPoint(x=1)\n```",
    "traceback block": "```python\nCODE```\n```\nTraceback (most recent call last):\n  File \"x\", line 1\nValueError: no\n```",
    "shell block": "```bash\npip install nothing\n```\n```python\nCODE```\n```sh\npython add.py\n```",
    "another language first": "```javascript\nfunction add(a, b) { return a * b; }\n```\n```python\nCODE```",
    "another language last": "```python\nCODE```\nIn Ruby:\n```ruby\ndef add(a, b)\n  a * b\nend\n```",
    "another language, named Python": "```js\nadd = (a, b) => a * b\n```\n```python\nCODE```",
    "draft": "Draft:\n```python\n" + BAD + "```\nBetter:\n```python\nCODE```",
    "draft without fences": "First try:\n\n" + BAD + "\nNo, that is wrong. Again:\n\nCODE",
    "draft in the same block": "```python\n" + BAD + "\nCODE```",
    "stub first": "```python\ndef add(a, b):\n    pass\n```\n```python\nCODE```",
    "stub last": "```python\nCODE```\nThe signature is\n```python\ndef add(a, b):\n    ...\n```",
    "half function after": "```python\nCODE\ndef helper(x):\n    for y in",
    "half of the same function after": "```python\nCODE```\nOr shorter:\n```python\ndef add(a, b):\n    return (a",
    "half statement after": "CODE\nprint(add(1,", "half comment after": "CODE\n# and now we sh",
    "half string after": 'CODE\n"""This is how', "thinking": "<think>\n" + block(BAD) + "Hm.\n</think>\n\n```python\nCODE```",
    "end of thinking alone": "Let me see. " + block(BAD) + "</think>\n```python\nCODE```",
    "console": "```python\n>>> CONSOLE>>> add(1, 2)\n3\n```", "console after": "```python\nCODE\n>>> add(1, 2)\n3\n```",
    "fence in a docstring": '```python\nCODE\ndef other():\n    """Example:\n\n    ```python\n    other()\n    ```\n    """\n```',
    "fence never closed before the next": "```python\nCODE\n```python\nprint(add(1, 2))\n```",
    "Markdown in Markdown": "````markdown\n# Add\n````\n```python\nCODE```",
    "prompt opened the fence": "CODE```\n\nThis adds two numbers.\n", "MBPP's markers": "[BEGIN]\nCODE\n[DONE]\n\n" + BAD,
    "code tags": "[PYTHON]\nCODE\n[/PYTHON]", "next problem": "CODE\n\nQuestion: Write it with a minus.\n" + BAD,
    "next instruction": "CODE\n### Instruction:\nSubtract.\n### Response:\n" + BAD,
    "byte-order mark": "\ufeffCODE", "code behind the language": "```python CODE```",
    "comment first": "```python\n# Solution\n\nCODE```", "docstring first": '```python\n"""A module."""\nCODE```',
    "semicolon": "```python\nx = 1; print(x)\nCODE```", "heading": "### Solution\n\nCODE\n### Explanation\n\n  It adds.\n",
    "output as an annotation": "CODE\nOutput: three\nNote: b is added\n",
    "bullets with calls": "CODE\n- add(1, 2) returns 3\n- add(0) fails\n",
    "a name that a helper block has": "```python\nx = 5\nlist = [1]\nprint(add(x, x))\n```\n```python\nCODE```",
}  # fmt: skip
PROGRAMS = {
    "function": (GOOD, BAD),
    "lambda": ("add = lambda a, b: a + b\n", "add = lambda a, b: a - b - 1\n"),
    "types and a decorator": (
        "import functools\nfrom typing import Union\n\n@functools.lru_cache(maxsize=None)\n"
        "def add(a: Union[int, float], b: int = 0) -> int:\n    \"\"\"Sum: a + b.\n\n>>> not code\n    \"\"\"\n    return a + b\n",
        "import functools\n\n@functools.lru_cache\ndef add(a: int, b: int) -> int:\n    return a + b + 1\n",
    ),
    "helpers and constants": (
        "import sys\nsys.setrecursionlimit(3000)\nZERO = 0\nmemo = {}\nmemo[0] = ZERO\n\nclass Sum:\n    def of(self, x):\n"
        "        return sum(x)\n\ndef helper(*x):\n    return Sum().of(x) + memo[0]\n\ndef add(a, b):\n    return helper(a, b)\n",
        "ZERO = 1\n\ndef helper(*x):\n    return sum(x) + ZERO\n\ndef add(a, b):\n    return helper(a, b)\n",
    ),
}  # fmt: skip


def written(shape: str, code: str) -> str:
    """`code` in a shape, with the indentation or the marks that the shape puts before every line."""
    lines = code.splitlines()
    for mark, before in {"INDENT2": "  ", "INDENT3": "   ", "INDENT4": "    ", "QUOTE": "> ", "TAB": "\t"}.items():
        shape = shape.replace(mark, "".join(f"{before}{line}\n" for line in lines))
    first, *rest = lines
    console = "".join(f"... {line}\n" if line[:1].isspace() else f">>> {line}\n" for line in rest)
    return shape.replace("CONSOLE", f"{first}\n{console}").replace("CODE", code)


@pytest.mark.parametrize("entry", [ASSERTS, CHECK], ids=["asserts", "check"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"], ids=["unix", "windows"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_right_program_is_right_in_every_shape_and_a_wrong_one_wrong(
    shape: str, ends: str, entry: dict[str, Any]
) -> None:
    for name, (good, bad) in PROGRAMS.items():
        if shape in ("console", "code behind the language") and name not in ("function", "lambda"):
            continue  # a console has no blank lines inside a definition
        for code, right in ((good, True), (bad, False)):
            assert passes(written(SHAPES[shape], code).replace("\n", ends), entry) is right, (name, right)
