"""What a node says of itself. Runs on every node of a cluster, also where this package is missing or another one:

cluster/actors.py sends this module and jobs/network.py by value, so they import the standard library (and what every
node has, inside functions), and answer in plain types.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import socket
import time
from collections.abc import Sequence
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jobs.network import meet_at

PACKAGES = ("ray", "torch", "transformers", "deepspeed", "mlflow")
OWN = ("cluster", "jobs", "sweeper")
MEGABYTES = 64  # of what is summed; near the size of a bucket of gradients


class Node:
    """Lives in an actor on each node, and in the driver's own process. `name` is unique among them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.mark: Path | None = None

    def clock(self) -> float:
        """Unix time, seconds."""
        return time.time()

    def software(self) -> dict[str, Any]:
        """python, versions (None: not installed), sources (a digest of this package as imported here, or None)."""
        return {
            "host": socket.gethostname(),
            "python": platform.python_version(),
            "versions": {name: _version(name) for name in PACKAGES},
            "sources": _sources(),
            # what Ray 2.60 goes by; unset means that nobody is asked for a token
            "token": os.environ.get("RAY_AUTH_MODE", "").lower() == "token",
        }

    def machine(self) -> dict[str, Any]:
        """Shared memory in bytes, CPUs, and the GPUs that torch sees (None: torch cannot be imported)."""
        total, free = _size("/dev/shm")
        gpus, error = None, ""
        try:
            import torch

            gpus = torch.cuda.device_count()
        except (ImportError, OSError, RuntimeError, AttributeError) as problem:  # of a broken build
            error = f"{type(problem).__name__}: {problem}"
        return {
            "shm_total": total,
            "shm_free": free,
            "cpus": len(os.sched_getaffinity(0)),
            "gpus": gpus,
            "torch_error": error,
        }

    def storage(self, root: str, word: str, driver: str | None, files: Sequence[str]) -> dict[str, Any]:
        """Whether `root` is there, can be written, and is the driver's own.

        Leaves a mark with `word` in it for the driver to find; `forget` removes it. driver: the name of the driver's
        mark, which must hold the same word here. missing: those of `files` that this node cannot read.
        """
        facts: dict[str, Any] = {"there": Path(root).is_dir(), "error": "", "free": None, "sees_driver": None}
        facts["missing"] = [file for file in files if not os.access(file, os.R_OK)]
        if facts["there"]:
            facts["free"] = shutil.disk_usage(root).free
            if driver is not None:
                facts["sees_driver"] = read(mark_path(root, driver)) == word
            try:
                self.mark = mark_path(root, self.name)
                self.mark.write_text(word)
            except OSError as problem:
                facts["error"] = problem.strerror or str(problem)
        return facts

    def forget(self) -> None:
        """Leave nothing behind in the storage."""
        if self.mark is not None:
            self.mark.unlink(missing_ok=True)

    def free_port(self, host: str) -> int:
        """Of this node's address `host`, held for the store of the group that rank 0 then makes."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.door = socket.create_server((host, 0), family=family)
        return int(self.door.getsockname()[1])

    def all_reduce(
        self, rank: int, world: int, own: str, host: str, port: int, backend: str, limit_s: float
    ) -> tuple[float, str]:
        """Sum 64 MB over all ranks as a trial would: (seconds of one such sum, what is wrong with it).

        own, host: addresses of this node and of rank 0's
        """
        try:
            meet_at(own)
            import torch
            import torch.distributed as dist

            limit = timedelta(seconds=limit_s)
            door = self.door.detach() if rank == 0 else None  # else the store would listen on every interface
            store = dist.TCPStore(  # type: ignore[attr-defined]
                host, port, world, is_master=rank == 0, timeout=limit, master_listen_fd=door
            )
            dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=limit)
            device = "cuda" if backend == "nccl" else "cpu"
            dist.all_reduce(torch.ones(1, device=device))  # the first one makes the connections
            values = torch.full((MEGABYTES * 10**6 // 4,), rank + 1.0, device=device)
            started = time.perf_counter()
            dist.all_reduce(values)
            low, high = float(values.min()), float(values.max())  # waits for a GPU, too
            took = time.perf_counter() - started
            dist.destroy_process_group()
        except (ImportError, OSError, RuntimeError, ValueError) as problem:  # torch's own are RuntimeErrors
            return 0.0, f"{type(problem).__name__}: {problem}"
        expected = world * (world + 1) / 2
        wrong = "" if low == high == expected else f"the sum is {low:g} to {high:g} instead of {expected:g}"
        return took, wrong


def mark_path(root: str, name: str) -> Path:
    return Path(root) / f".doctor-{name}"


def read(path: Path) -> str | None:
    """None where there is no such file, or it cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return None


def _size(path: str) -> tuple[int, int]:
    """Bytes in all and free; none where there is no such file system."""
    try:
        facts = os.statvfs(path)
    except FileNotFoundError:
        return 0, 0
    return facts.f_frsize * facts.f_blocks, facts.f_frsize * facts.f_bavail


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _sources() -> str | None:
    digest = hashlib.sha256()
    for name in OWN:
        found = find_spec(name)
        if found is None or not found.submodule_search_locations:
            return None
        folder = Path(next(iter(found.submodule_search_locations)))
        for file in sorted(folder.rglob("*.py")):
            digest.update(f"{name}/{file.relative_to(folder).as_posix()}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:12]
