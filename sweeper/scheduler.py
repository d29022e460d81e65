"""Early stopping that compares like with like: within one backbone and task, on a yardstick, never the NLL anchor."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from jobs.record import Row
from jobs.yardsticks import YARDSTICKS
from sweeper.plan import Plan
from sweeper.race import Runner, Score
from sweeper.results import status_of
from sweeper.spec import SchedulerSpec
from sweeper.store import Store

Cell = tuple[str, str]


def make_scheduler(plan: Plan, store: Store) -> WithinCells | None:
    """None where nothing waits for a scheduler's word: with fifo, and with a race, which is held between rungs."""
    spec = plan.spec.settings.scheduler
    if spec.name in ("fifo", "race"):
        return None
    mode = "max" if YARDSTICKS[spec.metric].higher_is_better else "min"

    def new() -> TrialScheduler:
        # steps are our own: Tune's iteration starts again after a resume
        if spec.name == "median":
            return MedianStoppingRule(
                time_attr="step", metric=spec.metric, mode=mode, grace_period=spec.grace_steps, min_time_slice=0
            )
        return ASHAScheduler(
            time_attr="step", metric=spec.metric, mode=mode, grace_period=spec.grace_steps,
            reduction_factor=spec.reduction_factor, max_t=1 << 31,
        )  # fmt: skip

    cells = {t.key: (t.backbone.name, t.task.name) for t in plan.trials}
    objectives = {t.key: t.objective_label for t in plan.trials}
    return WithinCells(cells, objectives, exempt(plan, store), spec, new)


def exempt(plan: Plan, store: Store) -> set[str]:
    """Trials that no scheduler stops: the measure of their cell, and what somebody has asked for again."""
    anchors = {t.key for t in plan.trials if t.objective_label in ("backbone", "nll")}
    return anchors | {t.key for t in plan.trials if store.trial(t.key).revived()}


def cells_of(plan: Plan, store: Store) -> dict[Cell, list[Runner]]:
    """Every cell's trials with what is recorded of them, for a race."""
    metric = plan.spec.settings.scheduler.metric
    sign = 1 if YARDSTICKS[metric].higher_is_better else -1
    spared = exempt(plan, store)
    cells: dict[Cell, list[Runner]] = {}
    for trial in plan.trials:
        if trial.objective is None:
            continue
        folder = store.trial(trial.key)
        scores = {int(row["step"]): _score(row, metric, sign) for row in folder.rows() if metric in row}
        status = status_of(folder.result())
        assert trial.train.steps is not None  # a plan with a race has no epochs
        cells.setdefault((trial.backbone.name, trial.task.name), []).append(
            Runner(
                trial.key,
                trial.objective_label,
                trial.train.steps,
                scores,
                trial.key in spared,
                out=status != "unfinished",
                diverged=status == "diverged",
            )
        )
    return cells


def _score(row: Row, metric: str, sign: int) -> Score:
    """With its error where the row has an interval (jobs.evaluate.answer_yardsticks: 95 %)."""
    low, high = row.get(f"{metric}_low"), row.get(f"{metric}_high")
    return Score(sign * row[metric], 0.0 if low is None or high is None else (high - low) / (2 * 1.96))


class WithinCells(FIFOScheduler):
    """One scheduler a cell. Exempt trials count and are never stopped; nor are those of the objective that leads."""

    def __init__(
        self,
        cells: dict[str, Cell],
        objectives: dict[str, str],
        spared: set[str],
        spec: SchedulerSpec,
        new: Callable[[], TrialScheduler],
    ) -> None:
        super().__init__()
        self.cells, self.objectives, self.spared, self.spec, self.new = cells, objectives, spared, spec, new
        self.sign = 1 if YARDSTICKS[spec.metric].higher_is_better else -1
        self.schedulers: dict[Cell, TrialScheduler] = {}
        self.newest: dict[str, float] = {}  # key -> score, higher is better

    def _of(self, trial: Any) -> TrialScheduler:
        cell = self.cells[trial.config["key"]]
        if cell not in self.schedulers:
            self.schedulers[cell] = self.new()
        return self.schedulers[cell]

    def _leads(self, key: str) -> bool:
        """Whether this trial's objective has the best mean of newest scores in its cell."""
        scores: dict[str, list[float]] = {}
        for other, score in self.newest.items():
            if self.cells[other] == self.cells[key]:
                scores.setdefault(self.objectives[other], []).append(score)
        means = {name: fmean(values) for name, values in scores.items()}
        return means[self.objectives[key]] == max(means.values())

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._of(trial).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        decision = self._of(trial).on_trial_result(tune_controller, trial, result)
        key = trial.config["key"]
        if self.spec.metric in result:
            self.newest[key] = self.sign * result[self.spec.metric]
        go_on = key in self.spared or (key in self.newest and self._leads(key))
        return TrialScheduler.CONTINUE if go_on else decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self._of(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        self._of(trial).on_trial_remove(tune_controller, trial)
