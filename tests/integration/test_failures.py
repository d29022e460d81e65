"""Trials that fail, diverge or kill their workers: they cost no other trial anything, and say why."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from sweeper.store import Store

from .conftest import ROOT, sweeper, write_spec
from .test_sweep import install, runs_of

BROKEN = """
import errno, os, signal, sys
import torch
from jobs.objectives import Objective

def trains(t):
    return t.logp.numel() > 32 and t.logp.dtype == torch.float32

def mute(t):
    assert not trains(t)
    return -t.logp

def exits(t):
    if trains(t):
        sys.exit(3)
    return -t.logp

def crashes(t):
    if trains(t):
        os.kill(os.getpid(), signal.SIGSEGV)
    return -t.logp

def full(t):
    if trains(t):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/scratch/cache")
    return -t.logp

def late(t, what):
    return torch.where(t.state.progress >= 0.5, torch.full_like(t.logp, what), torch.ones_like(t.logp))

def nans(t):
    return -t.logp * (late(t, float("nan")) if t.state is not None else 1)

def infinite(t):
    return -t.logp * (late(t, float("inf")) if t.state is not None else 1)

def always(t):
    raise KeyError(t.logp.shape[0])

def second(t):
    assert not trains(t) or os.environ["RANK"] != "1", "the second rank's own"
    return -t.logp

ALWAYS, SECOND = Objective("always", always, "-log p", "a test"), Objective("second", second, "-log p", "a test")
STATE = frozenset({"state"})
MUTE, EXITS, CRASHES, FULL = (Objective(f.__name__, f, "-log p", "a test") for f in (mute, exits, crashes, full))
NANS, INFINITE = (Objective(f.__name__, f, "-log p", "a test", needs=STATE) for f in (nans, infinite))
"""
NAMES = ("always", "second", "mute", "exits", "crashes", "full", "nans", "infinite")
TASK = {"builtin": "addition", "noise": 0.3, "heldout_examples": 32}
BACKBONE = {"builtin": "char-llama", "pretrain_steps": 60}
TRAIN = {"lr": 1e-3, "batch_size": 32, "steps": 20, "max_length": 32, "checkpoint_every": 5, "log_every": 5}
EVALUATION = {"samples": 1, "max_new_tokens": 4, "batch_size": 32}


def run(storage: Path, folder: Path, code: int, objectives: list[Any], seeds: list[int], **more: Any) -> str:
    env = install(folder, "broken", BROKEN, *NAMES) if not (folder / "broken.py").exists() else paths_of(folder)
    grid = {"backbone": [BACKBONE], "task": [TASK], "objective": objectives, "seed": seeds}
    parts = {"grid": grid, "train": TRAIN, "evaluation": EVALUATION} | more
    done = sweeper("run", write_spec(folder, **parts), storage=storage, env=env)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def paths_of(folder: Path) -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


def results(storage: Path) -> dict[str, dict[str, Any]]:
    """'objective s1' -> the trial's result."""
    store = Store(storage)
    return {
        f"{trial['objective']['name'] if trial['objective'] else 'backbone'} s{trial['seed']}": {
            "key": trial["key"], **(store.trial(trial["key"]).result() or {}),
        }
        for trial in store.plan("small")["trials"]  # the objectives are not installed for this process
    }  # fmt: skip


