"""`sweeper run --address`: the same sweep on a Ray cluster that is already up."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweeper.store import Store

from .conftest import ROOT, environment, until, write_spec


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[str]:
    """A head node with two CPUs, its own token; gone with the test."""
    token = tmp_path / "token"
    token.write_text("a" * 64)
    token.chmod(0o600)
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    port, dashboard = free_port(), free_port()
    command = [
        str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=2", f"--port={port}",
        "--node-ip-address=127.0.0.1", "--include-dashboard=true", "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}", f"--ray-client-server-port={free_port()}", "--disable-usage-stats",
    ]  # fmt: skip
    head = subprocess.Popen(command, env={**os.environ}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until("the head", lambda: answers(port) and answers(dashboard), timeout_s=120)
        yield f"127.0.0.1:{port}"
    finally:
        head.terminate()
        head.wait(timeout=60)
        last = Path(tempfile.gettempdir()) / "ray" / "ray_current_cluster"  # ended by signal, the head leaves it behind
        if last.exists() and last.read_text().endswith(f":{port}"):
            last.unlink()
        del os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN_PATH"]


def test_a_sweep_runs_on_a_cluster_with_a_token(cluster: str, storage: Path, tmp_path: Path) -> None:
    spec = write_spec(tmp_path, name="remote")
    secret = {k: v for k, v in os.environ.items() if k.startswith("RAY_AUTH")}
    command = [sys.executable, "-m", "sweeper", "run", str(spec), "--storage", str(storage), "--address", cluster]
    done = subprocess.run(
        command, cwd=ROOT, env=environment() | secret, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    store = Store(storage)
    assert {(store.trial(k).result() or {})["status"] for k in store.trials("remote")} == {"finished"}
