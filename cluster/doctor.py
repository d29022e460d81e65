"""Asking a cluster how it is: facts of every node, and of all of them together. A node that hangs is a fact, too."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.actors import answers, end, start
from cluster.all_reduce import Member, all_reduces
from cluster.facts import ClusterFacts, Machine, NodeFacts, Software, Storage
from cluster.node import Node, mark_path, read

CLOCK_READINGS = 8
SEEN_S = 5.0  # how long a network file system may take to show the driver what a node has written


def examine(root: Path, files: Sequence[str], limit_s: float) -> ClusterFacts:
    """Facts of the cluster that this process is connected to (cluster/connect.py).

    root:    the storage; made if need be, and taken away again if it is empty then
    files:   data files that every node must be able to read
    limit_s: how long the nodes may take to answer, and an all-reduce to end
    """
    import ray

    word = secrets.token_hex(16)
    made = _make(root)
    driver = Node(f"{word[:8]}-driver")
    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    names = {id_: f"{word[:8]}-{id_}" for id_ in nodes}
    actors = {id_: start(id_, name) for id_, name in names.items()}
    try:
        here = _storage(driver.storage(str(root), word, None, files))
        asked = {
            id_: [a.software.remote(), a.machine.remote(), a.storage.remote(str(root), word, driver.name, files)]
            for id_, a in actors.items()
        }
        found = {id_: _node_facts(nodes[id_], answer) for id_, answer in answers(asked, limit_s).items()}
        for id_, actor in actors.items():
            found[id_] = _timed(_seen(found[id_], mark_path(str(root), names[id_]), word), actor, limit_s)
        alive = [id_ for id_ in nodes if not found[id_].error]
        members = [Member(actors[id_], id_, nodes[id_]["NodeManagerAddress"], found[id_]) for id_ in alive]
        sums = all_reduces(members, limit_s)
        answers({id_: [actors[id_].forget.remote()] for id_ in alive}, limit_s)
        return ClusterFacts(str(root), Software(**driver.software()), here, tuple(found.values()), sums)
    finally:
        driver.forget()
        for actor in actors.values():
            end(actor)
        for folder in made:
            with suppress(OSError):  # something else has come into it
                folder.rmdir()


def _make(root: Path) -> list[Path]:
    """The folders that had to be made for the storage, innermost first; where that fails, the nodes will say so."""
    missing = [folder for folder in (root, *root.parents) if not folder.exists()]
    with suppress(OSError):
        root.mkdir(parents=True, exist_ok=True)
    return missing


def _node_facts(node: Mapping[str, Any], answer: list[Any] | str) -> NodeFacts:
    """node: as ray.nodes() describes it; answer: of its actor."""
    resources = node["Resources"]
    head = "head" if "node:__internal_head__" in resources else node["NodeID"][:6]
    facts = NodeFacts(
        name=f"{node['NodeManagerAddress']} ({head})",
        cpus=resources.get("CPU", 0.0),
        gpus=resources.get("GPU", 0.0),
        object_store=resources.get("object_store_memory", 0.0),
    )
    if isinstance(answer, str):
        return replace(facts, error=answer)
    software, machine, storage = answer
    return replace(facts, software=Software(**software), machine=Machine(**machine), storage=_storage(storage))


def _storage(answer: dict[str, Any]) -> Storage:
    return Storage(**answer | {"missing": tuple(answer["missing"])})


def _seen(facts: NodeFacts, mark: Path, word: str) -> NodeFacts:
    """Whether the driver finds what the node has written."""
    storage = facts.storage
    if storage is None or not storage.there or storage.error:
        return facts
    give_up = time.monotonic() + SEEN_S
    while not (seen := read(mark) == word) and storage.sees_driver and time.monotonic() < give_up:
        time.sleep(0.1)
    return replace(facts, storage=replace(storage, seen=seen))


def _timed(facts: NodeFacts, actor: Any, limit_s: float) -> NodeFacts:
    """The node's clock against the middle between request and answer, as NTP has it; the quickest exchange counts."""
    readings = []
    for _ in range(CLOCK_READINGS if not facts.error else 0):
        asked = time.time()
        answer = answers({"clock": [actor.clock.remote()]}, limit_s)["clock"]
        answered = time.time()
        if isinstance(answer, str):
            return replace(facts, error=f"gone while its clock was read: {answer}")
        readings.append((answered - asked, answer[0] - (asked + answered) / 2))
    if not readings:
        return facts
    round_trip, skew = min(readings)
    return replace(facts, skew=skew, round_trip=round_trip)
