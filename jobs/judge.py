"""Verdicts of libraries that run what a model wrote, or may take for ever: given by a child process that can be ended.

math-verify's time limits need a main thread, and some of reasoning-gym's scorers hand the answer to Python's eval.
The child has a folder of its own, no network and no root where the system lets it (jobs/sandbox.py), limited memory.

python -m jobs.judge math|generator        reads pickled questions, a base64 line each; answers in lines of JSON
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import json
import os
import pickle
import resource
import selectors
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from jobs.sandbox import CLONE_NEWNET, folder_of_nobody, leave, no_root, no_sockets

SECONDS = 5  # math-verify's own limit, for reading an expression and for comparing two
DEADLINE_S = 4 * SECONDS  # then the child is ended: what no limit of its own stops
START_S = 300.0  # of its imports, on a busy machine
MEMORY = 4 << 30  # bytes of address space
MOST_SAID = 1 << 20  # bytes of a verdict

Verdict = tuple[float, str | None]  # the value; what was read as the answer


class _Judge:
    """One child, started at the first question and again after it had to be ended."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.lock = threading.Lock()
        self.child: subprocess.Popen[bytes] | None = None
        self.folder: str | None = None
        atexit.register(self.end)

    def ask(self, question: Mapping[str, Any]) -> Verdict:
        """A question that ends the child, or takes too long, is answered with 0 and nothing read."""
        with self.lock:
            child = self._started()
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(base64.b64encode(pickle.dumps(dict(question))) + b"\n")
                child.stdin.flush()
            try:
                said = json.loads(self._line(child, DEADLINE_S))
                return float(said["value"]), said["answer"]
            except (ValueError, KeyError, TypeError):  # no line, or one that an answer has written
                self.end()
                return 0.0, None

    def _started(self) -> subprocess.Popen[bytes]:
        if self.child is None or self.child.poll() is not None:
            self.end()
            self.folder = folder_of_nobody("judge-")
            self.child = subprocess.Popen(
                [sys.executable, "-P", "-m", "jobs.judge", self.kind], cwd=self.folder, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "HOME": self.folder},
            )  # fmt: skip
            if self._line(self.child, START_S) != b"ready\n":
                self.end()
                raise RuntimeError(f"the scorer of {self.kind} answers did not start: python -m jobs.judge {self.kind}")
        return self.child

    def _line(self, child: subprocess.Popen[bytes], seconds: float) -> bytes:
        """What the child says until the end of a line, or of its time."""
        assert child.stdout is not None
        said, until = b"", time.monotonic() + seconds
        with selectors.DefaultSelector() as waiting:
            waiting.register(child.stdout, selectors.EVENT_READ)
            while not said.endswith(b"\n") and waiting.select(max(0.0, until - time.monotonic())):
                chunk = os.read(child.stdout.fileno(), 1 << 16)
                if not chunk or len(said) > MOST_SAID:
                    break
                said += chunk
        return said

    def end(self) -> None:
        if self.child is not None:
            self.child.kill()
            self.child.communicate()
            self.child = None
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = None


_JUDGES = {kind: _Judge(kind) for kind in ("math", "generator")}


def math_verdict(text: str, wanted: str) -> Verdict:
    """Whether `text` ends in what `wanted` says (1 or 0), and what it says.

    wanted: a bare answer, or a solution with its answer boxed. Raises RuntimeError where math-verify does not start.
    """
    return _JUDGES["math"].ask({"text": text, "wanted": wanted})


def generator_verdict(name: str, text: str, item: Mapping[str, Any]) -> Verdict:
    """What the scorer of reasoning-gym's generator `name` gives `text` as the answer to `item`.

    Raises RuntimeError where reasoning-gym does not start.
    """
    return _JUDGES["generator"].ask({"name": name, "text": text, "item": dict(item)})


# what follows runs in the child


def _math() -> Callable[[Mapping[str, Any]], Verdict]:
    from math_verify import parse, verify

    def judged(question: Mapping[str, Any]) -> Verdict:
        wanted = question["wanted"] if "\\boxed" in question["wanted"] else f"\\boxed{{{question['wanted']}}}"
        gold = parse(wanted, parsing_timeout=SECONDS)
        found = parse(question["text"], parsing_timeout=SECONDS)
        right = bool(gold) and bool(found) and verify(gold, found, timeout_seconds=SECONDS)
        return float(right), str(found[-1]) if found else None

    return judged


def _generator() -> Callable[[Mapping[str, Any]], Verdict]:
    import reasoning_gym

    scorer = lru_cache(reasoning_gym.get_score_answer_fn)

    def judged(question: Mapping[str, Any]) -> Verdict:
        return float(scorer(question["name"])(question["text"], question["item"])), None

    return judged


def _serve(kind: str) -> None:
    judged = {"math": _math, "generator": _generator}[kind]()
    questions, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a library's print is no answer; nor does exit() in an answer close our input
    if not leave(CLONE_NEWNET):
        no_sockets()
    no_root()
    for what, most in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_FSIZE, 1 << 24), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(what, (most, most))
    answers.write("ready\n")
    answers.flush()
    for line in questions:
        try:
            value, answer = judged(pickle.loads(base64.b64decode(line)))
        except (Exception, SystemExit):  # whatever an answer makes of a scorer, it is not right
            value, answer = 0.0, None
        answers.write(json.dumps({"value": value, "answer": answer}) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve(sys.argv[1])
