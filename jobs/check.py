"""No silent objective: before its first step a trial shows that it trains what it was asked to.

A patched model, a wrapper or a fused kernel in the way may change a loss without a word. So each worker takes the
first examples of the training set, lets the model compute its own logits through its public forward, applies the
plain float64 formula to them, and compares loss and gradient on the head's input with what training would use.

Loss and gradient alone can agree on wrong logits: one-minus-p is 1 with a gradient of 0 wherever p is about 0. So the
logits themselves are compared, too, and the log-odds of the targets, which keep their digits at both ends.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jobs.capability import Capability
from jobs.data import Encoded, collate
from jobs.fused import Context, linear_objective
from jobs.head_check import LOGITS, check_head, logit_error, own_logits
from jobs.model import ObjectiveModel, Targets, gathered, head_of, hidden_states
from jobs.objectives import State
from jobs.plugins import objective_named, version_of
from jobs.reference import logits_of, objective_of_logits

ROWS = 4
MAX_TOKENS = 256  # targets compared; all of their logits are alive at once
# The two paths may cut a GEMM differently: fp32 agrees to rounding, bf16 to its eight bits
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1}
# and a KL to a backbone that the model still equals is a difference of equal numbers: rounding is all of it
FLOOR = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}


class ObjectiveMismatch(RuntimeError):
    """What would be trained is not the objective that was asked for; the message has both numbers."""


def check_objective(engine: Any, rows: Sequence[Encoded], pad: int, capability: Capability | None) -> dict[str, Any]:
    """Compare on the first ROWS training examples; returns the record. A collective. Raises ObjectiveMismatch.

    The record: loss and reference (sums over the tokens compared, nats for NLL), gradient_error (relative),
    digest (of the objective's canonical spec, its function's source and the tokens compared).
    Raises HeadError, too, where the model looks ahead.
    """
    model: ObjectiveModel = engine.module
    batch = collate(rows[:ROWS], pad).to(engine.device)
    state = None if capability is None else capability.state(0.0)
    was_training = model.training
    model.eval()  # dropout would draw differently in the two forwards
    try:
        got, want = _trained(model, batch, state), _plain(model, batch, state)
    finally:
        model.train(was_training)
    if reason := _difference(got, want):
        raise ObjectiveMismatch(
            f"{model.objective.spec.label}: training would minimise {float(got.value.sum()):.6g} on the check's tokens "
            f"where the plain formula on the model's own logits says {float(want.value.sum()):.6g}; {reason}. "
            f"Something between the model ({type(model.backbone).__name__}) and its head changes logits or loss"
        )
    check_head(model.backbone, rows, pad)
    return {
        "loss": float(got.value.sum()),
        "reference": float(want.value.sum()),
        "gradient_error": float((got.gradient - want.gradient).norm() / want.gradient.norm().clamp_min(1e-12)),
        "digest": _digest(model, batch.ids),
    }


@dataclass(frozen=True)
class _Seen:
    """Per token: value and log-odds of the target [N], gradient on the head's input [N, d], in float64; logits [N, V].

    frozen: the reference's logits [N, V], where the objective reads it; dtype: what it was computed in
    unit: the size of a gradient whose pull is 1, the longest row of the head
    """

    value: Tensor
    gradient: Tensor
    log_odds: Tensor
    logits: Tensor
    frozen: Tensor | None
    dtype: torch.dtype
    unit: float


def _difference(got: _Seen, want: _Seen) -> str | None:
    """What disagrees, in words; None where all agrees but for rounding."""
    for whose, mine, own in (("", got.logits, want.logits), ("of the frozen reference, ", got.frozen, want.frozen)):
        if mine is not None and own is not None and (error := logit_error(mine, own, got.dtype)):
            return f"{whose}{error}"
    tokens = len(want.value)
    if (wrong := _odds_differ(got, want)) * 10 > tokens:
        return f"the log-odds of the target differ on {wrong} of {tokens} tokens"
    if (wrong := _differ(got, want)) * 10 > tokens:
        return f"value or gradient differ on {wrong} of {tokens} tokens"
    return None


def _odds_differ(got: _Seen, want: _Seen) -> int:
    """On how many tokens. The target's logit and the sum over the others are rounded both: twice the tolerance."""
    size = want.logits.double().abs().amax(1)
    return int((~((got.log_odds - want.log_odds).abs() <= 2 * LOGITS[got.dtype] * size + FLOOR[got.dtype])).sum())


