"""The benchmarks run, on small shapes, and print what they promise. Nothing here asserts a time."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE")  # a test that trained in this process leaves them behind


def run(name: str, *args: str) -> Any:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / name), *args, "--json"],
        cwd=ROOT, env={n: v for n, v in os.environ.items() if n not in RANKS},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout[done.stdout.index("\n[" if name == "objective_cost.py" else "{") :])


def test_objective_cost_measures_every_objective_and_its_rivals() -> None:
    (result,) = run("objective_cost.py", "--shape", "96", "128", "500", "--rounds", "1")
    rows = result["rows"]
    assert {"nll", "nll again", "one-minus-p", "asft", "F.cross_entropy", "nll p>=0.2"} <= rows.keys()
    assert all(row["seconds"] > 0 and row["transient_mb"] >= 0 for row in rows.values())
    low, middle, high = result["median_p"]
    assert low < 1e-5
    assert 0.4 < middle < 0.6
    assert high > 1 - 1e-8


def test_train_step_measures_ours_beside_the_trainer() -> None:
    result = run("train_step.py", "--layers", "1", "--batch", "1", "--length", "16", "--steps", "3", "--rounds", "1")
    assert {"ours nll", "ours dft", "Trainer nll"} <= result["rows"].keys()
