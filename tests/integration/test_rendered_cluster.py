"""A head and a worker started as KubeRay starts them from the rendered manifests, and the RayJob's command on them.

Without Kubernetes: what a pod would get from its ConfigMap is the environment here, its `ray start` parameters are the
manifest's, both nodes are this host. The pods themselves, KubeRay and its submitter are not run.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.render import render
from cluster.strict import parse
from cluster.values import Values
from sweeper.store import Store

from .conftest import ROOT, answers, environment, free_port, until, write_spec


def manifests(storage: Path, sweep: str) -> dict[str, dict[str, Any]]:
    """Rendered for this storage, with one worker of two CPUs. kind, or the ConfigMap's name -> object."""
    raw = yaml.safe_load((ROOT / "cluster" / "values.yaml").read_text())
    for key in ("aws", "gcp", "local", "mlflow", "redis"):
        raw.pop(key)
    raw["storage"]["path"] = str(storage)
    raw["data_root"] = str(storage / "data")
    raw["head"]["shm_gib"] = 1
    raw["workers"] = [{"name": "cpu", "cpus": 2, "memory_gib": 4, "shm_gib": 1}]
    files = render(parse(json.dumps(raw), "values.yaml", Values), ("kuberay",), sweep)
    objects = [o for text in files.values() for o in yaml.safe_load_all(text)]
    return {o["metadata"]["name"] if o["kind"] == "ConfigMap" else o["kind"]: o for o in objects}


@contextmanager
def ray_start(params: dict[str, str], env: dict[str, str], **own: object) -> Iterator[None]:
    """`ray start --block` with these parameters; own: ports and addresses of a node that shares its host."""
    flags = {**params, "node-ip-address": "127.0.0.1", "dashboard-agent-listen-port": free_port(), **own}
    command = [str(Path(sys.executable).parent / "ray"), "start", "--block", *(f"--{k}={v}" for k, v in flags.items())]
    if "address" not in flags:
        command.append("--head")
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=60)


def status(url: str) -> int:
    """Without a token."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return int(error.code)
    except OSError:
        return 0


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    return write_spec(tmp_path, name="rendered")


def test_the_rendered_job_trains_and_a_second_one_has_nothing_to_do(spec: Path, storage: Path, tmp_path: Path) -> None:
    objects = manifests(storage, spec.read_text())
    job, variables = objects["RayJob"]["spec"], objects["sweeps-env"]["data"]
    cluster = job["rayClusterSpec"]
    file = tmp_path / "mounted" / "sweep.yaml"
    file.parent.mkdir()
    file.write_text(objects[f"{objects['RayJob']['metadata']['name']}-sweep"]["data"]["sweep.yaml"])
    python, *words = job["entrypoint"].replace("/etc/sweeper/sweep.yaml", str(file)).split()
    assert python == "python"
    secret = {"RAY_AUTH_MODE": cluster["authOptions"]["mode"], "RAY_AUTH_TOKEN": "b" * 64}  # KubeRay, from the Secret
    env = environment() | variables | secret | {"PYTHONPATH": str(ROOT)}  # the package is in the image

    gcs, dashboard, agent = free_port(), free_port(), free_port()
    head, worker = cluster["headGroupSpec"], cluster["workerGroupSpecs"][0]
    probe = head["template"]["spec"]["containers"][0]["readinessProbe"]["httpGet"]
    page = f"http://127.0.0.1:{dashboard}"
    with ExitStack() as nodes:
        folder = tempfile.mkdtemp(prefix="ray-")  # both nodes', as in a cluster of their own
        nodes.callback(shutil.rmtree, folder, ignore_errors=True)
        nodes.enter_context(
            ray_start(
                head["rayStartParams"] | {"dashboard-host": "127.0.0.1"}, env,
                **{"port": gcs, "dashboard-port": dashboard, "ray-client-server-port": free_port()},
                **{"dashboard-agent-listen-port": agent, "temp-dir": folder},
            )
        )  # fmt: skip
        until("the readiness probe", lambda: status(page + probe["path"]) == 200, timeout_s=120)
        assert status(f"{page}/api/version") == 401  # so a probe cannot ask this one
        until("KubeRay's own probe", lambda: status(f"http://127.0.0.1:{agent}/api/healthz") == 200, timeout_s=60)
        nodes.enter_context(ray_start(worker["rayStartParams"], env, address=f"127.0.0.1:{gcs}"))
        submit = [
            str(Path(sys.executable).parent / "ray"), "job", "submit", "--address", page, "--", sys.executable, *words,
        ]  # fmt: skip

        def run() -> str:
            done = subprocess.run(submit, env=environment() | secret, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        until("the worker", lambda: answers(gcs) and "2.0 CPU" in cpus(page, secret), timeout_s=120)
        first = run()
        store = Store(storage)
        results = {key: store.trial(key).result() for key in store.trials("rendered")}
        assert {(result or {})["status"] for result in results.values()} == {"finished"}
        assert "3 trials, 0 done before" in first
        again = run()
        assert "3 trials, 3 done before" in again
        assert {key: store.trial(key).result() for key in results} == results


def cpus(page: str, secret: dict[str, str]) -> str:
    request = urllib.request.Request(
        f"{page}/api/cluster_status", headers={"Authorization": f"Bearer {secret['RAY_AUTH_TOKEN']}"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(json.loads(answer.read()))