def test_three_that_fail_alike_pause_their_kind_and_nothing_else(storage: Path, tmp_path: Path) -> None:
    """Bare asserts, which have no message. The others of that objective wait; NLL is trained."""
    said = run(storage, tmp_path, 1, ["mute", "nll"], [1, 2, 3, 4, 5])
    found = results(storage)
    by_status = {name: result["status"] for name, result in found.items()}
    assert [by_status[f"nll s{seed}"] for seed in range(1, 6)] == ["finished"] * 5
    assert sorted(by_status[f"mute s{seed}"] for seed in range(1, 6)) == ["failed"] * 3 + ["paused"] * 2
    line = "AssertionError (broken.py:10 in mute: assert not trains(t))"
    failed = next(result for result in found.values() if result["status"] == "failed")
    assert failed["error"] == line
    assert (failed["failure"]["kind"], failed["failure"]["rank"]) == ("error", 0)
    assert "paused 2 trials: 3 trials of backbone char-llama-60, task addition-noise0.3, objective mute" in said
    assert f"FAILED: {line}" in said

    status = sweeper("status", "small", storage=storage, env=paths_of(tmp_path))
    assert (status.returncode, status.stdout.count(line)) == (1, 4)  # three that failed, and why the others wait
    log = sweeper("logs", "small", failed["key"], storage=storage, env=paths_of(tmp_path)).stdout
    assert "failed (error, rank 0, after step 0)" in log
    assert 'broken.py", line 10, in mute' in log
    assert "Traceback (most recent call last)" in (storage / "sweeps/small/report/report.html").read_text()
    (run_of_it,) = (r for r in runs_of(storage) if r.data.tags["sweeper.key"] == failed["key"])
    assert (run_of_it.data.tags["failure.kind"], run_of_it.data.tags["error"]) == ("error", line)

    # a second run begins with what was paused, and comes to the same; one that may fail once more is tried once more
    said = run(storage, tmp_path, 1, ["mute", "nll"], [1, 2, 3, 4, 5], max_failures=1)
    assert "paused 2 trials" in said
    attempts = [
        len(Store(storage).trial(result["key"]).failures())
        for name, result in results(storage).items()
        if "mute" in name
    ]
    assert sum(attempts) == 3 + 3 * 2


def two_backbones(storage: Path, folder: Path) -> None:
    """One backbone whose trials fail as soon as they begin, and a healthy one, in lanes side by side."""
    grid = [
        {"backbone": [BACKBONE | {"pretrain_steps": 0}], "task": [TASK], "objective": ["mute"], "seed": [1, 2, 3, 4]},
        {"backbone": [BACKBONE], "task": [TASK], "objective": ["nll", "one-minus-p"], "seed": [1, 2]},
    ]
    run(storage, folder, 1, [], [], grid=grid, concurrency=2)
    store = Store(storage)
    ended = [(trial["objective"], store.trial(trial["key"]).result()) for trial in store.plan("small")["trials"]]
    bad = [result["status"] for objective, result in ended if objective and objective["name"] == "mute"]
    healthy = [result["status"] for objective, result in ended if not objective or objective["name"] != "mute"]
    assert healthy == ["finished"] * (2 + 4)  # both untrained backbones, and what trains the other
    assert bad.count("failed") + bad.count("paused") == 4


def test_a_backbone_that_cannot_train_takes_no_healthy_trial_along(storage: Path, tmp_path: Path) -> None:
    two_backbones(storage, tmp_path)


def test_twenty_times_a_backbone_that_cannot_train_takes_no_healthy_trial_along(storage: Path, tmp_path: Path) -> None:
    for number in range(20):
        fresh, folder = tmp_path / f"storage-{number}", tmp_path / str(number)
        shutil.copytree(storage, fresh, symlinks=True)
        folder.mkdir()
        two_backbones(fresh, folder)


@pytest.mark.parametrize("name", ["nans", "infinite"])
def test_a_trial_that_diverges_ends_so_with_its_last_finite_row(storage: Path, tmp_path: Path, name: str) -> None:
    said = run(storage, tmp_path, 0, [name, "nll"], [1])
    found = results(storage)
    diverged = found[f"{name} s1"]
    assert (diverged["status"], diverged["step"], diverged["last_finite_step"]) == ("diverged", 15, 10)
    assert "the last finite row is that of step 10" in diverged["error"]
    assert f"DIVERGED: {diverged['error']}" in said
    folder = Store(storage).trial(diverged["key"])
    assert [row["step"] for row in folder.rows()] == [5, 10]
    assert not folder.failures()
    assert found["nll s1"]["status"] == "finished"
    again = run(storage, tmp_path, 0, [name, "nll"], [1])
    assert "3 trials, 3 done before" in again  # it is over

    report = json.loads((storage / "sweeps/small/report/report.json").read_text())
    rows = {row["objective"]: row for row in report["leaderboard"]}
    assert (rows[name]["mean"], rows[name]["num_diverged"], rows[name]["num_finished"]) == (0.0, 1, 0)
    assert report["trials"]["diverged"] == 1
    assert "1 diverged" in sweeper("status", "small", storage=storage, env=paths_of(tmp_path)).stdout


