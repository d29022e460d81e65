"""Deaths: of a worker in the middle of a 2-worker trial, and of the driver. Nothing is lost, nothing is repeated."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs.record import RowWriter
from sweeper.plan import make_plan
from sweeper.run import BOARD_DIED
from sweeper.spec import load_sweep
from sweeper.store import Store

from .conftest import ROOT, environment, sweeper, until, write_spec
from .test_sweep import points, runs_of

STEPS = 400  # long enough that a kill lands in the middle
EVERY_ROW = list(range(5, STEPS + 1, 5))
TRAIN = {"lr": 1e-3, "batch_size": 32, "steps": STEPS, "max_length": 32, "checkpoint_every": 20, "log_every": 5}


def start(spec: Path, storage: Path, log_name: str = "driver.log") -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sweeper", "run", str(spec), "--storage", str(storage)]
    with (storage / log_name).open("a") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=log, stderr=log, text=True)


def survivors(children: list[psutil.Process]) -> list[psutil.Process]:
    """What is left a minute later. Ray's two agents notice only after minutes that their node is gone, and then go."""
    _, alive = psutil.wait_procs([p for p in children if not _name(p).endswith("Agent")], timeout=60)
    return alive


def listeners(driver: int) -> list[tuple[str, str]]:
    """(process, address) of every socket on which the driver or what it has started waits for connections."""
    found = []
    for process in [psutil.Process(driver), *psutil.Process(driver).children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):  # gone since it was listed
            for socket in process.net_connections("inet"):
                if socket.status == psutil.CONN_LISTEN:
                    found.append((process.name(), socket.laddr.ip.removeprefix("::ffff:")))
    return found


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.NoSuchProcess:
        return ""


def under_way(store: Store, name: str) -> str | None:
    """A trial with a checkpoint that is far from over."""
    for key, trial in store.trials(name).items():
        folder, steps = store.trial(key), trial.train.steps or 0
        if folder.checkpoints() and folder.result() is None and folder.rows()[-1]["step"] < steps / 3:
            return key
    return None


def numbers(store: Store, key: str) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k != "time" and "per_s" not in k} for row in store.trial(key).rows()]


def test_killed_driver_continues_where_it_was(storage: Path, tmp_path: Path) -> None:
    """kill -9 of the driver, run again: no finished trial again, unfinished ones from their newest checkpoint."""
    grid = {
        "backbone": [{"builtin": "char-llama", "pretrain_steps": 60}],
        "task": [{"builtin": "addition", "noise": 0.3, "heldout_examples": 64}],
        "objective": ["nll", "one-minus-p", {"name": "power", "alpha": 0.5}],
        "seed": [1],
    }
    spec = write_spec(tmp_path, name="kill", grid=grid, train=TRAIN)
    store = Store(storage)
    driver = start(spec, storage)
    children: list[psutil.Process] = []
    try:
        until("a plan", lambda: "kill" in store.sweeps())

        def in_the_middle() -> str | None:
            trained = [k for k, t in store.trials("kill").items() if t.objective and store.trial(k).result()]
            return under_way(store, "kill") if trained else None

        victim = until("one trial finished and another with a checkpoint", in_the_middle)
        children = psutil.Process(driver.pid).children(recursive=True)
    finally:
        driver.kill()
        driver.wait()
    assert not survivors(children), "processes outlived their driver"

    finished = {k: store.trial(k).result() for k in store.trials("kill") if store.trial(k).result()}
    newest = int(store.trial(victim).checkpoints()[-1].name.removeprefix("step-"))
    reached = int(store.trial(victim).rows()[-1]["step"])
    assert newest >= 20
    left = [r.data.tags["sweeper.key"] for r in runs_of(storage, "kill") if r.info.status == "RUNNING"]
    assert left  # a killed driver cannot close its runs; the next one must

    done = sweeper("run", spec, storage=storage)
    assert done.returncode == 0, done.stderr + done.stdout
    assert {k: store.trial(k).result() for k in finished} == finished
    result = store.trial(victim).result() or {}
    assert result["resumed_from"] >= newest
    assert [row["step"] for row in store.trial(victim).rows()] == EVERY_ROW
    assert reached < STEPS

    runs = runs_of(storage, "kill")
    assert all(n == 1 for n in Counter(r.data.tags["sweeper.key"] for r in runs).values())
    assert {r.info.status for r in runs} == {"FINISHED"}
    for (key, metric), steps in points(storage, "kill").items():
        assert len(steps) == len(set(steps)), (key, metric)
        if key == victim and metric == "objective/loss":
            assert steps == EVERY_ROW

    # the same sweep without a death gives the same numbers
    calm = tmp_path / "calm"
    calm.mkdir()
    (calm / "backbones").symlink_to(storage / "backbones")
    assert sweeper("run", spec, storage=calm).returncode == 0
    for key in store.trials("kill"):
        assert numbers(store, key) == numbers(Store(calm), key), key


