"""The objectives: which function of the target token's probability a trial minimises.

Every objective is a function f of p, the probability that the model gives to the target token
(Beyond Log Likelihood, arXiv 2510.00526, section 3: L_f = E[sum_t f(p_t)]). All are written in terms of
logp = log p and log1mp = log(1 - p), because p itself has lost its meaning at both ends in fp32.
W(p) = -f'(p) p (1 - p) is the pull on the target's logit (Lemma 3.1); where a weight is detached,
W is that weight times 1 - p.

Nothing here imports torch: the functions use tensor methods only, so that planning a sweep,
which needs the names, stays instant, and a report draws them without it (jobs/curve.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

TOP_K = 20  # EAFT's approximation of the entropy

# What an objective may ask for beyond p itself; the fused implementation computes only what is asked for.
Need = Literal["entropy", "concentration", "reference", "ref_mass", "state", "sequence"]


@dataclass(frozen=True)
class State:
    """What a trial has measured of its model so far: global over ranks and micro-batches, 0-dim tensors.

    mean_p:     mean p of the training tokens, smoothed over steps; before the first step, the probe's
    median_nll: median over the last step's sequences of their mean -log p, nats; at first, the probe's
    probe_p:    mean p of the training set under the backbone (Eq. 5)
    progress:   share of the steps done, 0 to 1
    """

    mean_p: Tensor
    median_nll: Tensor
    probe_p: Tensor
    progress: Tensor


@dataclass(frozen=True)
class Tokens:
    """What an objective sees of N target tokens, each [N]; only logp and log1mp carry a gradient.

    top_entropy:   entropy of the 20 most likely tokens, renormalised among themselves, nats
    concentration: sum_v p_v^2
    ref_logp:      log p of the target under the frozen backbone
    ref_mass:      what the frozen backbone gives to the target and all tokens that it finds no likelier
    sequence_p:    mean p of the sequence that the token stands in
    """

    logp: Tensor
    log1mp: Tensor
    top_entropy: Tensor | None = None
    concentration: Tensor | None = None
    ref_logp: Tensor | None = None
    ref_mass: Tensor | None = None
    sequence_p: Tensor | None = None
    state: State | None = None


@dataclass(frozen=True)
class Param:
    """A number that belongs to an objective. Without a default it must be given."""

    meaning: str
    default: float | None = None
    low: float = -math.inf
    high: float = math.inf


Loss = Callable[..., "Tensor"]
AlphaRule = Callable[[Tokens], "Tensor"]


@dataclass(frozen=True)
class Objective:
    """One row of the table.

    loss:    (Tokens, one keyword a param) -> per-token loss [N], nats for NLL
    formula: f(p) as a person writes it
    source:  where it comes from
    params:  its own numbers, by name
    needs:   what it reads of Tokens beyond logp and log1mp
    detached: whether it holds a weight fixed that depends on the model, so that its pull is not its own derivative
    kl:      the param that weighs KL(frozen backbone || model), added to loss over the whole vocabulary
    alpha:   for the adaptive ones, the alpha in force for each token [N] or for all
    """

    name: str
    loss: Loss
    formula: str
    source: str
    params: dict[str, Param] = field(default_factory=dict)
    needs: frozenset[Need] = frozenset()
    detached: bool = False
    kl: str | None = None
    alpha: AlphaRule | None = None


def _expm1(x: Tensor) -> Tensor:
    """exp(x) - 1 with all digits of the value near 0, and of the derivative far below it.

    torch takes the derivative of expm1 from its result, result + 1, which is 0 from x = -17 on.
    """
    return x.expm1().where(x > -1, x.exp() - 1)


# the paper's


def nll(t: Tokens) -> Tensor:
    """f(p) = -log p, the negative log-likelihood; W(p) = 1 - p (paper section 3)."""
    return -t.logp


def power(t: Tokens, *, alpha: float) -> Tensor:
    """f(p) = (1 - p^alpha) / alpha; W(p) = p^alpha (1 - p) (paper Eq. 3).

    Any real alpha: 0 is the limit -log p, 1 is 1 - p, negative alpha is the prior-averse side.
    expm1 keeps the digits that 1 - exp(.) loses for small alpha.
    """
    return -t.logp if alpha == 0 else _expm1(t.logp * alpha) / -alpha


def one_minus_p(t: Tokens) -> Tensor:
    """f(p) = 1 - p, written -p in the paper; W(p) = p (1 - p) (paper section 3)."""
    return -_expm1(t.logp)


def unlikelihood(t: Tokens) -> Tensor:
    """f(p) = log(1 - p), minimised; W(p) = p (paper section 5, Fig. 5).

    The paper's name. It pushes p up, as every objective here does: it is not unlikelihood training.
    """
    return t.log1mp


# its neighbours


def dft(t: Tokens) -> Tensor:
    """f(p) = -sg(p) log p, sg = detached; W(p) = p (1 - p): the gradient of 1 - p (arXiv 2508.05629)."""
    return -t.logp.detach().exp() * t.logp


def focal(t: Tokens, *, gamma: float) -> Tensor:
    """f(p) = -(1 - p)^gamma log p; W(p) = (1 - p)^gamma ((1 - p) - gamma p log p) (arXiv 1708.02002)."""
    return -t.logp if gamma == 0 else -(t.log1mp * gamma).exp() * t.logp


def talr(t: Tokens, *, floor: float) -> Tensor:
    """f(p) = -sg(w) log p, w = max(p^(1/tau), floor); W(p) = w (1 - p) (arXiv 2509.20758).

    tau is the median over sequences of their mean -log p. The paper takes it from the batch at hand; here it is
    the last step's, over all ranks and micro-batches (at first the probe's), so that a trial does not depend
    on how its batch is cut up.
    """
    assert t.state is not None
    weight = (t.logp.detach() / t.state.median_nll.clamp_min(1e-6)).exp().clamp_min(floor)
    return -weight * t.logp


def profit(t: Tokens, *, threshold: float) -> Tensor:
    """f(p) = -1[sg(p) > threshold] log p over ALL target tokens; W(p) = 1[p > threshold] (1 - p) (arXiv 2601.09195).

    The same as NLL with a top gate, to which a plan reduces it.
    """
    return -t.logp * (t.logp.detach().exp() > threshold)


def infosft(t: Tokens, *, ceiling: float) -> Tensor:
    """f(p) = -sg(w) log p, w = p relu(1 - logit(p) / logit(ceiling)); W(p) = w (1 - p) (arXiv 2605.14967).

    Weighs medium p most and nothing above the ceiling, 0.93 in the paper's code.
    """
    log_odds = t.logp.detach() - t.log1mp.detach()
    weight = t.logp.detach().exp() * (1 - log_odds / math.log(ceiling / (1 - ceiling))).relu()
    return -weight * t.logp


def eaft(t: Tokens) -> Tensor:
    """f(p) = -H log p, H the entropy of the top 20 tokens / log 20, detached; W(p) = H (1 - p) (arXiv 2601.02151).

    The entropy is renormalised among the top 20, as in the authors' code.
    """
    assert t.top_entropy is not None
    return -t.top_entropy / math.log(TOP_K) * t.logp


def eaft_fixed(t: Tokens) -> Tensor:
    """f(p) = -H log p, H the entropy of the top 20 tokens / 3.0, detached; W(p) = H (1 - p) (arXiv 2601.02151, code).

    The scaling of the authors' code: 0.14 % below the paper's where the vocabulary has 20 tokens or more.
    """
    assert t.top_entropy is not None
    return -t.top_entropy / 3.0 * t.logp


def asft(t: Tokens, *, kl_weight: float) -> Tensor:
    """f(p) = -sg(p) log p + kl_weight KL(backbone || model); W(p) = p (1 - p) and the KL's pull (arXiv 2509.23753).

    The KL runs over the whole vocabulary and is added by the implementation; this is the first term.
    """
    return dft(t)


def deft(t: Tokens) -> Tensor:
    """f(p) = (1 - p^a) / (a + 1e-6), a = sg(sum_v p_v^2); W(p) = p^a (1 - p) (arXiv 2602.11424)."""
    assert t.concentration is not None
    return _power_like_deft(t, t.concentration)


def deft_cayley(t: Tokens) -> Tensor:
    """f(p) = (1 - p^a) / (a + 1e-6), a = b + (1 - b) sg(p / (2 - p)), b = mean p / 2; W(p) = p^a (1 - p).

    The second variant in the code of arXiv 2602.11424; a is held to [0.001, 1]. Its mean p is the micro-batch's;
    here it is the smoothed one of all ranks and micro-batches, so that a trial does not depend on how its batch
    is cut up.
    """
    assert t.state is not None
    p = t.logp.detach().exp()
    base = 0.5 * t.state.mean_p
    return _power_like_deft(t, (base + (1 - base) * p / (2 - p)).clamp(0.001, 1.0))


def _power_like_deft(t: Tokens, a: Tensor) -> Tensor:
    return -_expm1(t.logp * a) / (a + 1e-6)


def prift_prob(t: Tokens) -> Tensor:
    """f(p) = -p_ref log p, p_ref the frozen backbone's p of the target; W(p) = p_ref (1 - p) (arXiv 2606.09396)."""
    assert t.ref_logp is not None
    return -t.ref_logp.exp() * t.logp


