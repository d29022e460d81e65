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
from jobs.answer_text import without_thinking
from jobs.programs import asked_names, program_of

ROOT = Path(__file__).parents[2]
CASES = Path(os.environ.get("SWEEPER_CASES", ROOT.parent / "shared" / "cases")) / "code_answers.json"
ASSERTS = {"test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"]}
PROMPT = (
    'from typing import List\nimport math\n\n\ndef add(a, b):\n    """The sum.\n\n    >>> add(1, 2)\n    3\n    """\n'
)
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
    "py": "```py\nCODE```",
    "Python3": "```Python3\nCODE```",
    "blank before the language": "``` python\nCODE```",
    "attributes": '```python title="add.py" linenums=1\nCODE```',
    "pandoc": "```{.python}\nCODE```",
    "four backticks": "````python\nCODE````",
    "tildes": "~~~python\nCODE~~~",
    "unclosed": "```python\nCODE",
    "a language that is wrong": "```text\nCODE```",
    "fence behind words": "Here is the code: ```python\nCODE```",
    "closed behind words": "```python\nCODE``` This adds.",
    "fence in a list": "1. Code:\n   ```python\nINDENT3   ```\n",
    "bullet before the fence": "- ```python\nINDENT2  ```",
    "fence in a quotation": "> Sure:\n> ```python\nQUOTE> ```\n",
    "no-break blanks": "NBSP",
    "tab before the fence": "\t```python\nTAB\t```\n",
    "prose before": "Sure! Here is the code:\n\nCODE",
    "prose after": "CODE\nThis function adds two numbers.\n",
    "prose around": "Sure, here's the code (in Python):\n\nCODE\nExplanation: it's the sum of both.\n\n- a: first\n",
    "indented as a whole": "The code:\n\nINDENT4\n",
    "usage block": "```python\nCODE```\n\nExample usage:\n\n" + USAGE,
    "usage in the same block": "```python\nCODE\nprint(add(1, 2))\n```",
    "usage that fails": "```python\nCODE\nresult = add(1, 2, 3)\nprint(result[0])\nassert result == 7\n```",
    "usage in a loop": "```python\nCODE\nfor case in [(1,), (2,)]:\n    print(add(*case))\n```",
    "usage in a main": "```python\nCODE\ndef main():\n    a = int(input())\n    print(add(a))\n\nmain()\n```",
    "input": "```python\nCODE\na, b = map(int, input().split())\nprint(add(a, b))\n```",
    "a main that asks": "```python\nCODE\ndef main():\n    print(int(input()))\n\nmain()\n```",
    "a main that reads": "```python\nimport sys\nCODE\ndef main():\n    print(int(sys.stdin.read()))\n\nmain()\n```",
    "readline": "```python\nimport sys\ninput = sys.stdin.readline\nCODE\nn = int(input())\nprint(add(n, n))\n```",
    "sys.stdin": "```python\nimport sys\nCODE\ndata = sys.stdin.read().split()\nn = int(data[0])\n"
    "print(add(n, n))\n```",
    "name guard": "```python\nCODE\nif __name__ == '__main__':\n    raise SystemExit(1)\n```",
    "unittest": "```python\nimport unittest\nCODE\nclass T(unittest.TestCase):\n    def test(self):\n        "
    "self.assertEqual(add(1), 1)\n\nunittest.main()\n```",
    "own asserts, wrong": "```python\nCODE\nassert add(1, 2) == 4\n```",
    "own tests in a block": "```python\nCODE```\nTests:\n```python\nfrom solution import add\n"
    "assert add(1, 2) == 4\n```",
    "own tests by pytest": "```python\nCODE```\n```python\nimport pytest, my_module\n\ndef test_add():\n    "
    "assert my_module.add(1, 2) == 3\n```",
    "plot in a usage block": "```python\nCODE```\n```python\nimport no_such_plot as plt\nplt.plot(add(1, 2))\n```",
    "output block": "```python\nCODE```\nOutput:\n```\n3\n```",
    "output of a repr": "```python\nCODE```\n```\nPoint(x=1)\n```",
    "traceback block": '```python\nCODE```\n```\nTraceback (most recent call last):\n  File "x", line 1\n'
    "ValueError: no\n```",
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
    "half of the same function after, in text": "CODE\nShorter:\n\ndef add(a, b):\n    x = a\n    return (x",
    "half of the same function after, which parses": "CODE\n\ndef add(a, b):\n    x = a\n    ret",
    "half of the same function in a block": "```python\nCODE```\n```python\ndef add(a, b):\n    x = a\n    y = x +",
    "half of it in a block, which parses": "```python\nCODE```\n```python\ndef add(a, b):\n    x = a\n    y = x",
    "half statement after": "CODE\nprint(add(1,",
    "half comment after": "CODE\n# and now we sh",
    "half string after": 'CODE\n"""This is how',
    "thinking": "<think>\n" + block(BAD) + "Hm.\n</think>\n\n```python\nCODE```",
    "end of thinking alone": "Let me see. " + block(BAD) + "</think>\n```python\nCODE```",
    "console": "```python\n>>> CONSOLE>>> add(1, 2)\n3\n```",
    "console after": "```python\nCODE\n>>> add(1, 2)\n3\n```",
    "fence in a docstring": '```python\nCODE\ndef other():\n    """Example:\n\n    ```python\n    other()\n'
    '    ```\n    """\n```',
    "fence never closed before the next": "```python\nCODE\n```python\nprint(add(1, 2))\n```",
    "Markdown in Markdown": "````markdown\n# Add\n````\n```python\nCODE```",
    "prompt opened the fence": "CODE```\n\nThis adds two numbers.\n",
    "MBPP's markers": "[BEGIN]\nCODE\n[DONE]\n\n" + BAD,
    "code tags": "[PYTHON]\nCODE\n[/PYTHON]",
    "next problem": "CODE\n\nQuestion: Write it with a minus.\n" + BAD,
    "next instruction": "CODE\n### Instruction:\nSubtract.\n### Response:\n" + BAD,
    "byte-order mark": "\ufeffCODE",
    "code behind the language": "```python CODE```",
    "comment first": "```python\n# Solution\n\nCODE```",
    "docstring first": '```python\n"""A module."""\nCODE```',
    "semicolon": "```python\nx = 1; print(x)\nCODE```",
    "heading": "### Solution\n\nCODE\n### Explanation\n\n  It adds.\n",
    "output as an annotation": "CODE\nOutput: three\nNote: b is added\n",
    "bullets with calls": "CODE\n- add(1, 2) returns 3\n- add(0) fails\n",
    "a name that a helper block has": "```python\nx = 5\nlist = [1]\nprint(add(x, x))\n```\n```python\nCODE```",
}
PROGRAMS = {
    "function": (GOOD, BAD),
    "lambda": ("add = lambda a, b: a + b\n", "add = lambda a, b: a - b - 1\n"),
    "types and a decorator": (
        "import functools\nfrom typing import Union\n\n@functools.lru_cache(maxsize=None)\n"
        'def add(a: Union[int, float], b: int = 0) -> int:\n    """Sum: a + b.\n\n>>> not code\n    """\n'
        "    return a + b\n",
        "import functools\n\n@functools.lru_cache\ndef add(a: int, b: int) -> int:\n    return a + b + 1\n",
    ),
    "helpers and constants": (
        "import sys\nsys.setrecursionlimit(3000)\nZERO = 0\nmemo = {}\nmemo[0] = ZERO\n\nclass Sum:\n"
        "    def of(self, x):\n"
        "        return sum(x)\n\ndef helper(*x):\n    return Sum().of(x) + memo[0]\n\ndef add(a, b):\n"
        "    return helper(a, b)\n",
        "ZERO = 1\n\ndef helper(*x):\n    return sum(x) + ZERO\n\ndef add(a, b):\n    return helper(a, b)\n",
    ),
}


