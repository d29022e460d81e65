"""Answers that are code: right ones pass, and what is out to pass, to stay or to get out does not."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from jobs.programs import program_of
from jobs.scores import ScoreSpec, score

ROOT = Path(__file__).parents[2]
CODE = ScoreSpec(kind="code", timeout_s=2, memory_mb=512)
PROMPT = 'def add(a, b):\n    """The sum."""\n'
ADD = {
    "prompt": PROMPT,
    "entry_point": "add",
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(-1, 1) == 0\n",
}
GOOD = "def add(a, b):\n    return a + b\n"


def fenced(code: str) -> str:
    return f"Here it is:\n```python\n{code}```\nThat is all."


# answer, value
ANSWERS = [
    (GOOD, 1), (fenced(GOOD), 1), ("    return a + b\n", 1), ("```\n" + GOOD + "```", 1), ("```python\n" + GOOD, 1),
    (fenced("def sub(a, b): return a - b\n") + fenced(GOOD), 1), (fenced(GOOD) + fenced("print(add(1, 2))\n"), 1),
    ("```py\n" + GOOD + "```", 1), ("add = lambda a, b: a + b\n", 1), ("import os\n" + GOOD, 1),
    (GOOD + "print('hello')\n", 1), ("import sys\n" + GOOD + "sys.stderr.write('x' * 100000)\n", 1),
    (GOOD + "if __name__ == '__main__':\n    raise SystemExit(1)\n", 1),
    ("async def add(a, b):\n    return a + b\n", 0),
    ("", 0), ("   ", 0), ("I cannot do that.", 0), (fenced("def add(a, b):\n    return a - b\n"), 0),
    ("def add(a):\n    return a\n", 0), ("def add(a, b) return a", 0), ("def plus(a, b):\n    return a + b\n", 0),
    ("    return 3\n", 0), (fenced(GOOD) + fenced("def add(a, b):\n    return 0\n"), 0),
    # out to pass
    ("import sys\nsys.exit(0)\n", 0), ("import os\nos._exit(0)\n", 0), ("raise SystemExit(0)\n", 0), ("exit()\n", 0),
    ("print('passed')\nimport os\nos._exit(0)\n", 0), ("import os\nos.write(1, b'sign')\nos._exit(0)\n", 0),
    ("def add(a, b):\n    import os\n    os._exit(0)\n", 0), ("def add(a, b):\n    raise SystemExit(0)\n", 0),
    ("import os\nfor f in range(3, 64):\n    try: os.write(f, b'0' * 32)\n    except OSError: pass\nos._exit(0)\n", 0),
    ("def check(candidate):\n    pass\n" + "def add(a, b):\n    return 0\n", 0),
    ("import builtins\nbuiltins.exec = None\ndef add(a, b):\n    return 0\n", 0),
    ("import threading\nthreading.Timer(0.1, lambda: None).start()\ndef add(a, b):\n    return 0\n", 0),
    # too much
    ("def add(a, b):\n    return len('a' * 10 ** 10)\n", 0), ("x = [0] * 10 ** 9\n" + GOOD, 0),
    ("def add(a, b):\n    return add(a, b)\n", 0), ("open('x', 'w').write('y' * 10 ** 8)\n" + GOOD, 0),
    ("import socket\nsocket.create_connection(('127.0.0.1', 9), 1)\n" + GOOD, 0),
    ("import urllib.request\nurllib.request.urlopen('http://localhost', timeout=1)\n" + GOOD, 0),
    ("import urllib.request as u\nu.urlopen('http://192.0.2.1', timeout=1)\n" + GOOD, 0),
    ("import os, time\nfor _ in range(80):\n    if os.fork() == 0: time.sleep(9)\n" + GOOD, 0),
    ("from threading import *\nfor _ in range(80): Thread(target=Event().wait, daemon=True).start()\n" + GOOD, 0),
    ("import os\nwhile True: os.write(3, b'x' * 2 ** 20)\n" + GOOD, 0),
    ("(" * 40_000 + "\n" + GOOD, 0), ("x = " + "-" * 49_000 + "1\n" + GOOD, 0), ("x = '\ud800'\n" + GOOD, 0),
    ("\x00" + GOOD, 0), ("class Solution:\n    def add(self, a, b):\n        return a + b\n", 0),
    # what is odd and harmless
    ("open('x', 'w').write('y')\nassert open('x').read() == 'y'\n" + GOOD, 1),
    ("import os\nif os.fork() == 0: os._exit(0)\nos.wait()\n" + GOOD, 1),
    ("import os\nos.write(3, b'\\xff\\xfe' * 1000)\n" + GOOD, 1), ("import numpy\n" + GOOD, 1),
    ("import os\nfor _ in range(1500): os.mkdir('d'); os.chdir('d')\n" + GOOD, 1),
    # An answer written against this very file can read the sign of success in the frame below it.
    ("import os, sys\nf = sys._getframe(1).f_locals\nos.write(f['answer_to'], f['task']['sign'].encode())\n"
     "os._exit(0)\ndef add(a, b): pass\n", 1),
    # A value that equals everything passes any == : whoever scores models trained against these tests looks at answers.
    ("class Any(int):\n    __eq__ = lambda *_: True\ndef add(a, b):\n    return Any()\n", 1),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), ANSWERS)
def test_code(text: str, value: float) -> None:
    assert score(CODE, text, "", ADD).value == value


# answer, value: where the program stands in an answer (tests/unit/test_programs.py has many more shapes)
SHAPES = [
    (fenced(GOOD) + "Example usage:\n" + fenced("print(add(1, 2, 3))\n"), 1),
    (fenced(GOOD) + "Output:\n```\n3\n```", 1),
    (fenced("def h(a, b):\n    return a + b\n") + fenced("def add(a, b):\n    return h(a, b)\n"), 1),
    (fenced("def add(a, b):\n    return a - b\n") + "Better:\n" + fenced(GOOD), 1),
    (fenced(GOOD).replace("\n", "\r\n"), 1),
    ("1. Code:\n   ```python\n   def add(a, b):\n       return a + b\n   ```", 1),
    ("Sure! Here is the code:\n\n" + GOOD, 1),
    ("    return a + b\n\n\ndef other():\n    pass\n\nprint(add(1", 1), (GOOD + "\ndef half(x):\n    for y in", 1),
    (GOOD + "a, b = map(int, input().split())\nprint(add(a, b))\n", 1), (fenced(GOOD + "assert add(1, 2) == 4\n"), 1),
    ("<think>" + fenced("def add(a, b):\n    return 0\n") + "</think>" + GOOD, 1),
    (fenced("import unittest\n" + GOOD + "unittest.main()\n"), 1),
    (fenced(GOOD) + fenced("from solution import add\nassert add(1, 1) == 3\n"), 1),
    (fenced(GOOD) + fenced("def add(a, b):\n    retrun\n"), 0),
    (fenced("def add(a, b):\n    return a - b\n") + fenced("assert add(1, 2) == -1\n"), 0),
    ("Sure! Here:\n\ndef add(a, b):\n    return 0\n", 0),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), SHAPES)
def test_the_program_is_found_in_an_answer(text: str, value: float) -> None:
    assert score(CODE, text, "", ADD).value == value


def test_the_shared_cases_are_scored_right() -> None:
    cases = Path(os.environ.get("SWEEPER_CASES", ROOT.parent / "shared" / "cases")) / "code_answers.json"
    if not cases.exists():
        pytest.skip(f"{cases} is not here")
    for case in json.loads(cases.read_text()):
        assert score(CODE, case["answer"], "", {"test_list": case["tests"]}).value == case["right"], case["shape"]


def test_a_loop_ends_in_time_and_leaves_no_process_behind(tmp_path: Path) -> None:
    for waits in ("while True:\n    pass\n", "import time\ntime.sleep(1000)\n"):
        since = time.monotonic()
        assert score(CODE, waits, "", ADD).value == 0
        assert time.monotonic() - since < 3 * 2 + 5 + 3
    mark = f"{os.getpid()}.25"
    stays = f"import subprocess\nsubprocess.Popen(['sleep', '{mark}'], start_new_session=True)\n"
    score(CODE, stays + GOOD, "", ADD)
    for _ in range(50):
        running = [p for p in Path("/proc").glob("[0-9]*/cmdline") if mark.encode() in _bytes(p)]
        if not running:
            break
        time.sleep(0.1)
    assert not running


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_a_server_on_this_machine_is_out_of_reach() -> None:
    reached = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(3)

        def wait() -> None:
            with suppress(TimeoutError):
                reached.append(server.accept())

        thread = threading.Thread(target=wait)
        thread.start()
        port = server.getsockname()[1]
        score(CODE, f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)\n" + GOOD, "", ADD)
        thread.join()
    assert not reached


def test_sanitised_mbpp_brings_imports_for_its_tests() -> None:
    problem = {
        "prompt": "Halve it.", "code": "def half(x): return x / 2", "test_imports": ["import math", "import re"],
        "test_list": ["assert math.isclose(half(1), 0.5)", "assert re.fullmatch('1.0', str(half(2)))"],
    }  # fmt: skip
    assert score(CODE, fenced(problem["code"]), "", problem).value == 1
    assert score(CODE, fenced("def half(x): return x"), "", problem).value == 0
    full = {"test_list": ["assert half(n) == 1"], "test_setup_code": "n = 2", "test_imports": None}
    assert score(CODE, fenced(problem["code"]), "", full).value == 1


def test_the_tests_of_humaneval_plus_may_import_numpy() -> None:
    test = "import numpy as np\n\ndef check(candidate):\n    assert np.allclose(candidate(0.1, 0.2), 0.3)\n"
    assert score(CODE, GOOD, "", ADD | {"test": test}).value == 1
    assert score(CODE, GOOD.replace("+", "-"), "", ADD | {"test": test}).value == 0


def test_the_same_answer_has_the_same_verdict_whatever_order_sets_have() -> None:
    code = GOOD + "assert list({'a', 'b', 'c', 'd'})[0] == 'a'\n"
    assert len({score(CODE, code, "", ADD).value for _ in range(4)}) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has what it may lose")
def test_root_is_no_longer_root(tmp_path: Path) -> None:
    file = tmp_path / "results"
    file.write_text("kept")
    score(CODE, f"open({str(file)!r}, 'w').write('gone')\n" + GOOD, "", ADD)
    score(CODE, f"import os\nos.kill({os.getpid()}, 9)\n" + GOOD, "", ADD)
    assert file.read_text() == "kept"


def test_a_process_that_does_not_come_up_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(RuntimeError, match="no process for a model's code"):
        score(CODE, GOOD, "", ADD)


def test_mbpp_problems_have_a_list_of_asserts() -> None:
    entry = {"test_list": ["assert add(1, 2) == 3"], "test_setup_code": "import math"}
    assert score(CODE, GOOD, "", entry).value == 1
    assert score(CODE, "def add(a, b):\n    return 0\n", "", entry).value == 0


def test_a_completion_goes_on_from_the_prompt() -> None:
    assert program_of("    return a + b\n", ADD) == PROMPT + "    return a + b\n"
    assert program_of("", ADD) is None


def test_without_namespaces_sockets_are_refused_in_python() -> None:
    code = """
from jobs.sandbox import no_sockets
import socket, urllib.request
server = socket.create_server(("127.0.0.1", 0))
no_sockets()
for connect in (lambda at: socket.create_connection(at), lambda at: socket.socket().connect(at)):
    try:
        connect(server.getsockname())
    except OSError as error:
        print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said == "no network here\n" * 2
