"""Which trials train together on one frozen backbone, and how many at once. Pure.

Those that differ in objective and seed alone, with adapters and one worker. It saves memory: the weights stand once
instead of once a trial. It saves no arithmetic, so it pays where small batches leave a device idle: on a GPU.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from jobs.spec import TrialSpec
from sweeper.memory_need import GIB, Memory, memory_of
from sweeper.sizes import model_shape

AUTO_MOST = 8  # what benchmarks/together.py measures up to
Together = Literal["auto", "off"] | int


@dataclass(frozen=True)
class Kin:
    """name: the same for trials that may join; most: how many of them at once, 2 or more."""

    name: str
    most: int


def why_alone(trial: TrialSpec) -> str | None:
    """What keeps a trial from joining others; None where nothing does."""
    backbone, execution = trial.backbone, trial.execution
    return next(
        (
            reason
            for reason, found in (
                ("it is measured, not trained", trial.objective is None),
                ("it trains all weights; give the backbone lora", backbone.lora is None),
                ("its adapters have dropout", backbone.lora is not None and backbone.lora.dropout > 0),
                (f"it has {execution.workers} workers", execution.workers > 1),
                ("it is packed", execution.packing),
                ("it offloads", execution.offload != "none"),
                ("ZeRO 3 shards its weights", trial.train.zero_stage == 3),
                ("its share of a GPU is measured by trials alone", execution.gpus_per_worker == "auto"),
                ("vLLM has a copy of its weights", trial.evaluation.engine == "vllm"),
            )
            if found
        ),
        None,
    )


def kin_name(trial: TrialSpec) -> str:
    """A digest of all but objective and seed."""
    text = trial.model_dump_json(exclude={"objective", "seed"})
    return hashlib.sha256(json.dumps(json.loads(text), sort_keys=True).encode()).hexdigest()[:12]


def memory_together(one: Memory, count: int) -> Memory:
    """Of `count` trials in one worker: weights and answers once, the rest as often. Bytes.

    one: what memory_of says of a trial alone; its gradients are as large as its adapters
    """
    return replace(
        one,
        weights=one.weights + (count - 1) * one.gradients,
        gradients=count * one.gradients,
        optimizer=count * one.optimizer,
        activations=count * one.activations,
        buffers=count * one.buffers,
    )


def group_bytes(trial: TrialSpec, root: Path, count: int) -> int | None:
    """Memory of a worker with `count` trials like this one; None where the model is not known yet."""
    shape = model_shape(trial.backbone, root)
    return None if shape is None else memory_together(memory_of(trial, shape, trial.train.max_length), count).total


def most_together(trial: TrialSpec, together: Together, lanes: int, like: int, root: Path) -> int:
    """How many trials like this one to train at once.

    lanes: worker groups that there is room for; like: trials that may join, this one among them
    auto: on a GPU whose memory_gb is stated, as many as fit, and no more than leaves every lane its share. On a CPU
    it does not pay (docs/performance.md). A number holds wherever trials may join and fit.
    """
    if together == "off" or why_alone(trial) is not None:
        return 1
    limit = trial.execution.memory_gb
    if together == "auto":
        if not trial.execution.gpus_per_worker or limit is None:
            return 1
        wish = min(AUTO_MOST, -(-like // max(1, lanes)))
    else:
        wish = together
    wish = min(wish, like)
    if limit is None:
        return wish
    return next((n for n in range(wish, 1, -1) if (group_bytes(trial, root, n) or 0) <= limit * GIB), 1)


def kin_of(trials: Mapping[str, TrialSpec], together: Together, lanes: int, root: Path) -> dict[str, Kin]:
    """key -> whom it joins, for the trials that join anybody."""
    able = {key: kin_name(trial) for key, trial in trials.items() if why_alone(trial) is None}
    like = Counter(able.values())
    limits: dict[str, int] = {}
    for key, name in able.items():  # the hungriest objective decides for all: one may need a frozen reference
        most = most_together(trials[key], together, lanes, like[name], root)
        limits[name] = min(most, limits.get(name, most))
    return {key: Kin(name, limits[name]) for key, name in able.items() if limits[name] > 1}


def regrouped(trials: Mapping[str, TrialSpec], most: int) -> dict[str, Kin | None]:
    """For trials that did not fit together: groups of no more than `most`, of these alone; None: each alone."""
    return {key: Kin(f"{kin_name(trial)}-{most}", most) if most > 1 else None for key, trial in trials.items()}


def in_order(keys: Sequence[str], kin: Mapping[str, Kin]) -> list[str]:
    """Trials that join one another side by side, where the first of them stood: else Tune would post them apart."""
    first: dict[str, int] = {}
    for place, key in enumerate(keys):
        first.setdefault(kin[key].name if key in kin else key, place)
    return sorted(keys, key=lambda key: first[kin[key].name if key in kin else key])


def groups_facts(trials: Sequence[TrialSpec], together: Together, root: Path) -> list[dict[str, Any]]:
    """What `sweeper plan` says: who joins whom, up to how many, in how much memory; of a number asked for, why not."""
    by_key = {trial.key: trial for trial in trials}
    kin = kin_of(by_key, together, 1, root)
    sets: dict[str, list[TrialSpec]] = {}
    for trial in trials:
        if trial.objective is not None:
            sets.setdefault(kin_name(trial), []).append(trial)
    out = []
    for like in sets.values():
        one = max(like, key=lambda trial: group_bytes(trial, root, 1) or 0)
        most = kin[one.key].most if one.key in kin else 1
        if most == 1 and not isinstance(together, int):
            continue
        why = why_alone(one) or ("no other differs in objective or seed alone" if len(like) == 1 else "no two fit")
        out.append(
            {
                "backbone": one.backbone.name, "task": one.task.name, "trials": len(like), "most": most,
                "memory_bytes": group_bytes(one, root, most), "alone_bytes": group_bytes(one, root, 1),
                "why": why if most == 1 else None,
            }
        )  # fmt: skip
    return out
