"""Sweeps that are run at once on a storage and have trials in common train each of these once: one of them does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sweeper import control
from sweeper.results import OVER
from sweeper.store import Claims, Store

LOOK_S = 2.0  # between two looks at what others train


class Shared:
    """What of a sweep is this driver's to train, and what becomes of the rest.

    todo:  keys that have no last word yet, or have failed; what is this driver's is taken up again at once
    ended: hears of each trial that another sweep has ended, and of that sweep's name
    """

    def __init__(
        self,
        store: Store,
        sweep: str,
        claims: Claims,
        todo: Iterable[str],
        ended: Callable[[str, str], None],
        say: Callable[[str], None],
    ) -> None:
        self.store, self.sweep, self.claims, self.ended, self.say = store, sweep, claims, ended, say
        self.lock = threading.Lock()  # who stops a trial by hand is another thread
        self.mine: set[str] = set()
        self.theirs = {key: self._failure(key) for key in todo}  # with the last word that they had before, a failure
        for key in list(self.theirs):
            self._take(key)
        self.names = self._who() if self.theirs else ""
        if self.theirs:
            say(f"{len(self.theirs)} trials are under way in {self.names}; their results are taken from there")

    def take(self, key: str) -> bool:
        """Whether this driver may train the trial; what a driver that is gone has left unfinished, another one may."""
        with self.lock:
            late = key in self.theirs and self._take(key)
        if late:
            self.say(f"{key} is not under way in {self.names} any more: it goes on here")
        return key in self.mine

    def left(self) -> list[str]:
        """What others train still; of what they have ended `ended` has heard."""
        with self.lock:
            over = [key for key in self.theirs if self._is_over(key)]
            for key in over:
                del self.theirs[key]
            left = list(self.theirs)
        for key in over:
            self.ended(key, self.names)
        return left

    def wait(self) -> None:
        """A moment, for others to go on."""
        time.sleep(LOOK_S)

    def _take(self, key: str) -> bool:
        # in this order: what is not over once it is claimed, nobody else ends
        if not self.claims.take(key) or self._is_over(key):
            return False
        del self.theirs[key]
        self.mine.add(key)
        self.store.trial(key).reopen()
        return True

    def _failure(self, key: str) -> Mapping[str, Any] | None:
        result = self.store.trial(key).result()
        return result if result is not None and result["status"] not in OVER else None

    def _is_over(self, key: str) -> bool:
        result = self.store.trial(key).result()
        return result is not None and result != self.theirs[key]

    def _who(self) -> str:
        """The sweeps that are being run and have one of these trials."""
        others = [name for name in self.store.sweeps() if name != self.sweep and control.driver(self.store, name)]
        names = [f"sweep '{name}'" for name in others if self.theirs.keys() & self.store.trials(name).keys()]
        return " and ".join(names) or "another sweep"
