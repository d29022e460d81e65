"""`sweeper run --address`: the same sweep on a Ray cluster that is already up."""

import subprocess
import sys
from pathlib import Path

from sweeper.store import Store

from .conftest import ROOT, Head, environment, write_spec


def test_a_sweep_runs_on_a_cluster_with_a_token(head: Head, storage: Path, tmp_path: Path) -> None:
    spec = write_spec(tmp_path, name="remote")
    command = [sys.executable, "-m", "sweeper", "run", str(spec), "--storage", str(storage), "--address", head.address]
    done = subprocess.run(
        command, cwd=ROOT, env=environment() | head.secret, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    store = Store(storage)
    assert {(store.trial(k).result() or {})["status"] for k in store.trials("remote")} == {"finished"}