def test_a_learning_rate_that_is_far_too_large_diverges_and_does_not_fail(storage: Path, tmp_path: Path) -> None:
    run(storage, tmp_path, 0, ["nll"], [1], train=TRAIN | {"lr": 1e30, "clip": 1e30, "steps": 5})
    (trial,) = (result for name, result in results(storage).items() if "nll" in name)
    assert trial["status"] == "diverged", trial


def test_of_two_ranks_the_one_that_raised_is_recorded_and_both_see_a_divergence(storage: Path, tmp_path: Path) -> None:
    """Under ZeRO-3, where no rank has all weights. And an objective that cannot even be drawn spoils no report."""
    run(
        storage, tmp_path, 1, ["second", "infinite", "always", "nll"], [1], execution={"workers": 2},
        train=TRAIN | {"zero_stage": 3},
    )  # fmt: skip
    found = results(storage)
    second, always, diverged = (found[f"{name} s1"] for name in ("second", "always", "infinite"))
    assert (second["failure"]["rank"], second["error"]) == (1, "AssertionError: the second rank's own")
    assert (always["failure"]["kind"], always["failure"]["type"]) == ("error", "KeyError")
    assert (diverged["status"], diverged["step"]) == ("diverged", 15)
    assert found["nll s1"]["status"] == "finished"
    assert (storage / "sweeps/small/report/report.html").exists()


def test_of_a_group_the_one_that_diverges_ends_and_the_others_go_on(storage: Path, tmp_path: Path) -> None:
    grid = {"backbone": [BACKBONE | {"lora": {"rank": 4}}], "task": [TASK], "objective": ["nans", "nll"], "seed": [1]}
    run(storage, tmp_path, 0, [], [], grid=grid, together=2)
    found = results(storage)
    assert (found["nans s1"]["status"], found["nans s1"]["together"]) == ("diverged", 2)
    assert (found["nll s1"]["status"], found["nll s1"]["together"]) == ("finished", 2)


def test_a_trial_that_kills_its_workers_fails_after_three_and_says_so(storage: Path, tmp_path: Path) -> None:
    """And one that calls exit(). Deaths use up no max_failures; NLL, between them, is trained."""
    run(storage, tmp_path, 1, ["crashes", "exits", "nll"], [1])
    found = results(storage)
    assert found["nll s1"]["status"] == "finished"
    crashed, exited = found["crashes s1"], found["exits s1"]
    assert (crashed["failure"]["kind"], exited["failure"]["kind"]) == ("worker died", "error")
    assert crashed["error"].startswith("a worker's process ended without an error of its own")
    assert exited["error"] == "SystemExit: 3"
    store = Store(storage)
    assert [len(store.trial(r["key"]).failures()) for r in (crashed, exited)] == [3, 1]


def test_a_full_disk_is_said_in_words_and_nothing_begins_any_more(storage: Path, tmp_path: Path) -> None:
    run(storage, tmp_path, 1, ["full", "nll"], [1, 2])
    found = results(storage)
    failed = [result for result in found.values() if result["status"] == "failed"]
    assert [result["failure"]["kind"] for result in failed] == ["disk full"]
    paused = [result for result in found.values() if result["status"] == "paused"]
    assert paused
    assert all(
        "the disk is full: OSError: [Errno 28] No space left on device: '/scratch/cache'" in r["error"] for r in paused
    )
