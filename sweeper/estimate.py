"""What a trial costs, before it runs: tokens, memory a worker, seconds. Rough, and said to be so."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
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
from jobs.spec import BackboneSpec, LoraSpec, TrialSpec
from jobs.task_spec import TaskSpec
from jobs.tasks import load_task
from jobs.zero import micro_batch_size, shards_weights, zero_stage
from sweeper.results import taken
from sweeper.store import Store

CHARS_PER_TOKEN = 4.0  # usual of byte-level BPE on English; the built-in tokenizer has 1
CPU_FLOPS = 15e9  # a core, fp32, sustained in small GEMMs
GPU_FLOPS = 200e12  # a GPU, bf16, sustained
STEP_S = 0.02  # engine and Python, a step
DECODE_S = (
    1e-3  # transformers' generate on a GPU, a layer and token, however many sequences: 25 to 35 ms with 28 layers
)
GATHER = 200e9  # bytes a second that a GPU receives of the others' shards, every layer for every token; within a host
DECODE_CPU_S = 2e-4  # and on a CPU, where the arithmetic soon takes longer
SAMPLED = 32  # items of a generator, for the length of its examples
BENCHMARK_PROBLEMS = 400  # of a benchmark whose size nobody has stated
GIB = 1 << 30
RECORD_BYTES = 1 << 20  # a trial's rows, its runs in MLflow, its part of the report
BUCKET = 500_000_000  # DeepSpeed's reduce_bucket_size, in elements: allocated whole on a GPU
LIVE = 1_000_000_000  # its stage3_max_live_parameters: gathered at once
CONTEXT = 1 << 30  # CUDA and NCCL themselves, about
LOGITS_BYTES = 256 << 20  # jobs/fused.py's CHUNK_BYTES, which cannot be imported without torch


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
        examples, length = _task_size(trial.task, trial.backbone.builtin is not None)
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
    rows = micro_batch_size(trial) * length
    head = min(4 * rows * shape.vocab, LOGITS_BYTES) + 4 * shape.vocab * shape.hidden * (trial.backbone.lora is None)
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
        return min(_task_size(trial.task, trial.backbone.builtin is not None)[1], trial.train.max_length)
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


def measured_seconds(store: Store, trials: list[TrialSpec]) -> dict[tuple[str, str], float]:
    """(backbone, task) -> median seconds of the trials of this plan that are finished already, set-up among them."""
    seen: dict[tuple[str, str], list[float]] = {}
    for trial in trials:
        result = store.trial(trial.key).result() if trial.objective else None
        if result and result["status"] == "finished":
            seen.setdefault((trial.backbone.name, trial.task.name), []).append(taken(result) or 0.0)
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
class Shape:
    """Of a decoder. keys: width of the keys of all groups together; inner: of the gated MLP."""

    params: int
    hidden: int
    layers: int
    vocab: int
    heads: int
    keys: int
    inner: int

    def adapters(self, lora: LoraSpec) -> int:
        """Parameters of LoRA: rank x (inputs + outputs) of every linear layer that is named, of every block."""
        h, k, f = self.hidden, self.keys, self.inner
        widths = {
            "q_proj": 2 * h, "k_proj": h + k, "v_proj": h + k, "o_proj": 2 * h,
            "gate_proj": h + f, "up_proj": h + f, "down_proj": h + f,
        }  # fmt: skip
        return lora.rank * self.layers * sum(w for name, w in widths.items() if name in (lora.targets or widths))


@lru_cache(maxsize=256)
def model_shape(backbone: BackboneSpec, root: Path) -> Shape | None:
    if backbone.builtin is not None:
        config: dict[str, Any] = {
            "hidden_size": RECIPE["hidden"],
            "num_hidden_layers": RECIPE["layers"],
            "num_attention_heads": RECIPE["heads"],
            "intermediate_size": 4 * RECIPE["hidden"],
            "vocab_size": len(SPECIAL) + len(ALPHABET),
        }
        return shape_of_config(config)
    folder = local_dir(backbone, root)
    if folder is not None and (folder / "config.json").is_file():
        return shape_of_config(json.loads((folder / "config.json").read_text()))
    if backbone.gguf is not None:
        try:
            size = gguf_file(backbone).stat().st_size
        except BackboneError:
            return None
        # until it is unpacked: about 5.6 bits a weight
        return Shape(round(size / 0.7), 1024, 24, 50_000, heads=16, keys=1024, inner=4096)
    return shape_of_config(dict(backbone.shape)) if backbone.shape else None


def shape_of_config(config: dict[str, Any]) -> Shape | None:
    """A decoder of the Llama kind: attention with grouped keys, gated MLP, two norms; biases (of Qwen) are left out."""
    try:
        hidden, layers, vocab = config["hidden_size"], config["num_hidden_layers"], config["vocab_size"]
        inner = config["intermediate_size"]
    except KeyError:
        return None
    heads = config.get("num_attention_heads", 1)
    keys = hidden * (config.get("num_key_value_heads") or heads) // heads
    block = 2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * inner + 2 * hidden
    embeddings = vocab * hidden * (1 if config.get("tie_word_embeddings") else 2)
    return Shape(layers * block + embeddings + hidden, hidden, layers, vocab, heads, keys, inner)


@lru_cache(maxsize=64)
def _task_size(task: TaskSpec, characters: bool) -> tuple[int, float]:
    """Training examples, and mean tokens of an example."""
    if task.expected is not None and (task.hub or task.parts or task.generator):
        return min(task.expected.examples, task.train_examples or task.expected.examples), float(task.expected.tokens)
    if task.hub or any(part.hub for part in task.parts):
        raise TaskError(f"task '{task.name}': nobody asks the hub for a plan; give it `expected`")
    drawn = task
    if task.generator is not None:  # item i is a function of i: a few of them tell the length
        few = task.generator.model_copy(update={"size": min(SAMPLED, task.generator.size), "heldout_size": 1})
        drawn = task.model_copy(update={"generator": few, "train_examples": None, "noise": 0.0, "benchmarks": ()})
    examples = load_task(drawn).train
    count = len(examples) if task.generator is None else min(task.generator.size, task.train_examples or 10**9)
    some = examples[:512]
    chars = sum(len(e.prompt) + len(e.response) + sum(len(c) for _, c in e.messages) for e in some) / len(some)
    return count, chars / (1.0 if characters else CHARS_PER_TOKEN) + 1
