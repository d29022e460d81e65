"""How the sweeps of one cluster share it. Pure.

Weighted dominant resource fairness (Ghodsi et al., NSDI 2011) by progressive filling: the next lane goes to the sweep
whose scarcest resource, as a share of the cluster and divided by its priority, is the smallest so far.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.resources import Node, Room, Shape, place, total


@dataclass(frozen=True)
class Claim:
    """What a sweep asks for now.

    id:       of its driver, unique on the cluster; sweep: its name, for messages
    priority: its weight, above 0
    since:    Unix time; of two equals the older goes first
    wants:    (shape, lanes that trials are there for), in order of preference
    spare:    lanes that it would keep warm if nobody else needs the room
    """

    id: str
    sweep: str
    priority: float
    since: float
    wants: tuple[tuple[Shape, int], ...]
    spare: tuple[tuple[Shape, int], ...] = ()


Grant = Counter[Shape]


def shares(nodes: Sequence[Node], claims: Sequence[Claim]) -> dict[str, Grant]:
    """Lanes by claim's id and shape. All wants are served before anybody's spare lanes."""
    left = [Room(node) for node in nodes]
    whole = total(nodes)
    given = {claim.id: Grant() for claim in claims}
    for open_ in ({c.id: Counter(dict(c.wants)) for c in claims}, {c.id: Counter(dict(c.spare)) for c in claims}):
        while any(_give_one(claim, open_[claim.id], given[claim.id], left) for claim in _by_turn(claims, given, whole)):
            pass
    return given


def _by_turn(claims: Sequence[Claim], given: dict[str, Grant], whole: Node) -> list[Claim]:
    return sorted(claims, key=lambda c: (_dominant(given[c.id], whole) / c.priority, c.since, c.id))


def _dominant(grant: Grant, whole: Node) -> float:
    """The largest share of any one resource that these lanes take."""
    used: Counter[str] = Counter()
    for shape, lanes in grant.items():
        for name, amount in shape.each.items():
            used[name] += amount * shape.workers * lanes  # type: ignore[assignment]
    return max((amount / whole[name] for name, amount in used.items()), default=0.0)


def _give_one(claim: Claim, open_: Counter[Shape], grant: Grant, left: Sequence[Room]) -> bool:
    for shape in list(open_):  # in the order of the claim
        if open_[shape] > 0 and place(shape, left):
            open_[shape] -= 1
            grant[shape] += 1
            return True
    return False
