"""A sweep submitted to a cluster: detached, stopped, resumed, its head killed, resumed, watched to its end; then two
sweeps, the driver of one killed.

All from a process that sees only the Jobs API.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sweeper.control import driver
from sweeper.store import Store

from .conftest import ROOT, Head, environment, until, write_spec
from .test_sweep import install

# Commands come in the middle of trials: these take that long with hardly any CPU, which other tests need meanwhile
PACED = """
import time
from jobs.objectives import Objective, nll, one_minus_p

def paced(loss):
    def slowly(t):
        time.sleep(0.1)
        return loss(t)
    return slowly

PACED = Objective("paced", paced(nll), "-log p", "a test")
PACED_TOO = Objective("paced_too", paced(one_minus_p), "1 - p", "a test")
"""
GRID = {
    "backbone": [{"builtin": "char-llama", "pretrain_steps": 60}],
    "task": [{"builtin": "addition", "noise": 0.3, "heldout_examples": 64}],
    "objective": ["paced", "paced_too"],
    "seed": [1],
}
TRAIN = {"lr": 1e-3, "batch_size": 8, "max_length": 32}


class Client:
    """Another machine: the command line with the cluster's address and token, and no storage of its own."""

    def __init__(self, head: Head, storage: Path, env: dict[str, str] | None = None) -> None:
        self.head, self.storage, self.env = head, storage, environment() | (env or {})

    def __call__(self, *args: object, secret: bool = True, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self._command(args),
            cwd=ROOT, env=self.env | (self.head.secret if secret else {"HOME": "/nonexistent"}),
            capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert code is None or done.returncode == code, done.stdout + done.stderr
        return done

    def start(self, *args: object) -> subprocess.Popen[str]:
        """A command that goes on beside the test."""
        return subprocess.Popen(
            self._command(args), cwd=ROOT, env=self.env | self.head.secret,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def _command(self, args: Sequence[object]) -> list[str]:
        where = ["--address", self.head.api, "--python", sys.executable, "--storage", self.storage]
        return [sys.executable, "-m", "sweeper", *map(str, args), *map(str, where)]

    def facts(self, *args: object, code: int | None = 0) -> Any:
        return json.loads(self(*args, "--json", code=code).stdout)


@pytest.fixture
def client(storage: Path, tmp_path: Path) -> Iterator[Client]:
    """Of a head on which objectives of an own package are installed."""
    head = Head(tmp_path / "token")
    head.env = install(tmp_path, "paced", PACED, "paced", "paced_too")
    head.start()
    try:
        yield Client(head, storage, head.env)
    finally:
        head.end()


def mlflow_statuses(storage: Path, sweep: str) -> set[str]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{storage}/mlflow.db")
    experiment = client.get_experiment_by_name(sweep)
    assert experiment is not None
    return {run.info.status for run in client.search_runs([experiment.experiment_id])}


def test_submit_stop_resume_and_the_death_of_the_head(client: Client, storage: Path, tmp_path: Path) -> None:
    train = TRAIN | {"steps": 500, "checkpoint_every": 100_000}
    spec = write_spec(tmp_path, name="far", grid=GRID, train=train, concurrency=None)
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
    key = stops_cleanly(client, store)

    assert client.facts("resume", "far")["job"] == "far-2"
    goes_on(store)
    with ThreadPoolExecutor() as two:  # the second one ends at once what the first one waits for
        said = list(two.map(lambda _: client("stop", "far").stdout, range(2)))
    assert any("far: stopped" in words for words in said)
    assert all("far: stopped" in words or "far: not running" in words for words in said)
    until("its job's end", lambda: client.facts("list")[1]["status"] == "STOPPED")
    assert client("resume", "far").stdout.strip() == "far-3"
    goes_on(store)
    dies_under_followers(client, key)
    assert "is the cluster up" in client("status", "far", code=2).stderr
    client.head.start()  # with nothing of what it knew: the storage has it all
    assert client("resume", "far").stdout.strip() == "far-1"
    goes_on(store)
    board = client("watch", "far").stdout  # a line a change, where there is no terminal
    assert "3 of 3 trials over" in board.splitlines()[-1], board
    assert client.facts("wait", "far")["status"] == "SUCCEEDED"
    assert client("logs", "-f", "far").stdout.rstrip().endswith(f"sweeper ui --storage {storage}")
    results = [f.result() or {} for f in trials(store)]
    assert {r["status"] for r in results} == {"finished"}
    assert any(r.get("resumed_from") for r in results)
    assert mlflow_statuses(storage, "far") == {"FINISHED"}
    assert len(client.facts("report", "far")["leaderboard"]) == 3
    assert [job["status"] for job in client.facts("list")] == ["SUCCEEDED"]
    a_driver_dies_beside_another(client, store, tmp_path)


def stops_cleanly(client: Client, store: Store) -> str:
    """With checkpoints, and nothing left behind; the second time at once. Returns a trial that was under way."""
    started = time.monotonic()
    assert client.facts("stop", "far") == {"sweep": "far", "stopped": True}
    first = time.monotonic() - started
    under_way = [f for f in trials(store) if f.result() is None and f.rows() and "_backbone_" not in f.key]
    assert under_way  # it was stopped in the middle
    assert {f"step-{f.rows()[-1]['step']:08.0f}" for f in under_way} == {f.checkpoints()[-1].name for f in under_way}
    assert "KILLED" in mlflow_statuses(store.root, "far")
    assert "RUNNING" not in mlflow_statuses(store.root, "far")
    until("the job's end", lambda: client.facts("list")[0]["status"] == "STOPPED")
    assert left_on(client.head) == []
    started = time.monotonic()
    assert "far: not running" in client("stop", "far").stdout
    assert time.monotonic() - started < first
    assert "far: 3 trials, 0 done before" in client("logs", "far").stdout
    key: str = under_way[0].key
    assert "train/nll" in client("logs", "far", key).stdout
    return key


def dies_under_followers(client: Client, key: str) -> None:
    """The head, under who reads the driver's lines and a trial's rows."""
    followers = [client.start("logs", "-f", "far"), client.start("logs", "-f", "far", key, "--json")]
    row = json.loads(until("a row of the trial", followers[1].stdout.readline))  # type: ignore[union-attr]
    assert {"step", "time"} < row.keys()
    until("a line of the driver", followers[0].stdout.readline)  # type: ignore[union-attr]
    client.head.die()
    for follower in followers:
        _, told = follower.communicate(timeout=60)
        assert (follower.returncode, len(told.splitlines())) == (2, 1), told
        assert "is the cluster up" in told


def a_driver_dies_beside_another(client: Client, store: Store, folder: Path) -> None:
    """kill -9 of the driver that has the broker: the sweep beside it goes on, takes the room and ends."""
    train = TRAIN | {"checkpoint_every": 20}
    more = {"grid": GRID, "concurrency": None}
    client("submit", write_spec(folder, name="first", train=train | {"steps": 500, "lr": 2e-3}, **more))
    until("both lanes of the first sweep", lambda: len(training(store, "first")) == 2)
    client("submit", write_spec(folder, name="second", train=train | {"steps": 400}, **more))
    until("the second sweep beside it", lambda: training(store, "second"))
    assert training(store, "first")
    found = driver(store, "first")
    assert found is not None
    os.kill(found[0], signal.SIGKILL)
    until("the job's end", lambda: client.facts("list", code=0)[-2]["status"] == "FAILED")
    assert client("wait", "second").returncode == 0
    rows = [store.trial(key).rows() for key in planned(store, "second") if "_backbone_" not in key]
    assert max(r[0]["time"] for r in rows) < min(r[-1]["time"] for r in rows)  # at once, in all the room
    assert "RUNNING" in mlflow_statuses(store.root, "first")  # nobody was left to close them
    assert client("resume", "first").stdout.strip() == "first-2"
    assert client("wait", "first").returncode == 0
    results = [store.trial(key).result() or {} for name in ("first", "second") for key in planned(store, name)]
    assert {r["status"] for r in results} == {"finished"}
    assert any(r.get("resumed_from") for r in results)
    assert mlflow_statuses(store.root, "first") == mlflow_statuses(store.root, "second") == {"FINISHED"}


def training(store: Store, sweep: str) -> list[str]:
    """Trials that have begun, and are not over."""
    folders = [store.trial(key) for key in planned(store, sweep) if "_backbone_" not in key]
    return [f.key for f in folders if f.result() is None and f.rows() and f.rows()[-1]["step"] >= 20]


def left_on(head: Head) -> list[str]:
    """Actors and placement groups that are there, of whoever, but a job's supervisor, which goes with it."""
    code = (
        "import json, sys, ray; from ray.util import placement_group_table; from ray.util.state import list_actors\n"
        "ray.init(sys.argv[1], log_to_driver=False, logging_level='ERROR')\n"
        "groups = [g['state'] for g in placement_group_table().values() if g['state'] != 'REMOVED']\n"
        "actors = [a.class_name for a in list_actors(address=sys.argv[1]) if a.state != 'DEAD']\n"
        "print(json.dumps(groups + [name for name in actors if name != 'JobSupervisor']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, head.address], env=environment() | head.secret,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout.splitlines()[-1]))


def goes_on(store: Store) -> None:
    """Until some trial has trained further than any had."""
    further = max(int(f.rows()[-1]["step"]) for f in trials(store) if f.rows()) + 20
    until("training again", lambda: any(f.rows() and f.rows()[-1]["step"] >= further for f in trials(store)))


def trials(store: Store) -> list[Any]:
    return [f for f in (store.trial(key) for key in planned(store, "far")) if (f.path / "trial.json").exists()]


def planned(store: Store, sweep: str) -> list[str]:
    """Keys, of a plan whose objectives this process need not know; none before there is one."""
    return [trial["key"] for trial in store.plan(sweep)["trials"]] if sweep in store.sweeps() else []
