"""Which objective to take for a backbone and task that nobody has trained, from what was measured near it. Pure.

What is measured is a cell's gain over NLL for each objective (sweeper/continuum.py). What is expected of a new cell is
their mean, or a straight line through them, weighted by nearness on the continuum: a Gaussian of the distance in
log-odds of mean p. How wide, and whether a line, is chosen by how well each cell is foretold from the others. The
interval is of what one more cell would measure, from how far those foretold gains were off near there: it is wide where
near cells disagree, which is what the paper found in the middle of the continuum. Whether such advice can be trusted is
asked of the record, too: `check` advises for every cell from the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweeper.continuum import NLL, quantile_of_t

REACH = math.exp(-2.0)  # a cell farther than two bandwidths says nothing
ENOUGH = 3  # cells of the same task that leave no need for those of others
PLACES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
CHOOSE_FROM = 5  # cells; with fewer, USUAL


@dataclass(frozen=True)
class Smoother:
    """bandwidth: of log-odds (0.7 is from mean p 0.50 to 0.67); line: fit one, where cells are enough, else a mean."""

    bandwidth: float
    line: bool = False

    def weight(self, distance: float) -> float:
        return math.exp(-0.5 * (distance / self.bandwidth) ** 2)


USUAL = Smoother(0.7)
CAUTION = 0.25  # chosen on a record of 19 cells: docs/log.md, 2026-11-25
LINE_FROM = 3  # cells
SMOOTHERS = tuple(Smoother(width, line) for line in (False, True) for width in (0.7, 1.4, 2.8))


@dataclass(frozen=True, eq=False)
class Cell:
    """One measured (backbone, task): gain over NLL by objective, NLL itself left out. keys: the trials behind it."""

    sweep: str
    backbone: str
    task: str
    mean_p: float
    gains: Mapping[str, float]
    keys: tuple[str, ...] = ()

    def best(self) -> str:
        """The objective that came out first; NLL where none was ahead of it."""
        return max([NLL, *self.gains], key=self.gain)

    def gain(self, objective: str) -> float:
        return 0.0 if objective == NLL else self.gains[objective]


@dataclass(frozen=True)
class Expected:
    """What a new cell would measure for one objective: gain over NLL with a 95 % prediction interval.

    cells: how many the weights amount to, (sum w)^2 / sum w^2; low, high: NaN where they are too few
    won:   share of the weight at which it came out first
    """

    objective: str
    gain: float
    low: float
    high: float
    cells: float
    won: float

    @property
    def cautious(self) -> float:
        """By which objectives are ranked: the gain, less some of what is not known of it; without an interval much."""
        return self.gain - CAUTION * (1.0 if math.isnan(self.low) else (self.high - self.low) / 2)


@dataclass(frozen=True)
class Advice:
    """expected: best first by `cautious`, NLL among them (gain 0); empty where nothing was measured near.

    take: the objective to train with, None without evidence; sure: its interval lies above NLL (of NLL: all below)
    same_task: whether the task's own cells alone were asked
    """

    mean_p: float
    expected: tuple[Expected, ...]
    near: tuple[Cell, ...]
    same_task: bool
    smoother: Smoother

    @property
    def take(self) -> str | None:
        return self.expected[0].objective if self.expected else None

    @property
    def sure(self) -> bool:
        if self.take == NLL:
            return len(self.expected) > 1 and all(one.high < 0 for one in self.expected[1:])
        return bool(self.expected) and self.expected[0].low > 0

    def contenders(self, most: int = 3) -> list[str]:
        """What is worth measuring beside NLL: the best ones whose interval does not lie below it."""
        return [one.objective for one in self.expected if one.objective != NLL and not one.high < 0][:most]


def cells_of(rows: Iterable[Mapping[str, Any]], sweep: str) -> list[Cell]:
    """Cells of a sweep. rows: of `sweeper.continuum.gains`, NaN or None where a number is not known; left out then."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        if not any(row[name] is None or math.isnan(row[name]) for name in ("gain", "base_mean_p")):
            found.setdefault((row["backbone"], row["task"]), []).append(row)
    return [
        Cell(
            sweep, backbone, task, float(mine[0]["base_mean_p"]), {r["objective"]: float(r["gain"]) for r in mine},
            tuple(dict.fromkeys(key for r in mine for key in r["keys"])),
        )
        for (backbone, task), mine in found.items()
    ]  # fmt: skip


