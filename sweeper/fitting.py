"""How many sequences a worker can take at once, learnt from what ran out of memory, once for all trials of a kind.

<storage>/micro_batches/<digest>.json: of training, for the same backbone, lengths, precision and sharding.
         evaluation_batches/<digest>.json: of evaluation, for the same task and settings of evaluation besides.
Batches stay: fewer at once, more times. So a trial's key, its mathematics and its draws stay, only rounding changes.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from jobs.files import write_text
from jobs.plugins import objective_named
from jobs.spec import TrialSpec
from jobs.zero import micro_batch_size


def fitting(trial: TrialSpec, root: Path) -> TrialSpec:
    """The trial with no more sequences at once than are known to fit."""
    return _fitting_evaluation(_fitting_training(trial, root), root)


def _fitting_training(trial: TrialSpec, root: Path) -> TrialSpec:
    file = _file(trial, root)
    if not _may_be_cut(trial) or not file.exists():
        return trial
    known = int(json.loads(file.read_text())["micro_batch_size"])
    return _with(trial, known) if known < micro_batch_size(trial) else trial


def _fitting_evaluation(trial: TrialSpec, root: Path) -> TrialSpec:
    file = _evaluation_file(trial, root)
    if not file.exists():
        return trial
    known = int(json.loads(file.read_text())["evaluate_at_once"])
    return _evaluating(trial, known) if known < trial.evaluated_at_once else trial


def smaller(trial: TrialSpec, root: Path) -> TrialSpec | None:
    """After `trial` ran out of memory in training: with half as many sequences at once, remembered.

    Or with as few as are known to fit by now; None where it cannot be cut any more.
    """
    if (known := _fitting_training(trial, root)) != trial:  # another lane has found out meanwhile
        return known
    size = micro_batch_size(trial)
    share = trial.train.batch_size // trial.execution.workers
    half = next((n for n in range(size // 2, 0, -1) if share % n == 0), None)
    if half is None or not _may_be_cut(trial):
        return None
    write_text(_file(trial, root), json.dumps({"micro_batch_size": half, "too_large": size, "trial": trial.key}))
    return _with(trial, half)


def fewer_answers(trial: TrialSpec, root: Path) -> TrialSpec | None:
    """After `trial` ran out of memory in evaluation: with half as many prompts at once, remembered.

    None where there is one, or where vLLM answers, which divides its memory itself.
    """
    if (known := _fitting_evaluation(trial, root)) != trial:
        return known
    half = trial.evaluated_at_once // 2
    if not half or trial.evaluation.engine == "vllm":
        return None
    said = {"evaluate_at_once": half, "too_large": trial.evaluated_at_once, "trial": trial.key}
    write_text(_evaluation_file(trial, root), json.dumps(said))
    return _evaluating(trial, half)


def _evaluating(trial: TrialSpec, size: int) -> TrialSpec:
    return trial.model_copy(update={"execution": trial.execution.model_copy(update={"evaluate_at_once": size})})


def _with(trial: TrialSpec, size: int) -> TrialSpec:
    return trial.model_copy(update={"train": trial.train.model_copy(update={"micro_batch_size": size})})


def _may_be_cut(trial: TrialSpec) -> bool:
    """What divides by each micro-batch is another objective when that is another size (jobs.spec: part of the key)."""
    spec = trial.objective
    return spec is not None and spec.canonical().normalisation != "kept" and trial.train.reduction != "authors"


def what_decides_memory(trial: TrialSpec) -> list[Any]:
    """Of training, but for the number of sequences at once; as JSON types."""
    train, execution = trial.train, trial.execution
    # of no weight, or of evaluation alone
    elsewhere = {"cpus_per_worker", "memory_gb", "evaluate_at_once", "deterministic"}
    return [
        trial.backbone.identity(), train.max_length, train.precision, train.zero_stage, train.batch_size,
        execution.model_dump(exclude=elsewhere) | {"gpus_per_worker": execution.gpus},
        trial.objective is not None and "reference" in objective_named(trial.objective.canonical().name).needs,
    ]  # fmt: skip


def what_decides_answers(trial: TrialSpec) -> list[Any]:
    """Besides, of evaluation; as JSON types."""
    evaluation = trial.evaluation.model_dump(mode="json", exclude={"every", "seed", "base_temperatures"})
    return [trial.task.identity(), trial.train.overlong, evaluation]


def _evaluation_file(trial: TrialSpec, root: Path) -> Path:
    what = [*what_decides_memory(trial), *what_decides_answers(trial)]
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
    return root / "evaluation_batches" / f"{digest}.json"


def _file(trial: TrialSpec, root: Path) -> Path:
    what = what_decides_memory(trial)
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
    return root / "micro_batches" / f"{digest}.json"
