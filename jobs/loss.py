"""An objective on the target tokens' log-odds: value, gate and pull.

Everything goes through the target's log-odds, gap = z_target - logsumexp(z_others): then
log p = -softplus(-gap) and log(1 - p) = -softplus(gap) keep all their digits at p -> 0 and p -> 1,
and the gradient on the logits is bounded for every objective of the paper's family with alpha >= 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import softplus

from jobs.objectives import Tokens
from jobs.plugins import objective_named
from jobs.spec import Gate, ObjectiveSpec


def target_log_odds(logits: Tensor, target: Tensor) -> Tensor:
    """logits [N, V], target [N] -> log(p / (1 - p)) [N] in fp32 (float64 stays float64)."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    column = target.unsqueeze(1)
    others = logits.scatter(1, column, -torch.inf).logsumexp(1)
    return logits.gather(1, column).squeeze(1) - others


def log_odds_of(p: float) -> float:
    """log(p / (1 - p)); -inf at 0, inf at 1."""
    if p in (0.0, 1.0):
        return -math.inf if p == 0.0 else math.inf
    return math.log(p) - math.log1p(-p)


@dataclass(frozen=True)
class TokenLoss:
    """Per target token, [N]: the objective's value (0 where the gate drops it), its pull, kept by the gate.

    pull: W_f(p) = -df/d(log-odds), which scales the whole gradient on the token's logits (paper Lemma 3.1)
    """

    value: Tensor
    pull: Tensor
    kept: Tensor


@dataclass(frozen=True)
class BoundObjective:
    """An objective ready to run: its spec, and its gate's threshold as the target's log-odds.

    Gates compare log-odds, not p: in fp32 p cannot tell 1 - 1e-9 from 1.
    """

    spec: ObjectiveSpec
    threshold: float | None = None

    @classmethod
    def bind(cls, spec: ObjectiveSpec, quantile: float | None = None) -> BoundObjective:
        """quantile: the log-odds that the gate's quantile stands for, where it has one (jobs/probe.py)."""
        gate = spec.canonical().gate
        if gate is None:
            return cls(spec.canonical())
        if gate.at is not None:
            return cls(spec.canonical(), log_odds_of(gate.at))
        if quantile is None:
            raise ValueError(f"the gate of {spec.label} stands at a quantile, which has to be measured first")
        return cls(spec.canonical(), quantile)

    def kept(self, log_odds: Tensor) -> Tensor:
        """Which tokens the gate trains on, [N] bool: the current model's p against a fixed number."""
        gate: Gate | None = self.spec.gate
        if gate is None or self.threshold is None:
            return torch.ones_like(log_odds, dtype=torch.bool)
        return log_odds >= self.threshold if gate.side == "top" else log_odds <= self.threshold

    def value(self, log_odds: Tensor, seen: Tokens | None = None) -> Tensor:
        """The plain formula at log_odds [N], gate left out; differentiable. `seen`: what else the objective reads."""
        logp, log1mp = -softplus(-log_odds), -softplus(log_odds)
        tokens = Tokens(logp, log1mp) if seen is None else replace(seen, logp=logp, log1mp=log1mp)
        return objective_named(self.spec.name).loss(tokens, **self.spec.arguments())

    def __call__(self, log_odds: Tensor, seen: Tokens | None = None) -> TokenLoss:
        """Value and pull by autograd on the [N] vector alone, detached."""
        with torch.enable_grad():
            gap = log_odds.detach().requires_grad_()
            value = self.value(gap, seen)
            (slope,) = torch.autograd.grad(value.sum(), gap)
        kept = self.kept(log_odds)
        return TokenLoss(torch.where(kept, value.detach(), 0.0), torch.where(kept, -slope, 0.0), kept)


def weight(p: Tensor, objective: ObjectiveSpec, seen: Tokens | None = None) -> Tensor:
    """W_f(p) = -f'(p) p (1 - p) (paper Lemma 3.1), the pull on the target's logit, [N] -> [N] in float64."""
    return BoundObjective.bind(objective)(torch.logit(p.double()), seen).pull
