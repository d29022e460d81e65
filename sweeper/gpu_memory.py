"""Trials placed by what their kind was measured to take of a GPU (`gpus_per_worker: auto`), remembered in the storage.

<storage>/gpu_memory/<digest>.json: of trials with the same backbone, task, lengths, precision, micro-batch, evaluation.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cluster.resources import Shape
from jobs.files import write_text
from jobs.spec import Execution, TrialSpec
from jobs.zero import micro_batch_size
from sweeper.board import Place
from sweeper.fitting import what_decides_answers, what_decides_memory
from sweeper.gpu_share import MOST, Measure, after_out_of_memory, parts, parts_of, share


def shape_of(execution: Execution) -> Shape:
    """What a trial occupies, with whole GPUs where shares are to be measured."""
    return Shape(execution.workers, execution.cpus_per_worker, execution.gpus)


def smallest_shape(trial: TrialSpec) -> Shape:
    """What it may come to occupy."""
    whole = shape_of(trial.execution)
    return Shape(whole.workers, whole.cpus, share(MOST)) if may_share(trial) else whole


def why_whole(trial: TrialSpec) -> str | None:
    """Why a trial that asks for a measured share never gets one; None where it does, or does not ask."""
    if not trial.execution.is_auto:
        return None
    if trial.execution.workers > 1:
        return "NCCL has no two workers of a trial on one card"
    return "vLLM takes its own share of a card" if trial.evaluation.engine == "vllm" else None


def may_share(trial: TrialSpec) -> bool:
    return trial.execution.is_auto and why_whole(trial) is None


def placed(trial: TrialSpec, root: Path) -> Place:
    """What the trial occupies by what is known now. trial: with the micro-batch that it will have (sweeper.fitting)."""
    whole = shape_of(trial.execution)
    if not may_share(trial):
        return Place(whole)
    known = _read(trial, root)
    measure = _measure(known)
    if measure is None:
        return Place(whole, unmeasured=_digest(trial))
    count = parts(measure, known.get("at_most", MOST))
    return Place(Shape(1, whole.cpus, share(count) if count > 1 else whole.gpus), outside=measure.outside_bytes)


def measured(trial: TrialSpec, root: Path) -> Measure | None:
    """What is known of the trial's kind."""
    return _measure(_read(trial, root))


def remember(trial: TrialSpec, measure: Measure, root: Path) -> None:
    """Join what a trial took to what is known of its kind."""
    if not may_share(trial):
        return
    known = _read(trial, root)
    old = _measure(known)
    _write(trial, root, known | asdict(measure if old is None else old.joined(measure)))


def larger_share(trial: TrialSpec, had: Shape, root: Path) -> int | None:
    """After a trial ran out of memory in `had`: in how many parts now, remembered; None: it had a whole card."""
    known = _read(trial, root)
    if not may_share(trial) or (old := _measure(known)) is None:
        return None
    count = after_out_of_memory(parts_of(had.gpus), parts(old, known.get("at_most", MOST)))
    if count is not None:
        _write(trial, root, known | {"at_most": count})
    return count


def _measure(known: dict[str, Any]) -> Measure | None:
    fields = Measure.__dataclass_fields__
    return Measure(**{name: known[name] for name in fields}) if fields.keys() <= known.keys() else None


def _digest(trial: TrialSpec) -> str:
    """Of all that decides how much memory is taken, in every phase."""
    fewer = trial.execution.evaluate_at_once
    what = [
        *what_decides_memory(trial), *what_decides_answers(trial),
        trial.objective is not None and [micro_batch_size(trial), trial.objective.needs_probe],
        *([] if fewer is None else [fewer]),  # came after the first digests
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def _file(trial: TrialSpec, root: Path) -> Path:
    return root / "gpu_memory" / f"{_digest(trial)}.json"


def _read(trial: TrialSpec, root: Path) -> dict[str, Any]:
    file = _file(trial, root)
    return dict(json.loads(file.read_text())) if file.exists() else {}


def _write(trial: TrialSpec, root: Path, known: dict[str, Any]) -> None:
    write_text(_file(trial, root), json.dumps(known | {"trial": trial.key}))
