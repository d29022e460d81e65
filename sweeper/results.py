"""What a sweep has recorded, as one tidy table: re-read from the trials' folders, never from memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jobs.record import DAMAGED
from jobs.yardsticks import CAPABILITY, TRUNCATED, YARDSTICKS
from sweeper.store import Store

if TYPE_CHECKING:
    import pandas as pd

EARLY = ("race", "scheduler")  # who may end a trial before its time, beside a person ("hand")
CUTS = ("train_cut", "train_dropped", "heldout_cut", "heldout_dropped")
OVER = ("finished", "diverged", "stopped")  # what a further run leaves alone; all else is still to do
COUNTED = ("finished", "diverged")  # what stands in the numbers; a trial that diverged with the worst value of each


def status_of(result: dict[str, Any] | None) -> str:
    """A trial without a last word is unfinished, whatever happened to its attempts."""
    return "unfinished" if result is None else str(result["status"])


def failure_of(result: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The failure in a result (jobs.failure.Failure.record); empty where there is none."""
    return dict((result or {}).get("failure") or {})


def taken(result: Mapping[str, Any]) -> float | None:
    """Seconds of a trial in its workers, over all its legs; None where none is recorded.

    Records of before setup_s was told apart have all of it, of the last leg, in train_s.
    """
    train = result.get("train_s")
    return None if train is None else float(train + result.get("setup_s", 0.0))


def results(store: Store, sweep: str, run_ids: dict[str, str] | None = None) -> pd.DataFrame:
    """One row a trial, in plan order; the measure of a backbone that is trained in several ways, one row for each.

    Columns: key, backbone, task, objective (label; 'backbone' for the untrained one), name, alpha, objective_spec
    (JSON), gate_side, gate_at (the probability in force; for a quantile, once it is measured), seed, status, stopped_by
    (race, scheduler, hand), error (a line), failure_kind and traceback (jobs/failure.py), steps, setup_s and train_s
    (jobs/clock.py), mlflow_run_id, CUTS (how many examples were longer than max_length), corpus (JSON: what it was
    trained and measured on, jobs/corpus.py), base_mean_p (the backbone's mean p on the training set, Eq. 5), every
    yardstick at the trial's last evaluation (its worst value where the trial diverged), task/truncated_rate (share of
    sampled answers that did not end by themselves), and base/<yardstick> for the backbone.
    """
    import pandas as pd

    rows = []
    trials = store.trials(sweep)
    ways: dict[tuple[str, str], dict[str, None]] = {}  # (weights, task) -> names under which they are trained
    for trial in trials.values():
        if trial.objective is not None:
            ways.setdefault((trial.backbone.bare().name, trial.task.name), {})[trial.backbone.name] = None
    for key, trial in trials.items():
        folder = store.trial(key)
        result = folder.result()
        if (damage := folder.damage()) is not None:
            result = {"status": DAMAGED, "error": damage}
        final = {k: v for row in folder.rows() for k, v in row.items()}  # the last value of each
        if status_of(result) == "diverged":
            final |= {name: yardstick.worst for name, yardstick in YARDSTICKS.items()}
        objective = trial.objective.canonical() if trial.objective else None
        gate = objective.gate if objective else None
        names = [trial.backbone.name]
        if trial.objective is None:
            names = list(ways.get((trial.backbone.name, trial.task.name), names))
        rows += [
            {
                "key": key,
                "backbone": name,
                "task": trial.task.name,
                "objective": trial.objective_label,
                "name": objective.name if objective else "backbone",
                "alpha": objective.alpha if objective else None,
                "gate_side": gate.side if gate else None,
                "gate_at": (gate.at if gate.at is not None else (result or {}).get("gate_at")) if gate else None,
                "objective_spec": objective.model_dump_json(exclude_defaults=True) if objective else None,
                "seed": trial.seed,
                "status": status_of(result),
                "stopped_by": (result or {}).get("by"),
                "error": (result or {}).get("error"),
                "failure_kind": failure_of(result).get("kind"),
                "traceback": failure_of(result).get("traceback"),
                "steps": final.get("step", 0),
                "setup_s": (result or {}).get("setup_s"),
                "train_s": (result or {}).get("train_s"),
                "mlflow_run_id": (run_ids or {}).get(key),
                **{name: final.get(f"data/{name}") for name in CUTS},
                "corpus": json.dumps(corpus) if (corpus := (result or {}).get("corpus")) else None,
                CAPABILITY: final.get(CAPABILITY),
                **{yardstick: final.get(yardstick) for yardstick in YARDSTICKS},
                TRUNCATED: final.get(TRUNCATED),
            }
            for name in names
        ]
    table = pd.DataFrame(rows)
    base = table[table["name"] == "backbone"].set_index(["backbone", "task"])
    for name, column in {CAPABILITY: "base_mean_p", **{y: f"base/{y}" for y in YARDSTICKS}}.items():
        where = pd.MultiIndex.from_frame(table[["backbone", "task"]])
        table[column] = base[name].reindex(where).to_numpy() if len(base) else None
    return table
