"""A sweep submitted to a cluster: detached, stopped, resumed, its head killed, resumed, watched to its end.

All from a process that sees only the Jobs API.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sweeper.store import Store

from .conftest import ROOT, Head, environment, until, write_spec


class Client:
    """Another machine: the command line with the cluster's address and token, and no storage of its own."""

    def __init__(self, head: Head, storage: Path) -> None:
        self.head, self.storage = head, storage

    def __call__(self, *args: object, secret: bool = True, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        where = ["--address", self.head.api, "--python", sys.executable, "--storage", self.storage]
        done = subprocess.run(
            [sys.executable, "-m", "sweeper", *map(str, args), *map(str, where)],
            cwd=ROOT, env=environment() | (self.head.secret if secret else {"HOME": "/nonexistent"}),
            capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert code is None or done.returncode == code, done.stdout + done.stderr
        return done

    def facts(self, *args: object, code: int | None = 0) -> Any:
        return json.loads(self(*args, "--json", code=code).stdout)


@pytest.fixture
def client(head: Head, storage: Path) -> Client:
    return Client(head, storage)


def mlflow_statuses(storage: Path, sweep: str) -> set[str]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{storage}/mlflow.db")
    experiment = client.get_experiment_by_name(sweep)
    assert experiment is not None
    return {run.info.status for run in client.search_runs([experiment.experiment_id])}


def test_submit_stop_resume_and_the_death_of_the_head(client: Client, storage: Path, tmp_path: Path) -> None:
    spec = write_spec(
        tmp_path, name="far", concurrency=None,
        train={"lr": 1e-3, "batch_size": 32, "steps": 3000, "max_length": 32, "checkpoint_every": 10},
    )  # fmt: skip
    assert "no Ray token" in client("submit", spec, secret=False, code=2).stderr
    outside = write_spec(tmp_path, name="outside")
    facts = json.loads(outside.read_text())
    facts["grid"]["task"] = [{"path": "/etc/secrets.jsonl"}]
    outside.write_text(json.dumps(facts))
    assert "/etc/secrets.jsonl lies outside" in client("submit", outside, code=2).stderr
    assert "no sweep 'far' was submitted" in client("wait", "far", code=2).stderr

    started = time.monotonic()
    job = client.facts("submit", spec)
    assert job["sweep"] == "far"
    assert job["trials"] == 3
    assert time.monotonic() - started < 60  # it does not wait for the sweep, which takes minutes
    assert "is under way already as far-1" in client("submit", spec, code=2).stderr

    store = Store(storage)
    until("training", lambda: any(f.rows() and f.rows()[-1]["step"] >= 20 for f in trials(store)))
    status = client.facts("status", "far", code=1)
    assert not status["done"]
    assert any(t["step"] >= 20 for t in status["trials"])
    with ThreadPoolExecutor() as two:  # the second one ends at once what the first one waits for
        said = list(two.map(lambda _: client("stop", "far").stdout, range(2)))
    assert any("far: stopped" in words for words in said)
    assert all("far: stopped" in words or "far: not running" in words for words in said)
    assert mlflow_statuses(storage, "far") <= {"KILLED", "FINISHED"}
    until("the job's end", lambda: client.facts("list")[0]["status"] == "STOPPED")
    assert "far: not running" in client("stop", "far").stdout
    assert "far: 3 trials, 0 done before" in client("logs", "far").stdout
    key = next(f.key for f in trials(store) if f.rows() and f.spec().objective is not None)
    assert "train/nll" in client("logs", "far", key).stdout
    kept = [f.key for f in trials(store) if f.result() is None and f.checkpoints()]
    assert kept  # it was stopped in the middle

    assert client("resume", "far").stdout.strip() == "far-2"
    goes_on(store)
    client.head.die()
    assert "is the cluster up" in client("status", "far", code=2).stderr
    client.head.start()  # with nothing of what it knew: the storage has it all
    assert client("resume", "far").stdout.strip() == "far-1"
    goes_on(store)
    board = client("watch", "far").stdout  # a line a change, where there is no terminal
    assert "3 of 3 trials over" in board.splitlines()[-1], board
    assert "far-1: SUCCEEDED" in client("wait", "far").stdout
    assert client("logs", "-f", "far").stdout.rstrip().endswith(f"sweeper ui --storage {storage}")
    results = [f.result() or {} for f in trials(store)]
    assert {r["status"] for r in results} == {"finished"}
    assert any(r.get("resumed_from") for r in results)
    assert mlflow_statuses(storage, "far") == {"FINISHED"}
    assert len(client.facts("report", "far")["leaderboard"]) == 3
    assert [job["status"] for job in client.facts("list")] == ["SUCCEEDED"]


def goes_on(store: Store) -> None:
    """Until some trial has trained further than any had."""
    further = max(int(f.rows()[-1]["step"]) for f in trials(store) if f.rows()) + 20
    until("training again", lambda: any(f.rows() and f.rows()[-1]["step"] >= further for f in trials(store)))


def trials(store: Store) -> list[Any]:
    if not (store.sweep_dir("far") / "plan.json").exists():
        return []
    return [f for f in (store.trial(key) for key in store.trials("far")) if (f.path / "trial.json").exists()]
