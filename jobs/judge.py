"""Verdicts of math-verify, given by a child process: it may be ended, whatever sympy is busy with.

python -m jobs.judge        reads {"text", "wanted"} lines, answers {"right", "answer"} lines
"""

from __future__ import annotations

import atexit
import contextlib
import json
import selectors
import subprocess
import sys
import threading
from typing import IO

SECONDS = 5  # math-verify's own limit, for reading an expression and for comparing two
DEADLINE_S = 4 * SECONDS  # then the child is ended: what no limit of its own stops


class _Judge:
    """One child, started at the first question and again after it had to be ended."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.child: subprocess.Popen[str] | None = None
        atexit.register(self.end)

    def ask(self, text: str, wanted: str) -> tuple[bool, str | None]:
        """A question that ends the child is answered with wrong, and nothing read."""
        with self.lock:
            line = self._answer(json.dumps({"text": text, "wanted": wanted}))
        if line is None:
            return False, None
        said = json.loads(line)
        return bool(said["right"]), said["answer"]

    def _answer(self, question: str) -> str | None:
        child = self._child()
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(question + "\n")
            child.stdin.flush()
        except BrokenPipeError:
            self.end()
            return None
        with selectors.DefaultSelector() as waiting:
            waiting.register(child.stdout, selectors.EVENT_READ)
            line = child.stdout.readline() if waiting.select(DEADLINE_S) else ""
        if not line:
            self.end()
            return None
        return line

    def _child(self) -> subprocess.Popen[str]:
        if self.child is None or self.child.poll() is not None:
            command = [sys.executable, "-m", "jobs.judge"]
            self.child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            assert self.child.stdout is not None
            self.child.stdout.readline()  # imports take seconds; they are not a question's fault
        return self.child

    def end(self) -> None:
        if self.child is not None:
            self.child.kill()
            self.child.wait()
            self.child = None


_JUDGE = _Judge()


def verdict(text: str, wanted: str) -> tuple[bool, str | None]:
    """Whether `text` ends in what `wanted` says, and what it says.

    wanted: a bare answer, or a solution with its answer boxed
    """
    return _JUDGE.ask(text, wanted)


def _serve(questions: IO[str], answers: IO[str]) -> None:
    from math_verify import parse, verify

    answers.write("ready\n")
    answers.flush()
    for line in questions:
        question = json.loads(line)
        wanted = question["wanted"] if "\\boxed" in question["wanted"] else f"\\boxed{{{question['wanted']}}}"
        gold = parse(wanted, parsing_timeout=SECONDS)
        found = parse(question["text"], parsing_timeout=SECONDS)
        right = bool(gold) and bool(found) and verify(gold, found, timeout_seconds=SECONDS)
        answer = str(found[-1]) if found else None
        answers.write(json.dumps({"right": bool(right), "answer": answer}) + "\n")
        answers.flush()


if __name__ == "__main__":
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # a library's print is no answer
        _serve(sys.stdin, answers)
