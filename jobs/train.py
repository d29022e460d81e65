"""One trial from its first step to its result. Knows nothing of Ray, Tune or MLflow: run it in any process.

    train(trial, root, report)

`report(row, save, due)` takes one record, a function that begins to write this process's shards of a checkpoint into
a directory (None where there is nothing to go on from), and whether a checkpoint is due; it answers whether to go on.
With N processes each of them calls its own.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch
import torch.distributed as dist

from jobs import engine as ds
from jobs.backbone import add_adapters, load_backbone, load_tokenizer
from jobs.capability import Capability
from jobs.check import check_objective
from jobs.checkpoint_writer import Parts
from jobs.corpus import Rows, corpus
from jobs.data import Encoded, collate, global_batches
from jobs.evaluate import Problem, answer_problems, answering, task_yardsticks, token_yardsticks
from jobs.loss import BoundObjective
from jobs.model import ObjectiveModel, needs_reference
from jobs.objectives import State
from jobs.packing import check_packing, in_one_row, pack
from jobs.probe import Probe, probe
from jobs.sharded import load_reference, load_sharded, measurable
from jobs.spec import BackboneSpec, ObjectiveSpec, TrialSpec
from jobs.task_spec import TaskSpec
from jobs.tasks import Example
from jobs.zero import micro_batch_size, shards_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Row = dict[str, float]
Save = Callable[[Path], Parts]
Report = Callable[[Row, Save | None, bool], bool]
KeepAnswers = Callable[[str, list[Problem]], None]


@dataclass(frozen=True)
class Prepared:
    """A task as token ids, ready for a backbone. `problems`: what is answered and scored, prompts and examples."""

    train: Rows
    heldout: Rows
    problems: dict[str, tuple[list[list[int]], list[Example]]]
    facts: dict[str, Any]


@lru_cache(maxsize=4)
def _prepared(backbone: BackboneSpec, task: TaskSpec, max_length: int, overlong: str, root: Path) -> Prepared:
    """Mapped once per process: the next trial on the same backbone and task finds it here."""
    made = corpus(load_tokenizer(backbone, root), task, root)
    train, heldout = made.rows("train", max_length, overlong), made.heldout_rows(max_length, overlong)
    problems = made.benchmarks() or {"heldout": made.heldout_problems()}
    return Prepared(train, heldout, problems, made.facts | {"digest": made.folder.name})


def train(
    trial: TrialSpec,
    root: Path,
    report: Report,
    resume_from: Path | None = None,
    model_dir: Path | None = None,
    facts: dict[str, Any] | None = None,
    keep_answers: KeepAnswers | None = None,
) -> bool:
    """Run a trial, or measure its backbone where it has no objective. False where `report` ended it early.

    root:        the storage root, where prepared backbones lie
    resume_from: a checkpoint directory of this trial; training goes on after its step
    model_dir:   where the trained weights go, if they are wanted
    facts:       filled with what the record should say of the trial besides its rows
    keep_answers: called with the name of a set of problems and what was answered, on every rank
    """
    facts = {} if facts is None else facts
    ds.ensure_process_group()
    _seed(trial.seed)
    tokenizer = load_tokenizer(trial.backbone, root)
    prepared = _prepared(trial.backbone.bare(), trial.task, trial.train.max_length, trial.train.overlong, root)
    facts.update(corpus=prepared.facts)
    spec, pad = trial.objective, int(tokenizer.pad_token_id)
    whole = None if shards_weights(trial) else _load_whole(trial, root)
    load = partial(measurable, trial, root) if whole is None else lambda: nullcontext(whole)
    rows, eos = prepared.train, int(tokenizer.eos_token_id)
    if spec is None:
        with load() as model:
            row = probe(trial, root, lambda: nullcontext(model), rows, pad, eos).row()
            row |= _yardsticks(model, tokenizer, prepared, trial, keep_answers)
        report({"step": 0} | row, None, False)
        return True
    probed = probe(trial, root, load, rows, pad, eos) if spec.needs_probe else None
    objective = _bind(spec.canonical(), probed, trial.train.reduction)
    reference = load_reference(trial, root) if whole is None and needs_reference(objective.spec) else None
    model = whole or load_sharded(trial, root, trial.train.precision)
    _seed(trial.seed)  # whatever was drawn before
    add_adapters(model, trial.backbone)
    with ds.engine_for(trial, ObjectiveModel(model, objective, reference)) as engine:
        capability = None if probed is None else Capability(probed, engine.device)
        found = check_objective(engine, prepared.train, pad, capability)
        facts.update(objective_check=found, gate_at=_gate_at(objective))
        if trial.execution.packing:
            facts.update(packing_check=check_packing(engine, prepared.train, pad))
        complete = _loop(trial, engine, capability, tokenizer, prepared, report, resume_from, keep_answers)
        if complete and model_dir is not None:
            state = ds.full_state_dict(engine)
            if state:
                model.save_pretrained(model_dir, state_dict=state)
                tokenizer.save_pretrained(model_dir)
        return complete


def _load_whole(trial: TrialSpec, root: Path) -> PreTrainedModel:
    """By every worker for itself; in bf16 where it is trained so and not measured before."""
    measured = trial.objective is None or trial.objective.needs_probe
    precision = "fp32" if measured else trial.train.precision
    return load_backbone(trial.backbone, root, trial.execution, precision).to(ds.device())


def _seed(seed: int) -> None:
    """All generators, so that nothing depends on what this process has drawn before."""
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


def _seed_torch(seed: int) -> None:
    """What torch.manual_seed does to the generators that are used, without the stack traces that it keeps: 3 ms."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed(seed)


