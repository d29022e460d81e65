"""Ray for one command: what is left out of its start is there upstream under the same name."""

import inspect

from ray._private.node import Node

from cluster.embedded import _Node


def test_whatever_is_left_out_is_there_upstream_and_started_by_nothing_else() -> None:
    left_out = {name for name, value in vars(_Node).items() if inspect.isfunction(value)}
    starts = inspect.getsource(Node.start_head_processes) + inspect.getsource(Node.start_ray_processes)
    assert left_out == {"start_monitor", "start_log_monitor", "start_api_server"}
    for name in left_out:
        assert f"self.{name}(" in starts, name
