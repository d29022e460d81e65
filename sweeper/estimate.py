"""What a trial costs, before it runs: tokens, memory a worker, seconds. Rough, and said to be so."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

from jobs.backbone import BackboneError, gguf_file, local_dir
from jobs.plugins import objective_named
from jobs.pretrain import ALPHABET, RECIPE, SPECIAL
from jobs.record import KEEP_CHECKPOINTS
from jobs.sources import TaskError
from jobs.spec import BackboneSpec, TrialSpec
from jobs.task_spec import TaskSpec
from jobs.tasks import load_task
from jobs.zero import micro_batch_size, zero_stage
from sweeper.store import Store

CHARS_PER_TOKEN = 4.0  # usual of byte-level BPE on English; the built-in tokenizer has 1
CPU_FLOPS = 15e9  # a core, fp32, sustained in small GEMMs
GPU_FLOPS = 200e12  # a GPU, bf16, sustained
STEP_S = 0.02  # engine and Python, a step
RECORD_BYTES = 1 << 20  # a trial's rows, its runs in MLflow, its part of the report
LOGITS_BYTES = 256 << 20  # jobs/fused.py's CHUNK_BYTES, which cannot be imported without torch


@dataclass(frozen=True)
class Estimate:
    """None where nothing is known before the model is there. seconds_from: 'measured' or 'formula'."""

    tokens: int | None
    memory_bytes: int | None
    seconds: float | None
    seconds_from: str


def estimate(trial: TrialSpec, root: Path, measured: float | None) -> Estimate:
    """tokens: prompt and response tokens seen in training.

    memory, of one worker: weights, gradients, AdamW, a chunk of logits, activations, a frozen copy where read.
    """
    shape = _model_shape(trial.backbone, root)
    try:
        examples, length = _task_size(trial.task, trial.backbone.builtin is not None)
    except TaskError:
        return Estimate(None, None, measured, "measured")
    length = min(length, trial.train.max_length)
    steps = trial.train.num_steps(examples) if trial.objective else 0
    tokens = round(steps * trial.train.batch_size * length)
    if shape is None:
        return Estimate(tokens, None, measured, "measured")
    execution, params = trial.execution, shape.params
    shards = execution.workers if trial.train.zero_stage >= 1 else 1
    stage = trial.train.zero_stage
    per_param = 4 / (shards if stage == 3 else 1) + 4 / (shards if stage >= 2 else 1) + 8 / shards
    rows = micro_batch_size(trial) * length
    if trial.objective is not None and "reference" in objective_named(trial.objective.name).needs:
        per_param += 4 / (shards if stage == 3 else 1)
    # one chunk of fp32 logits; the head's gradient once more; some 34 bytes a token, layer and hidden unit
    logits = min(4 * rows * shape.vocab, LOGITS_BYTES) + 4 * shape.vocab * shape.hidden
    memory = params * per_param + logits + rows * 34 * shape.layers * shape.hidden
    if measured is not None:
        return Estimate(tokens, round(memory), measured, "measured")
    gpus = execution.gpus_per_worker * execution.workers
    speed = gpus * GPU_FLOPS if gpus else execution.cpus_per_worker * execution.workers * CPU_FLOPS
    evaluated = (
        trial.task.heldout_examples * (trial.evaluation.samples + 1) * (length + trial.evaluation.max_new_tokens)
    )
    seconds = (6 * params * tokens + 2 * params * evaluated) / speed + steps * STEP_S
    return Estimate(tokens, round(memory), seconds, "formula")


def measured_seconds(store: Store, trials: list[TrialSpec]) -> dict[tuple[str, str], float]:
    """(backbone, task) -> median seconds of the trials of this plan that are finished already."""
    seen: dict[tuple[str, str], list[float]] = {}
    for trial in trials:
        result = store.trial(trial.key).result() if trial.objective else None
        if result and result["status"] == "finished":
            seen.setdefault((trial.backbone.name, trial.task.name), []).append(result["train_s"])
    return {cell: median(values) for cell, values in seen.items()}


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
        shape, folder = _model_shape(backbone, root), local_dir(backbone, root)
        made = folder is not None and backbone.path is None and not folder.is_dir()
        peak += 4 * shape.params if shape and made else 0
    for trial in trials:
        shape = _model_shape(trial.backbone, root)
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
        examples, _ = _task_size(trial.task, trial.backbone.builtin is not None)
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


@dataclass(frozen=True)
class _Shape:
    params: int
    hidden: int
    layers: int
    vocab: int


@lru_cache(maxsize=256)
def _model_shape(backbone: BackboneSpec, root: Path) -> _Shape | None:
    if backbone.builtin is not None:
        config: dict[str, Any] = {
            "hidden_size": RECIPE["hidden"],
            "num_hidden_layers": RECIPE["layers"],
            "num_attention_heads": RECIPE["heads"],
            "intermediate_size": 4 * RECIPE["hidden"],
            "vocab_size": len(SPECIAL) + len(ALPHABET),
        }
        return _shape_of(config)
    folder = local_dir(backbone, root)
    if folder is not None and (folder / "config.json").is_file():
        return _shape_of(json.loads((folder / "config.json").read_text()))
    if backbone.gguf is not None:
        try:
            size = gguf_file(backbone).stat().st_size
        except BackboneError:
            return None
        return _Shape(round(size / 0.7), 1024, 24, 50_000)  # until it is unpacked: about 5.6 bits a weight
    return None


def _shape_of(config: dict[str, Any]) -> _Shape | None:
    """A decoder of the Llama kind: attention with grouped keys, gated MLP."""
    try:
        hidden, layers, vocab = config["hidden_size"], config["num_hidden_layers"], config["vocab_size"]
        inner = config["intermediate_size"]
    except KeyError:
        return None
    groups = config.get("num_key_value_heads") or config.get("num_attention_heads", 1)
    keys = hidden * groups // config.get("num_attention_heads", 1)
    block = 2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * inner
    embeddings = vocab * hidden * (1 if config.get("tie_word_embeddings") else 2)
    return _Shape(layers * block + embeddings, hidden, layers, vocab)


@lru_cache(maxsize=64)
def _task_size(task: TaskSpec, characters: bool) -> tuple[int, float]:
    """Training examples, and mean tokens of an example."""
    examples = load_task(task).train
    some = examples[:512]
    chars = sum(len(e.prompt) + len(e.response) + sum(len(c) for _, c in e.messages) for e in some) / len(some)
    return len(examples), chars / (1.0 if characters else CHARS_PER_TOKEN) + 1
