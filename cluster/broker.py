"""Where the drivers of several sweeps agree on who gets how much: one small actor a cluster, and its client.

The actor belongs to whichever driver made it and goes with it; the others then make the next one, which knows all of
them again within a heartbeat. Nothing stays behind on the cluster when the last sweep is over.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

from cluster.connect import HEAD
from cluster.resources import Node, Shape
from cluster.sharing import Claim, Grant, shares

NAME, NAMESPACE = "broker-1", "objective-continuum"
HEARTBEAT_S = 1.0
EXPIRE_S = 10.0  # a driver that has not been heard of is dead
SETTLE_S = 2.5  # until a new broker has heard everybody
ANSWER_S = 5.0


class Broker:
    """The actor: claims with the time at which they were last heard."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.born = clock()
        self.heard: dict[str, tuple[Claim, float]] = {}

    def share(self, claim: Claim, nodes: Sequence[Node]) -> tuple[Grant, list[Claim]] | None:
        """What the claim gets now, and the claims beside it; None while not everybody has been heard."""
        now = self.clock()
        self.heard[claim.id] = (claim, now)
        self.heard = {id_: (c, at) for id_, (c, at) in self.heard.items() if now - at < EXPIRE_S}
        if now - self.born < SETTLE_S:
            return None
        claims = [c for c, _ in self.heard.values()]
        return shares(nodes, claims)[claim.id], [c for c in claims if c.id != claim.id]

    def leave(self, id_: str) -> None:
        self.heard.pop(id_, None)


class Share:
    """A driver's view: what its sweep may have. `alone`: an embedded Ray has no other sweeps, and no broker."""

    def __init__(self, id_: str, sweep: str, priority: float, alone: bool) -> None:
        self.claim = Claim(id_, sweep, priority, time.time(), ())
        self.alone = alone
        self.granted = Grant()
        self.broker: Any = None  # kept: a named actor goes when its maker's last handle goes
        self.others: list[Claim] = []

    def update(self, nodes: Sequence[Node], wants: list[tuple[Shape, int]], spare: list[tuple[Shape, int]]) -> Grant:
        """Tell what is wanted and hear what is granted; while the broker is silent, what was granted last."""
        claim = dataclasses.replace(self.claim, wants=tuple(wants), spare=tuple(spare))
        if self.alone:
            self.granted = shares(nodes, [claim])[claim.id]
        elif (answer := self._ask("share", claim, nodes)) is not None:
            self.granted, self.others = answer
        return self.granted

    def leave(self) -> None:
        if not self.alone:
            self._ask("leave", self.claim.id)

    def _ask(self, method: str, *arguments: Any) -> Any:
        import ray

        try:
            if self.broker is None:
                made = ray.remote(num_cpus=0, resources=HEAD)(Broker)
                self.broker = made.options(name=NAME, namespace=NAMESPACE, get_if_exists=True).remote()
            return ray.get(getattr(self.broker, method).remote(*arguments), timeout=ANSWER_S)
        except ray.exceptions.RayActorError:
            self.broker = None  # its driver has just gone; the next heartbeat makes another
        except ray.exceptions.GetTimeoutError:
            pass
        return None
