"""`sweeper run --address`: the same sweep on a Ray cluster that is already up, with secrets that are seen nowhere."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from sweeper.store import Store

from .conftest import ROOT, Head, environment, until, write_spec

PLANTED = {"MLFLOW_TRACKING_PASSWORD": "planted-mlflow-7f3a", "HF_TOKEN": "hf_planted7f3a"}


def test_a_sweep_runs_on_a_cluster_with_a_token_and_tells_nobody(head: Head, storage: Path, tmp_path: Path) -> None:
    secrets = [*PLANTED.values(), Path(head.secret["RAY_AUTH_TOKEN_PATH"]).read_text()]
    spec = write_spec(tmp_path, name="remote")
    command = [sys.executable, "-m", "sweeper", "run", str(spec), "--storage", str(storage), "--address", head.address]
    store = Store(storage)
    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen(
            command, cwd=ROOT, env=environment() | head.secret | PLANTED, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        until("training", lambda: driver.poll() is not None or list(storage.glob("trials/*/metrics.jsonl")))
        seen = list(command_lines())
        assert any("sweeper run" in line for line in seen)
        assert not [line for line in seen if any(secret in line for secret in secrets)]
        assert driver.wait(timeout=900) == 0, (tmp_path / "log").read_text()
    finally:
        driver.kill()
        driver.wait()
    assert {(store.trial(k).result() or {})["status"] for k in store.trials("remote")} == {"finished"}
    of_ray = [word for line in command_lines(head.process.pid) for word in line.split()]
    session = next(Path(word.rpartition("=")[2]).parents[1] for word in of_ray if word.endswith("/sockets/raylet"))
    written = [file for folder in (storage, tmp_path / "log", session) for file in files(folder)]
    # the record, MLflow's database and artifacts, what the driver said, Ray's logs
    expected = {"trial.json", "plan.json", "mlflow.db", "report.html", "log", "gcs_server.out", "raylet.out"}
    assert expected <= {file.name for file in written}
    found = {(str(file), secret) for file in written for secret in secrets if secret.encode() in file.read_bytes()}
    assert not found


def command_lines(of: int | None = None) -> Iterator[str]:
    """Of every process, or of this one and its children."""
    one = [] if of is None else [psutil.Process(of), *psutil.Process(of).children(recursive=True)]
    for process in one or psutil.process_iter():
        with suppress(psutil.NoSuchProcess):
            yield " ".join(process.cmdline())


def files(folder: Path) -> list[Path]:
    return [folder] if folder.is_file() else [file for file in folder.rglob("*") if file.is_file()]
