"""Ray for one command on one machine, without processes that nobody asks there. All that is overridden of its start.

`ray.init()` as it comes starts a dashboard (on a port of its own, with include_dashboard=False too), a monitor for an
autoscaler that there is none of, and one that reads logs for drivers that want them. Seen on Ray 2.60;
tests/unit/test_embedded.py notices when a part is named otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray._private.node import Node
from ray._private.parameter import RayParams


class _Node(Node):
    def start_monitor(self) -> None:
        pass

    def start_log_monitor(self) -> None:
        pass

    def start_api_server(self, **_: Any) -> None:
        pass


@contextmanager
def embedded(num_cpus: int | None) -> Iterator[str]:
    """Ray's processes for the block; yields the address at which this process may join them.

    They end with the process, however that ends.
    """
    node = _Node(RayParams(num_cpus=num_cpus), head=True, shutdown_at_exit=False, ray_init_cluster=True)
    try:
        yield node.gcs_address
    finally:
        node.destroy_external_storage()
        node.kill_all_processes(check_alive=False, allow_graceful=True)
