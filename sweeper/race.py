"""Early stopping by race: a cell's objectives are compared at rungs, and one is stopped only when surely behind.

A pure function of what is recorded: after a kill the same rows give the same decisions. All trials of a cell, that is
(backbone, task), come to a rung before any goes on, so none is judged by who happened to be first. An objective is
judged by all its seeds together. The NLL anchor and revived trials are never stopped, and the best objective never is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist, fmean, variance


@dataclass(frozen=True)
class Score:
    """value: higher is better; error: its standard error as one trial knows it, over problems (0: not known)."""

    value: float
    error: float = 0.0


@dataclass(frozen=True)
class Runner:
    """One trial of a cell. scores: by step; exempt: may not be stopped; out: it is over and trains no more.

    diverged: it counts as worse than everything at each rung that it did not come to.

    That holds for what a race has stopped too, whatever is added to the cell later: its scores count at the rungs that
    it came to, and no rung waits for it. Only to revive it takes a stop back.
    """

    key: str
    objective: str
    num_steps: int
    scores: Mapping[int, Score]
    exempt: bool = False
    out: bool = False
    diverged: bool = False

    def at(self, rung: int) -> Score | None:
        """Its score at a rung; None where it has none."""
        return self.scores.get(rung, Score(-math.inf) if self.diverged else None)


@dataclass(frozen=True)
class Standing:
    """run: keys that may train now, each to the step at which it waits for the others (None: to its end).

    stop: keys that go no further from now on, each with the rung at which that was decided.
    """

    run: dict[str, int | None] = field(default_factory=dict)
    stop: dict[str, int] = field(default_factory=dict)


def rungs(grace_steps: int, reduction_factor: int, num_steps: int) -> list[int]:
    """Steps at which trials are compared: grace x factor^k below `num_steps`."""
    found = []
    step = grace_steps
    while step < num_steps:
        found.append(step)
        step *= reduction_factor
    return found


def standing(cell: Sequence[Runner], grace_steps: int, reduction_factor: int, confidence: float) -> Standing:
    """Where one cell stands.

    confidence: one-sided, of being worse than the last that is promoted; below it an objective goes on
    """
    live, stop = list(cell), dict[str, int]()
    for rung in rungs(grace_steps, reduction_factor, min((r.num_steps for r in cell), default=0)):
        missing = [r for r in live if rung not in r.scores and not r.out]
        if missing:
            return Standing({r.key: rung for r in missing}, stop)
        arms: dict[str, list[Score]] = {}
        for runner in live:
            if (score := runner.at(rung)) is not None:
                arms.setdefault(runner.objective, []).append(score)
        ahead = promoted(arms, math.ceil(len(arms) / reduction_factor), confidence)
        stop |= {r.key: rung for r in live if r.objective not in ahead and not r.exempt and not r.out}
        live = [r for r in live if r.objective in ahead or r.exempt]
    return Standing({r.key: None for r in live if not r.out}, stop)


def promoted(arms: Mapping[str, Sequence[Score]], keep: int, confidence: float) -> set[str]:
    """The best `keep` objectives by mean over seeds, and all that are not surely worse than the last of them."""
    means = {name: fmean(s.value for s in scores) for name, scores in arms.items()}
    finite = {name: scores for name, scores in arms.items() if math.isfinite(means[name])}
    order = sorted(finite, key=lambda name: -means[name])  # an objective with a trial that diverged is behind all
    if len(order) <= keep:
        return set(order or arms)
    last, errors, z = order[keep - 1], _standard_errors(finite), NormalDist().inv_cdf(confidence)
    return {
        name
        for place, name in enumerate(order)
        if place < keep or means[last] - means[name] <= z * math.hypot(errors[last], errors[name])
    }


def _standard_errors(arms: Mapping[str, Sequence[Score]]) -> dict[str, float]:
    """Of each mean: the seeds' spread, pooled over objectives, or what the problems leave open, if that is more.

    With one seed and a score that does not know its error, the order alone decides.
    """
    inner = [(len(scores) - 1, variance([s.value for s in scores])) for scores in arms.values() if len(scores) > 1]
    free = sum(n for n, _ in inner)
    pooled = sum(n * v for n, v in inner) / free if free else 0.0
    return {
        name: math.sqrt(max(pooled, fmean(s.error**2 for s in scores)) / len(scores)) for name, scores in arms.items()
    }
