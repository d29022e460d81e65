"""The board between Tune and the lanes: trials are posted, lanes take them, rows and ends come back.

One Ray actor a sweep, without threads: every method is a coroutine on one loop. It holds no results; those are in
the trials' folders before the board hears of them.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from typing import Any

Message = dict[str, Any]


class Board:
    """specs: key -> TrialSpec as JSON; wait: whether trials wait for a scheduler's word at every evaluation."""

    def __init__(self, specs: dict[str, str], wait: bool, jobs_per_lane: int | None) -> None:
        self.specs, self.wait, self.jobs_per_lane = specs, wait, jobs_per_lane
        self.changed = asyncio.Condition()
        self.posted: deque[str] = deque()
        self.lanes: dict[str, list[str]] = defaultdict(list)  # keys that a lane was given, in order
        self.closing: set[str] = set()
        self.messages: dict[str, list[Message]] = defaultdict(list)
        self.read: dict[str, int] = defaultdict(int)  # how many messages of a trial were asked for
        self.over: set[str] = set()  # no longer wanted, or at its end
        self.aborted = False

    # Tune's side

    async def post(self, key: str) -> None:
        """Wanted: run this trial (again)."""
        self.over.discard(key)
        self.posted.append(key)
        await self._wake()

    async def listen(self, key: str) -> Message:
        """The trial's next message: {kind: row | finished | stopped | failed, row, error, died}."""
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

    async def next_job(self, lane: str, index: int) -> Message | None:
        """The lane's index-th trial, the same for all its ranks; None when it is to end."""
        async with self.changed:
            await self.changed.wait_for(lambda: self._give(lane, index))
        keys = self.lanes[lane]
        if index >= len(keys):
            return None
        return {"key": keys[index], "spec": self.specs[keys[index]], "wait": self.wait}

    def _give(self, lane: str, index: int) -> bool:
        keys = self.lanes[lane]
        spent = self.jobs_per_lane is not None and index >= self.jobs_per_lane
        if index < len(keys) or lane in self.closing or spent:
            return True
        if self.posted:
            keys.append(self.posted.popleft())
            return True
        return False

    async def wait_for_abort(self) -> None:
        """Returns when the sweep is stopped at once."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.aborted)

    async def say(self, key: str, message: Message) -> None:
        self.messages[key].append(message)
        await self._wake()

    async def ask(self, key: str, message: Message, wait: bool) -> bool:
        """Say something and hear whether to go on; with `wait`, after Tune has read it and asked for more."""
        await self.say(key, message)
        number = len(self.messages[key])
        if wait:
            async with self.changed:
                await self.changed.wait_for(lambda: key in self.over or self.read[key] > number)
        return key not in self.over

    # the driver's side

    async def close(self, lane: str) -> None:
        self.closing.add(lane)
        await self._wake()

    async def abort(self) -> None:
        """All workers are to exit where they are; their trials continue from their checkpoints another time."""
        self.aborted = True
        await self._wake()

    async def lane_ended(self, lane: str, error: str | None, died: bool) -> str | None:
        """A lane is gone. Returns the key of the trial that it leaves unfinished, which hears of it."""
        keys = self.lanes.pop(lane, [])
        if error is None or not keys or self._ended(keys[-1]):
            return None
        await self.say(keys[-1], {"kind": "failed", "error": error, "died": died})
        return keys[-1]

    def _ended(self, key: str) -> bool:
        return any(m["kind"] in ("finished", "stopped") for m in self.messages[key][-1:])

    async def num_posted(self) -> int:
        return len(self.posted)

    async def _wake(self) -> None:
        async with self.changed:
            self.changed.notify_all()
