"""Ray for one command: what is left out of its start is there upstream under the same name."""

import inspect
import sys

from ray._private import services
from ray._private.node import Node
from ray._private.utils import get_dashboard_dependency_error

from cluster.embedded import _no_dashboard, _Node


def test_whatever_is_left_out_is_there_upstream_and_started_by_nothing_else() -> None:
    left_out = {name for name, value in vars(_Node).items() if inspect.isfunction(value)}
    starts = inspect.getsource(Node.start_head_processes) + inspect.getsource(Node.start_ray_processes)
    assert left_out == {"start_monitor", "start_log_monitor", "start_api_server"}
    for name in left_out:
        assert f"self.{name}(" in starts, name


def test_for_the_block_ray_sees_no_dashboard_and_afterwards_all_is_as_before() -> None:
    assert get_dashboard_dependency_error.__name__ in inspect.getsource(services.start_raylet)
    before = sys.modules.get("ray.dashboard.optional_deps")
    with _no_dashboard():
        assert get_dashboard_dependency_error() is not None
    assert sys.modules.get("ray.dashboard.optional_deps") is before
    assert get_dashboard_dependency_error() is None
