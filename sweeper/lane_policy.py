"""Which lanes to open and which to close. Pure: what the pool of lanes does every second."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.resources import Node, Shape
from cluster.sharing import Claim

PATIENCE_S = 3.0  # a grant that has shrunk for so long is meant; a running trial is then moved

Lanes = list[tuple[Shape, int]]


@dataclass
class Lane:
    """One worker group. up: its workers have come; key: the trial that it runs; excess_since: not granted any more;
    card: where it has GPUs, which node's and which; unwanted: set when nobody waits for its workers any more.
    """

    name: str
    shape: Shape
    opened: float
    up: bool = False
    key: str | None = None
    asked_to_end: bool = False
    excess_since: float | None = None
    card: str = ""
    unwanted: threading.Event = field(default_factory=threading.Event)


@dataclass
class Changes:
    """open: shapes of new lanes; close: names of lanes that break off their trial, if they have one, and end."""

    open: list[Shape] = field(default_factory=list)
    close: list[str] = field(default_factory=list)


def lanes_wanted(left: Mapping[Shape, int], lanes: Sequence[Lane], most: int | None) -> tuple[Lanes, Lanes]:
    """(lanes that trials are left for, idle lanes worth keeping if nobody needs the room), shapes in plan order."""
    wants: Lanes = []
    spare: Lanes = []
    room = most if most is not None else sum(left.values())
    have = Counter(lane.shape for lane in lanes if not lane.asked_to_end)
    for shape, trials in left.items():
        count = min(trials, room)
        room -= count
        wants.append((shape, count))
        if have[shape] > count:
            spare.append((shape, have[shape] - count))
    return wants, spare


def changes(granted: Mapping[Shape, int], wants: Mapping[Shape, int], lanes: Sequence[Lane], now: float) -> Changes:
    """Towards what is granted: open lanes that trials are left for; close idle ones, then, with patience, busy ones."""
    todo = Changes()
    for shape in {**wants, **{lane.shape: 0 for lane in lanes}}:
        mine = [lane for lane in lanes if lane.shape == shape and not lane.asked_to_end]
        may = granted.get(shape, 0)
        todo.open += [shape] * max(0, min(may, wants.get(shape, 0)) - len(mine))
        order = sorted(mine, key=_leaves_first(mine))
        for lane in order[: max(0, len(mine) - may)]:
            lane.excess_since = now if lane.excess_since is None else lane.excess_since
            busy = lane.key is not None or not lane.up
            if not busy or now - lane.excess_since >= PATIENCE_S:
                todo.close.append(lane.name)
        for lane in order[max(0, len(mine) - may) :]:
            lane.excess_since = None
    return todo


def _leaves_first(lanes: Sequence[Lane]) -> Callable[[Lane], tuple[Any, ...]]:
    """Idle ones first, then those not yet up, then the youngest; of shares of cards, those of the idlest card together.

    Scattered over cards, what they leave would be no whole card.
    """
    busy = Counter(lane.card for lane in lanes if lane.key is not None)

    def order(lane: Lane) -> tuple[Any, ...]:
        card = (busy[lane.card], lane.card) if 0 < lane.shape.gpus < 1 else (0, "")
        return (*card, lane.key is not None, lane.up, -lane.opened)

    return order


def why_waiting(
    wants: Lanes,
    granted: Mapping[Shape, int],
    lanes: Sequence[Lane],
    free: Node,
    unplaced: bool,
    others: Sequence[Claim],
) -> str:
    """Why no trial runs, in a line that names the resource; empty where one does, or will in a moment.

    free: what nobody has reserved, over the whole cluster; unplaced: workers that were asked for wait for room.
    """
    wanted = [shape for shape, count in wants if count]
    if not wanted or any(lane.up for lane in lanes):
        return ""
    shape = wanted[0]
    beside = ", ".join(f"{c.sweep} (priority {c.priority:g})" for c in others)
    if not any(granted.values()) and beside:
        return f"waiting for a share of the cluster: a trial needs {shape}; beside us: {beside}"
    if lanes and unplaced:
        have = " and ".join(f"{free.get(name, 0.0):g} {name}" for name in shape.each)
        return (
            f"waiting: a trial needs {shape}, free are {have}; {beside or 'others'} hold the rest, or nodes are coming"
        )
    return ""
