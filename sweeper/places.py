"""Places that a user names: where a storage may be, and what is said of one that cannot be read or written."""

from __future__ import annotations

import argparse
import errno
import os
import re
from collections.abc import Iterable
from pathlib import Path

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
FULL = (errno.ENOSPC, errno.EDQUOT)
NO_SUPPORT = "object storage and other addresses are not supported; give a folder that all nodes share, such as a mount"


def folder(text: str) -> Path:
    """An argparse type: a folder of this machine. `s3://bucket` would make a folder named `s3:`."""
    if SCHEME.match(text):
        raise argparse.ArgumentTypeError(f"{text}: {NO_SUPPORT}")
    return Path(text)


def jobs_address(text: str) -> str:
    """An argparse type: the address of a cluster's Jobs API."""
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{text}: the address of a cluster's Jobs API, such as http://HEAD:8265")
    return text


def words(error: OSError, named: Iterable[object]) -> str | None:
    """A line for an error of the system about a place that the user named, or on a full disk; else None: our bug.

    named: the values of the command's options
    """
    file = error.filename
    reason = error.strerror or os.strerror(error.errno or 0)
    if error.errno in FULL:
        at = f" for {file}" if file else ""
        return f"the disk is full{at} ({reason}); make room and run the same command again"
    places = [Path(one).absolute() for one in named if isinstance(one, str | Path) and str(one)]
    if not isinstance(file, str | os.PathLike) or error.errno is None:
        return None
    at_place = any(Path(file).absolute().is_relative_to(place) for place in places)
    return f"{file}: {reason}; name another place, or change its rights" if at_place else None
