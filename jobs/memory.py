"""What a trial leaves behind in its process, given back; and whether it left so much that the process should go."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

GROWTH = 0.5  # over the floor, and
HOST_SLACK = 1 << 30  # at least this many bytes: allocators keep some, and the next task's data is mapped
DEVICE_SLACK = 256 << 20  # on a GPU the caching allocator can be asked what is really in use


class Floor:
    """Memory held between trials: that after the first one is the floor which every later one must come back to."""

    def __init__(self) -> None:
        self.host = self.device = 0

    def left(self) -> bool:
        """Call after every trial. Gives back what it can; True where this trial has left much more than the first."""
        host, device = settle(first=not self.host)
        if not self.host:
            self.host, self.device = host, device
            return False
        return grown(self.host, host, HOST_SLACK) or grown(self.device, device, DEVICE_SLACK)


def grown(floor: int, now: int, slack: int) -> bool:
    """Whether `now` bytes are more than a trial may leave over `floor` bytes."""
    return now - floor > max(GROWTH * floor, slack)


def settle(first: bool = False) -> tuple[int, int]:
    """Free what is not referred to any more. Returns bytes that this process holds: (host, GPU).

    first: everything alive now, mostly imported modules, is left out of later collections; walking all of it
    took two thirds of a short trial's time.
    """
    gc.collect()
    if first:
        gc.freeze()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    _trim()
    return resident(), torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def resident() -> int:
    """Bytes of this process in memory that are its own; 0 where the system does not say (macOS)."""
    try:
        fields = Path("/proc/self/statm").read_text().split()
    except OSError:
        return 0
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")  # mapped files are shared, and no leak


@contextmanager
def large_blocks_apart() -> Iterator[None]:
    """For the block, what is freed of more than a MiB goes back at once.

    glibc moves that border up to 32 MiB, and then a shard that stays above a whole tensor that goes keeps the hole: two
    workers that loaded half a model each held the size of all of it. Afterwards the border lies where glibc would stop.
    """
    _set_border(1 << 20)
    try:
        yield
    finally:
        _trim()
        _set_border(32 << 20)


def _set_border(size: int) -> None:
    """M_MMAP_THRESHOLD: larger blocks are mapped by themselves."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").mallopt(-3, size)


def _trim() -> None:
    """glibc keeps freed memory until it is asked."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
