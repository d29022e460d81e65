"""`sweeper doctor` on a healthy cluster and on broken ones: each with its remedy, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from .conftest import ROOT, Head, environment, free_port, until, write_spec


def doctor(*args: object, secret: dict[str, str], code: int) -> dict[str, list[dict[str, str]]]:
    """Findings that are not ok, by check."""
    done = subprocess.run(
        [sys.executable, "-m", "sweeper", "doctor", *map(str, args), "--json"],
        cwd=ROOT, env=environment() | secret, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    assert facts["healthy"] is (code == 0)
    found: dict[str, list[dict[str, str]]] = {}
    for finding in facts["findings"]:
        if finding["level"] != "ok":
            assert finding["remedy"]
            found.setdefault(finding["check"], []).append(finding)
    return found


def test_a_healthy_cluster_over_the_jobs_api(head: Head, tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    storage.mkdir()
    where = ["--address", head.api, "--python", sys.executable, "--storage", storage]
    found = doctor(write_spec(tmp_path), *where, secret=head.secret, code=0)
    assert not {level for findings in found.values() for f in findings if (level := f["level"]) == "error"}
    assert not list(storage.iterdir())  # its marks are gone

    # broken ones that need no other cluster
    hangs = tmp_path / "python"
    hangs.write_text("#!/bin/sh\necho hello\nsleep 600\n")
    hangs.chmod(0o755)
    run = f"from cluster.submit import Cluster; Cluster('{head.api}', '{hangs}').run([], None, {{}}, 5)"
    said = subprocess.run(
        [sys.executable, "-c", run],
        cwd=ROOT, env=environment() | head.secret, capture_output=True, text=True, timeout=300, check=False,
    ).stderr  # fmt: skip
    told = r"JobTimeout: job \w+ is RUNNING after 5 s: .*; last of its log: (hello|it has printed)"
    assert re.search(told, said), said
    wrong = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "b" * 64}
    assert "RAY_AUTH_TOKEN" in doctor(*where, secret=wrong, code=1)["token"][0]["remedy"]
    dead = ["--address", f"http://127.0.0.1:{free_port()}", "--storage", storage]
    assert "is the head up" in doctor(*dead, secret=head.secret, code=1)["connection"][0]["remedy"]
    big = write_spec(tmp_path, name="big", execution={"workers": 8})
    direct = ["--address", head.address, "--storage", "/proc/nowhere", "--tracking-uri", "http://127.0.0.1:1"]
    found = doctor(big, *direct, secret=head.secret, code=1)
    assert "is not there" in found["storage"][0]["what"]
    assert "connection refused" in found["MLflow"][0]["what"]
    assert "sweeper sync" in found["MLflow"][0]["remedy"]
    assert "a trial needs 8 CPU (8 workers x 1), the cluster has 2" in found["plan"][0]["what"]


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare")
def test_a_node_that_is_not_like_the_others(head: Head, tmp_path: Path) -> None:
    """One node with little shared memory, an older transformers, and a storage of its own under the same path."""
    storage = tmp_path / "storage"
    storage.mkdir()
    with odd_node(head, tmp_path, storage):
        where = ["--address", head.address, "--storage", storage]
        until("two nodes", lambda: len(nodes(head)) == 2, timeout_s=120)
        found = doctor(*where, secret=head.secret, code=1)
    assert "/dev/shm has 32 MiB" in found["shared memory"][0]["what"]
    assert "--shm-size" in found["shared memory"][0]["remedy"]
    assert "transformers" in found["versions"][0]["what"]
    assert "4.0.0" in found["versions"][0]["what"]
    assert "another directory than the driver's" in found["storage"][0]["what"]
    assert not list(storage.iterdir())


def nodes(head: Head) -> list[str]:
    """Hosts that the cluster counts as alive."""
    done = subprocess.run(
        [sys.executable, "-c", "import ray, sys; ray.init(sys.argv[1], logging_level='ERROR'); "
         "print(*(n['NodeID'] for n in ray.nodes() if n['Alive']))", head.address],
        env=environment() | head.secret, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return done.stdout.split()


@contextmanager
def odd_node(head: Head, folder: Path, storage: Path) -> Iterator[None]:
    shadow = folder / "shadow" / "transformers-4.0.0.dist-info"
    shadow.mkdir(parents=True)
    (shadow / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 4.0.0\n")
    command = [
        str(Path(sys.executable).parent / "ray"), "start", "--block", f"--address={head.address}", "--num-cpus=1",
        "--node-ip-address=127.0.0.1", "--object-store-memory=80000000", f"--temp-dir={tempfile.mkdtemp()}",
        f"--dashboard-agent-listen-port={free_port()}", "--min-worker-port=33000", "--max-worker-port=33900",
        "--disable-usage-stats",
    ]  # fmt: skip
    mounts = f"mount -t tmpfs -o size=32m tmpfs /dev/shm; mount -t tmpfs tmpfs '{storage}'; exec \"$@\""
    process = subprocess.Popen(
        ["unshare", "-mp", "--fork", "--kill-child", "--mount-proc", "sh", "-c", mounts, "sh", *command],
        env=environment() | head.secret | {"PYTHONPATH": str(shadow.parent)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield
    finally:
        process.kill()  # with all that runs in its process namespace
        process.wait()
