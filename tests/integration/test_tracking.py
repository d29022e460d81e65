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


def finished(plan: Plan, store: Store) -> None:
    """Every trial of the plan with two rows and its end."""
    for trial in plan.trials:
        folder = store.trial(trial.key)
        folder.create(trial)
        writer = RowWriter(folder)
        for step in (1, 2):
            writer.write({"step": step, "objective/loss": 1 / step})
        folder.finish("finished")


def active(writer: Any) -> list[Any]:
    return list(writer.client.search_runs([writer.experiment_id], max_results=100))


def test_an_answer_that_is_lost_makes_no_second_run(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has made the run, and the client does not know."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    from sweeper import tracking

    plan, store = planned(storage, tmp_path)
    finished(plan, store)
    writer = tracking.Tracking(store, "small", f"sqlite:///{storage / 'mlflow.db'}")
    create = MlflowClient.create_run

    def lost(*args: Any, **more: Any) -> None:
        create(*args, **more)
        _gone()

    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "create_run", lost)
        for _ in range(2):
            with pytest.raises(MlflowException, match="gone"):
                writer.sync()
    writer.sync(over=True)
    assert len(active(writer)) == 1 + len(plan.trials)
    assert {run.info.status for run in active(writer)} == {"FINISHED"}


def test_a_twin_of_before_is_closed_and_the_run_with_the_points_is_kept(storage: Path, tmp_path: Path) -> None:
    from sweeper import tracking

    plan, store = planned(storage, tmp_path)
    finished(plan, store)
    uri = f"sqlite:///{storage / 'mlflow.db'}"
    writer = tracking.Tracking(store, "small", uri)
    writer.sync(over=True)
    key, kept = next(iter(writer.run_ids().items()))
    twin = writer.client.create_run(writer.experiment_id, start_time=1, tags={tracking.KEY: key})
    again = tracking.Tracking(store, "small", uri)
    again.sync(over=True)
    assert again.run_ids()[key] == kept
    found = again.client.get_run(twin.info.run_id)
    assert (found.info.status, found.data.tags[tracking.TWIN_OF], found.data.metrics) == ("KILLED", kept, {})


def test_what_is_deleted_in_mlflow_stays_deleted_until_it_is_restored(
    storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sweeper import tracking

    plan, store = planned(storage, tmp_path)
    uri = f"sqlite:///{storage / 'mlflow.db'}"
    writer = tracking.Tracking(store, "small", uri)
    first, *others = plan.trials
    store.trial(first.key).create(first)
    RowWriter(store.trial(first.key)).write({"step": 1, "objective/loss": 1.0})
    writer.sync()
    writer.client.delete_run(writer.run_ids()[first.key])
    finished(plan, store)
    writer.sync(over=True)  # one run's trouble is one run's trouble
    assert f"the run of {first.key} was deleted there" in capsys.readouterr().err
    assert len(active(writer)) == 1 + len(others)
    tracking.Tracking(store, "small", uri).sync(over=True)
    assert len(active(writer)) == 1 + len(others)
    tracking.Tracking(store, "small", uri, restore=True).sync(over=True)
    assert len(active(writer)) == 1 + len(plan.trials)
    assert {run.info.status for run in active(writer)} == {"FINISHED"}

    writer.client.delete_experiment(writer.experiment_id)
    assert tracking.open_tracking(store, "small", uri) is None
    assert "sweeper sync small --restore brings it back" in capsys.readouterr().err
    restored = tracking.open_tracking(store, "small", uri, restore=True)
    assert restored is not None
    restored.sync(over=True)
    assert len(active(restored)) == 1 + len(plan.trials)


def test_a_trial_made_again_gets_a_run_of_its_own(storage: Path, tmp_path: Path) -> None:
    import shutil

    from sweeper import tracking

    plan, store = planned(storage, tmp_path)
    finished(plan, store)
    uri = f"sqlite:///{storage / 'mlflow.db'}"
    writer = tracking.Tracking(store, "small", uri)
    writer.sync(over=True)
    key = plan.trials[-1].key
    shutil.rmtree(store.trial(key).path)
    finished(plan, store)
    again = tracking.Tracking(store, "small", uri)
    again.sync(over=True)
    assert again.run_ids()[key] != writer.run_ids()[key]
    history = again.client.get_metric_history(again.run_ids()[key], "objective/loss")
    assert sorted(point.step for point in history) == [1, 2]


@pytest.mark.parametrize("content", [None, b"", b"no database at all", "cut", "half migrated"])
def test_the_store_is_made_once_and_a_broken_one_is_set_aside(
    storage: Path, tmp_path: Path, content: object, capsys: pytest.CaptureFixture[str]
) -> None:
    import sqlite3
    from contextlib import closing

    from sweeper import tracking

    plan, store = planned(storage, tmp_path)
    finished(plan, store)
    file = storage / "mlflow.db"
    uri = f"sqlite:///{file}"
    if content == "half migrated":
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("CREATE TABLE _alembic_tmp_runs (x)")
    elif content == "cut":
        file.write_bytes(file.read_bytes()[:100_000])
    elif content is None:
        file.unlink()
    elif isinstance(content, bytes):
        file.write_bytes(content)
    writer = tracking.open_tracking(store, "small", uri)
    assert writer is not None
    writer.sync(over=True)
    assert len(active(writer)) == 1 + len(plan.trials)
    said = capsys.readouterr().err
    aside = list(storage.glob("mlflow.db.broken-*"))
    assert (len(aside), said.count("set aside as")) == ((0, 0) if content in (None, b"") else (1, 1))


def test_the_writer_survives_a_locked_database_and_says_when_it_is_behind(storage: Path, tmp_path: Path) -> None:
    import sqlite3
    import time
    from contextlib import closing

    from sweeper.tracking_thread import TrackingThread
    from sweeper.trouble import trouble

    plan, store = planned(storage, tmp_path)
    finished(plan, store)
    said: list[str] = []
    file = storage / "mlflow.db"
    with closing(sqlite3.connect(file, isolation_level=None)) as held:
        held.execute("BEGIN EXCLUSIVE")
        with TrackingThread(store, "small", f"sqlite:///{file}", said.append) as thread:
            until = time.monotonic() + 120
            while trouble(store, "small") is None and time.monotonic() < until:
                time.sleep(0.1)
            known = trouble(store, "small")
            held.execute("COMMIT")
    assert known is not None
    assert "locked" in known["reason"]
    assert thread.reason is None
    assert trouble(store, "small") is None
    assert ["cannot be written" in said[0], "is written again" in said[-1], len(said)] == [True, True, 2]
    assert thread.tracking is not None
    assert len(active(thread.tracking)) == 1 + len(plan.trials)
