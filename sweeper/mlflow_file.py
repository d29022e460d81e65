"""The MLflow store of a storage, one SQLite file: made once, whole or not at all; a broken one is set aside.

MLflow makes such a file by some forty migrations. Two processes that migrate one file break it, and so does a kill in
between: every later command would fail. So it is made beside, under a lock, and moved into place.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

from jobs.files import locked

PREFIX = "sqlite:///"
MAKING_S = 300.0  # that another process may take to make it
HALF_MIGRATED = "_alembic_tmp_"


def file_of(uri: str) -> Path | None:
    """The file of a SQLite address; None for any other store."""
    return Path(uri.removeprefix(PREFIX)) if uri.startswith(PREFIX) else None


def ready(uri: str) -> str | None:
    """Make the file where there is none. Returns a line for people where a broken one was set aside.

    Raises OSError where it cannot be written, and what MLflow raises.
    """
    file = file_of(uri)
    if file is None or _is_whole(file):
        return None
    with locked(file.with_name(f".{file.name}.lock"), MAKING_S):
        if _is_whole(file):
            return None
        aside = None
        if file.exists() and file.stat().st_size:
            aside = file.with_name(f"{file.name}.broken-{time.strftime('%Y%m%d-%H%M%S')}")
            file.rename(aside)
        _make(file)
    return None if aside is None else f"{file} was broken and is set aside as {aside.name}; a new one is written"


def _is_whole(file: Path) -> bool:
    """Whether it can be read and no migration was cut off. One that is locked just now is whole."""
    if not file.exists() or not file.stat().st_size:
        return False
    try:
        # for writing: what a killed writer has left half done is rolled back
        with closing(sqlite3.connect(f"file:{file}?mode=rw", uri=True)) as connection:
            names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not {"alembic_version", "experiments", "runs"} <= names:
                return False
            version = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            return version is not None and not any(name.startswith(HALF_MIGRATED) for name in names)
    except sqlite3.OperationalError:
        return True  # locked, or not ours to write: nothing is known against it
    except sqlite3.DatabaseError:
        return False


def _make(file: Path) -> None:
    """By MLflow's own migrations, beside; then move it into place."""
    from mlflow.tracking import MlflowClient

    partial = file.with_name(f".{file.name}.new")
    for left in (partial, partial.with_name(f"{partial.name}-journal")):  # of a process that was killed
        left.unlink(missing_ok=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    MlflowClient(tracking_uri=f"{PREFIX}{partial}").search_experiments(max_results=1)
    partial.rename(file)
