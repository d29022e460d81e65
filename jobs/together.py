"""Several trials at once on one frozen backbone: one copy of its weights, one forward and backward of it.

Trials that differ in objective or seed alone train in step, each with its own examples, adapters, objective, clipping,
optimiser and record. Every trial has the model, the engine and so the checkpoints that it has alone; its model's
modules only refer to the shared weights. The forward pass lays the trials' rows one below the other: the frozen layers
see them as one batch, each adapter its own (as S-LoRA, arXiv 2311.03285, does for answers). What it comes to in
gradients goes through each trial's engine, so DeepSpeed knows nothing of it.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from jobs import engine as ds
from jobs.backbone import BackboneError, add_adapters, load_backbone, load_tokenizer
from jobs.capability import Capability
from jobs.check import check_objective
from jobs.clock import SETUP, TRAIN, Clock
from jobs.course import Course, KeepAnswers, Report
from jobs.data import Encoded, collate
from jobs.model import ObjectiveModel, hidden_states
from jobs.objectives import State
from jobs.probe import Probe, probe
from jobs.saving import write_model
from jobs.spec import TrialSpec
from jobs.train import bind, gate_at, prepared_for, seed_all, step
from jobs.zero import micro_batch_size

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Computed = tuple[Tensor, Tensor, Tensor | None]  # what jobs.train.step returns


@dataclass
class Member:
    """One trial of a group; its fields are what jobs.train.train takes.

    ended: called as soon as it is over, with whether it came to its end; the others go on
    facts: gets besides wall_s (from the group's beginning to its own end) and together (how many began)
    clock: gets its share of the group's seconds
    """

    trial: TrialSpec
    report: Report
    ended: Callable[[bool], None]
    resume_from: Path | None = None
    model_dir: Path | None = None
    keep_answers: KeepAnswers | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    clock: Clock = field(default_factory=Clock)


def train_together(members: Sequence[Member], root: Path) -> None:
    """Run trials that sweeper/grouping.py lets join, from wherever each of them is, until all are over.

    In one process of one worker. Raises what any of them raises, for all.
    """
    began = time.perf_counter()
    ds.ensure_process_group()
    first = members[0].trial
    bare = load_backbone(first.backbone, root, first.execution).to(ds.device())
    tokenizer = load_tokenizer(first.backbone, root)
    train = first.train
    prepared = prepared_for(first.backbone.bare(), first.task, train.max_length, train.overlong, root)
    pad = int(tokenizer.pad_token_id)
    # all of them before the first engine, which casts the weights
    probed = [_probe(m.trial, root, bare, prepared.train, pad, prepared.ends) for m in members]
    models = [_model_of(member.trial, bare, found) for member, found in zip(members, probed, strict=True)]
    with ExitStack() as stack:
        going = []
        for member, model, found in zip(members, models, probed, strict=True):
            engine = stack.enter_context(ds.engine_for(member.trial, model))
            capability = None if found is None else Capability(found, engine.device)
            checked = check_objective(engine, prepared.train, pad, capability)
            member.facts.update(
                corpus=prepared.facts, objective_check=checked, gate_at=gate_at(model.objective), together=len(members)
            )
            course = Course(
                member.trial, engine, capability, tokenizer, prepared, member.report, member.keep_answers,
                member.resume_from, member.clock,
            )  # fmt: skip
            going.append(_Going(member, course))
        group = _Group(bare, models, pad)
        share = (time.perf_counter() - began) / len(members)
        for member in members:
            member.clock.add(SETUP, share)
        while going := [one for one in going if not _is_over(one, began, root)]:
            group.advance(going)


@dataclass
class _Going:
    """A member under way."""

    member: Member
    course: Course
    stopped: bool = False


def _is_over(one: _Going, began: float, root: Path) -> bool:
    """Give a member that has no step left, or may not go on, its end."""
    if one.course.left and not one.stopped:
        return False
    member, course = one.member, one.course
    member.clock.enter(SETUP)
    if member.model_dir is not None and not one.stopped:
        write_model(course.engine, course.tokenizer, member.trial.backbone, root, member.model_dir)
    member.facts.update(wall_s=time.perf_counter() - began)
    if course.diverged is not None:
        member.facts.update(diverged=course.diverged)
    member.ended(not one.stopped)
    member.clock.pause()
    return True


def _probe(
    trial: TrialSpec, root: Path, bare: PreTrainedModel, rows: Any, pad: int, ends: Collection[int]
) -> Probe | None:
    assert trial.objective is not None
    return probe(trial, root, lambda: nullcontext(bare), rows, pad, ends) if trial.objective.needs_probe else None


def _model_of(trial: TrialSpec, bare: PreTrainedModel, probed: Probe | None) -> JoinedModel:
    """The model that this trial has alone, adapters drawn alike, but for its weights: they are the group's."""
    assert trial.objective is not None
    seed_all(trial.seed)
    own = _same_weights(bare)
    add_adapters(own, trial.backbone)
    return JoinedModel(own, bind(trial.objective.canonical(), probed, trial.train.reduction), share_frozen=True)


def _same_weights(bare: PreTrainedModel) -> PreTrainedModel:
    """A model of its own that refers to the parameters of `bare`."""
    return copy.deepcopy(bare, {id(p): p for p in bare.parameters()})


@dataclass(frozen=True)
class Given:
    """What a micro-batch came to outside the engine: loss, Measured's tensors, and the gradient of each parameter."""

    loss: Tensor
    sums: Tensor
    sequence_nll: Tensor
    gradients: Sequence[Tensor | None]


class JoinedModel(ObjectiveModel):
    """An ObjectiveModel whose loss and gradients may be given; then its engine does what it does with its own."""

    def forward(
        self, batch: Any, num_targets: float = 0.0, state: State | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        if not isinstance(batch, Given):
            return super().forward(batch, num_targets, state)
        loss: Tensor = _Gradients.apply(batch, *self.trained())  # type: ignore[no-untyped-call]
        return loss, batch.sums, batch.sequence_nll

    def trained(self) -> list[nn.Parameter]:
        return [p for p in self.backbone.parameters() if p.requires_grad]


class _Gradients(torch.autograd.Function):
    """A number whose gradients are known."""

    @staticmethod
    def forward(ctx: Any, given: Given, *_: Tensor) -> Tensor:
        ctx.gradients = given.gradients
        return given.loss.detach().clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (rate,) = grads
        return None, *(None if g is None else g * rate.to(g.dtype) for g in ctx.gradients)


class _Group:
    """The forward pass that trials share. `seats`: numbers of the trials whose rows are in it, in order."""

    def __init__(self, bare: PreTrainedModel, models: Sequence[JoinedModel], pad: int) -> None:
        self.models, self.pad = list(models), pad
        self.seats: list[int] = []
        self.in_turns = draws_in_training(bare)
        if not self.in_turns:
            # buffers too are cast where the engines have cast their models' (the weights are the same ones)
            self.tree: Any = _same_weights(bare).to(next(models[0].backbone.parameters()).dtype)
            join_adapters(self.tree, [model.backbone for model in models], self.seats)

    def advance(self, going: Sequence[_Going]) -> None:
        """A step of every member, each from where it is."""
        if self.in_turns:  # what dropout draws depends on the batch's shape: one shared forward would draw otherwise
            for one in going:
                trial, course = one.member.trial, one.course
                course.clock.enter(TRAIN)
                rows, state = course.begin()
                one.stopped = not course.end(*step(trial, course.engine, rows, self.pad, state))
                course.clock.pause()
            return
        since = time.perf_counter()
        with ds.repeatable(going[0].member.trial.execution.deterministic):
            computed = self._step([one.course for one in going])
        shared = (time.perf_counter() - since) / len(going)
        for one, found in zip(going, computed, strict=True):
            clock = one.course.clock
            clock.add(TRAIN, shared)
            clock.enter(TRAIN)
            one.stopped = not one.course.end(*found)
            clock.pause()

    def _step(self, courses: Sequence[Course]) -> list[Computed]:
        """jobs.train.step for all of them."""
        self.seats[:] = [self.models.index(course.engine.module) for course in courses]
        begun = [course.begin() for course in courses]
        trial = courses[0].trial
        micro, cuts = micro_batch_size(trial), range(0, trial.train.batch_size, micro_batch_size(trial))
        sums: list[list[Tensor]] = [[] for _ in courses]
        nll: list[list[Tensor]] = [[] for _ in courses]
        norms: list[Tensor | None] = [None] * len(courses)
        for start in cuts:
            parts = [
                # DeepSpeed averages over micro-batches; the sum over all of them is what Eq. 4 divides
                (rows[start : start + micro], sum(row.num_targets for row in rows) / len(cuts), state)
                for rows, state in begun
            ]
            for i, (course, given) in enumerate(zip(courses, self._forward_and_backward(parts), strict=True)):
                engine = course.engine
                loss, *_ = engine(given)
                engine.backward(loss * len(cuts) if trial.train.reduction == "authors" else loss)
                if start == cuts[-1]:
                    norms[i] = ds.clip(engine, course.trial)
                engine.step()
                sums[i].append(given.sums)
                nll[i].append(given.sequence_nll)
        return [
            (torch.stack(s).sum(0), torch.cat(n), norm) for s, n, norm in zip(sums, nll, norms, strict=True)
        ]  # fmt: skip

    def _forward_and_backward(self, parts: Sequence[tuple[list[Encoded], float, State | None]]) -> list[Given]:
        """The micro-batches of all seats in one forward and one backward pass."""
        device = next(self.tree.parameters()).device
        hidden = hidden_states(self.tree, collate([row for rows, *_ in parts for row in rows], self.pad).to(device))
        models, losses, size = [self.models[seat] for seat in self.seats], [], len(parts[0][0])
        for i, (model, (rows, num_targets, state)) in enumerate(zip(models, parts, strict=True)):
            batch = collate(rows, self.pad).to(device)  # as wide as it is alone
            own = hidden[i * size : (i + 1) * size, : batch.ids.shape[1]]
            losses.append(model.loss_of(own, batch, num_targets, state))
        trained = [model.trained() for model in models]
        total = torch.stack([loss for loss, *_ in losses]).sum()
        found = iter(torch.autograd.grad(total, [p for own in trained for p in own], allow_unused=True))
        return [
            Given(loss.detach(), sums, sequence_nll, [next(found) for _ in own])
            for (loss, sums, sequence_nll), own in zip(losses, trained, strict=True)
        ]


def draws_in_training(model: nn.Module) -> bool:
    """Whether its forward pass has dropout of its own."""
    config: Any = model.config.get_text_config()  # type: ignore[union-attr, operator]
    some = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
    return some or bool(getattr(config, "attention_dropout", 0.0))


def join_adapters(tree: Any, backbones: Sequence[Any], seats: list[int]) -> None:
    """Replace every layer of `tree` that has an adapter in `backbones` by one that has all of theirs.

    Raises BackboneError where an adapter is of another kind than a linear layer's.
    """
    from peft.tuners.lora import Linear
    from peft.tuners.lora.layer import LoraLayer

    for name, adapted in backbones[0].named_modules():
        if not isinstance(adapted, LoraLayer):
            continue
        if not isinstance(adapted, Linear):
            raise BackboneError(
                f"{name}: adapters of a {type(adapted).__name__} cannot be trained together; write together: off"
            )
        layers = [backbone.get_submodule(name) for backbone in backbones]
        tree.set_submodule(name, JoinedAdapters(tree.get_submodule(name), layers, seats))


class JoinedAdapters(nn.Module):
    """A frozen layer over the rows of all trials, and each trial's adapter over its own rows.

    seats: numbers of the adapters whose rows are in the batch, in the order of the rows, equally many of each
    """

    def __init__(self, base: nn.Module, layers: Sequence[Any], seats: list[int]) -> None:
        super().__init__()
        self.base, self.seats = base, seats
        self.layers = tuple(layers)  # a tuple: they belong to the trials' models

    def forward(self, x: Tensor) -> Tensor:
        """x [trials x rows, tokens, in] -> [trials x rows, tokens, out]"""
        layers = [self.layers[seat] for seat in self.seats]
        down = torch.stack([layer.lora_A["default"].weight for layer in layers])
        up = torch.stack([layer.lora_B["default"].weight for layer in layers])
        rows = x.reshape(len(layers), -1, x.shape[-1]).to(down.dtype)
        out: Tensor = self.base(x)
        more = torch.bmm(torch.bmm(rows, down.mT), up.mT) * layers[0].scaling["default"]
        return out + more.view_as(out).to(out.dtype)
