"""A container engine for the tests: the one that is there, else one that `../shared/container-lab` brings up.

`python -m tests.integration.container_engine` makes the image, beside other tests, and leaves the engine up for
test_compose.py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAB = ROOT.parent / "shared" / "container-lab" / "engine.sh"
IMAGE = "objective-continuum:test"


class Engine:
    """Builds the project's image in the background. `ready` waits for it."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.env = {k: v for k, v in os.environ.items() if k != "COMPOSE_PROJECT_NAME"}
        self.missing, self.lab, self.build = "", False, None
        if os.environ.get("TEST_IMAGE_IS_BUILT") and has_engine(self.env):
            command = ["docker", "image", "inspect", "--format", "{{.Id}}", IMAGE]  # while working on this test
        elif has_engine(self.env):
            command = ["docker", "build", "--file", "docker/Dockerfile", "--tag", IMAGE, "."]
        elif LAB.exists() and os.geteuid() == 0:
            self.lab = True
            self.env |= lab_settings()
            exports = subprocess.run([LAB, "env"], env=self.env, capture_output=True, text=True, check=True).stdout
            self.env |= dict(word.split("=", 1) for word in exports.removeprefix("export").split())
            if not has_engine(self.env):
                started_here(self.env).touch()
            # one process at a time: the tests' own finds what the one in the background has made. The engine that it
            # starts stays up and must not keep the lock
            once = ["flock", "--close", str(Path(self.env["LAB_WORK"]) / "lock")]
            command = [*once, str(LAB), "deps", "daemon", "base", "postgres", "wheels", "image"]
        else:
            self.missing = (
                "no container engine, and none can be brought up: ../shared/container-lab is missing, or not root"
            )
            return
        self.log = Path(tempfile.mkdtemp()) / "image.log"
        with self.log.open("w") as log:
            self.build = subprocess.Popen(command, cwd=ROOT, env=self.env, stdout=log, stderr=subprocess.STDOUT)

    def ready(self) -> dict[str, str]:
        """The environment in which `docker` finds the image. Raises AssertionError with the end of the log."""
        assert self.build is not None
        waited = time.monotonic()
        code = self.build.wait()
        text = self.log.read_text()
        if code != 0 and self.lab and "] wheels: " not in text:  # before our Dockerfile was even read
            pytest.skip(f"the lab's engine does not come up here: {text[-1500:]}")
        assert code == 0, text[-4000:]
        took, waited = time.monotonic() - self.started, time.monotonic() - waited
        print(f"image ready after {took:.0f} s, waited for {waited:.0f} s of them\n{text[-600:]}")
        return self.env

    def stop(self) -> None:
        if self.build is not None and self.build.poll() is None:
            self.build.terminate()
            self.build.wait()
        if self.lab and started_here(self.env).exists():
            subprocess.run([LAB, "stop"], env=self.env, check=False)
            started_here(self.env).unlink(missing_ok=True)


def started_here(env: dict[str, str]) -> Path:
    """A mark: the lab's engine was brought up by these tests, maybe by an earlier process of theirs."""
    return Path(env["LAB_WORK"]) / "started-by-tests"


def has_engine(env: dict[str, str]) -> bool:
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "version"], env=env, capture_output=True, check=False).returncode == 0


def lab_settings() -> dict[str, str]:
    """What the lab's engine.sh needs to build docker/Dockerfile: the wheels that its pip will ask for."""
    work = Path(tempfile.gettempdir()) / "container-lab"
    work.mkdir(exist_ok=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["gguf"], *extras["server"], "setuptools>=77"]
    (work / "constraints.txt").write_text((ROOT / "constraints.txt").read_text())
    (work / "requirements.txt").write_text("\n".join([f"-c {work / 'constraints.txt'}", *wanted]) + "\n")
    return {
        "LAB_WORK": str(work), "LAB_CTX": str(ROOT), "LAB_DOCKERFILE": str(ROOT / "docker" / "Dockerfile"),
        "LAB_REQ": str(work / "requirements.txt"), "LAB_IMAGE": IMAGE, "LAB_PIP": f"{sys.executable} -m pip",
    }  # fmt: skip


if __name__ == "__main__":
    engine = Engine()
    if engine.build is not None:
        code = engine.build.wait()
        print(f"image: status {code} after {time.monotonic() - engine.started:.0f} s, see {engine.log}")
