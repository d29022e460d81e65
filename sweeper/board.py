"""The board between Tune and the lanes: trials are posted, lanes take them (some in groups), rows and ends come back.

One Ray actor a sweep, without threads: every method is a coroutine on one loop. It holds no results; those are in
the trials' folders before the board hears of them.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sweeper.grouping import Kin

Message = dict[str, Any]
ENDS = ("finished", "stopped", "diverged", "failed", "paused", "held")
GATHER_S = 30.0  # since the last trial was posted: so long a lane waits for more to train together with


@dataclass(frozen=True)
class State:
    """left: jobs that are not over and may run (a group is one), by shape; busy: lanes that are up, with a trial that
    each runs (None: idle); cards: of lanes that have GPUs, the node and the card.
    """

    left: dict[Any, int]
    busy: dict[str, str | None]
    cards: dict[str, str]


@dataclass(frozen=True)
class Place:
    """What a trial occupies. unmeasured: its kind, while nobody knows how much memory that takes; of these, one trial
    runs at a time. outside: bytes of its share of a GPU that torch's allocator does not get.
    """

    shape: Any
    unmeasured: str | None = None
    outside: int = 0


@dataclass(frozen=True)
class Ended:
    """What a lane that is gone leaves. left: keys of its unfinished trials; came_up: whether its workers ever asked for
    a trial; beside: whether another lane of its shape is up.
    """

    left: list[str]
    came_up: bool
    beside: bool


class Meeting:
    """Of all workers of a lane: how many have come, and what the first of them has brought."""

    def __init__(self) -> None:
        self.arrived, self.data, self.complete = 0, None, asyncio.Event()


class Barrier:
    """A lane's workers wait for each other at the board, by the call that Ray Train makes of an actor of its own."""

    def __init__(self, board: Any, lane: str) -> None:
        self.board, self.lane = board, lane

    @property
    def broadcast_from_rank_zero(self) -> Barrier:
        return self

    def remote(self, *, world_rank: int, world_size: int, data: Any, collective_seq: int, **_: Any) -> Any:
        return self.board.meet.remote(self.lane, collective_seq, world_rank, world_size, data)


