"""What a cluster that scales may grow to, as its files declare it.

Ray itself does not tell a driver: its autoscaler (2.60) publishes no node types, and nodes that are not up yet are in
no list. So the rendered files put them into the environment of every node.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

GROWS_TO = "SWEEPER_GROWS_TO"
MOST_NODES = 1000  # of one group; more than a sweep can use


class GrowthError(ValueError):
    """The environment's declaration cannot be read."""


def declare(groups: Iterable[tuple[int, int, int]]) -> str:
    """(nodes at most, CPUs each, GPUs each) of every group, as text for SWEEPER_GROWS_TO."""
    return json.dumps([{"count": count, "CPU": cpus, "GPU": gpus} for count, cpus, gpus in groups])


def possible_nodes(environ: Mapping[str, str]) -> list[dict[str, float]]:
    """CPU and GPU of every node that may be there, by Ray's names; none where nothing is declared.

    Raises GrowthError.
    """
    text = environ.get(GROWS_TO)
    if not text:
        return []
    try:
        return [
            {"CPU": float(group["CPU"]), "GPU": float(group["GPU"])}
            for group in json.loads(text)
            for _ in range(min(int(group["count"]), MOST_NODES))
        ]
    except (ValueError, KeyError, TypeError):
        like = declare([(8, 16, 1)])
        raise GrowthError(f"{GROWS_TO}: a list such as {like} is expected, got {text!r}") from None