def _loop(
    trial: TrialSpec,
    engine: Any,
    capability: Capability | None,
    tokenizer: PreTrainedTokenizerBase,
    prepared: Prepared,
    report: Report,
    resume_from: Path | None,
    keep_answers: KeepAnswers | None,
) -> bool:
    spec, rows = trial.train, prepared.train
    num_steps = spec.num_steps(len(rows))
    batches = global_batches(len(rows), trial.seed, spec.batch_size, num_steps)
    first = 0
    if resume_from is not None:
        saved = ds.load(engine, resume_from)
        first = int(saved["step"]) + 1
        if capability is not None:
            capability.load(saved["capability"])
    window = _Window(engine.device)
    for step in range(first, num_steps):
        # one seed a step and rank: a resumed trial draws what an uninterrupted one draws
        _seed_torch(hash((trial.seed, step, dist.get_rank())) & 0x7FFFFFFF)
        rate = ds.learning_rate(spec, step, num_steps)
        ds.set_learning_rate(engine, rate)
        state = None if capability is None else capability.state(step / num_steps)
        sums, sequence_nll, norm = _step(
            trial, engine, [rows[i] for i in batches[step]], int(tokenizer.pad_token_id), state
        )
        window.add(sums)
        if capability is not None:
            capability.update(sums, sequence_nll)
        done = step + 1
        last = done == num_steps
        evaluate = last or (trial.evaluation.every is not None and done % trial.evaluation.every == 0)
        row: Row = {}
        if done % spec.log_every == 0 or evaluate:
            row = {"step": done, "train/lr": rate} | window.row()
            if (norm := engine.get_global_grad_norm() if norm is None else norm) is not None:
                row["train/grad_norm"] = float(norm)
        if evaluate:
            few = None if last else trial.evaluation.every_problems
            row |= _yardsticks(engine.module.backbone, tokenizer, prepared, trial, keep_answers, few)
        due = done % spec.checkpoint_every == 0 and not last
        beside = {"step": step} | ({"capability": capability.as_dict()} if capability else {})
        save = None if last else partial(ds.save, engine, beside)
        if row and not report(row, save, due) and not last:
            return False
    return True


