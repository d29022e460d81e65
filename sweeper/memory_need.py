"""What a worker's device holds at its peak, and what to change where that is too much."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.plugins import objective_named
from jobs.sources import TaskError
from jobs.spec import LoraSpec, TrialSpec
from jobs.zero import micro_batch_size, shards_weights, zero_stage
from sweeper.sizes import Shape, model_shape, task_size

GIB = 1 << 30
BUCKET = 500_000_000  # DeepSpeed's reduce_bucket_size, in elements: allocated whole on a GPU
LIVE = 1_000_000_000  # its stage3_max_live_parameters: gathered at once
CONTEXT = 1 << 30  # CUDA and NCCL themselves, about
LOGITS_BYTES = 256 << 20  # jobs/fused.py's CHUNK_BYTES, which cannot be imported without torch


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker's device. What is trained on and what is answered with come one after the other.

    buffers: DeepSpeed's own; answers: keys and values of the sequences that are generated at once; context: CUDA's
    loading: the weights before the engine has them, whole or, under ZeRO 3, sharded; and as they are measured
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    head: float
    buffers: float
    answers: float
    context: float
    loading: float

    @property
    def total(self) -> int:
        stays = self.weights + self.gradients + self.optimizer + self.context
        peak = stays + max(self.activations + self.head + self.buffers, self.answers)
        return round(max(peak, self.loading + self.context))


def memory_of(trial: TrialSpec, shape: Shape, length: float, prompt: float | None = None) -> Memory:
    """What a worker holds at its peak, by ZeRO's account (arXiv 1910.02054, section 3): what is sharded is divided.

    length: tokens of the sequences that are trained on; prompt: of what is answered in evaluation, else the same

    fp32: 4 bytes of weight and gradient, 8 of AdamW. bf16: 2 and 2, and 12 of AdamW with its fp32 master copy. Only
    what is trained has gradients and state. A frozen reference is the weights once more. What is offloaded lies in host
    memory. A backbone is measured in fp32, whatever the training settings, and sharded where training shards it.
    """
    train, execution, stage = trial.train, trial.execution, zero_stage(trial)
    if trial.objective is None:
        train, stage = train.model_copy(update={"precision": "fp32"}), 3 if shards_weights(trial) else 0
    low = train.precision == "bf16"
    word, state = (2, 12) if low else (4, 8)
    if not low and stage > 0:
        state += 4  # ZeRO's flat fp32 copy
    shards = execution.workers
    trained = shape.params if trial.backbone.lora is None else shape.adapters(trial.backbone.lora)
    total = shape.params + (trained if trial.backbone.lora is not None else 0)
    if trial.objective is None:
        trained = 0
    weights = word * (total + (shape.params if _needs_reference(trial) else 0)) / (shards if stage == 3 else 1)
    gradients = word * trained / (shards if stage >= 2 else 1)
    optimizer = state * trained / (shards if stage >= 1 else 1)
    if execution.offload != "none":
        optimizer = 0.0
    if execution.offload == "parameters":
        weights = 2.0 * word * (shape.params / shape.layers + shape.vocab * shape.hidden)  # one layer, the next, a head
    on_gpu = execution.gpus > 0
    live = word * min(shape.params, LIVE) if stage == 3 and execution.workers > 1 else 0
    bucket = word * (BUCKET if on_gpu else min(BUCKET, trained))
    buffers = live + (bucket if stage > 0 and trial.objective is not None else 0)
    head = _head(shape, micro_batch_size(trial) * length, trial)
    at_once = trial.evaluated_at_once * trial.evaluation.samples
    answer = (length if prompt is None else prompt) + trial.evaluation.max_new_tokens
    return Memory(
        weights, gradients, optimizer,
        activations=0.0 if trial.objective is None else _activations(shape, word, length, trial),
        head=0.0 if trial.objective is None else head,
        buffers=buffers,
        answers=live + at_once * answer * 2 * word * shape.keys * shape.layers,
        context=CONTEXT if on_gpu else 0.0,
        loading=_loading(trial, shape, word),
    )  # fmt: skip


def _head(shape: Shape, rows: float, trial: TrialSpec) -> float:
    """Of jobs/fused.py: a chunk of fp32 logits and, where the head is trained, its whole gradient in fp32.

    On a GPU a chunk is at least half as large as that gradient, and has a copy in bf16 beside it.
    """
    gradient = 0 if trial.backbone.lora is not None else 4 * shape.vocab * shape.hidden
    on_gpu = trial.execution.gpus > 0
    chunk = min(4 * rows * shape.vocab, max(LOGITS_BYTES, gradient // 2) if on_gpu else LOGITS_BYTES)
    return gradient + chunk * (1.5 if on_gpu and trial.train.precision == "bf16" else 1)


def _loading(trial: TrialSpec, shape: Shape, word: int) -> float:
    """Device bytes while the backbone is loaded, and measured in fp32 where the trial asks for it.

    Sharded: a worker's part, and one embedding whole, three times (made, gathered, copied); with parameters offloaded
    the part lies in host memory. Measuring gathers what stage3_max_live_parameters allows.
    """
    measured = trial.objective is None or trial.objective.needs_probe
    copies = 2 if _needs_reference(trial) else 1
    if not shards_weights(trial):
        return float((4 if measured else word) * shape.params * copies)
    shards = math.inf if trial.execution.offload == "parameters" else trial.execution.workers
    largest = shape.vocab * shape.hidden
    training = word * (copies * shape.params / shards + 3 * largest)
    live = min(shape.params, LIVE) if trial.execution.workers > 1 else 0
    return max(training, 4 * (shape.params / shards + max(3 * largest, live)) if measured else 0.0)


def _activations(shape: Shape, word: int, length: float, trial: TrialSpec) -> float:
    """What the micro-batch's forward pass saves for its backward pass (after arXiv 2205.05198).

    A layer of a Llama in transformers saves, a token: 6 hidden, 2 keys and 4 inner in the weights' precision; in fp32
    two norms' inputs and scales, and a log-sum-exp a head (counted tensor by tensor in tests/unit/test_estimate.py).
    Eager attention keeps its scores and, of grouped keys, copies, instead of the log-sum-exp. With checkpointing: each
    layer's input, and one layer in full.
    """
    layer = word * (6 * shape.hidden + 2 * shape.keys + 4 * shape.inner) + 4 * (2 * shape.hidden + shape.heads + 2)
    if trial.attention == "eager":
        scores = (4 if word == 4 else 6) * shape.heads * round(length)
        layer += scores + 2 * word * (shape.hidden - shape.keys) - 4 * shape.heads
    kept = shape.layers * layer
    if trial.execution.gradient_checkpointing:
        kept = shape.layers * word * shape.hidden + layer
    return micro_batch_size(trial) * length * kept


def _needs_reference(trial: TrialSpec) -> bool:
    return trial.objective is not None and "reference" in objective_named(trial.objective.name).needs


def too_large(trial: TrialSpec, root: Path) -> str | None:
    """Why a trial cannot fit in execution.memory_gb, and what would; None where it fits or nobody knows."""
    limit = trial.execution.memory_gb
    shape = model_shape(trial.backbone, root)
    if limit is None or shape is None:
        return None
    # the longest example decides what training takes, and the mean one what answers do
    length, prompt = trial.train.max_length, _mean_tokens(trial)
    needed = memory_of(trial, shape, length, prompt)
    if needed.total <= limit * GIB:
        return None
    fits: dict[str, str] = {}  # of each setting the mildest value
    for name, way in _smaller(trial):
        if memory_of(way, shape, length, prompt).total <= limit * GIB:
            fits.setdefault(name.split(":")[0], name)
    parts = ("weights", "gradients", "optimizer", "activations", "head", "buffers", "answers", "loading")
    largest = max(parts, key=lambda part: getattr(needed, part))
    who = trial.backbone.name + (" with a frozen copy of itself" if _needs_reference(trial) else "")
    who += ", measured before training," if trial.objective is None else ""
    what = f"fits with {'; or with '.join(fits.values())}" if fits else "no setting makes it fit: take a smaller one"
    needs = f"{needed.total / GIB:.0f} GiB a worker (mostly {largest})"
    return f"{who} needs about {needs}, execution.memory_gb is {limit:g}; {what}"


def _mean_tokens(trial: TrialSpec) -> float | None:
    try:
        return min(task_size(trial.task, trial.backbone.builtin is not None)[1], trial.train.max_length)
    except TaskError:
        return None


def _smaller(trial: TrialSpec) -> Iterator[tuple[str, TrialSpec]]:
    """Ways to need less, mild ones first; each alone, the last few together."""

    def changed(train: dict[str, Any], execution: dict[str, Any]) -> TrialSpec:
        return trial.model_copy(
            update={
                "train": trial.train.model_copy(update=train),
                "execution": trial.execution.model_copy(update=execution),
            }
        )

    at_once = trial.evaluated_at_once
    while at_once > 1:
        at_once = max(1, at_once // 4)
        yield f"execution.evaluate_at_once: {at_once}", changed({}, {"evaluate_at_once": at_once})
    if trial.objective is None:
        if trial.execution.workers > 1 and trial.train.zero_stage < 3:
            yield "train.zero_stage: 3", changed({"zero_stage": 3}, {})
        for workers in _more_workers(trial, micro_batch_size(trial)):
            name = f"execution.workers: {workers} and train.zero_stage: 3"
            yield name, changed({"zero_stage": 3}, {"workers": workers})
        return
    micro = micro_batch_size(trial)
    if micro > 1:
        yield "train.micro_batch_size: 1", changed({"micro_batch_size": 1}, {})
    one = {"micro_batch_size": 1} if micro > 1 else {}
    yield "execution.gradient_checkpointing: true", changed({}, {"gradient_checkpointing": True})
    if trial.execution.workers > 1 and trial.train.zero_stage < 3:
        yield "train.zero_stage: 3", changed({"zero_stage": 3}, {})
        checkpointed = {"gradient_checkpointing": True}
        yield "train.zero_stage: 3 with gradient_checkpointing", changed({"zero_stage": 3} | one, checkpointed)
    stage = max(1, trial.train.zero_stage)
    yield "execution.offload: optimizer", changed({"zero_stage": stage}, {"offload": "optimizer"})
    offloaded = {"gradient_checkpointing": True, "offload": "parameters"}
    everything = "execution.offload: parameters, train.zero_stage: 3 and gradient_checkpointing"
    yield everything, changed({"zero_stage": 3} | one, offloaded)
    for workers in _more_workers(trial, 1):
        wider = {"gradient_checkpointing": True, "workers": workers}
        name = f"execution.workers: {workers}, train.zero_stage: 3 and gradient_checkpointing"
        yield name, changed({"zero_stage": 3, "micro_batch_size": 1}, wider)
    if trial.backbone.lora is None:
        adapted = {"backbone": trial.backbone.model_copy(update={"lora": LoraSpec()})}
        yield "backbone.lora", trial.model_copy(update=adapted)
        smallest = changed(one, {"gradient_checkpointing": True}).model_copy(update=adapted)
        yield "backbone.lora and gradient_checkpointing", smallest


def _more_workers(trial: TrialSpec, micro: int) -> Iterator[int]:
    """Twice as many, four times ..., as long as a step's sequences can be cut so."""
    workers = 2 * trial.execution.workers
    while trial.train.batch_size % (workers * micro) == 0:
        yield workers
        workers *= 2
