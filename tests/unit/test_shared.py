"""Which of two drivers trains a trial that both have: the locks of two real processes on one storage."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sweeper import control
from sweeper.shared import Shared
from sweeper.store import Claims, Store, StoreError

from .test_watch import SPEC, make_plan, parse_sweep

OTHER = """
import sys
from pathlib import Path
from sweeper.store import Claims
with Claims(Path(sys.argv[1])) as claims:
    print([key for key in sys.argv[2:] if claims.take(key)], flush=True)
    sys.stdin.read()
"""


@contextmanager
def another(root: Path, *keys: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds these trials."""
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER, root, *keys], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == str(list(keys))
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path)
    made.save_plan("seen", SPEC, make_plan(parse_sweep(SPEC, "seen.yaml"), tmp_path).trials, {})
    return made


def test_a_trial_is_one_drivers_until_it_ends_however_that_comes(store: Store) -> None:
    one, two, *_ = store.trials("seen")
    with Claims(store.root) as claims:
        with another(store.root, one) as holder:
            assert not claims.take(one)
            assert claims.take(two)
            assert claims.take(two)
            holder.kill()
            holder.wait()
        assert claims.take(one)
    with another(store.root, one, two):
        pass


def test_what_another_has_is_waited_for_and_taken_over_where_it_was_left(store: Store) -> None:
    keys = list(store.trials("seen"))[:5]
    done, failed, left, mine, before = keys
    for key in (failed, mine):
        store.trial(key).finish("failed", error="of before")
    store.trial(before).finish("finished")  # while this driver was starting
    heard: list[str] = []
    with Claims(store.root) as claims, another(store.root, done, failed, left) as holder:
        shared = Shared(store, "seen", claims, keys, lambda key, _: heard.append(key), lambda _: None)
        assert [key for key in keys if shared.take(key)] == [mine]
        assert store.trial(mine).result() is None  # taken up again
        assert (shared.left(), heard) == ([done, failed, left], [before])
        store.trial(done).finish("finished")
        store.trial(failed).finish("failed", error="again")
        assert (shared.left(), heard) == ([left], [before, done, failed])
        assert not shared.take(left)
        holder.kill()
        holder.wait()
        assert shared.take(left)
        assert shared.left() == []
        assert [key for key in keys if shared.take(key)] == [left, mine]
    assert (store.trial(failed).result() or {})["error"] == "again"


def test_what_ends_as_its_driver_goes_is_not_trained_again(store: Store) -> None:
    key = next(iter(store.trials("seen")))
    heard: list[str] = []
    with Claims(store.root) as claims:
        with another(store.root, key):
            shared = Shared(store, "seen", claims, [key], lambda key, _: heard.append(key), lambda _: None)
            store.trial(key).finish("finished")
        assert not shared.take(key)
        assert (shared.left(), heard) == ([], [key])
    assert (store.trial(key).result() or {})["status"] == "finished"


def test_a_trial_of_another_sweep_is_stopped_there(store: Store) -> None:
    key = next(iter(store.trials("seen")))
    with another(store.root, key), pytest.raises(StoreError, match="under way in another sweep; stop it there"):
        control.stop_trial(store, "seen", key)
    assert store.trial(key).result() is None
    control.stop_trial(store, "seen", key)
    assert (store.trial(key).result() or {})["by"] == "hand"
