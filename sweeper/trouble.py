"""A sweep whose MLflow cannot be written: its writer keeps the reason in the sweep's folder, which readers show."""

from __future__ import annotations

import json
from typing import Any

from sweeper.store import Store

TROUBLE = "tracking.json"  # in a sweep's folder, while MLflow cannot be written


def words(known: dict[str, Any], now: float) -> str:
    """A line for people."""
    minutes = (now - known["since"]) / 60
    return f"MLflow is behind since {minutes:.0f} min ago, after {known['attempts']} attempts: {known['reason']}"


def trouble(store: Store, sweep: str) -> dict[str, Any] | None:
    """since (Unix time), reason, attempts: of a writer that is behind; None where all is written."""
    file = store.sweep_dir(sweep) / TROUBLE
    try:
        return dict(json.loads(file.read_text()))
    except (FileNotFoundError, ValueError):
        return None
