"""A cluster with no worker: Ray's own autoscaler brings one when a sweep comes, and takes it away when it is over.

Its nodes are processes on this host (node_provider.py). Needs root, for a folder a node.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.growth import GROWS_TO, declare
from sweeper.store import Store

from .conftest import ROOT, Head, until, write_spec
from .test_doctor import nodes
from .test_submit import Client

PROVIDER = "tests.integration.node_provider.Provider"
COMMANDS = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
HEAD_ID = "f" * 51 + "00000"  # as that provider calls it


pytestmark = pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare")


@pytest.fixture
def growing(tmp_path: Path) -> Iterator[Head]:
    """A head that computes nothing, with an autoscaler that may add one node of two CPUs."""
    head = Head(tmp_path / "token")
    config = tmp_path / "autoscaling.json"
    worker = {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 1}
    config.write_text(
        json.dumps(
            {
                "cluster_name": "growing",
                "max_workers": 1,
                "idle_timeout_minutes": 0.1,
                "upscaling_speed": 1.0,
                "provider": {
                    "type": "external", "module": PROVIDER, "gcs_address": head.address, "launch_multiple": True,
                    "use_node_id_as_ip": True, "disable_node_updaters": True, "disable_launch_config_check": True,
                    "head_node_id": HEAD_ID,
                },
                "available_node_types": {
                    "ray.head.default": {"resources": {}, "node_config": {}, "max_workers": 0},
                    "worker": worker,
                },
                "head_node_type": "ray.head.default",
                **{f"{part}_commands": [] for part in COMMANDS},
                "auth": {},
                "file_mounts": {},
                **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
                "file_mounts_sync_continuously": False,
            }
        )
    )  # fmt: skip
    head.cpus, head.options = 0, [f"--autoscaling-config={config}"]
    head.env = {
        "PYTHONPATH": str(ROOT), GROWS_TO: declare([(1, 2, 0)]), "NODE_GATE": str(tmp_path / "gate"),
        "NODE_FOLDER": str(head.folder),
        "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "1", "RAY_CLOUD_INSTANCE_ID": HEAD_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
    }  # fmt: skip
    head.start()
    try:
        yield head
    finally:
        head.end()


def test_a_sweep_brings_its_node_and_the_node_goes_again(growing: Head, storage: Path, tmp_path: Path) -> None:
    assert len(nodes(growing)) == 1
    client = Client(growing, storage)
    spec = write_spec(tmp_path, name="grows", execution={"workers": 2})
    client("submit", spec)
    said = "waiting: a trial needs 2 CPU (2 workers x 1), free are 0 CPU"
    until("a word of what it waits for", lambda: said in client("logs", "grows").stdout, timeout_s=120)
    (tmp_path / "gate").touch()  # a quick machine would have its node before there is anything to say
    assert client("wait", "grows").returncode == 0
    store = Store(storage)
    assert {(store.trial(key).result() or {})["status"] for key in store.trials("grows")} == {"finished"}
    until("the node gone again", lambda: len(nodes(growing)) == 1, timeout_s=120)
