"""The writer of MLflow beside a running sweep. Whatever a tracking server does, training goes on."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from jobs.failure import Failure
from jobs.files import write_text
from sweeper.store import Store
from sweeper.tracking import Tracking, set_environment
from sweeper.trouble import TROUBLE

SYNC_EVERY_S = 2.0
MOST_WAIT_S = 60.0  # between two attempts while nothing can be written
LAST_ATTEMPTS = 3  # at the end of a sweep
CLOSE_S = 60.0  # for the runs to be closed when somebody does not want to wait


class TrackingThread:
    """Writes every few seconds what is new; after a failure again, with more and more time in between.

    say: prints a line for people: once when it falls behind, once when it has caught up
    reason: why the newest attempt failed; None where all is written
    """

    def __init__(self, store: Store, sweep: str, uri: str, say: Callable[[str], None]) -> None:
        set_environment()
        self.store, self.sweep, self.uri, self.say = store, sweep, uri, say
        self.stopping, self.closed = threading.Event(), threading.Event()
        self.reason: str | None = None
        self.attempts, self.since = 0, 0.0
        self.tracking: Tracking | None = None
        self.thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> TrackingThread:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Wait until all runs are closed; a signal meanwhile ends the program after that, a second one at once."""
        self.stopping.set()
        try:
            self.closed.wait()  # no join(): interrupted once, that takes the thread for ended (CPython 3.11)
        except KeyboardInterrupt:
            self.closed.wait(CLOSE_S)
            raise

    def _loop(self) -> None:
        """Also the last writing, since signals come to the main thread alone."""
        try:
            while not self.stopping.is_set():
                self._try(over=False)
                self.stopping.wait(min(MOST_WAIT_S, SYNC_EVERY_S * 2 ** min(self.attempts, 10)))
            for attempt in range(LAST_ATTEMPTS):
                if self._try(over=True):
                    break
                time.sleep(attempt)
        finally:
            self.closed.set()

    def _try(self, over: bool) -> bool:
        """Whether all is written."""
        try:
            if self.tracking is None:
                self.tracking = Tracking(self.store, self.sweep, self.uri)
            self.tracking.sync(over)
        except Exception as error:  # of a server, a database, a network: none of it may cost training
            self._behind(Failure.of(error).line)
            return False
        self._caught_up()
        return True

    def _behind(self, reason: str) -> None:
        if self.reason is None:
            self.since = time.time()
            self.say(f"MLflow at {self.uri} cannot be written ({reason}); training goes on, it is tried again")
        self.reason, self.attempts = reason, self.attempts + 1
        facts = {"since": self.since, "reason": reason, "attempts": self.attempts}
        with suppress(OSError):  # a full disk: the line above was said
            write_text(self.store.sweep_dir(self.sweep) / TROUBLE, json.dumps(facts))

    def _caught_up(self) -> None:
        if self.reason is not None:
            self.say(f"MLflow at {self.uri} is written again, after {self.attempts} attempts")
        self.reason, self.attempts = None, 0
        (self.store.sweep_dir(self.sweep) / TROUBLE).unlink(missing_ok=True)