def _step(
    trial: TrialSpec, engine: Any, rows: Sequence[Encoded], pad: int, state: State | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """One optimiser step over the global batch; this rank takes every world-th micro-batch.

    Returns this rank's share of what jobs.model.Measured describes, and the gradient's norm where DeepSpeed keeps none.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    micro = micro_batch_size(trial)
    num_targets = sum(row.num_targets for row in rows)
    cuts = range(rank * micro, len(rows), world * micro)
    packed = trial.execution.packing
    lay_out = partial(pack, one_row=in_one_row(engine.module.backbone)) if packed else collate
    # DeepSpeed averages over micro-batches and ranks; the sum over all of them is what Eq. 4 divides
    share = num_targets / (len(cuts) * world)
    sums, sequence_nll, norm = [], [], None
    for start in cuts:
        batch = lay_out(rows[start : start + micro], pad).to(engine.device)
        loss, *measured = engine(batch, share, state)
        engine.backward(loss * len(cuts) if trial.train.reduction == "authors" else loss)
        if start == cuts[-1]:
            norm = ds.clip(engine, trial)
        engine.step()
        sums.append(measured[0])
        sequence_nll.append(measured[1])
    return torch.stack(sums).sum(0), torch.cat(sequence_nll), norm


def _bind(spec: ObjectiveSpec, probed: Probe | None, reduction: str) -> BoundObjective:
    """With the gate's quantile looked up in the probe; the authors' reduction is each micro-batch's own mean."""
    if reduction == "authors":
        spec = spec.model_copy(update={"normalisation": "kept"})
    share = spec.gate.quantile if spec.gate is not None else None
    return BoundObjective.bind(spec, probed.quantile(share) if probed is not None and share is not None else None)


def _gate_at(objective: BoundObjective) -> float | None:
    """The gate's threshold as a probability, for the record."""
    return None if objective.threshold is None else float(torch.tensor(objective.threshold).double().sigmoid())


def _yardsticks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prepared: Prepared,
    trial: TrialSpec,
    keep: KeepAnswers | None,
    few: int | None = None,
) -> Row:
    """few: only the first so many held-out examples, and problems of each set."""
    evaluation, pad = trial.evaluation, int(tokenizer.pad_token_id)
    heldout = prepared.heldout if few is None else prepared.heldout[:few]
    row = token_yardsticks(model, heldout, pad, evaluation.batch_size, "heldout")
    answered = {}
    with answering(model, tokenizer, trial) as answer:
        for stream, (name, (prompts, examples)) in enumerate(prepared.problems.items()):
            answered[name] = answer_problems(answer, prompts[:few], examples[:few], evaluation, 1.0, stream)
            if keep is not None:
                keep(name, answered[name])
        row |= task_yardsticks(answered)
        for number, temperature in enumerate(evaluation.base_temperatures if trial.objective is None else (), 1):
            sharp = {
                name: answer_problems(answer, prompts, examples, evaluation, temperature, 1000 * number + stream)
                for stream, (name, (prompts, examples)) in enumerate(prepared.problems.items())
            }
            row[f"task/accuracy_at_t{temperature:g}"] = task_yardsticks(sharp)["task/accuracy_sampled"]
    cut = {
        f"data/{kind}_{what}": getattr(rows, what)
        for kind, rows in (("train", prepared.train), ("heldout", prepared.heldout))
        for what in ("cut", "dropped")
    }
    return row | cut | {"data/train_noisy": prepared.facts["noisy"]}


class _Window:
    """Sums since the last record, kept on the device so that steps need no host sync."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(7, dtype=torch.float64, device=device)
        self.since = time.perf_counter()

    def add(self, parts: torch.Tensor) -> None:
        self.sums += parts

    def row(self) -> Row:
        """The objective's own loss under its own prefix; the rest means the same for every objective."""
        if dist.get_world_size() > 1:
            dist.all_reduce(self.sums)
        total, kept, p, nll, count, alpha, first = (float(x) for x in self.sums)
        now = time.perf_counter()
        row = {
            "objective/loss": total / count,
            "train/kept": kept / count,
            "objective/alpha": alpha / count,
            "train/mean_p": p / count,
            "train/token_accuracy": first / count,
            "train/nll": nll / count,
            "train/target_tokens_per_s": count / (now - self.since),
        }
        self.sums.zero_()
        self.since = now
        return row
