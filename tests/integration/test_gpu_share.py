"""Shares of a GPU by measured memory, on a real Ray that counts a GPU where there is none: of the host's memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.meter import host_bytes
from jobs.spec import TrialSpec
from jobs.train import Row, train
from sweeper.store import Store

from .conftest import ROOT, Head, environment, write_spec

OWN = """
import os, pathlib, time, torch
from jobs.objectives import Objective

HERE = pathlib.Path(__file__).parent / "met"

def together(t):
    '''Goes on once four processes are here.'''
    if torch.distributed.is_initialized():  # not where the report draws it
        HERE.mkdir(exist_ok=True)
        (HERE / str(os.getpid())).touch()
        end = time.monotonic() + 120
        while len(list(HERE.iterdir())) < 4:
            assert time.monotonic() < end, "alone"
            time.sleep(0.1)
    return -t.logp

def hungry(t):
    '''Asks for more than a quarter of the memory, and touches none of it.'''
    if torch.distributed.is_initialized():
        torch.empty(%d, dtype=torch.uint8)
    return -t.logp

TOGETHER = Objective("together", together, "-log p", "a test")
HUNGRY = Objective("hungry", hungry, "-log p", "a test")
"""
BACKBONE = {"backbone": [{"builtin": "char-llama", "pretrain_steps": 60}],
            "task": [{"builtin": "addition", "noise": 0.3, "heldout_examples": 64}]}  # fmt: skip

TRAIN = {"lr": 1e-3, "batch_size": 32, "steps": 10, "max_length": 32}


@pytest.fixture
def one_gpu(tmp_path: Path) -> Iterator[Head]:
    head = Head(tmp_path / "token")
    head.cpus, head.options = 4, ["--num-gpus=1"]
    head.env = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}  # where the test's own objectives lie
    head.start()
    try:
        yield head
    finally:
        head.end()


def grid(*cells: tuple[str, list[int]]) -> list[dict[str, Any]]:
    return [BACKBONE | {"objective": [name], "seed": seeds} for name, seeds in cells]


def numbers(rows: list[Row]) -> list[Row]:
    return [{k: v for k, v in row.items() if k != "time" and "per_s" not in k} for row in rows]


def test_the_first_trial_of_a_kind_measures_the_rest_share_and_nothing_else_changes(
    one_gpu: Head, storage: Path, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(OWN % int(0.27 * host_bytes()))
    info = tmp_path / "own-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 1.0\n")
    points = "[objective_continuum.objectives]\ntogether = own:TOGETHER\nhungry = own:HUNGRY\n"
    (info / "entry_points.txt").write_text(points)
    env = environment() | one_gpu.secret | one_gpu.env

    def run(**parts: Any) -> str:
        spec = write_spec(tmp_path, concurrency=None, execution={"gpus_per_worker": "auto"}, train=TRAIN, **parts)
        command = [sys.executable, "-m", "sweeper", "run", str(spec), "--storage", str(storage)]
        done = subprocess.run(
            [*command, "--address", one_gpu.address],
            cwd=ROOT, capture_output=True, text=True, timeout=600, check=False, env=env,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    apart = [{"where": {"objective": "hungry"}, "train": {"max_length": 40}}]  # a kind of its own
    said = run(name="first", grid=grid(("nll", [1, 2]), ("hungry", [1, 2])), overrides=apart)
    store = Store(storage)
    gpus = shares_of(store, "first")
    assert "a trial like it gets 1/4 of a GPU" in said
    # the first of each kind had the whole card, whichever came first
    assert {name: sorted(of.values())[1:] for name, of in gpus.items()} == {"backbone": [], "nll": [1], "hungry": [1]}
    assert min(gpus["nll"].values()) == 0.25
    outgrown, has = min(gpus["hungry"].items(), key=lambda one: one[1])
    assert 0.25 < has < 1
    assert any("again with 1/3 of a GPU" in failure["error"] for failure in store.trial(outgrown).failures())
    shared = store.trial(min(gpus["nll"], key=lambda key: gpus["nll"][key]))
    assert numbers(shared.rows()) == numbers(by_itself(shared.spec(), storage))

    said = run(name="second", grid=grid(("together", [1, 2, 3, 4])))
    assert list(shares_of(store, "second")["together"].values()) == [0.25] * 4  # none is measured anew
    assert "took" not in said


def shares_of(store: Store, sweep: str) -> dict[str, dict[str, float]]:
    """GPUs that each finished trial had, by objective and key. This process does not know all of the objectives."""
    found: dict[str, dict[str, float]] = {}
    for trial in store.plan(sweep)["trials"]:
        result = store.trial(trial["key"]).result() or {}
        assert result["status"] == "finished"
        name = trial["objective"]["name"] if trial["objective"] else "backbone"
        found.setdefault(name, {})[trial["key"]] = result["memory"]["gpus"]
    return found


def by_itself(trial: TrialSpec, root: Path) -> list[Row]:
    """The same trial in this process, which has all of the machine."""
    import torch

    rows: list[Row] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train(trial, root, lambda row, save, due: rows.append(row) is None)
    torch.set_num_threads(threads)
    return rows
