"""Ray for one command: what it starts, and that nothing of it outlives the command, however that ends."""

import subprocess
import sys

import psutil
import pytest

from .conftest import ROOT, environment, until

DRIVER = """
import sys
from cluster.connect import connected
with connected(None, num_cpus=1):
    import ray
    ray.get(ray.remote(lambda: None).remote())
    print("up", flush=True)
    sys.stdin.readline()
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
