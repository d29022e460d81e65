"""Workers on different nodes adding up numbers, as those of one trial do in every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.actors import answers, end, start
from cluster.facts import AllReduce, NodeFacts

GRACE_S = 10  # each rank keeps the limit by itself and says why it failed; whoever needs longer than that hangs


@dataclass(frozen=True)
class Member:
    """A node that takes part: its actor, its id and address in Ray, and what is known of it."""

    actor: Any
    id: str
    host: str
    facts: NodeFacts


def all_reduces(members: Sequence[Member], limit_s: float) -> tuple[AllReduce, ...]:
    """gloo over one worker a node (two on a node that is alone), and NCCL over one a node that has GPUs."""
    if not members:
        return ()
    beside = start(members[0].id, "beside") if len(members) == 1 else None
    second = [Member(beside, members[0].id, members[0].host, members[0].facts)] if beside else []
    sums = [_all_reduce("gloo", [*members, *second], limit_s)]
    if beside:
        end(beside)
    with_gpus = [m for m in members if m.facts.gpus and m.facts.machine and m.facts.machine.gpus]
    if with_gpus:
        sums.append(_all_reduce("nccl", with_gpus, limit_s))
    return tuple(sums)


def _all_reduce(backend: str, members: Sequence[Member], limit_s: float) -> AllReduce:
    names = tuple(member.facts.name for member in members)
    host = members[0].host
    offered = answers({"port": [members[0].actor.free_port.remote(host)]}, limit_s)["port"]
    if isinstance(offered, str):
        return AllReduce(backend, names, None, {names[0]: offered})
    asked = {
        str(rank): [member.actor.all_reduce.remote(rank, len(members), member.host, host, offered[0], backend, limit_s)]
        for rank, member in enumerate(members)
    }
    errors: dict[str, str] = {}
    slowest: float = 0.0
    for rank, answer in answers(asked, limit_s + GRACE_S).items():
        took, error = (0.0, answer) if isinstance(answer, str) else answer[0]
        if error:
            errors[names[int(rank)]] = error
        else:
            slowest = max(slowest, took)
    return AllReduce(backend, names, None if errors else slowest, errors)
