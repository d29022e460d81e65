"""What a trial takes of its card at its peak, and a worker that has a share of a card kept to it.

CUDA: bytes of torch's allocator, and beside them CUDA's own (context, cuBLAS, NCCL), which can be told only where a
worker has its card alone. Where torch sees no CUDA, a worker computes on the host, and what Ray calls a GPU
stands for an equal part of the host's memory.
"""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path
from typing import Protocol

import psutil
import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
LEAST = 0.01  # of a card: torch refuses no share above 0, but nothing would fit in less


class Meter(Protocol):
    """One a worker; `begin` before a trial, `read` after it.

    share:   of a card, 1 for the whole one
    outside: bytes of the share that torch's allocator does not have, as measured on a whole card
    """

    def begin(self, share: float, outside: int) -> None: ...

    def read(self) -> dict[str, int]:
        """peak_bytes since `begin`, outside_bytes (0 where it cannot be told), total_bytes of the card."""
        ...


class CudaMeter:
    """On the worker's current device."""

    def begin(self, share: float, outside: int) -> None:
        self.alone = share >= 1
        if not self.alone:
            total = torch.cuda.mem_get_info()[1]
            torch.cuda.set_per_process_memory_fraction(max(LEAST, share - outside / total))
        torch.cuda.reset_peak_memory_stats()

    def read(self) -> dict[str, int]:
        free, total = torch.cuda.mem_get_info()
        outside = max(0, total - free - torch.cuda.memory_reserved()) if self.alone else 0
        return {"peak_bytes": torch.cuda.max_memory_reserved(), "outside_bytes": outside, "total_bytes": total}


class HostMeter:
    """The process' resident memory; cards: how many Ray counts on this host."""

    def __init__(self, cards: float) -> None:
        self.total = int(host_bytes() / max(1.0, cards))
        self.limit, self.hard = resource.getrlimit(resource.RLIMIT_DATA)

    def begin(self, share: float, outside: int) -> None:
        if not STATUS.exists():  # macOS: nothing is known, and nothing is kept
            return
        with contextlib.suppress(OSError):  # a kernel without it: the peak is the process' own, which is no less
            CLEAR.write_text("5")  # the peak counts from here
        limit = self.limit
        if share < 1:  # address space that may still be written to: torch's allocator is refused more, and says so
            most = _status("VmData") + max(0, int(share * self.total) - _status("VmRSS"))
            limit = most if limit == resource.RLIM_INFINITY else min(most, limit)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, self.hard))

    def read(self) -> dict[str, int]:
        return {"peak_bytes": _status("VmHWM"), "outside_bytes": 0, "total_bytes": self.total}


def meter(cards: float) -> Meter:
    """For this process. cards: the GPUs of this node by Ray's count, for a host without CUDA."""
    return CudaMeter() if torch.cuda.is_available() else HostMeter(cards)


def host_bytes() -> int:
    """Memory of the host, or of the container that this process is in."""
    limits = [psutil.virtual_memory().total]
    for file in map(Path, CGROUPS):
        if file.exists() and (text := file.read_text().strip()).isdigit():
            limits.append(int(text))
    return min(limits)


def _status(name: str) -> int:
    """A line of /proc/self/status in bytes; 0 where the system has none."""
    if not STATUS.exists():
        return 0
    line = next((line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:")), f"{name}: 0 kB")
    return 1024 * int(line.split()[1])