def prift_mass(t: Tokens) -> Tensor:
    """f(p) = -1[u >= 0.5] log p, u = sum of p_ref(v) over p_ref(v) <= p_ref(target); W(p) = 1[u >= 0.5] (1 - p).

    arXiv 2606.09396. Divided by all target tokens, as every objective here is.
    """
    assert t.ref_mass is not None
    return -t.logp * (t.ref_mass >= 0.5)


# the one that adapts, and the rules that it was measured against (docs/log.md)


def mean_p(t: Tokens) -> Tensor:
    """alpha = the model's own mean p on what it is trained on, smoothed."""
    assert t.state is not None
    return t.state.mean_p


def mean_p_squared(t: Tokens) -> Tensor:
    """alpha = (mean p)^2: leans on the prior later."""
    return mean_p(t) ** 2


def mean_p_root(t: Tokens) -> Tensor:
    """alpha = sqrt(mean p): leans on the prior earlier."""
    return mean_p(t) ** 0.5


def mean_p_odds(t: Tokens) -> Tensor:
    """alpha = mean p / (1 - mean p), at most 10: unbounded leaning as the model becomes sure."""
    return (mean_p(t) / (1 - mean_p(t)).clamp_min(1e-3)).clamp_max(10.0)


def sequence_p(t: Tokens) -> Tensor:
    """alpha = mean p of the token's own sequence."""
    assert t.sequence_p is not None
    return t.sequence_p


