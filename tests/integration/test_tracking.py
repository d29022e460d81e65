"""MLflow's own limits, on a real database: what is longer than one request or one answer is there whole, and once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.record import RowWriter
from sweeper.plan import Plan, make_plan
from sweeper.spec import load_sweep
from sweeper.store import Store

from .conftest import write_spec

ROWS = 1200  # more than the 1000 that one request may hold


def planned(storage: Path, tmp_path: Path) -> tuple[Plan, Store]:
    """A sweep of three trials, none of which has begun."""
    plan, store = make_plan(load_sweep(write_spec(tmp_path)), tmp_path), Store(storage)
    store.save_plan("small", plan.spec.text, plan.trials, {"source": "test"})
    return plan, store


def test_long_trials_and_many_runs_are_written_whole_and_once(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sweeper import tracking

    plan, store = planned(storage, tmp_path)
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


def test_a_trial_at_its_end_takes_few_requests_and_a_lost_one_makes_no_second_run(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.environment_variables import MLFLOW_DISABLE_TELEMETRY
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    from sweeper import tracking

    plan, store = planned(storage, tmp_path)
    trial = plan.trials[-1]
    asked: list[str] = []
    for name in ("create_run", "log_batch", "set_tag", "delete_tag", "set_terminated", "update_run", "get_run"):
        asks = getattr(MlflowClient, name)
        monkeypatch.setattr(MlflowClient, name, _counted(asks, name, asked))
    writer = tracking.Tracking(store, "small", f"sqlite:///{storage / 'mlflow.db'}")
    assert MLFLOW_DISABLE_TELEMETRY.get()
    folder = store.trial(trial.key)
    folder.create(trial)
    RowWriter(folder).write({"step": 1, "objective/loss": 0.5})
    folder.finish("failed", error="it was too warm")

    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "log_batch", _gone)
        with pytest.raises(MlflowException, match="gone"):
            writer.sync()
    asked.clear()
    writer.sync()
    assert asked == ["log_batch", "set_terminated"]  # the run was made before
    (run,) = [r for r in writer.client.search_runs([writer.experiment_id]) if r.info.run_id != writer.parent]
    assert run.data.params["objective"] == trial.objective_label
    assert (run.data.tags["error"], run.data.tags["status"]) == ("it was too warm", "failed")

    folder.finish("finished")
    tracking.Tracking(store, "small", writer.uri).sync()
    tags = writer.client.get_run(run.info.run_id).data.tags
    assert (tags.get("error"), tags["status"]) == (None, "finished")


def _counted(asks: Callable[..., Any], name: str, asked: list[str]) -> Callable[..., Any]:
    def ask(*args: Any, **more: Any) -> Any:
        asked.append(name)
        return asks(*args, **more)

    return ask


def _gone(*_: object, **__: object) -> None:
    from mlflow.exceptions import MlflowException

    raise MlflowException("the server is gone")
