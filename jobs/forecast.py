"""A first-order forecast: which objective's first step would move the held-out yardsticks most, before any training.

A step of size s along an objective's descent direction -g/|g| changes a quantity Y by -s <g, dY>/|g| to first order.
All objectives are given the same norm, as clipping and AdamW all but do, so only directions are compared (paper,
section 4: what an objective weighs decides whom its gradient serves). With an assumed noise rate, that share of the
training responses is taken to be another example's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jobs.capability import Capability
from jobs.data import Batch, Encoded, collate
from jobs.head_check import check_head
from jobs.loss import BoundObjective
from jobs.model import ObjectiveModel, Targets, head_of, hidden_states
from jobs.probe import Probe
from jobs.spec import ObjectiveSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MICRO_BATCH = 16  # examples at once


@dataclass(frozen=True)
class Forecast:
    """Of one objective, per unit of step: what is gained, positive is better.

    nll: fall of held-out -log p, nats a token; mean_p: rise of held-out mean p; answer: rise of the mean probability
    of a whole held-out response, which is the accuracy at T = 1 where one text is right
    """

    nll: float
    mean_p: float
    answer: float


def forecast(
    model: PreTrainedModel,
    objectives: Sequence[ObjectiveSpec],
    train: Sequence[Encoded],
    heldout: Sequence[Encoded],
    probe: Probe,
    pad: int,
    noise: float = 0.0,
) -> list[Forecast]:
    """One forecast an objective, in order. The model keeps its weights.

    train, heldout: probe examples; noise: share of training responses assumed to be wrong
    Memory: up to six gradients of the model's size beside its weights.
    Raises HeadError where the model's own forward says something else than its head.
    """
    model.eval()
    check_head(model, train, pad)
    wanted = [yardstick_gradient(model, heldout, pad, name) for name in ("nll", "mean_p", "answer")]
    swapped = _swapped(train) if noise else []
    capability = Capability(probe, model.device)
    found = []
    for spec in objectives:
        gate = spec.canonical().gate
        share = None if gate is None else gate.quantile
        objective = BoundObjective.bind(spec, None if share is None else probe.quantile(share))
        trained = ObjectiveModel(model, objective)
        gradient = objective_gradient(trained, train, pad, capability)
        if noise:
            gradient = (1 - noise) * gradient + noise * objective_gradient(trained, swapped, pad, capability)
        norm = gradient.norm().clamp_min(torch.finfo(gradient.dtype).tiny)
        found.append(Forecast(*(float(gradient @ y / norm) for y in wanted)))
    return found


def objective_gradient(trained: ObjectiveModel, rows: Sequence[Encoded], pad: int, capability: Capability) -> Tensor:
    """Gradient of the objective over all target tokens of `rows`, flat [parameters]."""
    trained.zero_grad()
    count = sum(row.num_targets for row in rows)
    for start in range(0, len(rows), MICRO_BATCH):
        batch = collate(rows[start : start + MICRO_BATCH], pad).to(next(trained.parameters()).device)
        loss, *_ = trained(batch, count, capability.state(0.0))
        loss.backward()
    return _flat(trained.backbone)


def yardstick_gradient(model: PreTrainedModel, rows: Sequence[Encoded], pad: int, name: str) -> Tensor:
    """Gradient of what is to fall, flat [parameters]: held-out -log p, -(mean p), or -(mean p of a whole response)."""
    model.zero_grad()
    count = sum(row.num_targets for row in rows)
    for start in range(0, len(rows), MICRO_BATCH):
        batch = collate(rows[start : start + MICRO_BATCH], pad).to(model.device)
        logp, row = target_logp(model, batch)
        if name == "nll":
            loss = -logp.sum() / count
        elif name == "mean_p":
            loss = -logp.exp().sum() / count
        else:
            loss = -torch.zeros(batch.sequences).to(logp).index_add(0, row, logp).exp().sum() / len(rows)
        torch.autograd.backward(loss)
    return _flat(model)


def target_logp(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """log p of every target token [N], differentiable, and the sequence it stands in [N]."""
    targets = Targets.of(hidden_states(model, batch), batch)
    logits = head_of(model).logits(targets.hidden)
    return logits.log_softmax(1).gather(1, targets.ids.unsqueeze(1)).squeeze(1), targets.row


def _swapped(rows: Sequence[Encoded]) -> list[Encoded]:
    """Every prompt with the next example's response."""
    shifted = [*rows[1:], rows[0]]
    return [
        Encoded([*row.ids[: row.prompt_length], *other.ids[other.prompt_length :]], row.prompt_length, row.earlier)
        for row, other in zip(rows, shifted, strict=True)
    ]


def _flat(model: torch.nn.Module) -> Tensor:
    """The gradients of all parameters, and none left behind."""
    flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in model.parameters()])
    model.zero_grad()
    return flat
