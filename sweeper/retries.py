"""What follows from a failure: whether the trial is started again, and when a whole kind of trials is paused.

| kind | policy |
|---|---|
| error | again `max_failures` times: it would most likely be raised again |
| out of memory | with fewer sequences or a larger share (sweeper/lanes.py); a killed process like one that died |
| worker died, peer lost | again from its newest checkpoint, unless it died DEATHS times in a row without a new row |
| node lost, preempted | again, as often as it takes |
| disk full | not again; all that has not begun is paused |
| not started | not again: no worker of that shape could be placed or started |

Only errors use up `max_failures`.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from jobs.failure import Failure, Kind
from jobs.spec import TrialSpec

DEATHS = 3  # of a trial in a row without a new row: then it is the trial that ends its workers
ALIKE = 3  # trials of one kind that fail alike, and none that has finished since the first: then the kind is paused
AXES = ("backbone", "task", "objective")
BACKBONE = "backbone"  # the objective of what measures an untrained one
DIED = (Kind.WORKER_DIED, Kind.PEER_LOST, Kind.OUT_OF_MEMORY)


class Retries:
    """Of one driver: what failed before it began does not count. `max_failures`: of the sweep file."""

    def __init__(self, max_failures: int) -> None:
        self.max_failures = max_failures
        self.errors: dict[str, int] = defaultdict(int)
        self.deaths: dict[str, list[int]] = defaultdict(list)  # the steps of deaths in a row without a new row

    def again(self, key: str, failure: Failure) -> bool:
        """Whether the trial starts again; to be asked once for each failure."""
        if failure.kind in (Kind.NODE_LOST, Kind.PREEMPTED):
            return True
        if failure.kind is Kind.ERROR:
            self.errors[key] += 1
            return self.errors[key] <= self.max_failures
        if failure.kind in DIED and failure.type == "WorkerDied":
            steps = [step for step in self.deaths[key] if step >= failure.step]
            self.deaths[key] = [*steps, failure.step]
            return len(self.deaths[key]) < DEATHS
        return False


@dataclass(frozen=True)
class Pause:
    """trials: keys that are not to begin; reason: for people."""

    trials: frozenset[str]
    reason: str


@dataclass
class _Alike:
    """Trials that failed with one signature, in order, and the line that is shown."""

    line: str
    keys: list[str] = field(default_factory=list)


class Breaker:
    """Pauses a kind of trials when several of them failed alike: the rest of the kind would, too.

    A kind is what all trials with that failure share: backbone, task, objective (by name), or some of these. So three
    seeds of a broken objective pause that objective on that backbone and task alone; when it fails so on another
    backbone, the objective is paused everywhere.
    """

    def __init__(self, trials: Mapping[str, TrialSpec]) -> None:
        self.values = {key: _values(trial) for key, trial in trials.items()}
        self.alike: dict[str, _Alike] = {}

    def failed(self, key: str, failure: Failure, finished: Iterable[str]) -> Pause | None:
        """A trial has failed for good. finished: keys of trials that have finished since this driver began."""
        if failure.kind is Kind.DISK_FULL:
            return Pause(frozenset(self.values), f"the disk is full: {failure.line}")
        if failure.kind is Kind.NOT_STARTED:
            return None  # no verdict on the trial
        known = self.alike.setdefault(failure.signature, _Alike(failure.line))
        known.line = failure.line
        if key not in known.keys:
            known.keys.append(key)
        if len(known.keys) < ALIKE:
            return None
        kinds = [self._kind(group) for group in self._groups(key, known.keys) if len(group) >= ALIKE]
        over = set(finished)
        found = max((kind for kind in kinds if not kind.trials & over), key=lambda kind: len(kind.trials), default=None)
        if found is None:
            return None  # it works for others of the kind
        reason = f"{found.failed} trials of {found.name} failed alike: {known.line}"
        return Pause(found.trials, reason)

    def _groups(self, key: str, failed: Sequence[str]) -> Iterator[list[str]]:
        """Of the failed ones those that are like this one in one, two or all axes."""
        own = self.values[key]
        for count in range(1, len(AXES) + 1):
            for axes in itertools.combinations(AXES, count):
                yield [one for one in failed if all(self.values[one][axis] == own[axis] for axis in axes)]

    def _kind(self, group: Sequence[str]) -> _Kind:
        """All trials that have what these share. The untrained backbone is one of them only if it failed, too."""
        seen = {axis: {self.values[one][axis] for one in group} for axis in AXES}
        shared = {axis: next(iter(values)) for axis, values in seen.items() if len(values) == 1}
        spared = set() if BACKBONE in seen["objective"] else {BACKBONE}
        trials = frozenset(
            key
            for key, own in self.values.items()
            if own["objective"] not in spared and all(own[axis] == value for axis, value in shared.items())
        )
        return _Kind(trials, ", ".join(f"{axis} {value}" for axis, value in shared.items()), len(group))


@dataclass(frozen=True)
class _Kind:
    """trials: keys; name: for people; failed: how many of them failed alike."""

    trials: frozenset[str]
    name: str
    failed: int


def _values(trial: TrialSpec) -> dict[str, str]:
    return {
        "backbone": trial.backbone.name,
        "task": trial.task.name,
        "objective": BACKBONE if trial.objective is None else trial.objective.canonical().name,
    }