def written(shape: str, code: str) -> str:
    """`code` in a shape, with the indentation or the marks that the shape puts before every line."""
    lines = code.splitlines()
    for mark, before in {"INDENT2": "  ", "INDENT3": "   ", "INDENT4": "    ", "QUOTE": "> ", "TAB": "\t"}.items():
        shape = shape.replace(mark, "".join(f"{before}{line}\n" for line in lines))
    shape = shape.replace("NBSP", code.replace("    ", "\xa0" * 4))
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


# answers to a problem whose prompt begins the function (HumanEval); None: no code at all
ANSWERS: list[tuple[str, int | None]] = [
    ("    return a + b\n", 1),
    ("    return a - b\n", 0),
    ("    return a + b\n\n\ndef other(x):\n    return x\n", 1),
    ("    return a + b\n\nprint(add(1, 2))\nassert add(1,2)==4\n", 1),
    ("    return a + b\n\nif __name__ == '__main__':\n    import doctest\n    doctest.testmod()\n", 1),
    ("    return a + b\n\n# Test\nprint(add(1,", 1),
    ("    return a + b\n\n\ndef add(a, b):\n    return a - b\n", 1),
    ("    return helper(a, b)\n\n\ndef helper(a, b):\n    return a + b\n", 1),
    ("   return a + b\n", 1),
    (" c = a + b\n    return c\n", 1),
    ("return a + b\n", 1),
    ("return a + b", 1),
    ("c = a + b\nreturn c\n", 1),
    ("if a:\n    return a + b\nreturn b\n", 1),
    ("```python\n    return a + b\n```", 1),
    ("```python\nreturn a + b\n```", 1),
    ("Here is the body:\n```python\n    return a + b\n```\nIt adds.", 1),
    ("    return a + b\n```\n\nThis adds the numbers.", 1),
    ("    return a + b\n<|endoftext|>\ndef x", 1),
    ("    return a + b\n\nThis function adds the numbers.\nIt's simple.", 1),
    ("    c = a + b\n    return c\n    print(", 1),
    ("    c = a + b\n    for i in ra", 0),
    ("    return a + b\n\n\nclass A:\n    def f(se", 1),
    ("    import math\n    return math.floor(a + b)\n", 1),
    ("    def inner(x):\n        return x + b\n    return inner(a)\n", 1),
    ('    """Another docstring."""\n    return a + b\n', 1),
    ("    # add them\n    return a + b", 1),
    ("\n    return a + b", 1),
    ("\n\n    return a + b", 1),
    ("```python\ndef add(a: List[int], b):\n    return a + b\n```", 1),
    ("```python\ndef add(a, b):\n    return math.floor(a + b)\n```", 1),
    ("I cannot do that.", None),
    ("", None),
    ("    ", None),
    ("pass", None),
    ("    pass\n", 0),
    ("def add(a, b): return a + b", 1),
    ("Here is the code: def add(a, b): return a + b", 1),
    ("Use `def add(a, b): return a + b` for that.", 1),
    ("`add = lambda a, b: a + b`", 1),
    ("```python def add(a, b): return a + b```", 1),
    ("```def add(a, b): return a + b```", 1),
    ("    return a + b\n\n>>> add(1, 2)\n3\n", 1),
    ("class Solution:\n    def add(self, a, b):\n        return a + b\n", 0),
    ("def plus(a, b):\n    return a + b\n", 0),
    ("from __future__ import annotations\ndef add(a: X, b) -> Y:\n    return a + b\n", 1),
    (
        "```python\nimport math\n```\n```python\nfrom __future__ import annotations\n"
        "def add(a: X, b) -> Y:\n    return math.floor(a + b)\n```",
        1,
    ),
    ("```python\ndef add(a, b):\n    return a + b\n    retrun x\n```", 0),
    ("def add(a, b):\n    return a + b\n    retrun x\n", 0),
    ("```python\ndef add(a, b):\n    return a + b\n\ndef add(a, b):\n    retrun x\n```", 0),
    ("```python\ndef add(a, b):\n    retrun x\n```", 0),
    (
        "```python\ndef add(a, b):\n    return sub(a, b)\ndef sub(a, b):\n    return a + b\n```\n```python\n"
        "def sub(a, b):\n    return a - b\n```",
        0,
    ),
    ("```python\nassert True\n```", 0),
    ("```python\ndef add(a, b):\n\treturn a + b\n```", 1),
    ("def add(a, b):\n\tif a:\n\t    return a + b\n\treturn b\n", 1),
    ("```python\ndef add(a, b):\n    '''\n    ```\n    add(1, 2)\n    ```\n    '''\n    return a + b\n```", 1),
    ("```python\ndef add(a, b):\n    '''\nExample:\n```\nadd(1, 2)\n```\n'''\n    return a + b\n```", 1),
    (
        "1. Step one\n2. Step two:\n\n   ```python\n   def add(a, b):\n       return a + b\n   ```\n\n"
        "3. Use it:\n\n   ```python\n   add(1, 2, 3)\n   ```",
        1,
    ),
    ("Solution:\n\n\tdef add(a, b):\n\t\treturn a + b\n", 1),
    ("<details>\n<summary>Code</summary>\n\n```python\ndef add(a, b):\n    return a + b\n```\n</details>", 1),
    (
        "```python\n# a.py\ndef h(a, b):\n    return a + b\n```\n\n```python\n# b.py\nfrom a import h\n\n"
        "def add(a, b):\n    return h(a, b)\n```",
        1,
    ),
    (
        "```python\ntry:\n    import numpy as np\nexcept ImportError:\n    np = None\n\ndef add(a, b):\n"
        "    return a + b\n```",
        1,
    ),
    ("```python\nif True:\n    def add(a, b):\n        return a + b\n```", 1),
    ("```python\ndef _add(a, b):\n    return a + b\n\nadd = _add\n```", 1),
    ("```python\ndef add(a, b):\n    return a + b\n\nadd = print(add)\n```", 0),
    ("```python\nfrom operator import add\n```", 1),
    ("from operator import add", 1),
    ("```python\nimport operator\nadd = operator.add\n```", 1),
    ("```python\ndef add(a, b):\n    return a + b\nadd.__doc__ = 'x'\n```", 1),
    ("```python\nMOD = 10 ** 9 + 7\n```\n```python\ndef add(a, b):\n    return (a + b) % MOD\n```", 1),
    ("```python\ndef add(a, b):\n    return (a + b) % MOD\n```\nwith\n```python\nMOD = 10 ** 9 + 7\n```", 1),
    (
        "```python\nclass Base:\n    pass\n```\n```python\nclass S(Base):\n"
        "    def go(self, a, b): return a + b\ndef add(a, b):\n    return S().go(a, b)\n```",
        1,
    ),
    (
        "```python\ndef add(a, b):\n    return S().go(a, b)\nclass S(Base):\n"
        "    def go(self, a, b): return a + b\n```\n```python\nclass Base: pass\n```",
        1,
    ),
    ("```python\nresult = a + b\nreturn result\n```", 1),
]