def token_p(t: Tokens) -> Tensor:
    """alpha = the token's own p, detached."""
    return t.logp.detach().exp()


def probe_p(t: Tokens) -> Tensor:
    """alpha = the backbone's mean p before training, for the whole trial."""
    assert t.state is not None
    return t.state.probe_p


def probe_ramp(t: Tokens) -> Tensor:
    """alpha from the backbone's mean p before training up to 1, in a straight line over the steps."""
    assert t.state is not None
    return t.state.probe_p + (1 - t.state.probe_p) * t.state.progress


def adaptive(rule: AlphaRule) -> Loss:
    def loss(t: Tokens) -> Tensor:
        """f(p) = (1 - p^a) / a with a = rule(t), detached; W(p) = p^a (1 - p)."""
        a = rule(t).clamp_min(1e-12)  # 0 would be 0 / 0; at 1e-12 expm1 gives -log p to the last digit
        return -_expm1(t.logp * a) / a

    return loss


def _adaptive_row(name: str, rule: AlphaRule, formula: str, need: Need | None) -> Objective:
    needs: frozenset[Need] = frozenset({need} if need else ())
    detached = need != "state"  # the state is no function of the token at hand
    return Objective(name, adaptive(rule), formula, "this project", needs=needs, detached=detached, alpha=rule)


BLL = "Beyond Log Likelihood (arXiv 2510.00526)"

