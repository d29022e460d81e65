"""Code that a model wrote, run against a problem's tests: in a process of its own, with limits and without network.

Where the system lets it, the process has namespaces of its own: no network at all, and no child outlives it. Where it
does not, sockets are refused inside Python only. Root becomes nobody. It reads what its user may read: run scoring in a
container when you do not trust a model. docs/scores.md says what is held. Run as a file it is the child (standard
library only).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import resource
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
PR_SET_PDEATHSIG, PR_SET_KEEPCAPS = 1, 8
CAP_DAC_READ_SEARCH, CAPABILITY_VERSION = 2, 0x20080522
NOBODY = 65534
MOST_PROCESSES = 64  # of the user: enough for an honest answer, too few for a fork bomb
START_S = 5.0  # of a Python, beside the tests' own time
PATIENCE = 3  # seconds of the clock for one of CPU: a verdict shall not depend on what else the machine does


def tests_of(entry: Mapping[str, Any]) -> str:
    """A problem's tests as code: `test` with check(candidate) as in HumanEval, or plain; or MBPP's `test_list`.

    Before a `test_list` come its `test_setup_code` and `test_imports`, where it has them (full and sanitised MBPP).
    """
    if "test" in entry:
        called = f"\ncheck({entry['entry_point']})\n" if "def check(" in entry["test"] else "\n"
        return str(entry["test"]) + called
    before = [*(entry.get("test_imports") or ()), entry.get("test_setup_code") or ""]
    return "\n".join(map(str, [*before, *entry["test_list"]]))


def passes(program: str, tests: str, timeout_s: float, memory_mb: int) -> bool:
    """Whether `program` and then `tests` run through within their limits.

    Raises RuntimeError where not even the process for it comes up: that is no verdict on an answer.
    """
    sign = secrets.token_hex(16)
    task = {
        "program": program, "tests": tests, "sign": sign, "seconds": timeout_s, "memory": memory_mb << 20,
    }  # fmt: skip
    with _folder() as folder, tempfile.TemporaryFile() as question:
        question.write(json.dumps(task).encode())
        question.seek(0)
        child = subprocess.Popen(
            [sys.executable, "-P", "-s", "-B", __file__], cwd=folder, stdin=question, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, start_new_session=True,
            # one order of sets: the same answer gets the same verdict
            env={"HOME": folder, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},
        )  # fmt: skip
        try:
            said = _last_words(child, PATIENCE * timeout_s + START_S)
        finally:
            _end_group(child)
    if said == b"":
        raise RuntimeError("no process for a model's code could be started here; docs/scores.md says what it needs")
    return said == sign.encode()


def _last_words(child: subprocess.Popen[bytes], seconds: float) -> bytes | None:
    """The end of what the child wrote, as long as a sign; None where it was still there when time was up."""
    said, until = b"", time.monotonic() + seconds
    assert child.stdout is not None
    with child.stdout as stream, selectors.DefaultSelector() as waiting:
        waiting.register(stream, selectors.EVENT_READ)
        while waiting.select(max(0.0, until - time.monotonic())):
            chunk = os.read(stream.fileno(), 1 << 16)
            if not chunk:
                return said
            said = (said + chunk)[-32:]  # however much an answer writes
            if time.monotonic() > until:
                break
    return None


def folder_of_nobody(prefix: str) -> str:
    """An empty folder in which a child may write after `no_root`."""
    folder = tempfile.mkdtemp(prefix=prefix)
    with contextlib.suppress(OSError):  # not root, or the root of a container that may not: the child stays who it is
        os.chown(folder, NOBODY, NOBODY)
    return folder


@contextlib.contextmanager
def _folder() -> Iterator[str]:
    """An empty folder, removed whatever was made of it."""
    folder = folder_of_nobody("answer-")
    try:
        yield folder
    finally:
        # not shutil: an answer may nest folders deeper than Python recurses
        subprocess.run(["rm", "-rf", folder], stderr=subprocess.DEVNULL, check=False)


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """The child and all that it has started and not taken to another session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.kill()
    child.wait()


# what follows runs in the child


def leave(flags: int) -> bool:
    """Leave for namespaces of our own (see unshare(2)); False where that is refused."""
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.unshare(flags) == 0 or libc.unshare(flags | CLONE_NEWUSER) == 0


def no_sockets() -> None:
    """The second best to a namespace without network: what an answer can undo if it is out to."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no network here")

    socket.socket.connect = socket.socket.bind = socket.create_connection = refuse  # type: ignore[assignment,method-assign]


def no_root() -> None:
    """Become nobody, who writes in a folder_of_nobody and where all may, and ends no one else's process.

    Where nobody could not read this Python, the right to read all files is kept; where root lacks that right, root
    stays root.
    """
    if os.geteuid() != 0:
        return
    places = [Path(place).resolve() for place in (os.__file__, f"{sys.prefix}/lib")]
    readable = all(part.stat().st_mode & 1 for place in places for part in place.parents)
    mine = re.search(r"^CapPrm:\s*(\w+)", Path("/proc/self/status").read_text(), re.M)
    if not readable and not (mine and int(mine[1], 16) >> CAP_DAC_READ_SEARCH & 1):
        return
    libc = ctypes.CDLL(None)
    with contextlib.suppress(OSError):  # root of a container that may not become another
        os.setgroups([])
        os.setgid(NOBODY)
        libc.prctl(PR_SET_KEEPCAPS, int(not readable))
        os.setuid(NOBODY)
        if not readable:
            rights = 1 << CAP_DAC_READ_SEARCH
            header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
            libc.capset(header, (ctypes.c_uint32 * 6)(rights, rights, 0, 0, 0, 0))


def _limit(seconds: float, memory: int) -> None:
    for what, most in (
        (resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, int(seconds) + 1), (resource.RLIMIT_FSIZE, 1 << 24),
        (resource.RLIMIT_NOFILE, 64), (resource.RLIMIT_NPROC, MOST_PROCESSES), (resource.RLIMIT_CORE, 0),
    ):  # fmt: skip
        resource.setrlimit(what, (most, most))
    signal.alarm(PATIENCE * int(seconds) + 1)


def _run() -> None:
    task = json.loads(sys.stdin.read())
    answer_to = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    if leave(CLONE_NEWPID | CLONE_NEWNET):
        child = os.fork()  # the first process of the new namespace: with it all others there end
        if child:
            os.waitpid(child, 0)
            return
    else:
        no_sockets()
    no_root()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # after no_root: a change of user forgets it
    _limit(task["seconds"], task["memory"])
    os.write(answer_to, b".")
    try:
        exec(compile(task["program"] + "\n\n" + task["tests"], "answer", "exec"), {"__name__": "answer"})
    except BaseException:  # sys.exit(0) in the answer is no pass
        os._exit(1)
    os.write(answer_to, task["sign"].encode())
    os._exit(0)


if __name__ == "__main__":
    _run()
