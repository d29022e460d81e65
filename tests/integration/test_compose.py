"""docker/ for real: the image built, head, two workers, MLflow and database up, a worker killed in the middle.

An engine that is there is used as it is. Where there is none, `../shared/container-lab` brings one up (root only);
where that is missing too, this is skipped. The image takes some six minutes from nothing; `make integration` makes it
beside the other tests.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import ROOT, environment, free_port, until, write_spec
from .container_engine import IMAGE, Engine

SECRETS = ("ray_token", "db_password", "mlflow_password", "mlflow_key")
pytestmark = pytest.mark.timeout(2400)


def lap(what: str, since: float) -> float:
    print(f"{what}: {time.monotonic() - since:.0f} s", flush=True)
    return time.monotonic()


@pytest.fixture(scope="module")
def engine() -> Iterator[dict[str, str]]:
    """The environment in which `docker` finds an engine that has our image."""
    containers = Engine()
    if containers.missing:
        pytest.skip(containers.missing)
    try:
        yield containers.ready()
    finally:
        containers.stop()


class Compose:
    """The project's compose file, under a name and on ports of this test's own."""

    def __init__(self, engine: dict[str, str], specs: Path) -> None:
        self.ray, self.mlflow = free_port(), free_port()
        self.env = engine | {
            "COMPOSE_PROJECT_NAME": f"continuum-test-{os.getpid()}", "IMAGE": IMAGE, "SPECS": str(specs),
            "RAY_PORT": str(self.ray), "MLFLOW_PORT": str(self.mlflow), "SPEC": "small.yaml",
        }  # fmt: skip
        subprocess.run(["make", "--silent", *(f"docker/secrets/{name}" for name in SECRETS)], cwd=ROOT, check=True)
        self.secrets = {name: (ROOT / "docker" / "secrets" / name).read_text() for name in SECRETS}

    def __call__(self, *args: str, check: bool = True) -> str:
        done = self.run(["docker", "compose", "-f", "docker/compose.yaml", *args])
        assert done.returncode == 0 or not check, f"{args}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
        return done.stdout

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=ROOT, env=self.env, capture_output=True, text=True, check=False)

    def containers(self) -> list[str]:
        return self("ps", "--all", "--quiet").split()

    def head(self, script: str) -> str:
        return self("exec", "-T", "ray-head", "sh", "-c", script)

    def rows(self) -> dict[str, int]:
        """Trial -> its newest step, of those that have a complete checkpoint."""
        text = self.head("for d in /storage/trials/*/; do ls $d/checkpoints/*/COMPLETE >/dev/null 2>&1 && "
                         "echo $(basename $d) $(tail -n 1 $d/metrics.jsonl); done; true")  # fmt: skip
        found = (line.split(" ", 1) for line in text.splitlines() if "{" in line)
        return {name: int(json.loads(row)["step"]) for name, row in found}

    def client(self, *args: str) -> subprocess.CompletedProcess[str]:
        """The command line on this machine, as a user has it."""
        secret = {"RAY_AUTH_TOKEN_PATH": str(ROOT / "docker" / "secrets" / "ray_token")}
        return subprocess.run(
            [sys.executable, "-m", "sweeper", *args, "--address", f"http://127.0.0.1:{self.ray}", "--no-ship"],
            cwd=ROOT, env=environment() | secret, capture_output=True, text=True, timeout=900, check=False,
        )  # fmt: skip


@pytest.fixture(scope="module")
def compose(engine: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    specs = tmp_path_factory.mktemp("specs")
    specs.chmod(0o755)  # the containers' user reads it
    made = Compose(engine, specs)
    at = time.monotonic()
    try:
        made("up", "--detach", "--wait", "--no-build")
        lap("up and healthy", at)
        yield made
    finally:
        print(made("logs", "--no-log-prefix", "--tail", "20", "ray-head", check=False)[-3000:])
        made("down", "--volumes", "--timeout", "5", check=False)


def status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_nothing_answers_without_its_secret_and_nothing_listens_beyond_loopback(compose: Compose) -> None:
    assert status(f"http://127.0.0.1:{compose.ray}/api/jobs/") == 401
    assert status(f"http://127.0.0.1:{compose.mlflow}/api/2.0/mlflow/experiments/get?experiment_id=0") == 401
    for container in compose.containers():
        facts = json.loads(compose.run(["docker", "inspect", container]).stdout)[0]
        bound = [port["HostIp"] for ports in facts["NetworkSettings"]["Ports"].values() for port in ports or []]
        assert set(bound) <= {"127.0.0.1"}
        assert facts["HostConfig"]["Memory"] > 0
        if facts["Config"]["Image"] == IMAGE:
            assert facts["Config"]["User"] == "sweeper"


def test_a_sweep_survives_the_loss_of_a_worker(compose: Compose) -> None:
    at = time.monotonic()
    spec = write_spec(
        Path(compose.env["SPECS"]),
        concurrency=None,
        train={"lr": 1e-3, "batch_size": 32, "steps": 600, "max_length": 32, "checkpoint_every": 20},
        overrides=[{"where": {"objective": "one-minus-p"}, "execution": {"workers": 2}}],
    )
    submitted = compose.client("submit", str(spec))
    assert submitted.returncode == 0, submitted.stderr
    pair = until("two workers under way", lambda: next(
        (key for key, step in compose.rows().items() if "one-minus-p" in key and step >= 100), None))  # fmt: skip
    at = lap("two workers in two containers at step 100", at)
    victim = compose("ps", "--quiet", "ray-worker").split()[0]
    compose.run(["docker", "kill", victim])
    until("the loss to be known", lambda: compose.head(f"cat /storage/trials/{pair}/failures.jsonl || true").strip())
    at = lap("the loss is known", at)
    compose.run(["docker", "start", victim])
    ended = compose.client("wait", "small")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lap("the sweep's end", at)

    results = json.loads(compose.head("cat /storage/trials/*/result.json | python -c \"import json, sys; "
        "d = json.JSONDecoder(); t = sys.stdin.read(); out = []\nwhile t: o, n = d.raw_decode(t); out.append(o); "
        "t = t[n:].lstrip()\nprint(json.dumps(out))\""))  # fmt: skip
    assert [r["status"] for r in results] == ["finished"] * 3
    assert sorted(r["workers"] for r in results) == [1, 1, 2]
    assert any(r["resumed_from"] for r in results if r["workers"] == 2)


def test_the_runs_and_the_report_are_in_mlflow(compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    found = mlflow_runs(compose, monkeypatch)
    assert len(found) == 4  # the sweep's own and one a trial
    assert {run.info.status for run in found} == {"FINISHED"}
    assert "report/report.html" in artifacts(compose, found)


def test_no_secret_is_written_anywhere(compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = json.dumps([{**r.data.params, **r.data.tags} for r in mlflow_runs(compose, monkeypatch)])
    logs = compose("logs", "--no-log-prefix")
    listed = "".join(compose.run(["docker", "top", c]).stdout for c in compose("ps", "--quiet").split())
    facts = "".join(compose.run(["docker", "inspect", c]).stdout for c in compose.containers())
    history = compose.run(["docker", "history", "--no-trunc", IMAGE]).stdout
    for name, secret in compose.secrets.items():
        for where, text in {"MLflow": runs, "logs": logs, "ps": listed, "inspect": facts, "image": history}.items():
            assert secret not in text, f"{name} in {where}"
        # Ray's own session folder too: that is what `ray job logs` and support bundles show
        hit = compose.head(f"grep -rlF {secret} /storage /tmp/ray 2>/dev/null || true").strip()
        assert not hit, f"{name} in {hit}"


def test_the_make_targets_submit_fetch_the_report_and_stop(compose: Compose) -> None:
    """`make cluster-quickstart` and `make cluster-down` as they are, on a smaller sweep of that name."""
    write_spec(Path(compose.env["SPECS"]), name="quickstart")
    fetched = ROOT / "cluster-report"
    shutil.rmtree(fetched, ignore_errors=True)
    followed = compose.run(["make", "cluster-quickstart"])
    assert followed.returncode == 0, followed.stdout[-2000:] + followed.stderr[-2000:]
    assert "3 trials" in followed.stdout
    assert (fetched / "report.html").stat().st_size > 1000
    shutil.rmtree(fetched)
    stopped = compose.run(["make", "cluster-down"])
    assert stopped.returncode == 0, stopped.stderr[-2000:]
    assert not compose.containers()
    volumes = compose.run(["docker", "volume", "ls", "--quiet"]).stdout.split()
    assert any(name.startswith(compose.env["COMPOSE_PROJECT_NAME"]) for name in volumes)  # what was recorded stays


def mlflow_runs(compose: Compose, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", compose.secrets["mlflow_password"])
    client = MlflowClient(tracking_uri=f"http://127.0.0.1:{compose.mlflow}")
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def artifacts(compose: Compose, runs: list[Any]) -> set[str]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"http://127.0.0.1:{compose.mlflow}")
    return {item.path for run in runs for item in client.list_artifacts(run.info.run_id, "report")}
