"""Ending a sweep from outside its driver, and waiting for its end: by the lock that the driver holds."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import socket
import time
from pathlib import Path

from sweeper.store import Claims, Store, StoreError

POLL_S = 0.2
REQUESTS = "stop"  # a file here is a trial to stop


def driver(store: Store, sweep: str) -> tuple[int, str] | None:
    """(process id, host) of the driver that runs this sweep now; None where none does. Raises StoreError."""
    store.plan(sweep)  # an unknown sweep is an error, not one that is not running
    file = store.sweep_dir(sweep) / "driver.lock"
    if not file.exists():
        return None
    give_up = time.monotonic() + POLL_S * 10
    while time.monotonic() < give_up:
        with file.open() as held:
            try:
                fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: who else only looks is no driver
                return None
            except BlockingIOError:
                found = re.fullmatch(r"process (\d+) on (\S+)", held.read().strip())
        if found:
            return int(found[1]), found[2]
        time.sleep(POLL_S / 10)  # it has the lock and has not said yet who it is
    raise StoreError(f"{file} is held by a process that does not say who it is")


def _holds(process: int, file: Path) -> bool:
    """Whether this process of this host has the file open, as far as can be seen: a file keeps a dead driver's id."""
    try:
        return any(target.exists() and target.samefile(file) for target in Path(f"/proc/{process}/fd").iterdir())
    except FileNotFoundError:
        return not Path("/proc/self/fd").exists()  # no such process, or no such system
    except PermissionError:
        return True  # of another user, who will not be signalled either


def stop(store: Store, sweep: str) -> bool:
    """Tell the driver to end, and wait until it has: workers gone, MLflow runs closed. False where none was running.

    What is under way continues from its newest checkpoint when the sweep is resumed. Raises StoreError where the
    driver is on another host.
    """
    running = driver(store, sweep)
    if running is None:
        return False
    process, host = running
    if host != socket.gethostname():
        raise StoreError(f"the driver of '{sweep}' is process {process} on {host}; stop it there")
    if not _holds(process, store.sweep_dir(sweep) / "driver.lock"):
        if driver(store, sweep) != running:
            return stop(store, sweep)  # it has ended, and perhaps another has begun
        raise StoreError(
            f"the driver of '{sweep}' says process {process}, which is not it; is it in another container?"
        )
    try:
        os.kill(process, signal.SIGTERM)
    except ProcessLookupError:
        pass  # it has just ended
    except PermissionError:
        raise StoreError(f"the driver of '{sweep}' is process {process} of another user; ask them to stop it") from None
    wait(store, sweep)
    return True


def stop_trial(store: Store, sweep: str, trial: str) -> tuple[str, str]:
    """Stop one trial, named by its key's beginning, for good, and wait until that is recorded.

    Returns its key, and 'stopped', or 'is finished already' and the like where it has ended by itself.
    Where it is under way it writes a checkpoint at its next row. Raises StoreError.
    """
    key = store.find_trial(sweep, trial)
    folder = store.trial(key)
    if (result := folder.result()) is not None:
        return key, f"is {result['status']} already"
    request = store.sweep_dir(sweep) / REQUESTS / key
    request.parent.mkdir(exist_ok=True)
    request.touch()
    while folder.result() is None:
        if driver(store, sweep) is None:  # nobody hears: it is ours to record
            with Claims(store.root) as claims:
                if not claims.take(key):
                    request.unlink(missing_ok=True)
                    raise StoreError(f"trial '{key}' is under way in another sweep; stop it there")
                folder.create(store.trials(sweep)[key])
                folder.stop_by_hand()
        time.sleep(POLL_S)
    request.unlink(missing_ok=True)
    result = folder.result() or {}
    return key, "stopped" if result.get("by") == "hand" else f"is {result.get('status')} already"


def stop_requests(store: Store, sweep: str) -> list[str]:
    """Keys of trials that somebody wants stopped, each given once."""
    found = sorted((store.sweep_dir(sweep) / REQUESTS).glob("*"))
    trials = store.trials(sweep) if found else {}
    for request in found:
        if request.name in trials:  # else asked for under an older plan
            store.trial(request.name).create(trials[request.name])
        request.unlink(missing_ok=True)
    return [request.name for request in found if request.name in trials]


def wait(store: Store, sweep: str) -> None:
    """Until no driver runs this sweep."""
    while driver(store, sweep) is not None:
        time.sleep(POLL_S)
