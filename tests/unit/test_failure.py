"""What is recorded of a failure: its kind, type, message, traceback and rank; and a line that is never empty."""

import errno
import json
import os

import pytest
import torch

from jobs.failure import MOST_LINE, Failure, Kind, root_cause


def caught(raise_: object) -> Failure:
    try:
        if isinstance(raise_, BaseException):
            raise raise_
        assert callable(raise_)
        raise_()
    except BaseException as error:
        return Failure.of(error, 1)
    raise AssertionError("nothing was raised")


def bare() -> None:
    raise AssertionError


class Mute(Exception):
    def __str__(self) -> str:
        return ""


class Broken(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


def chained() -> None:
    try:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/rows")
    except OSError as error:
        raise RuntimeError("cannot save") from error


@pytest.mark.parametrize("error", [ValueError("no such layer"), Mute(), Broken(), SystemExit(3), KeyError("x"), bare,
                                   ValueError("half \ud83d"), ValueError("\n\n  second line\nthird")])  # fmt: skip
def test_the_line_is_never_empty_and_can_be_written(error: object) -> None:
    failure = caught(error)
    assert failure.line.split(":")[0].split(" ")[0] == failure.type
    assert len(failure.line) > len(failure.type)
    json.dumps(failure.record()).encode("utf-8")
    failure.traceback.encode("utf-8")
    assert "Traceback (most recent call last)" in failure.traceback
    assert failure.rank == 1
    assert Failure.read(json.loads(json.dumps({"time": 1.0} | failure.record()))) == failure


def test_an_exception_without_a_message_is_shown_by_its_place_and_its_source() -> None:
    assert caught(bare).line == "AssertionError (test_failure.py:25 in bare: raise AssertionError)"
    assert len(caught(ValueError("x" * 1000)).line) == MOST_LINE


@pytest.mark.parametrize(("error", "kind"), [
    (ValueError("no such layer"), Kind.ERROR),
    (MemoryError(), Kind.OUT_OF_MEMORY),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), Kind.OUT_OF_MEMORY),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), Kind.OUT_OF_MEMORY),
    (lambda: torch.empty(1 << 60), Kind.OUT_OF_MEMORY),
    (OSError(errno.ENOSPC, "x"), Kind.DISK_FULL),
    (OSError(errno.EDQUOT, "x"), Kind.DISK_FULL),
    (chained, Kind.DISK_FULL),
    (OSError(errno.ENOENT, "x"), Kind.ERROR),
    (RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer"), Kind.PEER_LOST),
    (ValueError("batch_size 8 is no multiple"), Kind.ERROR),
    (ValueError("gloo"), Kind.ERROR),
])  # fmt: skip
def test_the_kind_follows_from_what_was_raised(error: object, kind: Kind) -> None:
    assert caught(error).kind is kind


def test_the_cause_is_what_was_told_first_and_was_no_consequence() -> None:
    peer, first, second = caught(RuntimeError("gloo: Connection closed")), caught(ValueError("a")), caught(bare)
    assert root_cause([peer, first, second]) is first
    assert root_cause([peer]) is None
    assert root_cause([]) is None


def test_what_differs_in_numbers_alone_failed_alike() -> None:
    one, two = caught(ValueError("row 3 of 10 at 0x7f3a")), caught(ValueError("row 14 of 10 at 0x7fff"))
    assert one.signature == two.signature
    assert one.signature != caught(ValueError("column 3")).signature
    assert caught(bare).signature == caught(bare).signature != caught(Mute()).signature