OBJECTIVES: dict[str, Objective] = {
    o.name: o
    for o in (
        Objective("nll", nll, "-log p", f"{BLL}, section 3"),
        Objective("power", power, "(1 - p^a) / a", f"{BLL}, Eq. 3", {"alpha": Param("position on the continuum")}),
        Objective("one-minus-p", one_minus_p, "1 - p", f"{BLL}, section 3"),
        Objective("unlikelihood", unlikelihood, "log(1 - p)", f"{BLL}, Fig. 5"),
        Objective("dft", dft, "-sg(p) log p", "DFT (arXiv 2508.05629)", detached=True),
        Objective(
            "focal", focal, "-(1 - p)^g log p", "Focal loss (arXiv 1708.02002)",
            {"gamma": Param("how much sure tokens are played down", 2.0, low=0.0)},
        ),
        Objective(
            "talr", talr, "-sg(max(p^(1/tau), floor)) log p", "TALR (arXiv 2509.20758)",
            {"floor": Param("least weight of a token", 0.01, low=0.0, high=1.0)},
            needs=frozenset({"state"}), detached=True,
        ),
        Objective(
            "profit", profit, "-1[p > threshold] log p", "ProFiT (arXiv 2601.09195)",
            {"threshold": Param("p below which a token is left out", low=0.0, high=1.0)}, detached=True,
        ),
        Objective(
            "infosft", infosft, "-sg(p relu(1 - logit(p) / logit(P))) log p", "InfoSFT (arXiv 2605.14967)",
            {"ceiling": Param("P, the p from which a token has no weight", 0.93, low=0.501, high=0.999999)},
            detached=True,
        ),
        Objective(
            "eaft", eaft, "-(H_top20 / log 20) log p", "EAFT (arXiv 2601.02151)",
            needs=frozenset({"entropy"}), detached=True,
        ),
        Objective(
            "eaft-fixed", eaft_fixed, "-(H_top20 / 3) log p", "EAFT's code (arXiv 2601.02151)",
            needs=frozenset({"entropy"}), detached=True,
        ),
        Objective(
            "asft", asft, "-sg(p) log p + lambda KL(backbone || model)", "ASFT (arXiv 2509.23753)",
            {"kl_weight": Param("lambda", 0.05, low=0.0)},
            needs=frozenset({"reference"}), detached=True, kl="kl_weight",
        ),
        Objective(
            "deft", deft, "(1 - p^a) / a, a = sg(sum_v p_v^2)", "DEFT (arXiv 2602.11424)",
            needs=frozenset({"concentration"}), detached=True,
        ),
        Objective(
            "deft-cayley", deft_cayley, "(1 - p^a) / a, a = b + (1 - b) sg(p / (2 - p)), b = mean p / 2",
            "DEFT's code (arXiv 2602.11424)", needs=frozenset({"state"}), detached=True,
        ),
        Objective(
            "prift-prob", prift_prob, "-p_ref log p", "PriFT (arXiv 2606.09396)", needs=frozenset({"reference"}),
        ),
        Objective(
            "prift-mass", prift_mass, "-1[u_ref >= 0.5] log p", "PriFT (arXiv 2606.09396)",
            needs=frozenset({"reference", "ref_mass"}),
        ),
        _adaptive_row("adaptive", mean_p, "(1 - p^a) / a, a = mean p so far", "state"),
        _adaptive_row("adaptive-squared", mean_p_squared, "(1 - p^a) / a, a = (mean p)^2", "state"),
        _adaptive_row("adaptive-root", mean_p_root, "(1 - p^a) / a, a = sqrt(mean p)", "state"),
        _adaptive_row("adaptive-odds", mean_p_odds, "(1 - p^a) / a, a = mean p / (1 - mean p)", "state"),
        _adaptive_row("adaptive-sequence", sequence_p, "(1 - p^a) / a, a = mean p of the sequence", "sequence"),
        _adaptive_row("adaptive-token", token_p, "(1 - p^a) / a, a = sg(p)", None),
        _adaptive_row("adaptive-probe", probe_p, "(1 - p^a) / a, a = mean p of the backbone", "state"),
        _adaptive_row("adaptive-ramp", probe_ramp, "(1 - p^a) / a, a from mean p of the backbone to 1", "state"),
    )
}  # fmt: skip


def canonical(name: str, params: dict[str, float]) -> tuple[str, dict[str, float]]:
    """The simplest (name, params) that trains identically: power at 0 is NLL, at 1 it is 1 - p, and so is DFT."""
    if name == "dft" or (name == "power" and params["alpha"] == 1):
        return "one-minus-p", {}
    if (name == "power" and params["alpha"] == 0) or (name == "focal" and params["gamma"] == 0):
        return "nll", {}
    return name, params
