"""What a trial occupies, and whether it fits. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Node = Mapping[str, float]  # a node's CPU and GPU, by Ray's names
ROUNDING = 1e-9  # ten shares of 0.1 are one


class PlacementError(ValueError):
    """A trial can never be placed on this cluster; the message names the resource that is short."""


@dataclass(frozen=True, order=True)
class Shape:
    """What one trial occupies: workers that start together or not at all, each with its CPUs and GPUs."""

    workers: int = 1
    cpus: float = 1.0
    gpus: float = 0.0

    @property
    def each(self) -> dict[str, float]:
        """Of one worker, by Ray's names."""
        return {name: amount for name, amount in (("CPU", self.cpus), ("GPU", self.gpus)) if amount > 0}

    def __str__(self) -> str:
        return " and ".join(
            f"{amount * self.workers:g} {name}"
            + (f" ({self.workers} workers x {amount:g})" if self.workers > 1 else "")
            for name, amount in self.each.items()
        )


class Room:
    """What a node has left. GPUs card by card, as Ray has them: a share lies on one, whole ones are free ones."""

    def __init__(self, node: Node) -> None:
        self.cpus, gpus = node.get("CPU", 0.0), node.get("GPU", 0.0)
        self.cards = [1.0] * int(gpus) + ([gpus % 1] if gpus % 1 else [])

    def workers(self, shape: Shape) -> int:
        """How many workers of a shape it takes."""
        fit = [int(self.cpus / shape.cpus + ROUNDING)] if shape.cpus > 0 else []
        if 0 < shape.gpus < 1:
            fit.append(sum(int(card / shape.gpus + ROUNDING) for card in self.cards))
        elif shape.gpus > 0:
            fit.append(int(len(self._whole()) / shape.gpus + ROUNDING))
        return min(fit)

    def take(self, shape: Shape, workers: int) -> None:
        """As many as `workers` has said to fit, at most. A share goes to the fullest card that has it."""
        self.cpus -= workers * shape.cpus
        if 0 < shape.gpus < 1:
            for _ in range(workers):
                open_ = [i for i, card in enumerate(self.cards) if card + ROUNDING >= shape.gpus]
                self.cards[min(open_, key=lambda i: self.cards[i])] -= shape.gpus
        else:
            for i in self._whole()[: math.ceil(workers * shape.gpus - ROUNDING)]:
                self.cards[i] = 0.0

    def _whole(self) -> list[int]:
        return [i for i, card in enumerate(self.cards) if card + ROUNDING >= 1]


def place(shape: Shape, left: Sequence[Room]) -> bool:
    """Take a trial's workers out of what nodes have left: all of them, on as few nodes as can be, or none."""
    rooms = [room.workers(shape) for room in left]
    if sum(rooms) < shape.workers:
        return False
    missing = shape.workers
    whole = [i for i, r in enumerate(rooms) if r >= missing]
    # the tightest node that takes all of them, else the roomiest ones first
    order = [min(whole, key=lambda i: rooms[i])] if whole else sorted(range(len(left)), key=lambda i: -rooms[i])
    for i in order:
        here = min(rooms[i], missing)
        left[i].take(shape, here)
        missing -= here
        if not missing:
            break
    return True


def lanes_that_fit(nodes: Sequence[Node], shape: Shape) -> int:
    """Trials of a shape at once on these nodes; raises PlacementError where not even one fits."""
    left = [Room(node) for node in nodes]
    count = 0
    while place(shape, left):
        count += 1
    if not count:
        raise PlacementError(_what_is_missing(nodes, shape))
    return count


def total(nodes: Iterable[Node]) -> dict[str, float]:
    """Of all nodes together."""
    sums: dict[str, float] = {}
    for node in nodes:
        for name, amount in node.items():
            sums[name] = sums.get(name, 0.0) + amount
    return sums


def _what_is_missing(nodes: Sequence[Node], shape: Shape) -> str:
    have = total(nodes)
    for name, each in shape.each.items():
        need = each * shape.workers
        if have.get(name, 0.0) + ROUNDING < need:
            return (
                f"a trial needs {need:g} {name} ({shape.workers} workers x {each:g}), the cluster has "
                f"{have.get(name, 0.0):g}; lower execution.workers or execution.{name.lower()}s_per_worker, "
                "or add nodes"
            )
    wants = " and ".join(f"{amount:g} {name}" for name, amount in shape.each.items())
    nodes_have = ", ".join(" and ".join(f"{node.get(name, 0.0):g} {name}" for name in shape.each) for node in nodes[:8])
    if shape.workers == 1:
        what = f"a worker with {wants} finds no node that has it"
    else:
        what = f"{shape.workers} workers with {wants} each find no places, each on one node"
    return f"{what}; the nodes have {nodes_have}; lower execution.workers or what each worker gets, or add nodes"
