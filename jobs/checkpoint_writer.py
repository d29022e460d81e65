"""Checkpoints that are written while training goes on."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Parts:
    """This rank's files of one checkpoint, on their way to the disk."""

    files: Sequence[Future[None]]

    def written(self) -> bool:
        return all(file.done() for file in self.files)

    def wait(self) -> None:
        """Until they are written. Raises what went wrong with one of them, e.g. OSError on a full disk."""
        for file in self.files:
            file.result()


class CheckpointWriter:
    """Stands before DeepSpeed's own checkpoint engine, which makes the bytes; a thread brings them to their files.

    Training waits for the copy into memory, not for the disk. The copy is as large as this rank's share of the
    checkpoint, and goes when it is written.
    """

    def __init__(self, engine: Any) -> None:
        self.plain = engine
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._files: list[Future[None]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plain, name)

    def save(self, state_dict: Any, path: str) -> None:
        """As DeepSpeed calls it, once a file."""
        held = io.BytesIO()
        self.plain.save(state_dict, held)
        self._files.append(self._thread.submit(_write, Path(path), held))

    def take(self) -> Parts:
        """The files since the last call."""
        parts, self._files = Parts(self._files), []
        return parts

    def close(self) -> None:
        """Wait for what is being written; nothing more comes."""
        self._thread.shutdown()


def _write(path: Path, held: io.BytesIO) -> None:
    with held, path.open("wb") as file:
        file.write(held.getbuffer())
        file.flush()
        if path.is_file():
            os.fsync(file.fileno())  # on the disk before the checkpoint is marked as complete
