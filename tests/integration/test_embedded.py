"""Ray for one command: what it starts, and that nothing of it outlives the command, however that ends."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.fork_server import GPUS

from .conftest import ROOT, environment, sweeper, until, write_spec

DRIVER = """
import sys
from pathlib import Path
from cluster.connect import connected
with connected(None, num_cpus=1, preload="jobs.preload"):
    import ray
    ray.get(ray.remote(lambda: None).remote())
    print("up", flush=True)
    sys.stdin.readline()
"""
FORKS = """
import json, os, sys
import psutil
from cluster.connect import connected

class Worker:
    def look(self):
        import ray, torch.distributed
        from ray._raylet import PlacementGroupID
        return {
            "parent": os.getppid(), "id": PlacementGroupID.of(ray.get_runtime_context().job_id).hex(),
            "path": sys.path, "argv": sys.argv[0],
            "variables": {name: os.environ.get(name) for name in ("MINE", "OPENBLAS_NUM_THREADS", "RAY_JOB_ID")},
        }

with connected(None, num_cpus=4, preload=sys.argv[1] or None):
    import ray
    made = ray.remote(num_cpus=1, runtime_env={"env_vars": {"MINE": "1"}})(Worker)
    some = [made.remote() for _ in range(3)]
    looks = [ray.get(worker.look.remote()) for worker in some]
    (server,) = [c for c in psutil.Process().children() if "cluster.fork_server" in c.cmdline()] or [None]
    if server is not None:
        server.kill()
        server.wait()
    looks.append(ray.get(made.remote().look.remote()))
    print(json.dumps({"server": server and server.pid, "looks": looks}), flush=True)
"""
SLOW = ("DashboardAgent", "RuntimeEnvAgent")  # with their raylet killed, Ray's own take a minute to see it
UNWANTED = ("dashboard.py", "monitor.py", "log_monitor.py")


@pytest.mark.parametrize("end", ["leaves", "is killed"])
def test_an_embedded_ray_starts_little_and_ends_with_its_command(end: str) -> None:
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER], cwd=ROOT, env=environment(), text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert driver.stdin is not None
    assert driver.stdout is not None
    try:
        assert driver.stdout.readline() == "up\n"
        started = psutil.Process(driver.pid).children(recursive=True)
        lines = [" ".join(process.cmdline()) for process in started]
        assert any("gcs_server" in line for line in lines)
        assert any("raylet" in line for line in lines)
        assert not [line for line in lines if any(name in line for name in UNWANTED)]
        if end == "leaves":
            driver.stdin.write("\n")
            driver.stdin.flush()
        else:
            driver.kill()
            started = [
                process for process, line in zip(started, lines, strict=True) if not any(name in line for name in SLOW)
            ]
        driver.wait(timeout=60)
        until("all have ended", lambda: not [process for process in started if process.is_running()])
    finally:
        driver.kill()
        driver.wait()


@pytest.mark.skipif(any(map(os.path.exists, GPUS)), reason="where there is a GPU, nothing is forked")
def test_workers_are_forks_as_far_as_there_is_a_server_and_else_what_they_were() -> None:
    """All that a worker sees of itself is what it sees where Ray starts it; identifiers are each one's own."""

    def looked(preload: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-c", FORKS, preload], cwd=ROOT, env=environment(), text=True, capture_output=True,
            check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    forked, started = looked("jobs.preload"), looked("")
    *forks, after = forked["looks"]
    assert [look["parent"] for look in forks] == [forked["server"]] * 3
    assert after["parent"] != forked["server"]
    assert started["server"] is None
    looks = [*forks, after, *started["looks"]]
    assert len({look["id"] for look in looks}) == 8
    for name in ("path", "argv", "variables"):
        assert len({json.dumps(look[name], sort_keys=True) for look in looks}) == 1, name
    assert forks[0]["variables"]["MINE"] == "1"


def test_a_sweep_runs_where_the_temporary_directory_has_a_long_name(storage: Path, tmp_path: Path) -> None:
    """As schedulers make them for each job: too long for a socket's path."""
    long = tmp_path / ("job-" + "1" * 60)
    long.mkdir()
    done = sweeper("run", write_spec(tmp_path), storage=storage, env={"TMPDIR": str(long)})
    assert done.returncode == 0, done.stderr