def test_a_killed_worker_of_a_lane_costs_only_the_steps_since_its_checkpoint(storage: Path, tmp_path: Path) -> None:
    """One of two gloo workers; the trial goes on in a new lane, the sweep succeeds.

    A lane takes all CPUs, so what a dead one has reserved must be given back. While it trains, everybody
    listens on loopback alone.
    """
    half = (os.cpu_count() or 2) / 2
    grid: dict[str, Any] = {
        "backbone": [{"builtin": "char-llama", "pretrain_steps": 60}],
        "task": [{"builtin": "addition", "noise": 0.3, "heldout_examples": 64}],
        "objective": ["nll"],
    }
    spec = write_spec(
        tmp_path, name="pair", grid=grid, train=TRAIN | {"steps": STEPS // 2},
        execution={"workers": 2, "cpus_per_worker": half},
    )  # fmt: skip
    store = Store(storage)
    driver = start(spec, storage)
    try:
        until("a plan", lambda: "pair" in store.sweeps())
        victim = until("a checkpoint", lambda: under_way(store, "pair") or _ended(driver, storage))
        process = until("a worker", lambda: _child(driver.pid, "RayTrainWorker"))
        listening = listeners(driver.pid)
        assert len(listening) > 10  # Ray's own, a store, gloo
        assert not [one for one in listening if not ip_address(one[1]).is_loopback], listening
        os.kill(process, signal.SIGKILL)
        assert driver.wait(timeout=300) == 0, (storage / "driver.log").read_text()
    finally:
        driver.kill()
        driver.wait()
    folder = store.trial(victim)
    result = folder.result() or {}
    assert result["status"] == "finished"
    assert result["resumed_from"] >= 20
    assert len(folder.failures()) == 1
    assert [row["step"] for row in folder.rows()] == EVERY_ROW[: STEPS // 10]
    assert {r.info.status for r in runs_of(storage, "pair")} == {"FINISHED"}


def test_a_sweep_whose_board_died_says_so_and_goes_on_when_run_again(storage: Path, tmp_path: Path) -> None:
    grid: dict[str, Any] = {
        "backbone": [{"builtin": "char-llama", "pretrain_steps": 60}],
        "task": [{"builtin": "addition", "noise": 0.3, "heldout_examples": 64}],
        "objective": ["nll"],
    }
    spec = write_spec(tmp_path, name="board", grid=grid, train=TRAIN | {"steps": STEPS // 2})
    store = Store(storage)
    driver = start(spec, storage)
    try:
        until("a plan", lambda: "board" in store.sweeps())
        victim = until("a checkpoint", lambda: under_way(store, "board") or _ended(driver, storage))
        os.kill(until("the board", lambda: _child(driver.pid, "Board")), signal.SIGKILL)
        assert driver.wait(timeout=300) == 1
    finally:
        driver.kill()
        driver.wait()
    said = (storage / "driver.log").read_text()
    assert BOARD_DIED in said
    assert "Traceback" not in said
    assert store.trial(victim).result() is None
    assert sweeper("run", spec, storage=storage).returncode == 0
    result = store.trial(victim).result() or {}
    assert result["status"] == "finished"
    assert result["resumed_from"] >= 20
    assert [row["step"] for row in store.trial(victim).rows()] == EVERY_ROW[: STEPS // 10]


def test_workers_that_cannot_meet_end_the_sweep_with_the_reason(storage: Path, tmp_path: Path) -> None:
    """A lane takes all CPUs: one that never came up must give them back, or the next one waits for ever."""
    half = (os.cpu_count() or 2) / 2
    spec = write_spec(tmp_path, name="apart", execution={"workers": 2, "cpus_per_worker": half})
    done = sweeper("run", spec, storage=storage, env={"GLOO_SOCKET_IFNAME": "nowhere0"})
    assert done.returncode == 1, done.stdout + done.stderr
    store = Store(storage)
    for key in store.trials("apart"):
        error = (store.trial(key).result() or {})["error"]
        assert error.startswith("no worker group comes up")
        assert error.endswith("Unable to find address for: nowhere0")
    assert {r.info.status for r in runs_of(storage, "apart")} == {"FAILED"}
    assert sweeper("run", spec, storage=storage).returncode == 0  # with the network mended
    assert {r.info.status for r in runs_of(storage, "apart")} == {"FINISHED"}


@pytest.mark.parametrize("moment", ["before it has torch", "with torch"])
def test_a_worker_killed_as_its_group_comes_up_costs_no_trial(storage: Path, tmp_path: Path, moment: str) -> None:
    """Its peer waits for it, and both hold all CPUs: the next group needs them back."""
    half = (os.cpu_count() or 2) / 2
    spec = write_spec(tmp_path, name="meet", execution={"workers": 2, "cpus_per_worker": half})
    driver = start(spec, storage)

    def found() -> int | None:
        worker = _child(driver.pid, "RayTrainWorker")
        if worker is None or moment == "before it has torch":
            return worker
        return worker if "libtorch" in Path(f"/proc/{worker}/maps").read_text() else None

    try:
        worker = until(f"a worker {moment}", lambda: found() or _ended(driver, storage))
        os.kill(worker, signal.SIGKILL)
        assert driver.wait(timeout=300) == 0, (storage / "driver.log").read_text()
    finally:
        driver.kill()
        driver.wait()
    store = Store(storage)
    assert {(store.trial(key).result() or {})["status"] for key in store.trials("meet")} == {"finished"}


def _ended(driver: subprocess.Popen[str], storage: Path) -> None:
    """Nothing while the driver lives; else its log says more than a wait in vain."""
    assert driver.poll() is None, (storage / "driver.log").read_text()


def _child(driver: int, kind: str) -> int | None:
    for process in psutil.Process(driver).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # gone since it was listed
            if kind in " ".join(process.cmdline()):
                return process.pid
    return None


def test_a_stopped_driver_leaves_nothing_running_and_continues(storage: Path, tmp_path: Path) -> None:
    spec = write_spec(tmp_path, name="stop", train=TRAIN)
    store = Store(storage)
    driver = start(spec, storage)
    try:
        until("a plan", lambda: "stop" in store.sweeps())
        until("a checkpoint", lambda: under_way(store, "stop"))
        children = psutil.Process(driver.pid).children(recursive=True)
        driver.terminate()  # as Ctrl-C; SIGINT itself is ignored by what a shell starts in the background
        assert driver.wait(timeout=90) == 130
    finally:
        driver.kill()
        driver.wait()
    assert "the same command continues" in (storage / "driver.log").read_text()
    assert not survivors(children)
    assert "RUNNING" not in {r.info.status for r in runs_of(storage, "stop")}
    assert sweeper("run", spec, storage=storage).returncode == 0
    assert {r.info.status for r in runs_of(storage, "stop")} == {"FINISHED"}


def test_a_signal_while_runs_are_closed_in_mlflow_ends_the_driver_after_that(storage: Path, tmp_path: Path) -> None:
    """The database is locked as the driver leaves; a stop that comes then must leave no run RUNNING."""
    store = Store(storage)
    plan = make_plan(load_sweep(write_spec(tmp_path, name="late")), tmp_path)
    store.save_plan("late", plan.spec.text, plan.trials, {"source": "late.yaml"})
    for trial in plan.trials:
        store.trial(trial.key).create(trial)
        RowWriter(store.trial(trial.key)).write({"step": 0, "train/nll": 1.0})
    uri = f"sqlite:///{storage / 'mlflow.db'}"
    code = (
        "import signal, sys, time; from pathlib import Path; from sweeper.cli import _interrupt\n"
        "from sweeper.store import Store; from sweeper.tracking_thread import TrackingThread\n"
        "signal.signal(signal.SIGTERM, _interrupt)\n"
        "with TrackingThread(Store(Path(sys.argv[1])), 'late', sys.argv[2], lambda line: None) as writing:\n"
        "    while writing.tracking is None or len(writing.tracking.run_ids()) < 3:\n        time.sleep(0.1)\n"
        "    print('written', flush=True)\n    sys.stdin.readline()\n"
    )
    driver = subprocess.Popen(
        [sys.executable, "-c", code, str(storage), uri], cwd=ROOT, env=environment(), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert driver.stdin is not None
    assert driver.stdout is not None
    try:
        assert driver.stdout.readline() == "written\n"
        with sqlite3.connect(storage / "mlflow.db", isolation_level=None, timeout=60) as other:
            other.execute("BEGIN EXCLUSIVE")
            driver.stdin.write("\n")
            driver.stdin.flush()
            time.sleep(1)  # it waits for the database now
            driver.terminate()
            time.sleep(1)
            assert driver.poll() is None
            other.execute("COMMIT")
        assert driver.wait(timeout=60) != 0
    finally:
        driver.kill()
        driver.wait()
    assert {r.info.status for r in runs_of(storage, "late")} == {"KILLED"}


def test_a_second_driver_is_refused(storage: Path, tmp_path: Path) -> None:
    spec = write_spec(tmp_path, name="twice")
    with Store(storage).lock("twice"):
        done = sweeper("run", spec, storage=storage)
    assert done.returncode == 2
    assert "is being run already" in done.stderr


@pytest.mark.parametrize("server", ["http://127.0.0.1:1"])
def test_a_tracking_server_that_is_down_costs_no_training(storage: Path, tmp_path: Path, server: str) -> None:
    spec = write_spec(tmp_path, name="down")
    done = sweeper("run", spec, "--tracking-uri", server, storage=storage)
    assert "could not be written" in done.stderr, done.stderr
    store = Store(storage)
    assert all((store.trial(k).result() or {})["status"] == "finished" for k in store.trials("down"))
    uri = f"sqlite:///{storage / 'mlflow.db'}"
    assert sweeper("sync", "down", "--tracking-uri", uri, storage=storage).returncode == 0
    assert {r.info.status for r in runs_of(storage, "down")} == {"FINISHED"}
    assert len(runs_of(storage, "down")) == 1 + 3
