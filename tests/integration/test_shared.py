"""Two sweeps at once on one storage that have trials in common: each is trained once, and both are whole."""

from __future__ import annotations

import csv
from pathlib import Path

import psutil

from sweeper.store import Store

from .conftest import until, write_spec
from .test_death import EVERY_ROW, TRAIN, start, under_way
from .test_sweep import GRID, runs_of

CELL = GRID | {"backbone": [{"builtin": "char-llama", "pretrain_steps": 60}], "seed": [1]}
OBJECTIVES = {"one": ["nll", "one-minus-p"], "two": ["nll", "one-minus-p", {"name": "power", "alpha": 0.5}]}


def specs(folder: Path) -> dict[str, Path]:
    return {n: write_spec(folder, name=n, grid=CELL | {"objective": o}, train=TRAIN) for n, o in OBJECTIVES.items()}


def check_whole(storage: Path, name: str) -> None:
    """Every trial finished, in the record, in MLflow and in the report."""
    store = Store(storage)
    keys = store.trials(name).keys()
    assert {(store.trial(key).result() or {})["status"] for key in keys} == {"finished"}
    runs = {run.data.tags["sweeper.key"]: run.info.status for run in runs_of(storage, name)}
    assert runs == dict.fromkeys([*keys, "sweep"], "FINISHED")
    with (store.sweep_dir(name) / "report" / "trials.csv").open() as file:
        assert {row["key"]: row["status"] for row in csv.DictReader(file)} == dict.fromkeys(keys, "finished")


def test_what_two_sweeps_have_in_common_is_trained_once_and_both_are_whole(storage: Path, tmp_path: Path) -> None:
    drivers = {name: start(spec, storage, f"{name}.log") for name, spec in specs(tmp_path).items()}
    logs = {}
    for name, driver in drivers.items():
        driver.wait(timeout=600)
        logs[name] = (storage / f"{name}.log").read_text()
        assert driver.returncode == 0, logs[name]
    store = Store(storage)
    common = store.trials("one").keys() & store.trials("two").keys()
    assert len(common) == 3
    ends = [line for log in logs.values() for line in log.splitlines() if line.startswith("[") and " · " in line]
    assert len(ends) == 3 + 4
    assert sum(", recorded by sweep" in line for line in ends) == 3  # by one of them each
    for name in OBJECTIVES:
        check_whole(storage, name)


def test_what_a_killed_sweep_was_training_another_one_takes_up(storage: Path, tmp_path: Path) -> None:
    of, store = specs(tmp_path), Store(storage)
    first = start(of["one"], storage, "one.log")
    second = None
    try:
        until("a plan", lambda: "one" in store.sweeps())
        until("a trial with a checkpoint", lambda: under_way(store, "one"))
        second = start(of["two"], storage, "two.log")
        said = "under way in sweep 'one'; their results are taken from there"
        until("the second sweep to see the first", lambda: said in (storage / "two.log").read_text())
    finally:
        its = psutil.Process(first.pid).children(recursive=True)
        workers = [process for process in its if "RayTrainWorker" in " ".join(process.cmdline())]
        first.kill()
        first.wait()
    # one may come to its trial's end before it notices that its driver is gone
    assert workers
    assert not psutil.wait_procs(workers, timeout=60)[1]
    left = [key for key in store.trials("one") if store.trial(key).result() is None]
    assert left  # longer sweeps, if this ever fails
    assert second is not None
    assert second.wait(timeout=600) == 0, (storage / "two.log").read_text()
    check_whole(storage, "two")
    for key in left:
        assert f"{key} is not under way in sweep 'one' any more: it goes on here" in (storage / "two.log").read_text()
        if store.trials("one")[key].objective:  # a measured backbone has one row
            assert [row["step"] for row in store.trial(key).rows()] == EVERY_ROW