@pytest.mark.parametrize(("text", "right"), ANSWERS)
def test_answers_to_a_prompt_that_begins_the_function(text: str, right: int | None) -> None:
    assert (None if program_of(text, CHECK) is None else int(passes(text, CHECK))) == right


# answers to a problem with a list of asserts
MORE: list[tuple[str, int]] = [
    ("以下是代码：\n\n" + GOOD + "\n这个函数返回和。", 1),
    ("Voici le code :\n```python\n" + GOOD + "```\nSortie :\n```\n3\n```", 1),
    ("```python\ndef add(a, b):\n    # returns “sum”\n    return a + b\n```", 1),
    ("```python\n" + GOOD + "```\n```python\n" + GOOD.replace("add", "add_two") + "```", 1),
    ("```python\n#!/usr/bin/env python3\n# -*- coding: utf-8 -*-\n" + GOOD + "```", 1),
    (
        "```python\nfrom typing import *\n```\n```python\n"
        "def add(a: Optional[int], b: List[int]) -> Any:\n    return a + b\n```",
        1,
    ),
    (
        "```python\n"
        + GOOD
        + "\nclass TestAdd:\n    def test(self):\n        assert add(1, 2) == 4\n\nTestAdd().test()\n```",
        1,
    ),
    ("```python\n" + GOOD + "\nassert add(1, 2) == 3, 'x'; print('ok')\n```", 1),
    ("```python\n" + GOOD + "\nimport random; random.seed(0); x = random.random(); print(add(x, x))\n```", 1),
    ("```python\n" + GOOD + '\nprint(f"{add(1, 2)!r:>10}")\n```', 1),
    (
        "```python\n"
        + GOOD
        + "\nresult = add(2, 3)\nexpected = 6\nassert result == expected, f'{result}'\nprint('done')\n```",
        1,
    ),
    (
        "```python\n"
        + GOOD
        + "\nresults = [add(*x) for x in [(1,)]]\nfor r in results:\n    if r: raise ValueError(r)\n```",
        1,
    ),
    ("```python\n" + GOOD + "\nif add(1, 2) != 4:\n    raise AssertionError\n```", 1),
    ("```python\n" + GOOD + "\nimport sys\nsys.exit(add(1, 2))\n```", 1),
    ("```python\n" + GOOD + "\nn, m = 5, 6\nassert n == 7\n```", 1),
    (
        "```python\ndef add(a, b): return a + b\n\n# Driver code\nif __name__=='__main__':\n  a = 1\n"
        "else:\n  raise SystemExit\n```",
        1,
    ),
    (
        "**add.py**\n```python\n"
        + GOOD
        + "```\n**main.py**\n```python\nfrom add import add\nimport requests\nprint(add(1, 2))\n```",
        1,
    ),
    ("```python\nimport add_lib\n```\n\n```python\n" + GOOD + "```", 1),
    ("Output of the program is 3.\n\n```output\n3\n```\n\n```python\n" + GOOD + "```", 1),
    ("```python\n" + GOOD + "```\n\n```python-repl\n>>> add(1, 2)\n3\n```", 1),
    ("```pycon\n>>> def add(a, b):\n...     return a + b\n...\n>>> add(1, 2)\n3\n```", 1),
    ("In [1]: x\n```ipython\n" + GOOD + "```", 1),
    ("```python\ndef add(a,\n        b):\n    return (a\n            + b)\n```", 1),
    ("Code:\n\ndef add(a,\n        b):\n    return (a\n            + b)\n\nDone.", 1),
    ("Code:\n\ndef add(\n    a,\n    b,\n):\n    return a + b\n\nDone.", 1),
    ("Code:\n\nTABLE = {\n    1: 2,\n}\n\ndef add(a, b):\n    if a in TABLE: pass\n    return a + b\n\nDone.", 1),
    ("Code:\n\n@deco\ndef add(a, b):\n    return a + b\n", 0),
    ("Code:\n\ndef deco(f):\n    return f\n\n@deco\n# c\ndef add(a, b):\n    return a + b\nYes.", 1),
    (
        "Code:\n\ntry:\n    import numpy\nexcept ImportError:\n    numpy = None\n\ndef add(a, b):\n"
        "    if numpy is None: pass\n    return a + b\nYes.",
        1,
    ),
    ("Code:\n\nif True:\n    K = 0\nelse:\n    K = 1\n\ndef add(a, b):\n    return a + b + K\nYes.", 1),
    ("add = lambda x, y: x + y", 1),
    ("`add = lambda x, y: x + y`", 1),
    ("```python\nadd = int.__add__\n```", 1),
    ("```python\ndef add(*args):\n    return sum(args)\n```", 1),
    ("def add(a, b):\n\n    return a + b\n\n\n    # trailing\n", 1),
    ("def add(a, b):\n    return a + b;\n", 1),
    ("def add(a, b): return a + b # sum", 1),
    ("def add(a, b):\n    s = '''\ntext at the margin\n'''\n    return a + b\n\nThat is it.", 1),
    ('def add(a, b):\n    s = """\n```\nfence\n```\n"""\n    return a + b\n', 1),
    ('<tool_call>\n{"code": 1}\n</tool_call>\n```python\n' + GOOD + "```", 1),
    ("```python\n" + GOOD + "```\n---\n```python\nprint(add(1,2)", 1),
    ("```python\n" + GOOD + "``", 1),
    ("```python\n" + GOOD + "`", 1),
    ("```python\ndef add(a, b):\n    return a + b\n```python", 1),
    ("```python\n\n\n\n" + GOOD + "\n\n```\n```\n```", 1),
    ('def add(a, b):\n    """\n    >>> add(1, 2)\n    3\n    """\n    return a + b\n', 1),
    (
        "Here's the solution:\n\n```python\n"
        + GOOD
        + "```\n\n**Explanation:**\n\n1. We add `a` and `b`.\n2. Return.\n\n```python\n# Test cases\n"
        "assert add(1, 2) == 3\nassert add(5, 5) == 11\nprint('ok')\n```",
        1,
    ),
    ("```python\ndef add(a, b):\n    return a + b\n\n# Test\nprint(add(1, 2))  # Output: 3\n```", 1),
    ("```python\nimport math\n```\n\nand\n\n```python\ndef add(a, b):\n    return math.floor(a + b)\n```", 1),
    ("def add(a, b):\r\n\treturn a + b\r\n", 1),
    ("<|assistant|>\n```python\n" + GOOD + "```<|end|>", 1),
    ("```python\r\n" + GOOD.replace("\n", "\r\n") + "```\r\n\r\n```\r\n3\r\n```\r\n", 1),
    ("* step\n\n    ```python\n    def add(a, b):\n        return a + b\n    ```\n", 1),
    ("    ```python\n    def add(a, b):\n        return a + b\n    ```", 1),
    ("1. a\n    1. b\n        ```python\n        def add(a, b):\n            return a + b\n        ```", 1),
    ("Answer: ```def add(a, b):\n    return a + b```", 1),
    ("python\n" + GOOD, 1),
    ("Python code:\n" + GOOD + "Output:\n3", 1),
    (
        "```python\nclass Adder:\n    def __init__(self): pass\n    def add(self, a, b): return a + b\n"
        "```\n```python\ndef add(a, b):\n    return Adder().add(a, b)\n```",
        1,
    ),
    (
        "Method 1:\n```python\ndef add(a, b):\n    return sum([a, b])\n```\nMethod 2:\n```python\n"
        "def add2(a, b):\n    return a + b\n```",
        1,
    ),
    (
        "```python\nfrom typing import List\n\ndef add(a: int, b: int) -> List[int]:\n    return a + b\n\n"
        'if __name__ == "__main__":\n    import sys\n    sys.exit(main())\n```',
        1,
    ),
    ("```python\ndef add(a, b):\n    return a + b\n```\n\n```python\n>>> add(1, 2)\n3\n```", 1),
    ("```python\ndef add(a, b):\n    return a + b\n\nprint(add(1, 2)\n```", 1),
    ("```python\ndef add(a, b):\n    return a + b\n\ntry:\n    add('a')\nexcept ValueError:\n    pass\n```", 1),
    (
        "```python\ndef add(a, b):\n    return a + b\n\nwith open('input.txt') as f:\n"
        "    data = f.read()\nprint(add(data, 1))\n```",
        1,
    ),
    (
        "```python\ndef add(a, b):\n    return a + b\n\ntest_cases = [(1, 2), (3, 4)]\n"
        "for a, b in test_cases:\n    print(f'{a} + {b} = {add(a, b)}')\n```",
        1,
    ),
    (
        "```python\ndef add(a, b):\n    return a + b\n\nx = int(input('x: '))\ny = int(input('y: '))\n"
        "print('Sum', x + y)\n```",
        1,
    ),
    ("```python\nn = int(input())\ndef add(a, b):\n    return a + b\nwhile n:\n    print(n)\n    n -= 1\n```", 1),
    ("```python\n@staticmethod\ndef add(a, b):\n    return a + b\n```", 1),
    ("```python\nfrom functools import cache\n\n@cache\ndef add(a, b):\n    return a + b\n```", 1),
    ("Let me think. def add(a, b) should return a + b.\n\n```python\n" + GOOD + "```", 1),
    ("def add(a, b) should return a + b.\n\n" + GOOD, 1),
    ("To solve this, def add(a, b): is needed.\n\n" + GOOD, 1),
    ("The function add = a + b.\n" + GOOD, 1),
    ('```python\ndef add(a, b):\n    """Add.\n\n    Args:\n        a: x\n    """\n    return a + b\n```', 1),
    ("'''python\n" + GOOD + "'''", 1),
    ("``python\n" + GOOD + "``", 1),
    ("`" + "`python\n" + GOOD, 1),
    ("<code>\n" + GOOD + "</code>", 1),
    ("<python>\n" + GOOD + "</python>", 1),
    ("<answer>\n```python\n" + GOOD + "```\n</answer>", 1),
    ("<answer>\n" + GOOD + "</answer>", 1),
    ("\\begin{lstlisting}\n" + GOOD + "\\end{lstlisting}", 1),
    ("```python\n# Wrong\ndef add(a, b):\n    return a - b\n\n# Fixed\ndef add(a, b):\n    return a + b\n```", 1),
    (
        "```python\ndef add(a, b):\n    return a + b\n```\nOn second thought:\n```python\ndef add(a, b):\n"
        "    return a * b\n```",
        0,
    ),
    ("```python\ndef add(a, b):\n    return a + b\nadd = lambda a, b: 0\n```", 0),
    ("```python\ndef add(a, b):\n    return helper(a, b)\n```", 0),
    (
        "```python\ndef add(a, b):\n    return helper(a, b)\n```\n```python\nhelper = lambda a, b: a + b\n"
        "print(add(1, 2))\n```",
        1,
    ),
    (
        "```python\ndef helper(a, b):\n    return a - b\ndef add(a, b):\n    return helper(a, b)\n```\n"
        "Fix the helper:\n```python\ndef helper(a, b):\n    return a + b\n```",
        1,
    ),
    ('```json\n{"a": 1}\n```\n' + GOOD, 1),
    ("```\n$ python add.py\n3\n```\n\n```python\n" + GOOD + "```", 1),
    ("| a | b |\n|---|---|\n| 1 | 2 |\n\n" + GOOD, 1),
    (
        "```python\ndef add(a, b):\n    return a + b\n```\n\n```python\nimport timeit\n"
        "print(timeit.timeit('add(1, 2)', globals=globals()))\n```",
        1,
    ),
    ("```python\n%timeit add(1, 2)\n" + GOOD + "```", 1),
    ("```python\n!pip install numpy\n" + GOOD + "```", 1),
    ("```python\n" + GOOD + "\n...\n```", 1),
    ('```python\n"""\nadd numbers\n"""\n\n' + GOOD + "\n'''\nexample: add(1,2)\n'''\n```", 1),
    ("def add(a, b):\n    if a:\n        return a + b\n    else:\n        return b\n\nelse", 1),
    ("def add(a, b):\n    return a + b\n\ndef test():\n    assert add(1, 2) == 3\n\ntest()\n\nExplanation: ...", 1),
    ("import os\ndef add(a, b):\n    return a + b\n\nos.system('ls')", 1),
    ("def add(a,b):\n  return a+b\n#include <stdio.h>\nint main() { }", 1),
    ("def add(a, b):\n    return a + b\n\n\n\n\n\ndef subtract(a, b):\n    return a - b\n\ndef mult", 1),
    ("def add(a, b):\n    return a + b\n\ndef add(a, b, c):\n    return a + b + c\n", 0),
    ("Here is:\n\n```python\ndef add(a, b):\n    return a + b", 1),
    (
        'Here is:\n\n```python\ndef add(a, b):\n    result = a + b\n    return result\n\ndef main():\n    print("Enter',
        1,
    ),
    ("```python\ndef add(a, b):\n    total = a + b\n    return tot", 0),
    ("```python\ndef add(a, b):\n    '''Adds\n", 0),
]