def distinct(cells: Iterable[Cell]) -> list[Cell]:
    """Without those whose trials are all another one's: sweeps share what they have in common."""
    kept: list[Cell] = []
    for cell in sorted(cells, key=lambda c: -len(c.keys)):
        if not any(set(cell.keys) <= set(other.keys) for other in kept if cell.keys):
            kept.append(cell)
    return kept


def advise(cells: Sequence[Cell], mean_p: float, task: str | None = None, smoother: Smoother | None = None) -> Advice:
    """What to take where a backbone predicts a task with this mean p (in 0..1) before training.

    task: its name; where enough cells of that task are near, others are not asked
    smoother: by default the one that foretells the cells best
    """
    smoother = smoother or best_smoother(cells)
    asked = _asked(cells, mean_p, task, smoother)
    if not asked.near:
        return Advice(mean_p, (), (), False, smoother)
    weight = {cell: smoother.weight(d) for cell, d in asked.distance.items()}
    missed = errors(list(asked.distance), smoother, own_task=asked.same_task)
    expected = [Expected(NLL, 0.0, 0.0, 0.0, _amount(weight.values()), _won(NLL, weight))]
    for name, gain in _foretold(asked, smoother).items():
        cells_with = [cell for cell in weight if name in cell.gains]
        half = _half(name, asked, missed, smoother)
        expected.append(
            Expected(
                name, gain, _bounded(gain - half), _bounded(gain + half), _amount([weight[c] for c in cells_with]),
                _won(name, weight),
            )
        )  # fmt: skip
    ranked = sorted(expected, key=lambda one: (-one.cautious, one.objective != NLL))  # of equals, NLL
    return Advice(mean_p, tuple(ranked), tuple(asked.near), asked.same_task, smoother)


@dataclass(frozen=True)
class _Asked:
    """Cells that are asked, with their distance; those of them that are near, nearest first."""

    distance: Mapping[Cell, float]
    near: Sequence[Cell]
    same_task: bool


def _asked(cells: Sequence[Cell], mean_p: float, task: str | None, smoother: Smoother) -> _Asked:
    distance = {cell: log_odds(cell.mean_p) - log_odds(mean_p) for cell in cells}
    near = sorted((c for c in cells if smoother.weight(distance[c]) > REACH), key=lambda c: abs(distance[c]))
    own = [cell for cell in near if cell.task == task]
    if len(own) < ENOUGH:
        return _Asked(distance, near, False)
    return _Asked({cell: d for cell, d in distance.items() if cell.task == task}, own, True)


def _foretold(asked: _Asked, smoother: Smoother) -> dict[str, float]:
    """Gain of each objective that a near cell has, by weighted least squares, at distance 0."""
    ends = asked.distance.values()
    beyond = max(min(ends), 0.0) + min(max(ends), 0.0)  # a line is not drawn on past the outermost cell
    found = {}
    for name in dict.fromkeys(name for cell in asked.near for name in cell.gains):
        points = [(smoother.weight(d), d - beyond, c.gains[name]) for c, d in asked.distance.items() if name in c.gains]
        total = sum(w for w, _, _ in points)
        x, y = sum(w * d for w, d, _ in points) / total, sum(w * g for w, _, g in points) / total
        spread = sum(w * (d - x) ** 2 for w, d, _ in points)
        line = smoother.line and _amount([w for w, _, _ in points]) > LINE_FROM and spread > 1e-9
        slope = sum(w * (d - x) * (g - y) for w, d, g in points) / spread if line else 0.0
        found[name] = _bounded(y - slope * x)
    return found


def errors(cells: Sequence[Cell], smoother: Smoother, own_task: bool = True) -> dict[Cell, dict[str, float]]:
    """By how much each cell's gains differ from what the others foretell; without those of which they foretell none.

    own_task: others of the cell's own task are asked alone where they are enough
    """
    found = {}
    for cell in cells:
        others = [c for c in cells if not _same_place(c, cell)]
        asked = _asked(others, cell.mean_p, cell.task if own_task else None, smoother)
        foretold = _foretold(asked, smoother) if asked.near else {}
        found[cell] = {name: gain - foretold[name] for name, gain in cell.gains.items() if name in foretold}
    return found


