"""Files that are there whole or not at all, and fingerprints of those that users bring."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

BLOCK = 1 << 16
LOOK_S = 0.2  # between two looks at a lock
WHOLE_BELOW = 1 << 26  # larger weights are sampled: 64 blocks spread over the file, and its size


def write_text(path: Path, text: str) -> None:
    """Atomic: readers see the old text or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def make_dir(path: Path, fill: Callable[[Path], None]) -> Path:
    """A directory filled once: `fill` gets a temporary one that is renamed when it is complete."""
    if path.is_dir():
        return path
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    fill(partial)
    try:
        partial.rename(path)
    except OSError:  # another process was quicker; its content is the same
        shutil.rmtree(partial)
    return path


@contextmanager
def locked(path: Path, timeout_s: float) -> Iterator[None]:
    """One process at a time; others wait. The lock goes with the process that holds it, however that ends.

    Raises TimeoutError that names the holder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + timeout_s
    with path.open("a+") as held:
        while True:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    held.seek(0)
                    raise TimeoutError(f"{path} has been held for {timeout_s:.0f} s ({held.read().strip()})") from None
                time.sleep(LOOK_S)
        held.truncate(0)
        held.write(f"process {os.getpid()} on {socket.gethostname()}")
        held.flush()
        yield


def fingerprint(files: Iterable[Path], sampled: bool = False) -> str:
    """Hash of names and contents, independent of where the files lie; some 1.5 GB a second.

    sampled: of files above 64 MiB look at 64 places only, which tells any two trained models apart in milliseconds
    and would not notice an edit of a few bytes between them: for weights, never for data
    """
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda f: f.name):
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as stream:
            if not sampled or size <= WHOLE_BELOW:
                while block := stream.read(BLOCK * 16):
                    digest.update(block)
            else:
                for k in range(64):
                    stream.seek((size - BLOCK) * k // 63)
                    digest.update(stream.read(BLOCK))
    return digest.hexdigest()[:24]


def data_fingerprint(train: Sequence[Path], heldout: Sequence[Path]) -> str:
    """Hash of data files in their roles. Of shards only contents and order count, not how they are called."""
    if len(train) > 1 or len(heldout) > 1:
        parts = [[_content(file) for file in files] for files in (train, heldout)]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]
    same = fingerprint([*train, *heldout])  # by name: it does not say which of two is which
    return f"{same}-exchanged" if heldout and train[0].name < heldout[0].name else same


def _content(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