@pytest.mark.parametrize(("text", "right"), MORE)
def test_answers_to_a_list_of_asserts(text: str, right: int) -> None:
    assert int(passes(text, ASSERTS)) == right


# right programs that are known to score 0: docs/scores.md lists these; each is tried here, so the list stays true
MISSED = {
    "the function as a method of a class": "```python\nclass Solution:\n    def add(self, a, b):\n"
    "        return a + b\n```",
    "another name than the one that is asked for": block(GOOD.replace("add", "plus")),
    "code inside JSON": json.dumps({"code": GOOD}),
    "lines of a diff": "```diff\n" + "".join(f"+{line}\n" for line in GOOD.splitlines()) + "```",
    "line numbers before the code": "".join(f"{n} {line}\n" for n, line in enumerate(GOOD.splitlines(), 1)),
    "typographic quotes in the code": block("def add(a, b):\n    return eval(“a + b”)\n"),
    "a wrong example after the answer": block(GOOD) + "Never write this:\n" + block(BAD),
    "an import of a package that is not there": block("import no_such_package\n" + GOOD),
    "HTML instead of fences": "<pre>def add(a, b):<br>    return a + b</pre>",
    "reasoning that never ends": "<think>\n" + block(GOOD),
}


@pytest.mark.parametrize("what", MISSED)
def test_what_is_known_to_be_missed(what: str) -> None:
    assert not passes(MISSED[what], ASSERTS)


