"""What a trial costs, before it runs: tokens, memory a worker, seconds. Rough, and said to be so."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from jobs.sources import TaskError
from jobs.spec import TrialSpec
from jobs.zero import shards_weights
from sweeper.memory_need import memory_of
from sweeper.results import taken
from sweeper.sizes import model_shape, task_size
from sweeper.store import Store

CPU_FLOPS = 15e9  # a core, fp32, sustained in small GEMMs
GPU_FLOPS = 200e12  # a GPU, bf16, sustained
STEP_S = 0.02  # engine and Python, a step
# transformers' generate on a GPU, a layer and token, however many sequences: 25 to 35 ms with 28 layers
DECODE_S = 1e-3
DECODE_CPU_S = 2e-4  # and on a CPU, where the arithmetic soon takes longer
GATHER = 200e9  # bytes a second that a GPU receives of the others' shards, every layer for every token; within a host
BENCHMARK_PROBLEMS = 400  # of a benchmark whose size nobody has stated


@dataclass(frozen=True)
class Estimate:
    """None where nothing is known before the model is there. seconds_from: 'measured' or 'formula'."""

    steps: int | None
    tokens: int | None
    memory_bytes: int | None
    seconds: float | None
    seconds_from: str


def estimate(trial: TrialSpec, root: Path, measured: float | None) -> Estimate:
    """tokens: prompt and response tokens seen in training; memory of one worker: `memory_of`."""
    shape = model_shape(trial.backbone, root)
    try:
        examples, length = task_size(trial.task, trial.backbone.builtin is not None)
    except TaskError:
        return Estimate(trial.train.steps if trial.objective else 0, None, None, measured, "measured")
    length = min(length, trial.train.max_length)
    steps = trial.train.num_steps(examples) if trial.objective else 0
    tokens = round(steps * trial.train.batch_size * length)
    if shape is None:
        return Estimate(steps, tokens, None, measured, "measured")
    execution, memory = trial.execution, memory_of(trial, shape, length).total
    if measured is not None:
        return Estimate(steps, tokens, memory, measured, "measured")
    gpus = execution.gpus * execution.workers
    speed = gpus * GPU_FLOPS if gpus else execution.cpus_per_worker * execution.workers * CPU_FLOPS
    problems = trial.task.heldout_examples if not trial.task.benchmarks else 0
    problems += sum(b.examples or BENCHMARK_PROBLEMS for b in trial.task.benchmarks)
    evaluated = problems * (trial.evaluation.samples + 1) * (length + trial.evaluation.max_new_tokens)
    times = 1 if trial.evaluation.every is None else max(1, steps // trial.evaluation.every)
    again = 8 if execution.gradient_checkpointing else 6  # a second forward pass
    # greedily and sampled, batch by batch, and every answer as long as it may be
    batches = math.ceil(problems / trial.evaluation.batch_size / execution.workers)
    token = shape.layers * (DECODE_S if gpus else DECODE_CPU_S)
    if gpus and shards_weights(trial):
        low = trial.objective is not None and trial.train.precision == "bf16"
        token = max(token, (2 if low else 4) * shape.params / GATHER)
    decoding = 2 * batches * trial.evaluation.max_new_tokens * token
    answering = times * max(2 * shape.params * evaluated / speed, decoding)
    seconds = again * shape.params * tokens / speed + answering + steps * STEP_S
    return Estimate(steps, tokens, memory, seconds, "formula")


def measured_seconds(store: Store, trials: list[TrialSpec]) -> dict[tuple[str, str], float]:
    """(backbone, task) -> median seconds of the trials of this plan that are finished already, set-up among them."""
    seen: dict[tuple[str, str], list[float]] = {}
    for trial in trials:
        result = store.trial(trial.key).result() if trial.objective else None
        if result and result["status"] == "finished":
            seen.setdefault((trial.backbone.name, trial.task.name), []).append(taken(result) or 0.0)
    return {cell: median(values) for cell, values in seen.items()}
