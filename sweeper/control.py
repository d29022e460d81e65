"""Ending a sweep from outside its driver, and waiting for its end: by the lock that the driver holds."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import socket
import time

from sweeper.store import Store, StoreError

POLL_S = 0.2


def driver(store: Store, sweep: str) -> tuple[int, str] | None:
    """(process id, host) of the driver that runs this sweep now; None where none does. Raises StoreError."""
    store.plan(sweep)  # an unknown sweep is an error, not one that is not running
    file = store.sweep_dir(sweep) / "driver.lock"
    if not file.exists():
        return None
    with file.open("r+") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            found = re.fullmatch(r"process (\d+) on (\S+)", held.read().strip())
            return (int(found[1]), found[2]) if found else None
    return None


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
    os.kill(process, signal.SIGTERM)
    wait(store, sweep)
    return True


def wait(store: Store, sweep: str) -> None:
    """Until no driver runs this sweep."""
    while driver(store, sweep) is not None:
        time.sleep(POLL_S)