class Board:
    """The mailbox of one sweep.

    specs:  key -> TrialSpec as JSON
    places: key -> what the trial occupies; a lane serves trials of its own shape
    wait:   whether trials wait for a scheduler's word at every evaluation
    kin:    key -> which trials it may be trained together with, and how many at most; without it, alone

    A trial that is held at a step writes a checkpoint there and ends ('held') until it is posted again.
    """

    def __init__(
        self,
        specs: dict[str, str],
        places: dict[str, Place],
        wait: bool,
        jobs_per_lane: int | None,
        kin: Mapping[str, Kin] | None = None,
    ) -> None:
        self.specs, self.places, self.wait, self.jobs_per_lane = specs, places, wait, jobs_per_lane
        self.changed = asyncio.Condition()
        self.posted: deque[str] = deque()
        self.kin = dict(kin or {})
        self.round = set(specs)  # what Tune is to post before this round is over
        self.posted_at = 0.0
        self.lanes: dict[str, list[list[str]]] = defaultdict(list)  # jobs that a lane was given: the keys of each
        self.runs: dict[str, str] = {}  # key -> the lane that has it now
        self.closing: set[str] = set()
        self.messages: dict[str, list[Message]] = defaultdict(list)
        self.read: dict[str, int] = defaultdict(int)  # how many messages of a trial were asked for
        self.over: set[str] = set()  # no longer wanted
        self.ended: set[str] = set()  # at their end, until they are posted again
        self.lane_shape: dict[str, Any] = {}
        self.groups: dict[str, Any] = {}  # a lane's placement group
        self.meetings: dict[str, dict[int, Meeting]] = defaultdict(dict)  # of a lane's workers, by number
        self.cards: dict[str, str] = {}
        self.measures: list[tuple[str, Message]] = []  # what trials took of memory, until the driver asks
        self.settling: set[str] = set()  # kinds that were measured and wait for their places
        self.words: dict[str, list[str | None]] = defaultdict(list)  # to a lane: break this trial off; None: exit
        self.dropped: set[str] = set()  # stopped by hand
        self.hold_at: dict[str, int] = {}  # key -> step
        self.given: dict[str, str] = {}  # key -> the spec that a lane was given
        self.phases: dict[str, str] = {}  # key -> what its workers do (jobs/clock.py)
        self.came_up: set[str] = set()  # lanes whose workers have asked for a trial
        self.told: dict[str, list[Message]] = defaultdict(list)  # what a lane's ranks have raised (jobs/failure.py)
        self.broken: dict[Any, Message] = {}  # shapes that no worker can be had for, with the failure
        self.paused: dict[str, str] = {}  # key -> why it is not to begin
        self.ending = False

    # Tune's side

    async def post(self, key: str) -> None:
        """Wanted: run this trial (again)."""
        self.over.discard(key)
        self.ended.discard(key)
        if (failure := self.broken.get(self.places[key].shape)) is not None:
            await self.say(key, {"kind": "failed", "failure": failure})
        elif key in self.dropped:
            await self.say(key, {"kind": "stopped"})
        elif key in self.paused:
            await self.say(key, {"kind": "paused", "error": self.paused[key]})
        else:
            self.posted.append(key)
            self.posted_at = time.monotonic()
            await self._wake()

    async def listen(self, key: str) -> Message:
        """The trial's next message: {kind: row or one of ENDS, row, error, failure (jobs.failure.Failure.record)}."""
        number = self.read[key]
        self.read[key] += 1
        await self._wake()  # asking for the next message is the word to go on
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.messages[key]) > number)
        return self.messages[key][number]

    async def cancel(self, key: str) -> None:
        """The scheduler has stopped this trial: it ends at its next evaluation."""
        self.over.add(key)
        if key in self.posted:
            self.posted.remove(key)
        await self._wake()

    # the lanes' side

    async def open(self, lane: str, shape: Any) -> None:
        """A lane is being brought up."""
        self.lane_shape[lane] = shape

    async def up(self, lane: str, group: Any, card: str = "") -> None:
        """Its workers are there, in this placement group, and will meet. card: of the first worker, if it has GPUs."""
        self.groups[lane] = group
        self.meetings.pop(lane, None)  # of workers that were there before these
        if card:
            self.cards[lane] = card

    async def group_of(self, lane: str) -> Any:
        """The placement group of a lane whose workers were there, for whoever must remove it; else None."""
        return self.groups.get(lane)

    async def meet(self, lane: str, number: int, rank: int, size: int, data: Any) -> Any:
        """Wait until all `size` workers of a lane have come to their number-th meeting: what rank 0 has brought."""
        meeting = self.meetings[lane].setdefault(number, Meeting())
        meeting.arrived += 1
        if rank == 0:
            meeting.data = data
        if meeting.arrived == size:
            meeting.complete.set()
            self.meetings[lane].pop(number, None)
        await meeting.complete.wait()
        return meeting.data

    async def next_jobs(self, lane: str, index: int) -> list[Message] | None:
        """The lane's index-th trial, or trials to train together, the same for all ranks; None when it is to end."""
        self.lanes[lane]  # it is up
        self.came_up.add(lane)
        async with self.changed:
            while not self._give(lane, index):
                # a group that nobody completes goes without the rest
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.changed.wait(), GATHER_S if self.kin and self.posted else None)
        jobs = self.lanes[lane]
        return None if index >= len(jobs) else [self._job(key) for key in jobs[index]]

    def _job(self, key: str) -> Message:
        self.given[key] = self.specs[key]
        return {
            "key": key, "spec": self.specs[key], "wait": self.wait, "hold_at": self.hold_at.get(key),
            "outside": self.places[key].outside,
        }  # fmt: skip

    def _give(self, lane: str, index: int) -> bool:
        jobs = self.lanes[lane]
        spent = self.jobs_per_lane is not None and index >= self.jobs_per_lane
        if index < len(jobs) or lane in self.closing or spent:
            return True
        measuring = self.settling | {self._unmeasured(key) for key in self.runs} - {None}
        for key in self.posted:
            place = self.places[key]
            if place.shape != self.lane_shape[lane] or place.unmeasured in measuring:
                continue
            if group := self._group(key):
                self.runs = {one: other for one, other in self.runs.items() if other != lane}  # it asks for more
                for one in group:
                    self.posted.remove(one)
                    self.runs[one] = lane
                    self.phases.pop(one, None)
                jobs.append(group)
                return True
        return False

    def _group(self, key: str) -> list[str]:
        """The posted trials to train together, this one first; none while more of them are about to be posted."""
        kin = self.kin.get(key)
        if kin is None:
            return [key]
        like = [one for one in self.posted if one != key and self.kin.get(one) == kin]
        found = [key, *like][: kin.most]
        if len(found) < kin.most and time.monotonic() - self.posted_at < GATHER_S and self._expected(kin):
            return []
        return found

    def _expected(self, kin: Kin) -> bool:
        """Whether Tune will post another one of these."""
        known = self.ended | self.over | self.dropped | set(self.posted) | self.runs.keys()
        return any(key not in known and self.kin.get(key) == kin for key in self.round)

    async def next_word(self, lane: str, number: int) -> str | None:
        """The number-th word to a lane: a trial to break off at its next row, with a checkpoint; None: exit at once."""
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.words[lane]) > number)
        return self.words[lane][number]

    async def gave_back(self, key: str) -> bool:
        """A lane has broken a trial off. Whether that is its end; else it is posted again, before all others."""
        if key in self.dropped:
            return True
        self.runs.pop(key, None)
        if not self.ending:
            self.posted.appendleft(key)
            await self._wake()
        return False

    async def measured(self, key: str, measure: Message) -> None:
        """What a trial took of memory, before its end is said: others of its kind wait for the places that follow."""
        self.measures.append((key, measure))
        self.settling |= {kind for kind in (self._unmeasured(key),) if kind}

    async def raised(self, lane: str, failure: Message) -> None:
        """What one of a lane's ranks has raised, before Ray Train knows (jobs.failure.Failure.record)."""
        self.told[lane].append(failure)

    async def say(self, key: str, message: Message) -> None:
        self.messages[key].append(message)
        if message["kind"] in ENDS:
            self.ended.add(key)
            self.runs.pop(key, None)
        await self._wake()

    async def ask(self, key: str, message: Message, wait: bool) -> bool:
        """Say something and hear whether to go on; with `wait`, after Tune has read it and asked for more."""
        await self.say(key, message)
        number = len(self.messages[key])
        if wait:
            async with self.changed:
                await self.changed.wait_for(lambda: key in self.over or self.read[key] > number or self.ending)
        return key not in self.over

    # the driver's side

    async def hold(self, steps: dict[str, int | None]) -> None:
        """A round begins: these trials, each held at a step, or at none (None)."""
        self.round = set(steps)
        self.ended -= self.round  # all of it is to be posted
        for key, step in steps.items():
            self.hold_at.pop(key, None)
            if step is not None:
                self.hold_at[key] = step

    async def state(self) -> State:
        """Where the sweep stands, for whoever opens and closes lanes."""
        left: Counter[Any] = Counter()
        together: Counter[tuple[Kin, Any]] = Counter()
        waits = set[str]()
        for key, place in self.places.items():
            if key not in self.round or key in self.ended or place.unmeasured in waits:
                continue
            if key in self.kin:
                together[self.kin[key], place.shape] += 1
                continue
            left[place.shape] += 1
            if place.unmeasured:  # the others of its kind wait for it
                waits.add(place.unmeasured)
        for (kin, shape), count in together.items():
            left[shape] += -(-count // kin.most)
        busy = {lane: next(iter(self._running(lane)), None) for lane in self.lanes}
        return State(dict(left), busy, dict(self.cards))

    async def take_measures(self) -> list[tuple[str, Message]]:
        """What was measured since the last time."""
        taken, self.measures = self.measures, []
        return taken

    async def place(self, places: dict[str, Place], specs: dict[str, str]) -> None:
        """Where trials are placed from now on, and how they run."""
        self.places |= places
        self.specs |= specs
        self.settling &= {kind for kind in map(self._unmeasured, self.places) if kind}
        await self._wake()

    async def close(self, lane: str, break_off: bool = False) -> None:
        """The lane is to end after its trial; with break_off after its next row, and the trial goes elsewhere."""
        self.closing.add(lane)
        if break_off:
            self.words[lane] += self._running(lane)
        await self._wake()

    async def drop(self, key: str) -> bool:
        """Stop a trial for good. Whether a lane runs it, and so writes its last word."""
        self.dropped.add(key)
        if key in self.posted:
            self.posted.remove(key)
            await self.say(key, {"kind": "stopped"})
        running = [lane for lane in self.lanes if key in self._running(lane)]
        for lane in running:
            self.words[lane].append(key)
        await self._wake()
        return bool(running)

    async def give_up(self, failure: Message, shape: Any = None) -> None:
        """No lane of this shape can be brought up (None: of any): what waits for one fails; what runs goes on."""
        shapes = {place.shape for place in self.places.values()} if shape is None else {shape}
        self.broken |= dict.fromkeys(shapes, failure)
        for key in [key for key in self.posted if self.places[key].shape in shapes]:
            self.posted.remove(key)
            await self.say(key, {"kind": "failed", "failure": failure})

    async def pause(self, keys: list[str], reason: str) -> list[str]:
        """These are not to begin; what runs goes on. Returns those that this holds back."""
        held = [key for key in keys if key not in self.ended and key not in self.runs and key not in self.paused]
        self.paused |= dict.fromkeys(held, reason)
        for key in [key for key in self.posted if key in self.paused]:
            self.posted.remove(key)
            await self.say(key, {"kind": "paused", "error": reason})
        return held

    async def end(self, at_once: bool) -> None:
        """The sweep is being stopped: trials break off at their next row, or workers exit where they are."""
        self.ending = True
        for lane in self.lane_shape:
            self.closing.add(lane)
            if at_once:
                self.words[lane].append(None)
            else:
                self.words[lane] += self._running(lane)
        await self._wake()

    async def running_in(self, lane: str) -> dict[str, str]:
        """The trials that a lane runs, with the specs that it was given."""
        return {key: self.given[key] for key in self._running(lane)}

    async def now(self, key: str, phase: str) -> None:
        """What a trial's workers do from now on."""
        self.phases[key] = phase

    async def phases_in(self, lane: str) -> set[str]:
        """What the trials that a lane runs were at when last heard of; of a group one evaluates while the rest wait."""
        return {self.phases[key] for key in self._running(lane) if key in self.phases}

    async def try_again(
        self,
        lane: str,
        keys: list[str],
        specs: dict[str, str],
        places: dict[str, Place],
        kin: Mapping[str, Kin | None],
    ) -> None:
        """A lane that has ended ran out of memory: all this holds from now on, and its trials are the next ones."""
        self.lanes.pop(lane, None)
        self._regroup(kin)
        await self.place(places, specs)
        await self._again(keys)

    async def has_come_up(self, lane: str) -> bool:
        """Whether a lane's workers have ever asked for a trial."""
        return lane in self.came_up

    async def told_by(self, lane: str) -> list[Message]:
        """What its ranks have raised, in the order in which it was told."""
        return self.told[lane]

    async def lane_ended(self, lane: str, failure: Message | None, again: Collection[str] = ()) -> Ended:
        """A lane is gone. failure: why, if it was not to end; again: keys of trials that are to be tried again.

        A single trial fails, or is posted again. Members of a group are posted again to run alone from their newest
        checkpoints, so that only the one at fault fails.
        """
        left = self._running(lane)
        for key in left:
            self.runs.pop(key)
        shape, came_up = self.lane_shape.pop(lane, None), lane in self.came_up
        for known in (self.lanes, self.groups, self.meetings, self.cards, self.told):
            known.pop(lane, None)
        self.came_up.discard(lane)
        beside = any(self.lane_shape.get(other) == shape for other in self.came_up)
        await self._wake()  # the trial that it was to measure may be another's now
        if failure is not None and not self.ending:
            if len(left) > 1:
                self._regroup(dict.fromkeys(left))
                await self._again(left)
            for key in left if len(left) == 1 else []:
                if key in again:
                    await self._again([key])
                else:
                    await self.say(key, {"kind": "failed", "failure": failure})
        return Ended([] if failure is None else left, came_up, beside)

    async def _again(self, keys: list[str]) -> None:
        """Post before all others what a lane has lost, but for what somebody has stopped meanwhile."""
        for key in keys:
            self.runs.pop(key, None)
            if key in self.dropped:
                await self.say(key, {"kind": "stopped"})
            elif key in self.paused:
                await self.say(key, {"kind": "paused", "error": self.paused[key]})
        self.posted.extendleft(key for key in reversed(keys) if key not in self.dropped | self.paused.keys())
        await self._wake()

    def _regroup(self, kin: Mapping[str, Kin | None]) -> None:
        for key, new in kin.items():
            self.kin.pop(key, None)
            if new is not None:
                self.kin[key] = new

    def _running(self, lane: str) -> list[str]:
        """The trials that a lane was given and that are not at their end and not given back."""
        return [key for key, other in self.runs.items() if other == lane]

    def _unmeasured(self, key: str | None) -> str | None:
        """The kind of a trial, if nobody knows how much memory that takes."""
        return None if key is None else self.places[key].unmeasured

    async def _wake(self) -> None:
        async with self.changed:
            self.changed.notify_all()
