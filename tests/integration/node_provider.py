"""Nodes for Ray's autoscaler on one host: real ones (`ray start`), each with a folder of its own.

Ray's provider for laptops starts nodes that share their folder, and the agent of one deletes what a job has shipped to
the other as soon as it has no use for it itself. A node comes once the file $NODE_GATE is there; its folder is at
$NODE_FOLDER, the head's, where it sees nothing but its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider
from ray.autoscaler.tags import (
    NODE_KIND_WORKER,
    STATUS_UP_TO_DATE,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_NAME,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

START = 'until [ -e "$NODE_GATE" ]; do sleep 0.2; done; mount -t tmpfs tmpfs "$NODE_FOLDER" && exec "$@"'


class Provider(FakeMultiNodeProvider):
    """Keeps its list of nodes as its parent does; how one starts and ends is its own."""

    def _create_node_with_resources_and_labels(
        self, node_config: Any, tags: dict[str, str], count: int, resources: dict[str, float], labels: Any
    ) -> None:
        with self.lock:
            name = self._next_hex_node_id()
            own = {
                "RAY_OVERRIDE_NODE_ID_FOR_TESTING": name,
                "RAY_CLOUD_INSTANCE_ID": name,
                "RAY_NODE_TYPE_NAME": tags[TAG_RAY_USER_NODE_TYPE],
            }
            command = [
                "unshare", "-m", "sh", "-c", START, "sh",
                str(Path(sys.executable).parent / "ray"), "start", "--block", f"--address={self._gcs_address}",
                "--node-ip-address=127.0.0.1", f"--num-cpus={int(resources['CPU'])}", "--disable-usage-stats",
                "--dashboard-agent-listen-port=0",
            ]  # fmt: skip
            nothing = subprocess.DEVNULL
            process = subprocess.Popen(command, env=os.environ | own, stdout=nothing, stderr=nothing)
            self._nodes[name] = {
                "tags": {
                    TAG_RAY_NODE_KIND: NODE_KIND_WORKER,
                    TAG_RAY_NODE_NAME: name,
                    TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE,
                    **tags,
                },
                "node": process,
            }

    def _terminate_node(self, node: dict[str, Any]) -> None:
        node["node"].terminate()
        node["node"].wait(timeout=60)
