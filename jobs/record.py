"""The record of one trial on disk: spec, rows, checkpoints, result. The truth; MLflow and the report are views.

trials/<key>/trial.json       the spec
             metrics.jsonl    rows, appended, one a step, never rewritten
             checkpoints/step-<n>/    bounded; a folder without COMPLETE does not count
             answers/<set>.jsonl.gz   what was answered at the newest evaluation, a problem a line
             failures.jsonl   one line an attempt that failed: kind, type, message, traceback, rank (jobs/failure.py)
             seconds.json     what it has taken up to its newest checkpoint (jobs/clock.py)
             result.json      written whole, at the end: the trial is over
             REVIVED          it was stopped and is wanted after all
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.failure import Failure
from jobs.files import write_text
from jobs.spec import TrialSpec

COMPLETE, REVIVED = "COMPLETE", "REVIVED"
KEEP_CHECKPOINTS = 1  # of a trial; for a moment the next one stands beside it
Row = dict[str, float]


@dataclass(frozen=True)
class TrialFolder:
    """The record of one trial: the truth, from which MLflow and the report are made."""

    path: Path

    @property
    def key(self) -> str:
        return self.path.name

    def create(self, trial: TrialSpec) -> None:
        if not (self.path / "trial.json").exists():
            write_text(self.path / "trial.json", trial.model_dump_json(indent=1) + "\n")

    def spec(self) -> TrialSpec:
        return TrialSpec.model_validate_json((self.path / "trial.json").read_text())

    def started(self) -> float | None:
        """Unix time, seconds; None: no worker has had it yet."""
        file = self.path / "trial.json"
        return file.stat().st_mtime if file.exists() else None

    # rows

    def rows(self) -> list[Row]:
        """All whole rows; a last line torn by a kill is not one."""
        return list(self.rows_from(0)[0])

    def rows_from(self, offset: int) -> tuple[list[Row], int]:
        """Rows that start at byte `offset`, and the offset after them."""
        file = self.path / "metrics.jsonl"
        if not file.exists():
            return [], 0
        with file.open("rb") as stream:
            stream.seek(offset)
            whole = stream.read().rpartition(b"\n")
        text = whole[0] + whole[1]
        return [json.loads(line) for line in text.splitlines()], offset + len(text)

    def last_step(self) -> int:
        """Of the newest row; 0 where there is none."""
        rows = self.rows()
        return int(rows[-1]["step"]) if rows else 0

    def write_answers(self, name: str, problems: list[dict[str, Any]]) -> None:
        file = self.path / "answers" / f"{name}.jsonl.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{file.name}.{os.getpid()}")
        with gzip.open(partial, "wt", encoding="utf-8") as stream:
            stream.writelines(json.dumps(problem) + "\n" for problem in problems)
        partial.replace(file)

    def answers(self, name: str) -> list[dict[str, Any]]:
        """number, texts (greedy first), scores (value, answer), tokens, ended; a problem each."""
        with gzip.open(self.path / "answers" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as stream:
            return [json.loads(line) for line in stream]

    # the end

    def result(self) -> dict[str, Any] | None:
        file = self.path / "result.json"
        return json.loads(file.read_text()) if file.exists() else None

    def finish(self, status: str, **facts: Any) -> None:
        """Atomic. Without a result a trial is continued. status: finished, diverged, stopped, failed or paused."""
        said = {"status": status, "time": time.time()} | self.seconds() | facts
        write_text(self.path / "result.json", json.dumps(said, indent=1))

    def seconds(self) -> dict[str, float]:
        """setup_s and train_s of all legs, up to the newest checkpoint or the last leg's end; empty before that."""
        file = self.path / "seconds.json"
        return dict(json.loads(file.read_text())) if file.exists() else {}

    def write_seconds(self, spent: Mapping[str, float]) -> None:
        write_text(self.path / "seconds.json", json.dumps(spent))

    def stop_by_hand(self) -> None:
        """The last word of a trial that somebody has stopped while no worker had it; nothing where it has one."""
        if self.result() is not None:
            return
        self.finish("stopped", by="hand", step=self.last_step())

    def reopen(self) -> None:
        """Take the last word back: a failed trial is tried again, from its newest checkpoint."""
        (self.path / "result.json").unlink(missing_ok=True)

    def revive(self) -> None:
        """Somebody wants this trial after all: it goes on from its newest checkpoint, and no scheduler stops it."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / REVIVED).touch()
        self.reopen()

    def revived(self) -> bool:
        return (self.path / REVIVED).exists()

    def failures(self) -> list[dict[str, Any]]:
        """One record an attempt that failed: time, and what jobs.failure.Failure.record has."""
        file = self.path / "failures.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def add_failure(self, failure: Failure, note: str = "") -> None:
        """note: what to say before the reason."""
        self.path.mkdir(parents=True, exist_ok=True)
        record = {"time": time.time()} | failure.record()
        if note:
            record["error"] = f"{note}: {record['error']}"
        with (self.path / "failures.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")

    # checkpoints

    def checkpoint_dir(self, step: int) -> Path:
        return self.path / "checkpoints" / f"step-{step:08d}"

    def checkpoints(self) -> list[Path]:
        """Complete ones, oldest first."""
        return sorted(marker.parent for marker in (self.path / "checkpoints").glob(f"step-*/{COMPLETE}"))

    def complete_checkpoint(self, step: int, keep: int) -> None:
        """Mark a checkpoint that all ranks have written, and drop all but the newest `keep`."""
        (self.checkpoint_dir(step) / COMPLETE).touch()
        for old in self.checkpoints()[:-keep]:
            shutil.rmtree(old)

    def drop_checkpoints(self) -> None:
        shutil.rmtree(self.path / "checkpoints", ignore_errors=True)


class RowWriter:
    """Appends rows; what a resumed trial repeats up to the last recorded step is not written again."""

    def __init__(self, folder: TrialFolder) -> None:
        self.file = folder.path / "metrics.jsonl"
        rows, end = folder.rows_from(0)
        self.last_step = max((int(row["step"]) for row in rows), default=-1)
        if self.file.exists() and self.file.stat().st_size > end:
            os.truncate(self.file, end)  # heal a line torn by a kill

    def write(self, row: Mapping[str, float]) -> None:
        if row["step"] <= self.last_step:
            return
        with self.file.open("a") as stream:
            stream.write(json.dumps({"step": row["step"], "time": time.time()} | dict(row)) + "\n")
        self.last_step = int(row["step"])
