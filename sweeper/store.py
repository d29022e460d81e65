"""A storage root: trials shared by all sweeps, and the sweeps that asked for them.

<root>/trials/<key>/      one trial (jobs/record.py)
<root>/sweeps/<name>/     sweep.yaml, plan.json, driver.lock, report/
<root>/backbones/         prepared backbones (jobs/pretrain.py, jobs/backbone.py)
<root>/claims.lock        which trials a driver trains just now
<root>/mlflow.db          the default MLflow store, artifacts beside it
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cluster.strict import readable
from jobs.files import write_text
from jobs.record import TrialFolder
from jobs.spec import TrialSpec

LOOK_S = 0.5  # who only looks whether a sweep is being run has its lock for an instant (sweeper/control.py)
FORECAST = "forecast.json"  # in a sweep's folder: what `sweeper forecast` has said


class StoreError(ValueError):
    """The storage does not hold what was asked for, or somebody else is using it."""


class Store:
    """A storage root: trials shared by all sweeps, and the sweeps that asked for them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def trial(self, key: str) -> TrialFolder:
        return TrialFolder(self.root / "trials" / key)

    def sweep_dir(self, name: str) -> Path:
        return self.root / "sweeps" / name

    def sweeps(self) -> list[str]:
        return sorted(p.parent.name for p in (self.root / "sweeps").glob("*/plan.json"))

    def save_plan(self, name: str, source: str, trials: Sequence[TrialSpec], facts: Mapping[str, Any]) -> None:
        plan = {"sweep": name, **facts, "trials": [t.model_dump(mode="json") | {"key": t.key} for t in trials]}
        write_text(self.sweep_dir(name) / "sweep.yaml", source)
        write_text(self.sweep_dir(name) / "plan.json", json.dumps(plan, indent=1))

    def plan(self, name: str) -> dict[str, Any]:
        file = self.sweep_dir(name) / "plan.json"
        if not file.exists():
            known = ", ".join(self.sweeps()) or "none"
            raise StoreError(f"no sweep '{name}' in {self.root}; sweeps there: {known}")
        return dict(json.loads(file.read_text()))

    def trials(self, name: str) -> dict[str, TrialSpec]:
        """The trials of a sweep's newest plan by key, in plan order.

        Raises StoreError where this environment cannot read one, such as one with an objective that is not installed.
        """
        found = {}
        for row in self.plan(name)["trials"]:
            try:
                found[row["key"]] = TrialSpec.model_validate({k: v for k, v in row.items() if k != "key"})
            except ValidationError as error:
                reasons = "; ".join(readable(error, ""))
                raise StoreError(f"{self.sweep_dir(name) / 'plan.json'}: trial {row['key']}: {reasons}") from None
        return found

    def find_trial(self, name: str, beginning: str) -> str:
        """The one trial of a sweep whose key begins so. Raises StoreError."""
        found = [row["key"] for row in self.plan(name)["trials"] if row["key"].startswith(beginning)]
        if beginning in found:
            return beginning
        if len(found) != 1:
            what = "no trial" if not found else f"{len(found)} trials"
            raise StoreError(f"{what} of '{name}' begin with '{beginning}'; sweeper status {name} --json names them")
        return found[0]

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """One driver a sweep on this storage; the lock goes with the process that holds it."""
        file = self.sweep_dir(name) / "driver.lock"
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a+") as held:
            give_up = time.monotonic() + LOOK_S
            while True:
                try:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > give_up:
                        held.seek(0)
                        raise StoreError(f"sweep '{name}' is being run already ({held.read().strip()})") from None
                time.sleep(0.02)
            held.truncate(0)
            held.write(f"process {os.getpid()} on {socket.gethostname()}")
            held.flush()
            yield


class Claims:
    """Which trials this process may train and end; no other on this storage does meanwhile.

    <root>/claims.lock has a byte for each trial, which is locked. Like a sweep's own lock these go with the process.
    Only one object a process: to close the file frees all that the process holds.
    """

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.file = (root / "claims.lock").open("a+")

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def take(self, key: str) -> bool:
        """Whether the trial is this process' from now on, or was before."""
        try:
            fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, int(key.rpartition("_")[2], 16))
        except (BlockingIOError, PermissionError):  # a system says one or the other
            return False
        return True
