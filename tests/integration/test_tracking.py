"""MLflow's own limits, on a real database: what is longer than one request or one answer is there whole, and once."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.record import RowWriter
from sweeper.plan import make_plan
from sweeper.spec import load_sweep
from sweeper.store import Store

from .conftest import write_spec

ROWS = 1200  # more than the 1000 that one request may hold


def test_long_trials_and_many_runs_are_written_whole_and_once(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sweeper import tracking

    plan = make_plan(load_sweep(write_spec(tmp_path)), tmp_path)
    store = Store(storage)
    store.save_plan("small", plan.spec.text, plan.trials, {"source": "test"})
    for trial in plan.trials:
        folder = store.trial(trial.key)
        folder.create(trial)
        writer = RowWriter(folder)
        for step in range(1, ROWS + 1 if trial is plan.trials[-1] else 3):
            writer.write({"step": step, "objective/loss": 1 / step})
        folder.finish("finished", micro_batch_size=16, evaluated_at_once=4)

    monkeypatch.setattr(tracking, "PAGE", 2)  # of three trials and the sweep: two answers
    uri = f"sqlite:///{storage / 'mlflow.db'}"
    first = tracking.Tracking(store, "small", uri)
    first.sync(over=True)
    again = tracking.Tracking(store, "small", uri)
    again.sync(over=True)
    assert len(plan.trials) == 3
    assert again.run_ids() == first.run_ids()
    assert again.run_ids().keys() == {trial.key for trial in plan.trials}
    runs = again.client.search_runs([again.experiment_id], max_results=100)
    assert len(runs) == len(plan.trials) + 1
    run_id = again.run_ids()[plan.trials[-1].key]
    history = again.client.get_metric_history(run_id, "objective/loss")
    assert sorted((point.step, point.value) for point in history) == [(s, 1 / s) for s in range(1, ROWS + 1)]
    tags = again.client.get_run(run_id).data.tags
    assert (tags["execution.micro_batch_size"], tags["execution.evaluated_at_once"]) == ("16", "4")
