"""What a trial's seconds went into, over all its legs: a rung of a race, another lane, a revival begin one.

    setup_s   loading the backbone, its measure, the engine, the check; writing the model
    train_s   steps, evaluation, checkpoints

Kept in the trial's folder with each checkpoint, so what a death has cost since the newest one is in neither.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

SETUP, TRAIN, EVALUATE = "setup", "train", "evaluate"
COUNTS_AS = {SETUP: "setup_s", TRAIN: "train_s", EVALUATE: "train_s"}


class Clock:
    """One trial's in one worker; it runs from `enter` until `pause`.

    spent: seconds of earlier legs, by name; tell: hears of every phase that begins
    """

    def __init__(self, spent: Mapping[str, float] | None = None, tell: Callable[[str], None] | None = None) -> None:
        self.spent = dict.fromkeys(COUNTS_AS.values(), 0.0) | dict(spent or {})
        self.tell, self.told = tell, ""
        self.phase: str | None = None
        self.since = 0.0

    def enter(self, phase: str) -> None:
        self.pause()
        self.phase, self.since = phase, time.perf_counter()
        if self.tell is not None and phase != self.told:
            self.tell(phase)
        self.told = phase

    def pause(self) -> None:
        if self.phase is not None:
            self.add(self.phase, time.perf_counter() - self.since)
        self.phase = None

    def add(self, phase: str, seconds: float) -> None:
        """Of what several trials did at once: this one's share."""
        self.spent[COUNTS_AS[phase]] += seconds

    def read(self) -> dict[str, float]:
        """setup_s and train_s until now."""
        running = self.phase
        self.pause()
        self.phase, self.since = running, time.perf_counter()
        return dict(self.spent)