def _differ(got: _Seen, want: _Seen) -> int:
    """How many tokens disagree. One in ten may: a token at a gate's edge falls to either side by rounding alone."""
    tolerance, floor = TOLERANCE[got.dtype], FLOOR[got.dtype]
    size = want.gradient.norm(dim=1)
    gradient = (got.gradient - want.gradient).norm(dim=1) > tolerance * (size + 1e-2 * size.max()) + floor * got.unit
    value = (got.value - want.value).abs() > tolerance * (want.value.abs() + 1e-2 * want.value.abs().max()) + floor
    return int((gradient | value | got.value.isnan() | want.value.isnan()).sum())


def _trained(model: ObjectiveModel, batch: Any, state: State | None) -> _Seen:
    """Loss and gradient on the head's input by the path that training takes."""
    with torch.no_grad():
        targets = Targets.of(hidden_states(model.backbone, batch), batch)
        reference = model._reference(batch)
    hidden = targets.hidden[:MAX_TOKENS].detach().requires_grad_()
    head = head_of(model.backbone)
    frozen = None if reference is None else (reference[0][:MAX_TOKENS], reference[1])
    context = Context(state, frozen, targets.row[:MAX_TOKENS])
    tensors = [head.weight, head.bias, *((reference[1].weight, reference[1].bias) if reference else ())]
    with gathered(*tensors):
        loss = linear_objective(hidden, head, targets.ids[:MAX_TOKENS], model.objective, context)
        (gradient,) = torch.autograd.grad(loss.total, hidden)
        unit = float(head.weight.detach().float().norm(dim=1).max())
        with torch.no_grad():
            logits = head.logits(hidden)
            of_frozen = None if frozen is None else frozen[1].logits(frozen[0])
    odds = loss.log_odds.double()
    return _Seen(loss.value.double(), gradient.double(), odds, logits, of_frozen, hidden.dtype, unit)


def _plain(model: ObjectiveModel, batch: Any, state: State | None) -> _Seen:
    """The same from the logits of the model's own forward, in float64.

    The gradient goes through the head written out plainly: backward through the model's modules, outside the
    engine, would leave ZeRO-3's bookkeeping in disorder. A head that does more shows in the logits.
    """
    seen: list[Tensor] = []

    def keep(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0].detach())

    hook = model.backbone.get_output_embeddings().register_forward_pre_hook(keep)  # type: ignore[operator]
    try:
        with torch.no_grad():
            targets = Targets.of(own_logits(model.backbone, batch), batch)
            frozen = None if model.reference is None else own_logits(model.reference, batch)
    finally:
        hook.remove()
    if not seen:
        raise ObjectiveMismatch(
            f"{model.objective.spec.label}: {type(model.backbone).__name__} computes logits without calling its head"
        )
    first = slice(MAX_TOKENS)
    reference = None if frozen is None else Targets.of(frozen, batch).hidden[first]
    context = Context(state, None, targets.row[first])
    ids, objective = targets.ids[first], model.objective
    loss = objective_of_logits(targets.hidden[first], ids, objective, context, reference)
    hidden = Targets.of(seen[-1], batch).hidden[first].double().requires_grad_()
    head = head_of(model.backbone)
    with gathered(head.weight, head.bias):
        again = objective_of_logits(logits_of(hidden, head), ids, objective, context, reference).total
        (gradient,) = torch.autograd.grad(again, hidden)
    return _Seen(loss.value, gradient, loss.log_odds, targets.hidden[first], reference, hidden.dtype, 0.0)


def _digest(model: ObjectiveModel, ids: Tensor) -> str:
    """Two trials of one digest ran the same function, with the same numbers, on the same tokens."""
    spec = model.objective.spec
    source = inspect.getsource(objective_named(spec.name).loss)
    what = [spec.identity(), model.objective.threshold, source, version_of(spec.name), ids.tolist()]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