def _half(name: str, asked: _Asked, missed: Mapping[Cell, Mapping[str, float]], smoother: Smoother) -> float:
    """Half of the interval: Student's t over those errors, weighted by a wider nearness; NaN where they are too few."""
    wide = Smoother(2 * smoother.bandwidth)
    points = [(wide.weight(d), missed[cell][name]) for cell, d in asked.distance.items() if name in missed[cell]]
    freedom = _amount([w for w, _ in points]) - 1 if points else 0.0
    if freedom < 0.5:
        return math.nan
    mean_square = sum(w * error**2 for w, error in points) / sum(w for w, _ in points)
    return quantile_of_t(freedom) * math.sqrt(mean_square)


def _won(name: str, weight: Mapping[Cell, float]) -> float:
    return sum(w for cell, w in weight.items() if cell.best() == name) / sum(weight.values())


def _amount(weights: Iterable[float]) -> float:
    """What weights amount to, in cells: as many as there are where all weigh the same."""
    w = list(weights)
    return sum(w) ** 2 / sum(x * x for x in w)


def _bounded(gain: float) -> float:
    """Between shares of right answers there is no more than this; NaN stays."""
    return gain if math.isnan(gain) else min(max(gain, -1.0), 1.0)


def log_odds(p: float) -> float:
    """Cut at 0.001 and 0.999, beyond which a mean p is not measured that well."""
    p = min(max(p, 0.001), 0.999)
    return math.log(p / (1 - p))


def best_smoother(cells: Sequence[Cell]) -> Smoother:
    """The one whose foretold gains are nearest to those measured, each cell from the others; of equals the first."""

    def lost(smoother: Smoother) -> float:
        """Sum of squares; what is not foretold counts as foretold to be like NLL."""
        missed = errors(cells, smoother)
        return sum(missed[cell].get(name, gain) ** 2 for cell in cells for name, gain in cell.gains.items())

    return USUAL if len(cells) < CHOOSE_FROM else min(SMOOTHERS, key=lost)


def _same_place(one: Cell, other: Cell) -> bool:
    """Of another sweep, too: the same backbone and task is no independent witness."""
    return (one.backbone, one.task) == (other.backbone, other.task)


def outlook(cells: Sequence[Cell]) -> list[Advice]:
    """What to take along the continuum, where anything was measured near."""
    smoother = best_smoother(cells)
    return [advice for p in PLACES if (advice := advise(cells, p, smoother=smoother)).near]


@dataclass(frozen=True)
class Check:
    """A cell foretold from others: what was advised, what that gained, and what the best would have.

    held: objectives whose measured gain lies in the foretold interval, of `intervals` that there were
    """

    cell: Cell
    take: str | None
    gain: float
    best: float
    held: int
    intervals: int


def check(cells: Sequence[Cell]) -> list[Check]:
    """Every cell from the others, with one smoother for all."""
    found, smoother = [], best_smoother(cells)
    for cell in cells:
        others = [c for c in cells if not _same_place(c, cell)]
        found.append(judged(cell, advise(others, cell.mean_p, cell.task, smoother)))
    return found


def judged(cell: Cell, advice: Advice) -> Check:
    """Advice beside what its cell has measured since; NLL is taken where no advice was given."""
    # what this cell has not measured cannot be judged here
    known = [one for one in advice.expected if one.objective == NLL or one.objective in cell.gains]
    take = known[0].objective if known else None
    bounds = [one for one in known if one.objective != NLL and not math.isnan(one.low)]
    held = sum(one.low <= cell.gains[one.objective] <= one.high for one in bounds)
    return Check(cell, take, cell.gain(take or NLL), cell.gain(cell.best()), held, len(bounds))


def regrets(checks: Sequence[Check]) -> dict[str, float]:
    """Mean accuracy lost to each cell's best: by the advice, by NLL always, by each objective that all cells have."""
    cells = [one.cell for one in checks]
    lost = {"advice": [one.best - one.gain for one in checks], NLL: [one.best for one in checks]}
    for name in dict.fromkeys(name for cell in cells for name in cell.gains):
        if all(name in cell.gains for cell in cells):
            lost[name] = [one.best - one.cell.gains[name] for one in checks]
    return {name: sum(values) / len(values) for name, values in lost.items() if values}
