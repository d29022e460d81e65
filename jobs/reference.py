"""The plain formula in float64: the twin of jobs/fused.py, for tests and for the check before a trial's first step.

All logits at once, every derivative by autograd; nothing here is fast, and nothing is shared with the fused path but
the objective's own function.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jobs.fused import Context, Head, LinearLoss
from jobs.loss import BoundObjective, target_log_odds
from jobs.objectives import TOP_K, Tokens
from jobs.plugins import objective_named


def linear_objective(
    hidden: Tensor, head: Head, target: Tensor, objective: BoundObjective, context: Context | None = None
) -> LinearLoss:
    """Same arguments and result as jobs.fused.linear_objective, in float64, with the graph of hidden and head."""
    reference = None if context is None or context.reference is None else logits_of(*context.reference)
    return objective_of_logits(logits_of(hidden, head), target, objective, context, reference)


def logits_of(hidden: Tensor, head: Head) -> Tensor:
    """[N, V] in float64."""
    logits = hidden.double() @ head.weight.double().t()
    if head.bias is not None:
        logits = logits + head.bias.double()
    logits = logits * head.scale
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def objective_of_logits(
    logits: Tensor, target: Tensor, objective: BoundObjective, context: Context | None, reference: Tensor | None
) -> LinearLoss:
    """The objective on logits [N, V]; reference: the frozen backbone's [N, V], where the objective reads them."""
    context = context or Context()
    row = objective_named(objective.spec.name)
    logits = logits.double()
    log_odds = target_log_odds(logits, target)
    column = target.unsqueeze(1)
    p = logits.detach().softmax(1)
    top = logits.detach().topk(min(TOP_K, logits.shape[1]), dim=1).values.softmax(1)
    p_target = log_odds.detach().sigmoid()
    sequence_p = None
    if context.sequence is not None:
        same = (context.sequence[:, None] == context.sequence[None, :]).double()
        sequence_p = same @ p_target / same.sum(1)
    ref_logp = ref_mass = None
    if reference is not None:
        ref = reference.detach().double().softmax(1)
        ref_logp = ref.gather(1, column).squeeze(1).log()
        ref_mass = torch.where(reference <= reference.gather(1, column), ref, 0.0).sum(1)
    seen = Tokens(
        log_odds,
        log_odds,
        top_entropy=torch.special.entr(top).sum(1),
        concentration=(p * p).sum(1),
        ref_logp=ref_logp,
        ref_mass=ref_mass,
        sequence_p=sequence_p,
        state=context.state,
    )
    value = objective.value(log_odds, seen)
    if row.kl is not None:
        assert reference is not None
        ref_log = reference.detach().double().log_softmax(1)
        kl = (ref_log.exp() * (ref_log - logits.log_softmax(1))).sum(1)
        value = value + objective.spec.arguments()[row.kl] * kl
    kept = objective.kept(log_odds.detach())
    value = torch.where(kept, value, 0.0)
    first = logits.detach().argmax(1) == target
    return LinearLoss(value.sum(), value.detach(), log_odds.detach(), kept, first)
