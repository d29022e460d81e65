"""Workers of an embedded Ray as forks of one process that has their imports done: up in half a second, not in four.

`python -m cluster.fork_server FD MODULE` imports MODULE, which must leave Ray out (that seeds its identifiers and
reads the environment once, at its import), and then forks itself into every worker that cluster/forked_worker.py asks
for on that socket. It ends with its parent. What cannot be forked is not: where there is a GPU there is no such
process, beside a thread it ends at once and says so, and workers are started as Ray starts them.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cluster.forked_worker import KIND, MOST, READY, SOCKET

OFF = "SWEEPER_FORK_WORKERS"  # set to 0 by whoever wants workers started as Ray starts them
GPUS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA's, AMD's, Windows' to its Linux
SINGLE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # a pool's threads are not forked with it
SAFE = {"jemalloc_bg_thd"}  # pyarrow's allocator knows of forks, and does without in the child
ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def fork_server(module: str) -> Iterator[dict[str, str]]:
    """One that has MODULE imported, for the block; yields the environment in which workers find it, if there is one."""
    if sys.platform != "linux" or os.environ.get(OFF) == "0" or any(map(os.path.exists, GPUS)):
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="workers-") as folder, socket.socket(*KIND) as listening:
        path = str(Path(folder, "socket"))  # for this user alone
        try:
            listening.bind(path)
        except OSError:  # a temporary directory with a name of more than a hundred bytes
            yield {}
            return
        listening.listen(1024)  # who asks before it is ready waits
        with Path(folder, "errors").open("w+", errors="replace") as errors:
            server = subprocess.Popen(
                [sys.executable, "-m", __name__, str(listening.fileno()), module], cwd=ROOT, env=os.environ | SINGLE,
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True,
                pass_fds=[listening.fileno()],
            )  # fmt: skip
            listening.close()  # when the server is gone, nobody is to wait for it
            try:
                yield {SOCKET: path}
            finally:
                if (code := server.poll()) is not None:  # it ends by itself for a reason alone
                    errors.seek(0)
                    reason = (errors.read().strip().splitlines() or [f"exit status {code}"])[-1]
                    print(f"workers were started one by one, not forked: {reason}", file=sys.stderr)
                server.kill()
                server.wait()


def serve(number: str, module: str) -> None:
    """Until stdin is closed; returns in the parent alone."""
    with socket.socket(fileno=int(number)) as listening:
        before = dict(os.environ)
        gc.disable()  # what is imported stays
        importlib.import_module(module)
        gc.freeze()
        made = {name: value for name, value in os.environ.items() if before.get(name) != value}
        if (reason := obstacle()) is not None:
            raise SystemExit(reason)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
        while True:
            readable, _, _ = select.select([listening, sys.stdin], [], [])
            if sys.stdin in readable:  # the parent was killed, and clears nothing away
                shutil.rmtree(os.path.dirname(listening.getsockname()), ignore_errors=True)
                return
            with suppress(OSError):
                asked, _ = listening.accept()
                with asked:
                    asked.send(READY)
                    message, files, _, _ = socket.recv_fds(asked, MOST, 3)
                if message and os.fork() == 0:
                    break
                for file in files:
                    os.close(file)
    _become(json.loads(message), files, made)


def obstacle() -> str | None:
    """Why a child would not have all that this process has: threads are not forked, nor is a GPU that was opened."""
    import torch

    names = [task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    threads = [name for name in names if name not in SAFE]
    if len(threads) > 1:
        return f"what is imported starts threads ({', '.join(threads)})"
    return "torch has a GPU" if torch.cuda.is_available() else None


def _become(program: dict[str, Any], files: list[int], made: dict[str, str]) -> None:
    """The program, as if it had been started where it was asked for."""
    os.setpgid(0, 0)  # Ray ends the whole group of a worker
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(program["folder"])
    os.environ.clear()
    os.environ.update(made | program["environment"])
    with suppress(OSError):  # lower than the server's own
        Path("/proc/self/oom_score_adj").write_text(program["oom_score_adj"])
    sys.argv = program["arguments"]
    sys.path[0] = os.path.dirname(os.path.realpath(sys.argv[0]))
    signal.pthread_sigmask(signal.SIG_SETMASK, program["blocked"])
    import ray  # noqa: F401  # as the program does at once; what is imported stays

    gc.enable()
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    serve(*sys.argv[1:])
