"""Ray for one command on one machine, without processes that nobody asks there. All that is overridden of its start.

`ray.init()` as it comes starts a dashboard (on a port of its own, with include_dashboard=False too), a monitor for an
autoscaler that there is none of, and one that reads logs for drivers that want them. And its workers import for
themselves what one process may import for all (cluster/fork_server.py). Seen on Ray 2.60; tests/unit/test_embedded.py
notices when a part is named otherwise.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from ray._private.node import Node
from ray._private.parameter import RayParams

from cluster import forked_worker
from cluster.fork_server import fork_server


class _Node(Node):
    def start_monitor(self) -> None:
        pass

    def start_log_monitor(self) -> None:
        pass

    def start_api_server(self, **_: Any) -> None:
        pass


@contextmanager
def _no_dashboard() -> Iterator[None]:
    """As where Ray's dashboard is not installed: its packages are not imported to see that they are there."""
    name = "ray.dashboard.optional_deps"
    before = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before


@contextmanager
def embedded(num_cpus: int | None, preload: str | None) -> Iterator[str]:
    """Ray's processes for the block; yields the address at which this process may join them.

    They end with the process, however that ends. preload: a module that workers are to find imported
    """
    with ExitStack() as stack:
        setup = None
        if preload is not None:
            found = stack.enter_context(fork_server(preload))
            os.environ.update(found)
            stack.callback(lambda: [os.environ.pop(name) for name in found])
            setup = forked_worker.__file__
        params = RayParams(num_cpus=num_cpus, setup_worker_path=setup)
        with _no_dashboard():
            node = _Node(params, head=True, shutdown_at_exit=False, ray_init_cluster=True)
        try:
            yield node.gcs_address
        finally:
            node.destroy_external_storage()
            node.kill_all_processes(check_alive=False, allow_graceful=True)
