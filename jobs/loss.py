"""The objective inside the model's forward: logits -> log p of the target -> loss.

Everything goes through the target's log-odds, gap = z_target - logsumexp(z_others): then
log p = -softplus(-gap) and log(1 - p) = -softplus(gap) keep all their digits at p -> 0 and p -> 1,
and the gradient on the logits is bounded for every objective of the table.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from jobs.data import IGNORED, Batch
from jobs.objectives import OBJECTIVES
from jobs.spec import Gate, ObjectiveSpec


def target_log_odds(logits: Tensor, target: Tensor) -> Tensor:
    """logits [N, V], target [N] -> log(p / (1 - p)) [N] in fp32 (float64 stays float64)."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    column = target.unsqueeze(1)
    others = logits.scatter(1, column, -torch.inf).logsumexp(1)
    return logits.gather(1, column).squeeze(1) - others


def kept_by(gate: Gate | None, logp: Tensor) -> Tensor:
    """Which tokens the gate trains on, [N] bool: the current model's p against the gate's fixed number."""
    if gate is None:
        return torch.ones_like(logp, dtype=torch.bool)
    p = logp.detach().exp()
    return p >= gate.at if gate.side == "top" else p <= gate.at


@dataclass(frozen=True)
class TokenLoss:
    """Per target token, [N]: the objective's value (0 where the gate drops it), log p, kept by the gate."""

    value: Tensor
    logp: Tensor
    kept: Tensor


def token_loss(log_odds: Tensor, objective: ObjectiveSpec) -> TokenLoss:
    """The objective on the target's log-odds [N]."""
    logp, log1mp = -softplus(-log_odds), -softplus(log_odds)
    value = OBJECTIVES[objective.name].loss(logp, log1mp, objective.alpha or 0.0)
    kept = kept_by(objective.gate, logp)
    return TokenLoss(torch.where(kept, value, 0.0), logp.detach(), kept)


def weight(p: Tensor, objective: ObjectiveSpec) -> Tensor:
    """W_f(p) = -f'(p) p (1 - p) (paper Lemma 3.1), the pull on the target's logit; by autograd, [N] -> [N]."""
    gap = torch.logit(p.double()).requires_grad_()
    (grad,) = torch.autograd.grad(token_loss(gap, objective).value.sum(), gap)
    return -grad


class ObjectiveModel(nn.Module):
    """A causal language model whose forward returns the objective, so that ZeRO-3 sees every parameter's use."""

    def __init__(self, backbone: nn.Module, objective: ObjectiveSpec) -> None:
        super().__init__()
        self.backbone = backbone
        self.objective = objective

    def forward(self, batch: Batch, num_targets: int) -> tuple[Tensor, Tensor]:
        """Loss: sum over this micro-batch / num_targets, the target tokens of the whole step (Eq. 4's mean).

        Second value: [objective sum, kept tokens, sum of p, sum of -log p, tokens], detached, for the record.
        """
        logits = self.backbone(input_ids=batch.ids, attention_mask=batch.mask).logits
        target = batch.labels[:, 1:]
        chosen = target != IGNORED
        token = token_loss(target_log_odds(logits[:, :-1][chosen], target[chosen]), self.objective)
        total = token.value.sum()
        parts = (total.detach(), token.kept.sum(), token.logp.exp().sum(), -token.logp.sum(), chosen.sum())
        return total / num_targets, torch.stack([part.double() for part in parts])
