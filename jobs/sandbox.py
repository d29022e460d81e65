"""Code that a model wrote, run against a problem's tests: in a process of its own, with limits and without network.

Where the system lets it, the process has namespaces of its own: no network at all, and no child outlives it. Where it
does not, sockets are refused inside Python only. It sees the file system, as a user without write rights elsewhere
would: run scoring in a container when you do not trust a model. Run as a file it is the child (standard library only).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import resource
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
PR_SET_PDEATHSIG = 1
START_S = 5.0  # of a Python, beside the tests' own time
FENCE = re.compile(r"```[a-zA-Z0-9+]*[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


def program_of(text: str, entry: Mapping[str, Any]) -> str | None:
    """The program in an answer: the last fenced block that defines the entry point, else the last one, else the text.

    What defines no entry point is taken for a completion of the problem's own prompt (HumanEval). None: no code at all.
    """
    name = entry.get("entry_point")
    blocks = [block for block in FENCE.findall(text) if block.strip()]
    defining = [block for block in blocks if name and _defines(block, name)]
    code = (defining or blocks or [text])[-1]
    if not code.strip():
        return None
    return code if not name or _defines(code, name) else f"{entry.get('prompt', '')}{code}"


def _defines(code: str, name: str) -> bool:
    return re.search(rf"^\s*(?:async\s+)?def\s+{re.escape(name)}\s*\(|^{re.escape(name)}\s*=", code, re.M) is not None


def tests_of(entry: Mapping[str, Any]) -> str:
    """A problem's tests as code: `test` with check(candidate) as in HumanEval, or plain; or MBPP's `test_list`."""
    if "test" in entry:
        called = f"\ncheck({entry['entry_point']})\n" if "def check(" in entry["test"] else "\n"
        return str(entry["test"]) + called
    return "\n".join([str(entry.get("test_setup_code", "")), *map(str, entry["test_list"])])


def passes(program: str, entry: Mapping[str, Any], timeout_s: float, memory_mb: int) -> bool:
    """Whether `program` runs through all tests of the problem within its limits."""
    sign = secrets.token_hex(16)
    task = {
        "program": program, "tests": tests_of(entry), "sign": sign, "seconds": timeout_s, "memory": memory_mb << 20,
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="answer-") as folder:
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__], cwd=folder, env={"HOME": folder, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True, text=True,
        )  # fmt: skip
        try:
            said, _ = child.communicate(json.dumps(task), timeout=timeout_s + START_S)
        except subprocess.TimeoutExpired:
            return False
        finally:
            _end_group(child)
    return said.endswith(sign)


def _end_group(child: subprocess.Popen[str]) -> None:
    """The child and all that it has started and not taken to another session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.kill()
    child.wait()


# what follows runs in the child


def _alone() -> bool:
    """Leave for namespaces without network and with process numbers of our own; False where that is refused."""
    libc = ctypes.CDLL(None, use_errno=True)
    flags = CLONE_NEWPID | CLONE_NEWNET
    return libc.unshare(flags) == 0 or libc.unshare(flags | CLONE_NEWUSER) == 0


def _no_sockets() -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no network here")

    socket.socket.connect = socket.socket.bind = socket.create_connection = refuse  # type: ignore[assignment,method-assign]


def _limit(seconds: float, memory: int) -> None:
    for what, most in (
        (resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, int(seconds) + 1), (resource.RLIMIT_FSIZE, 1 << 24),
        (resource.RLIMIT_NOFILE, 64), (resource.RLIMIT_CORE, 0),
    ):  # fmt: skip
        resource.setrlimit(what, (most, most))
    signal.alarm(int(seconds) + 1)


def _run() -> None:
    task = json.loads(sys.stdin.read())
    answer_to = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    if _alone():
        child = os.fork()  # the first process of the new namespace: with it all others there end
        if child:
            os.waitpid(child, 0)
            return
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        _no_sockets()
    _limit(task["seconds"], task["memory"])
    try:
        exec(compile(task["program"] + "\n\n" + task["tests"], "answer", "exec"), {"__name__": "answer"})
    except BaseException:  # sys.exit(0) in the answer is no pass
        os._exit(1)
    os.write(answer_to, task["sign"].encode())
    os._exit(0)


if __name__ == "__main__":
    _run()
