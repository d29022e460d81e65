"""Sweeps of many trials whose training is instant: python benchmarks/scale.py [--sizes 1000 10000] [--json]

    plan      `sweeper plan` in a process of its own
    save      the plan written into the storage
    record    a result and three rows a trial, as a worker writes them
    resume    which trials are left, read from those records (half of them are over)
    mlflow    every trial into a fresh MLflow database (--mlflow N: of the first N trials; default 100), a trial's share
    report    the table, report.html and all figures (sizes above --report-up-to, default 1000, are left out)
    run       (--run N) N one-step trials really trained: Tune, lanes, DeepSpeed, MLflow, report; the driver's peak MB

Seconds, and for the whole process the peak memory in MB.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.record import RowWriter
from jobs.yardsticks import YARDSTICKS
from sweeper.plan import Plan, make_plan
from sweeper.spec import parse_sweep
from sweeper.store import Store


def spec(size: int) -> dict[str, Any]:
    """Two backbones, five objectives, as many seeds as make up the size."""
    return {
        "name": f"scale-{size}",
        "grid": {
            "backbone": [{"builtin": "char-llama", "pretrain_steps": [0, 60]}],
            "task": [{"builtin": "addition", "train_examples": 64, "heldout_examples": 8}],
            "objective": ["nll", "one-minus-p", {"name": "power", "alpha": [0.5, 2, 10]}],
            "seed": list(range(size // 10)),
        },
        "train": {"lr": 1e-3, "steps": 1, "batch_size": 8, "max_length": 32},
        "evaluation": {"samples": 1, "max_new_tokens": 1, "batch_size": 8},
    }


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def record(store: Store, plan: Plan, over: float) -> None:
    """All trials have begun; a share of them is over."""
    for number, trial in enumerate(plan.trials):
        folder = store.trial(trial.key)
        folder.create(trial)
        writer = RowWriter(folder)
        for step in (1, 2, 3):
            writer.write({"step": step} | dict.fromkeys(YARDSTICKS, 0.5 + (number % 7) / 100))
        if number < over * len(plan.trials):
            folder.finish("finished", train_s=1.0, step=3)


def measure(size: int, root: Path, mlflow: int, report: bool) -> dict[str, float]:
    from sweeper.report import write_report
    from sweeper.results import results
    from sweeper.run import pending_trials
    from sweeper.tracking import Tracking

    file = root / "sweep.yaml"
    file.write_text(json.dumps(spec(size)))
    command = [sys.executable, "-m", "sweeper", "plan", file, "--storage", root / "none"]
    found = {"plan": seconds(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))}
    plan = make_plan(parse_sweep(file.read_text(), file.name), root)
    store, name = Store(root), plan.spec.settings.name
    found["save"] = seconds(lambda: store.save_plan(name, plan.spec.text, plan.trials, {"source": "benchmark"}))
    found["record"] = seconds(lambda: record(store, plan, 0.5))
    found["resume"] = seconds(lambda: pending_trials(store, plan))
    few = Store(root / "few")
    less = Plan(plan.spec, plan.trials[:mlflow], mlflow, {})
    few.save_plan(name, plan.spec.text, less.trials, {"source": "benchmark"})
    record(few, less, 1.0)
    tracking = Tracking(few, name, f"sqlite:///{root / 'mlflow.db'}")
    found["mlflow"] = seconds(lambda: tracking.sync(over=True)) / mlflow
    if report:
        found["report"] = seconds(lambda: write_report(results(store, name), root / "report", name, {}))
    return found | {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def run(size: int, root: Path) -> dict[str, float]:
    """A real sweep; the driver is our only child, so that its peak is ours to read."""
    file = root / "run.yaml"
    file.write_text(json.dumps(spec(size)))
    command = [sys.executable, "-m", "sweeper", "run", file, "--storage", root / "run"]
    took = seconds(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {"run": took, "run_trial": took / size, "driver_peak_mb": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--mlflow", type=int, default=100)
    parser.add_argument("--report-up-to", type=int, default=1000)
    parser.add_argument("--run", type=int, nargs="*", default=[])
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    for size in args.run:
        with tempfile.TemporaryDirectory() as folder:
            found[f"run {size}"] = run(size, Path(folder))
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            found[str(size)] = measure(size, Path(folder), args.mlflow, size <= args.report_up_to)
    if args.json:
        print(json.dumps(found, indent=1))
        return
    for name, line in found.items():
        print(f"{name:>10} trials  " + "  ".join(f"{key} {value:.3g}" for key, value in line.items()))


if __name__ == "__main__":
    main()
