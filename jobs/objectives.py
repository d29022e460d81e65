"""The objectives: which function of the target token's probability a trial minimises.

Every objective is a function f of p, the probability that the model gives to the target token
(Beyond Log Likelihood, arXiv 2510.00526, section 3: L_f = E[sum_t f(p_t)]). All are written in terms
of logp = log p and log1mp = log(1 - p), because p itself has lost its meaning at both ends in fp32.

Nothing here imports torch: the functions use tensor methods only, so that planning a sweep,
which needs the names, stays instant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Loss = Callable[["Tensor", "Tensor", float], "Tensor"]


@dataclass(frozen=True)
class Objective:
    """One row of the table.

    loss:       (logp [N], log1mp [N], alpha) -> per-token loss [N], nats for NLL
    formula:    f(p) as a person writes it
    source:     where it comes from
    takes_alpha: whether `alpha` belongs to it (a spec that gives one to the others is refused)
    """

    name: str
    loss: Loss
    formula: str
    source: str
    takes_alpha: bool = False


def nll(logp: Tensor, log1mp: Tensor, alpha: float) -> Tensor:
    """f(p) = -log p, the negative log-likelihood; W(p) = 1 - p (paper section 3)."""
    return -logp


def power(logp: Tensor, log1mp: Tensor, alpha: float) -> Tensor:
    """f(p) = (1 - p^alpha) / alpha; W(p) = p^alpha (1 - p) (paper Eq. 3).

    Any real alpha: 0 is the limit -log p, 1 is 1 - p, negative alpha is the prior-averse side.
    expm1 keeps the digits that 1 - exp(.) loses for small alpha.
    """
    return -logp if alpha == 0 else (logp * alpha).expm1() / -alpha


def one_minus_p(logp: Tensor, log1mp: Tensor, alpha: float) -> Tensor:
    """f(p) = 1 - p, written -p in the paper; W(p) = p (1 - p) (paper section 3)."""
    return -logp.expm1()


def unlikelihood(logp: Tensor, log1mp: Tensor, alpha: float) -> Tensor:
    """f(p) = log(1 - p), minimised; W(p) = p (paper section 5, Fig. 5).

    The paper's name. It pushes p up, as every objective here does: it is not unlikelihood training.
    """
    return log1mp


OBJECTIVES: dict[str, Objective] = {
    o.name: o
    for o in (
        Objective("nll", nll, "-log p", "Beyond Log Likelihood, section 3"),
        Objective("power", power, "(1 - p^a) / a", "Beyond Log Likelihood, Eq. 3", True),
        Objective("one-minus-p", one_minus_p, "1 - p", "Beyond Log Likelihood, section 3"),
        Objective("unlikelihood", unlikelihood, "log(1 - p)", "Beyond Log Likelihood, Fig. 5"),
    )
}


def canonical(name: str, alpha: float | None) -> tuple[str, float | None]:
    """The simplest (name, alpha) that trains identically: power at 0 is NLL, at 1 it is 1 - p."""
    if name == "power" and alpha == 0:
        return "nll", None
    if name == "power" and alpha == 1:
        return "one-minus-p", None
    return name, alpha