def test_the_documentation_lists_what_is_missed() -> None:
    page = " ".join((ROOT / "docs" / "scores.md").read_text().split())
    assert [what for what in MISSED if what not in page] == []


def test_the_names_that_are_asked_for_are_those_that_tests_take_from_elsewhere() -> None:
    tests = {"test_list": ["assert set(near((3, 4), Node(2))) == {4}", "assert math.isclose(far(1), 0.5)"]}
    setup = {"test_setup_code": "class Node:\n    def __init__(self, x): self.x = x", "test_imports": ["import math"]}
    assert asked_names(tests | setup) == {"near", "far"}
    assert asked_names(CHECK) == {"add"}
    plus = (
        "import numpy as np\n\ndef same(a, b):\n    return np.all(a == b)\n\nfor x in [1]:\n"
        "    assert same(add(x, x), 2)\n"
    )
    assert asked_names({"test": plus}) == {"add"}


def test_several_functions_may_stand_in_several_blocks() -> None:
    entry = {"test_list": ["assert down(up(3)) == 3", "assert up(1) == 2"]}
    up, down = "def up(x):\n    return x + ONE\n", "def down(x):\n    return x - ONE\n"
    assert passes(block("ONE = 1\n") + block(up) + block(down), entry)
    assert passes(block(up.replace("+", "-") + down) + "Better:\n" + block("ONE = 1\n" + up), entry)
    assert not passes(block("ONE = 1\n" + up), entry)


