"""Early stopping that compares like with like: within one backbone and task, on a yardstick, never the NLL anchor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from jobs.yardsticks import YARDSTICKS
from sweeper.plan import Plan

Group = tuple[str, str]


def make_scheduler(plan: Plan) -> WithinGroups | None:
    """None for FIFO: then nothing waits for a scheduler's word."""
    spec = plan.spec.settings.scheduler
    if spec.name == "fifo":
        return None
    groups = {t.key: (t.backbone.name, t.task.name) for t in plan.trials}
    anchors = {t.key for t in plan.trials if t.objective_label in ("backbone", "nll")}

    def new() -> ASHAScheduler:
        return ASHAScheduler(
            time_attr="step",  # our own: Tune's iteration starts again after a resume
            metric=spec.metric,
            mode="max" if YARDSTICKS[spec.metric].higher_is_better else "min",
            grace_period=spec.grace_steps,
            reduction_factor=spec.reduction_factor,
            max_t=1 << 31,
        )

    return WithinGroups(groups, anchors, new)


class WithinGroups(FIFOScheduler):
    """One scheduler a (backbone, task). Anchors are the measure of their group: they count and are never stopped."""

    def __init__(self, groups: dict[str, Group], anchors: set[str], new: Callable[[], TrialScheduler]) -> None:
        super().__init__()
        self.groups, self.anchors, self.new = groups, anchors, new
        self.schedulers: dict[Group, TrialScheduler] = {}

    def _of(self, trial: Any) -> TrialScheduler:
        group = self.groups[trial.config["key"]]
        if group not in self.schedulers:
            self.schedulers[group] = self.new()
        return self.schedulers[group]

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._of(trial).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        decision = self._of(trial).on_trial_result(tune_controller, trial, result)
        return TrialScheduler.CONTINUE if trial.config["key"] in self.anchors else decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self._of(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        self._of(trial).on_trial_remove(tune_controller, trial)
