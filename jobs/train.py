"""One trial from its first step to its result. Knows nothing of Ray, Tune or MLflow: run it in any process.

    train(trial, root, report)

`report(row, save, due)` takes one record, a function that begins to write this process's shards of a checkpoint into
a directory (None where there is nothing to go on from), and whether a checkpoint is due; it answers whether to go on.
With N processes each of them calls its own.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import nullcontext
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch
import torch.distributed as dist

from jobs import engine as ds
from jobs.backbone import BackboneError, add_adapters, load_backbone, load_tokenizer
from jobs.capability import Capability
from jobs.check import check_objective
from jobs.clock import EVALUATE, SETUP, TRAIN, Clock
from jobs.corpus import corpus_for
from jobs.course import Course, KeepAnswers, Prepared, Report, not_finite, yardsticks
from jobs.data import Encoded, collate
from jobs.loss import BoundObjective
from jobs.model import ObjectiveModel, needs_reference
from jobs.objectives import State
from jobs.packing import check_packing, in_one_row, pack
from jobs.probe import Probe, probe
from jobs.saving import write_model
from jobs.sharded import load_reference, load_sharded, measurable
from jobs.spec import BackboneSpec, ObjectiveSpec, TrialSpec
from jobs.task_spec import TaskSpec
from jobs.zero import micro_batch_size, shards_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@lru_cache(maxsize=4)
def prepared_for(backbone: BackboneSpec, task: TaskSpec, max_length: int, overlong: str, root: Path) -> Prepared:
    """Mapped once per process: the next trial on the same backbone and task finds it here."""
    made = corpus_for(backbone, task, root)
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
    clock: Clock | None = None,
) -> bool:
    """Run a trial, or measure its backbone where it has no objective.

    False where `report` ended it early, or it diverged: facts["diverged"] is a Divergence then.

    root:        the storage root, where prepared backbones lie
    resume_from: a checkpoint directory of this trial; training goes on after its step
    model_dir:   where the trained weights go, if they are wanted
    facts:       filled with what the record should say of the trial besides its rows
    keep_answers: called with the name of a set of problems and what was answered, on every rank
    clock:       counts what the trial's seconds go into
    """
    facts = {} if facts is None else facts
    clock = Clock() if clock is None else clock
    clock.enter(SETUP)
    ds.ensure_process_group()
    seed_all(trial.seed)
    tokenizer = load_tokenizer(trial.backbone, root)
    prepared = prepared_for(trial.backbone.bare(), trial.task, trial.train.max_length, trial.train.overlong, root)
    facts.update(corpus=prepared.facts)
    spec, pad = trial.objective, int(tokenizer.pad_token_id)
    whole = None if shards_weights(trial) else _load_whole(trial, root)
    load = partial(measurable, trial, root) if whole is None else lambda: nullcontext(whole)
    known, ends = prepared.train, prepared.ends
    if spec is None:
        with load() as model:
            clock.enter(EVALUATE)
            row = probe(trial, root, lambda: nullcontext(model), known, pad, ends).row()
            row |= yardsticks(model, tokenizer, prepared, trial, keep_answers)
        if wrong := not_finite(row):
            raise BackboneError(
                f"backbone '{trial.backbone.name}': {wrong[0]} before any training; its forward overflows. Try "
                "another execution.attention, or check its weights"
            )
        report({"step": 0} | row, None, False)
        return True
    probed = probe(trial, root, load, known, pad, ends) if spec.needs_probe else None
    objective = bind(spec.canonical(), probed, trial.train.reduction)
    reference = load_reference(trial, root) if whole is None and needs_reference(objective.spec) else None
    model = load_sharded(trial, root, trial.train.precision) if whole is None else whole
    seed_all(trial.seed)  # whatever was drawn before
    add_adapters(model, trial.backbone)
    with ds.engine_for(trial, ObjectiveModel(model, objective, frozen=reference)) as engine:
        capability = None if probed is None else Capability(probed, engine.device)
        found = check_objective(engine, prepared.train, pad, capability)
        facts.update(objective_check=found, gate_at=gate_at(objective))
        if trial.execution.packing:
            facts.update(packing_check=check_packing(engine, prepared.train, pad))
        course = Course(trial, engine, capability, tokenizer, prepared, report, keep_answers, resume_from, clock)
        clock.enter(TRAIN)
        go_on = True
        while go_on and course.left:
            batch, state = course.begin()
            go_on = course.end(*step(trial, engine, batch, pad, state))
        if course.diverged is not None:
            facts.update(diverged=course.diverged)
        clock.enter(SETUP)
        if go_on and model_dir is not None:
            write_model(engine, tokenizer, trial.backbone, root, model_dir)
        return go_on


def _load_whole(trial: TrialSpec, root: Path) -> PreTrainedModel:
    """By every worker for itself; in bf16 where it is trained so and not measured before."""
    measured = trial.objective is None or trial.objective.needs_probe
    precision = "fp32" if measured else trial.train.precision
    return load_backbone(trial.backbone, root, trial.execution, precision).to(ds.device())


def seed_all(seed: int) -> None:
    """All generators, so that nothing depends on what this process has drawn before."""
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


def step(
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
    with ds.repeatable(trial.execution.deterministic):
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


def bind(spec: ObjectiveSpec, probed: Probe | None, reduction: str) -> BoundObjective:
    """With the gate's quantile looked up in the probe; the authors' reduction is each micro-batch's own mean."""
    if reduction == "authors":
        spec = spec.model_copy(update={"normalisation": "kept"})
    share = spec.gate.quantile if spec.gate is not None else None
    return BoundObjective.bind(spec, probed.quantile(share) if probed is not None and share is not None else None)


def gate_at(objective: BoundObjective) -> float | None:
    """The gate's threshold as a probability, for the record."""
    return None if objective.threshold is None else float(torch.tensor(objective.threshold).double().sigmoid())
