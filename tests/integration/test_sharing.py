"""Two sweeps on one cluster, one trial stopped by hand, and a sweep that can never be placed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobs.record import TrialFolder
from sweeper.store import Store

from .conftest import Head, until, write_spec
from .test_submit import Client, mlflow_statuses

TRAIN = {"lr": 1e-3, "batch_size": 32, "steps": 3000, "max_length": 32, "checkpoint_every": 1500}


def under_way(store: Store, sweep: str, step: int = 20) -> list[TrialFolder]:
    """Trials that train now."""
    if sweep not in store.sweeps():
        return []
    folders = [store.trial(key) for key, trial in store.trials(sweep).items() if trial.objective is not None]
    return [f for f in folders if f.result() is None and f.rows() and f.rows()[-1]["step"] >= step]


def test_two_sweeps_share_a_cluster_and_lose_nothing(head: Head, storage: Path, tmp_path: Path) -> None:
    client, store = Client(head, storage), Store(storage)
    # longer than any of this takes; it is ended by hand
    client("submit", write_spec(tmp_path, name="first", train=TRAIN | {"steps": 150_000}, concurrency=None))
    until("both lanes of the first sweep", lambda: len(under_way(store, "first")) == 2)
    grid: dict[str, Any] = {
        "backbone": [{"builtin": "char-llama", "pretrain_steps": 60}], "task": [{"builtin": "reversal"}],
        "objective": ["nll", "one-minus-p"],
    }  # fmt: skip
    client(
        "submit",
        write_spec(tmp_path, name="second", train=TRAIN | {"steps": 1500}, grid=grid, priority=1.0, concurrency=None),
    )
    (now, *_) = until("the second sweep training", lambda: under_way(store, "second"))
    assert len(under_way(store, "first")) == 2  # it did not have to wait for its end
    assert client("stop", "second", now.key).stdout.strip() == f"{now.key}: stopped"
    result = now.result() or {}
    assert (result["status"], result["by"]) == ("stopped", "hand")
    assert int(now.checkpoints()[-1].name.removeprefix("step-")) == result["step"]
    too_big = write_spec(tmp_path, name="too-big", train=TRAIN | {"batch_size": 33}, execution={"workers": 3})
    refused = client("submit", too_big, "--follow", code=2)
    assert "a trial needs 3 CPU (3 workers x 1), the cluster has 2" in refused.stdout

    assert client("wait", "second").returncode == 0
    first = under_way(store, "first")
    reached = {folder.key: folder.rows()[-1]["step"] for folder in first}
    until("both go on", lambda: all(folder.rows()[-1]["step"] > reached[folder.key] for folder in first))
    for folder in first:
        client("stop", "first", folder.key)
    assert client("wait", "first").returncode == 0
    results = [folder.result() or {} for folder in first]
    assert [r["status"] for r in results] == ["stopped", "stopped"]
    # one of them made room, with a checkpoint that was not due, and went on from there; no step is there twice
    assert [r["resumed_from"] % 1500 for r in results if r.get("resumed_from")]
    for folder in first:
        steps = [row["step"] for row in folder.rows()]
        assert steps == sorted(set(steps))
    assert {(store.trial(key).result() or {})["status"] for key in store.trials("second")} == {"finished", "stopped"}
    assert mlflow_statuses(storage, "second") == {"FINISHED", "KILLED"}

    assert client("resume", "second", now.key).returncode == 0  # wanted after all
    assert client("wait", "second").returncode == 0
    assert (now.result() or {})["resumed_from"] == result["step"]
    assert mlflow_statuses(storage, "second") == {"FINISHED"}
