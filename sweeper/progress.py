"""What a person sees while a sweep runs: one line an ended trial, with the time that is left."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sweeper.plan import Plan

WORTH_A_LINE_S = 2.0  # what takes less is over before anybody wonders


class Progress:
    """Counts ends. `done`: trials that were over before this run."""

    def __init__(self, plan: Plan, done: int) -> None:
        self.trials = {trial.key: trial for trial in plan.trials}
        self.done = self.at_start = done
        self.first_end = 0.0
        print(f"{plan.spec.settings.name}: {len(self.trials)} trials, {done} done before", flush=True)

    def ended(self, key: str, status: str, result: dict[str, Any], elsewhere: str = "") -> None:
        """elsewhere: which other sweep has recorded it."""
        self.done += 1
        self.first_end = self.first_end or time.monotonic()
        trial = self.trials[key]
        who = f"{trial.backbone.name} · {trial.task.name} · {trial.objective_label}"
        if trial.objective is not None:
            who += f" · seed {trial.seed}"
        if status == "failed":
            score = f"FAILED: {result.get('error') or 'no reason is recorded'}"
        elif status == "diverged":
            score = f"DIVERGED: {result.get('error', '')}"
        else:
            sampled, greedy = (result.get(f"task/accuracy_{how}", math.nan) for how in ("sampled", "greedy"))
            score = "" if math.isnan(sampled) else f"accuracy T=1 {sampled:.2f}, greedy {greedy:.2f}"
            if status == "stopped":
                score = f"stopped at step {result.get('step', 0):g}" + (f", {score}" if score else "")
        score += f", recorded by {elsewhere}" if elsewhere else ""
        print(f"[{self.done}/{len(self.trials)}] {who}: {score}{self._left()}", flush=True)
        invalid = result.get("data/invalid") or 0
        if invalid > 0 and trial.objective is None:
            print(
                f"  {invalid:.0f} rows of {trial.task.name} cannot be used and are left out (invalid: drop)", flush=True
            )
        cut = result.get("data/train_cut") or 0
        if cut > 0 and trial.objective is None:  # once a backbone and task: they are the same for all its trials
            print(
                f"  {cut:.0f} training examples are longer than train.max_length {trial.train.max_length} and are cut",
                flush=True,
            )

    def line(self, text: str) -> None:
        """Something that a person should know."""
        print(text, flush=True)

    def _left(self) -> str:
        since = self.done - self.at_start - 1  # counted from the first end: bringing Ray up is over by then
        rest = len(self.trials) - self.done
        if not rest or since < 3:
            return ""
        seconds = (time.monotonic() - self.first_end) / since * rest
        return f"  ({seconds / 60:.0f} min left)" if seconds >= 90 else f"  ({seconds:.0f} s left)"


@contextmanager
def bar(title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal, a line now and then elsewhere; call it with (done, total)."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(desc=title, unit=unit) as shown:

            def update(done: int, total: int) -> None:
                shown.total = total
                shown.update(done - shown.n)

            yield update
        return
    last = [time.monotonic()]
    began = last[0]

    def line(done: int, total: int) -> None:
        ended = done == total and total and time.monotonic() - began > WORTH_A_LINE_S
        if time.monotonic() - last[0] > 10 or ended:
            last[0] = time.monotonic()
            print(f"{title}: {unit} {done} of {total}", file=sys.stderr, flush=True)

    yield line
