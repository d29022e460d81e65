"""An actor on each node that answers for it, and answers that are waited for no longer than said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster import node as node_side
from cluster.node import Node
from jobs import network


def start(node_id: str, name: str) -> Any:
    """A Node on the node of this id. It asks for no CPU, so that a cluster full of trials answers, too."""
    import ray
    from ray import cloudpickle
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    for module in (node_side, network):
        cloudpickle.register_pickle_by_value(module)  # a node need not have this package
    here = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(num_cpus=0)(Node).options(scheduling_strategy=here).remote(name)


def end(actor: Any) -> None:
    import ray

    ray.kill(actor)


def answers(asked: Mapping[str, list[Any]], limit_s: float) -> dict[str, list[Any] | str]:
    """What each of them was asked for, by key, or in a line why it is not there after limit_s, the same for all."""
    import ray

    flat = [ref for refs in asked.values() for ref in refs]
    ready = set(ray.wait(flat, num_returns=len(flat), timeout=limit_s)[0]) if flat else set()
    found: dict[str, list[Any] | str] = {}
    for key, refs in asked.items():
        if ready.issuperset(refs):
            try:
                found[key] = ray.get(refs)
            except ray.exceptions.RayError as error:
                found[key] = str(error).strip().splitlines()[-1]
        else:
            found[key] = f"no answer within {limit_s:g} s"
    return found
