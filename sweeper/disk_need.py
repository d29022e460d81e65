"""What a plan takes of the storage's disk at most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.backbone import local_dir
from jobs.record import KEEP_CHECKPOINTS
from jobs.sources import TaskError
from jobs.spec import TrialSpec
from jobs.zero import zero_stage
from sweeper.sizes import model_shape, task_size

RECORD_BYTES = 1 << 20  # a trial's rows, its runs in MLflow, its part of the report


@dataclass(frozen=True)
class DiskNeed:
    """peak_bytes: what a plan takes of the storage at most; unknown: backbones that it leaves out, hub ones mostly."""

    peak_bytes: int
    unknown: tuple[str, ...]


def disk_need(trials: Sequence[TrialSpec], root: Path, at_once: int) -> DiskNeed:
    """For the trials that are still to run, `at_once` of them at a time.

    Checkpoints of running trials, kept ones and the one that is being written; kept models; backbones that are made
    in the storage; records. A trial that was stopped or failed leaves its checkpoint until it is continued: not in it.
    """
    peak, checkpoints, unknown = 0, [], dict[str, None]()
    for backbone in {trial.backbone for trial in trials}:
        shape, folder = model_shape(backbone, root), local_dir(backbone, root)
        made = folder is not None and backbone.path is None and not folder.is_dir()
        peak += 4 * shape.params if shape and made else 0
    for trial in trials:
        shape = model_shape(trial.backbone, root)
        if shape is None:
            unknown[trial.backbone.name] = None
        elif trial.objective is not None:
            if trial.train.keep_model:
                peak += shape.params * (4 if trial.train.precision == "fp32" else 2)
            checkpoints.append(shape.params * _checkpoint_bytes(trial) if _writes_checkpoints(trial) else 0)
    checkpoints.sort(reverse=True)
    peak += (KEEP_CHECKPOINTS + 1) * sum(checkpoints[:at_once]) + RECORD_BYTES * len(trials)
    return DiskNeed(peak, tuple(unknown))


def _writes_checkpoints(trial: TrialSpec) -> bool:
    """The last step writes none."""
    try:
        examples, _ = task_size(trial.task, trial.backbone.builtin is not None)
    except TaskError:
        return True
    return trial.train.num_steps(examples) > trial.train.checkpoint_every


def _checkpoint_bytes(trial: TrialSpec) -> int:
    """Bytes a parameter, as DeepSpeed 0.19 writes them whatever the number of workers.

    Measured with what else a checkpoint holds: 12.2, 16.4, 16.4 and 12.4 in fp32 for ZeRO 0 to 3, 14.3, 14.4, 14.4 and
    12.4 in bf16.

    AdamW has two fp32 numbers; ZeRO and bf16 have an fp32 master copy; ZeRO-3 saves the weights as that copy only.
    """
    stage, fp32 = zero_stage(trial), trial.train.precision == "fp32"
    master = 0 if stage == 0 and fp32 else 4
    weights = 0 if stage == 3 else 4 if fp32 else 2
    return 8 + master + weights
