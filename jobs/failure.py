"""Why a trial failed: what was raised where, by which rank, and of which kind. No Ray, no torch: workers and drivers
make the same record.

A worker records what it raises itself (`Failure.of`), since only it has the exception, its frames and its rank. What
ends a process gives it no time for that; the driver makes that record from what Ray says (`Failure.of_death`).
"""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

MOST_TRACEBACK = 40_000  # characters kept, from the end
MOST_LINE = 300  # characters of the line that tables and terminals show


class Kind(StrEnum):
    """What ended a trial. `sweeper/retries.py` says what follows from each."""

    ERROR = "error"  # raised by the trial: its data, objective, backbone or our code
    OUT_OF_MEMORY = "out of memory"
    DISK_FULL = "disk full"
    WORKER_DIED = "worker died"  # a process ended without raising anything: killed, or crashed in native code
    NODE_LOST = "node lost"
    PREEMPTED = "preempted"  # a node that the cluster or the cloud took back
    PEER_LOST = "peer lost"  # raised because another rank was gone: never the cause
    NOT_STARTED = "not started"  # no worker could be placed or started for it


# torch on a GPU and on the CPU, Python, the system's allocator, Ray's memory monitor
MEMORY_SIGNS = (
    "out of memory",
    "OutOfMemoryError",
    "can't allocate memory",
    "MemoryError",
    "Cannot allocate memory",
    "running low on memory",
)
DISK_SIGNS = ("No space left on device", "Disk quota exceeded", "PytorchStreamWriter failed writing")
# what gloo and NCCL raise in a worker whose peer is gone; Ray may notice that later
PEER_SIGNS = ("gloo", "NCCL", "Connection closed", "Connection reset", "connection was closed")
NODE_SIGNS = re.compile(
    r"\bnode (?:has |had )?(?:died|dead|failed)|\bnode was (?:removed|terminated)|node is dead", re.I
)
COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # Ray's, of a terminal


def is_out_of_memory(text: str) -> bool:
    return any(sign in text for sign in MEMORY_SIGNS)


def is_disk_full(text: str) -> bool:
    return any(sign in text for sign in DISK_SIGNS)


@dataclass(frozen=True)
class Failure:
    """One attempt that failed.

    type, message: of the exception; message may be empty
    where:     the innermost frame, "plugin.py:12 in loss: assert p.ok"; empty where there is none
    traceback: all of it, with causes
    rank:      of the worker that raised it or died; None where it is not one worker's
    step:      the newest row of the trial by then
    """

    kind: Kind
    type: str
    message: str
    where: str = ""
    traceback: str = ""
    rank: int | None = None
    step: int = 0

    @classmethod
    def of(cls, error: BaseException, rank: int | None = None) -> Failure:
        """What was raised in this process."""
        frames = traceback.extract_tb(error.__traceback__)
        where = ""
        if frames:
            last = frames[-1]
            where = f"{Path(last.filename).name}:{last.lineno} in {last.name}" + (f": {last.line}" if last.line else "")
        text = _printable("".join(traceback.format_exception(error)))
        said = _printable(_said(error))
        return cls(_kind_of(error), type(error).__name__, said, _printable(where), text[-MOST_TRACEBACK:], rank)

    @classmethod
    def of_death(cls, text: str, rank: int | None, preempted: bool = False) -> Failure:
        """What Ray says of a process that is gone. text: all of Ray's words."""
        text = COLOURS.sub("", text)
        if preempted:
            kind, message = Kind.PREEMPTED, "its node was taken back by the cluster"
        elif is_out_of_memory(text):
            kind, message = Kind.OUT_OF_MEMORY, "a worker was killed because its machine ran out of memory"
        elif NODE_SIGNS.search(text):
            kind, message = Kind.NODE_LOST, "the machine of a worker is gone"
        else:
            kind, message = Kind.WORKER_DIED, "a worker's process ended without an error of its own"
        detail = _detail(text)
        return cls(kind, "WorkerDied", f"{message} ({detail})" if detail else message, "", text[-MOST_TRACEBACK:], rank)

    @classmethod
    def of_words(cls, text: str, rank: int | None = None) -> Failure:
        """From the text of a traceback alone: its last line has the type and the message."""
        text = _printable(COLOURS.sub("", text)).strip()
        last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
        found = re.match(r"([A-Za-z_][\w.]*): (.+)", last)
        name, said = (found[1].split(".")[-1], found[2]) if found else ("Error", last)
        kind = (
            Kind.DISK_FULL if is_disk_full(text) else Kind.OUT_OF_MEMORY if is_out_of_memory(text) else Kind.ERROR
        )  # fmt: skip
        return cls(kind, name, said, "", text[-MOST_TRACEBACK:], rank)

    @property
    def line(self) -> str:
        """What a table or a terminal shows: never empty."""
        said = next((line.strip() for line in self.message.splitlines() if line.strip()), "")
        if self.type in ("WorkerDied", "NotStarted"):
            text = said
        elif said:
            text = f"{self.type}: {said}"
        else:
            text = f"{self.type} ({self.where})" if self.where else self.type
        return text[:MOST_LINE]

    @property
    def signature(self) -> str:
        """Failures of one signature failed alike: numbers, addresses and quoted names are left out."""
        said = re.sub(r"0x[0-9a-fA-F]+|\d+", "#", self.message)
        return f"{self.kind}|{self.type}|{said[:300] or re.sub(r'[0-9]+', '#', self.where)}"

    def at(self, step: int) -> Failure:
        return replace(self, step=step)

    def record(self) -> dict[str, Any]:
        """As JSON types. `error`: the line that is shown."""
        return {**vars(self), "kind": str(self.kind), "error": self.line}

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Failure:
        known = {name: record[name] for name in cls.__dataclass_fields__ if name in record}
        return cls(**known | {"kind": Kind(record["kind"])})


def root_cause(failures: Sequence[Failure]) -> Failure | None:
    """Of what the ranks of a group raised, in the order in which it was told: the first that was no consequence."""
    causes = [failure for failure in failures if failure.kind is not Kind.PEER_LOST]
    return causes[0] if causes else None


def _kind_of(error: BaseException) -> Kind:
    chain = list(_chain(error))
    text = " ".join(f"{type(one).__name__}: {_said(one)}" for one in chain)
    if any(isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT) for one in chain):
        return Kind.DISK_FULL
    if is_disk_full(text):
        return Kind.DISK_FULL
    if any(isinstance(one, MemoryError) for one in chain) or is_out_of_memory(text):
        return Kind.OUT_OF_MEMORY
    native = isinstance(error, RuntimeError) or type(error).__module__.startswith("torch")
    if native and any(sign in text for sign in PEER_SIGNS):
        return Kind.PEER_LOST
    return Kind.ERROR


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, and those that it was raised from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _said(error: BaseException) -> str:
    """Its message; an exception whose own text cannot be made is no reason to lose it."""
    try:
        return str(error).strip()
    except Exception as broken:  # somebody's __str__
        return f"(its message cannot be shown: {type(broken).__name__})"


def _printable(text: str) -> str:
    """Half a surrogate pair cannot be written in UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _detail(text: str) -> str:
    """The most telling line of Ray's many."""
    signs = ("SIG", "signal", "exit code", "exit_detail", "node", "memory")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for sign in signs for line in lines if sign in line), lines[-1] if lines else "")[:200]