def test_tests_that_name_nothing_get_all_code() -> None:
    assert passes(block("x = 1\n") + block("y = 2\n"), {"test_list": ["assert True"]})
    assert program_of("I do not know.", {"test_list": ["assert True"]}) is None


def test_the_shared_cases() -> None:
    if not CASES.exists():
        pytest.skip(f"{CASES} is not here")
    for case in json.loads(CASES.read_text()):
        assert passes(case["answer"], {"test_list": case["tests"]}) == case["right"], case["shape"]


LINES = [
    "x=(",
    "@a",
    "a",
    "a b",
    "```",
    "```python",
    "~~~",
    "> ",
    "- ",
    "1. ",
    "(",
    "'''",
    "def add(a,",
    "def add(a, b):",
    "",
    "    x",
    "if x:",
    "else:",
    "<think>",
    "</think>",
    "#",
    "`",
    "```x",
    "x = 1",
    "import a",
    "f(a)",
    "memo[0] = add",
    ">>> def a",
    "... a",
    "class A:\n  x=1",
    "Q:",
    "[DONE]",
    "\\",
    "x=\\",
    "{",
    "f'{",
    "return a",
    "add = 1",
    "```a```",
    "if x:\n  add()",
]


@pytest.mark.parametrize("line", LINES)
def test_the_time_is_linear_in_the_text(line: str) -> None:
    """A sixth of the most that is looked at; a search that is quadratic in it takes longer."""
    for before in ("", "```python\n", "def add(a, b):\n    return a\n", "    "):
        text = before + f"{line}\n" * (8_000 // (len(line) + 1))
        since = time.process_time()
        program_of(without_thinking(text), CHECK)
        assert time.process_time() - since < 2


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from([*LINES, GOOD, "    return a + b", "print(add(1, 2))", "\x00", "\ud800"]) | st.text(max_size=20)
    )
)
def test_no_text_breaks_it(lines: list[str]) -> None:
    for entry in (ASSERTS, CHECK):
        program_of("\n".join(lines), entry)


@pytest.mark.parametrize("right", [True, False])
def test_of_two_answers_in_a_row_the_last_counts(right: bool) -> None:
    closed = [shape for shape in SHAPES.values() if shape.startswith("```python\nCODE```")]
    for draft in closed:
        for answer in closed:
            text = written(draft, BAD if right else GOOD) + "\n\nBetter:\n\n" + written(answer, GOOD if right else BAD)
            assert passes(text, ASSERTS) is right, text
