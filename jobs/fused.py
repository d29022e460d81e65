"""Hidden states x head -> objective, with loss and gradient made in the forward, chunk by chunk.

One implementation for every objective. No [tokens, vocabulary] tensor outlives its chunk, and nothing is computed
twice: with e_v = exp(z_v - max over the others) for v != target and S their sum, the target's log-odds are
z_target - max - log S, and the gradient on the logits is pull * (e / S - onehot), `pull` being a number a token.
So three GEMMs do it all: logits, gradient on the hidden states, gradient on the head. The chunk's e is scaled by
nothing: pull / S goes into the rows of the hidden states instead, which costs less and keeps denormals out of the
GEMMs (p^10 makes gradients that slow x86 down threefold).

On a GPU the passes over the chunk between those GEMMs are two kernels (`jobs/kernels.py`), elsewhere torch's.

`jobs/reference.py` holds the twin of the same signature: the plain formula in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from jobs.loss import BoundObjective
from jobs.objectives import TOP_K, State, Tokens
from jobs.plugins import objective_named
from jobs.spec import ObjectiveSpec

CHUNK_BYTES = 256 << 20  # of fp32 logits alive at once
CACHE_BYTES = 1 << 20  # of fp32 logits that a CPU core passes over at once
NLL = BoundObjective.bind(ObjectiveSpec(name="nll"))
FLUSH = 1e-30  # a pull below it is 0


@dataclass(frozen=True)
class Head:
    """What turns hidden states into logits: softcap * tanh(scale * (hidden @ weight.T + bias) / softcap).

    weight [V, d], bias [V] or None, scale and softcap as the model's configuration has them.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """[N, V] in fp32: for chunks that are only looked at."""
        z = torch.nn.functional.linear(hidden.float(), self.weight.float())
        z = (z if self.bias is None else z + self.bias.float()) * self.scale
        return z if self.softcap is None else (z / self.softcap).tanh() * self.softcap


@dataclass(frozen=True)
class LinearLoss:
    """total: sum over tokens, 0-dim, differentiable. The rest per token [N], detached.

    value: the objective's; log_odds: of the target; kept: by the gate; first: the target is the model's first choice
    """

    total: Tensor
    value: Tensor
    log_odds: Tensor
    kept: Tensor
    first: Tensor

    @property
    def logp(self) -> Tensor:
        return -torch.nn.functional.softplus(-self.log_odds)


@dataclass(frozen=True)
class Context:
    """What an objective reads beyond the token itself; only what its row of the table names is needed.

    reference: hidden states [N, d'] and head of the frozen backbone; sequence: which sequence each token stands in [N]
    """

    state: State | None = None
    reference: tuple[Tensor, Head] | None = None
    sequence: Tensor | None = None


def linear_objective(
    hidden: Tensor,
    head: Head,
    target: Tensor,
    objective: BoundObjective,
    context: Context | None = None,
    chunk_bytes: int | None = None,
) -> LinearLoss:
    """The objective summed over N target tokens.

    hidden [N, d] and head in fp32, bf16 or float64; target [N] class indices, ignored tokens left out beforehand.
    Logits and statistics are fp32 (float64 for float64). Differentiable once in hidden, weight and bias.
    chunk_bytes: of logits at once; without it CHUNK_BYTES, on a GPU no less than half of the head's gradient
    """
    context = context or Context()
    kind = hidden.device.type
    weight, bias = head.weight, head.bias
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = bias if bias is None else bias.to(dtype)
    call = _Call(head, target, objective, context, chunk_bytes, torch.is_grad_enabled())
    with torch.autocast(kind, enabled=False):
        if "sequence" in objective_named(objective.spec.name).needs:
            call = call.with_sequence_means(hidden, weight, bias)
        return LinearLoss(*_apply(hidden, weight, bias, call))


@dataclass(frozen=True)
class _Call:
    """All that a call is told besides the three differentiable tensors."""

    head: Head
    target: Tensor
    objective: BoundObjective
    context: Context
    chunk_bytes: int | None
    grad: bool
    sequence_p: Tensor | None = None

    def with_sequence_means(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> _Call:
        """Mean p of each token's sequence: known only after a pass over all of them."""
        sequence = self.context.sequence
        assert sequence is not None
        plain = replace(self, objective=NLL, context=Context(), grad=False)
        p = _apply(hidden.detach(), weight.detach(), bias, plain)[2].sigmoid()
        size = int(sequence.max()) + 1 if len(sequence) else 0
        return replace(self, sequence_p=sequence_means(p, sequence, size)[sequence])


def sequence_means(values: Tensor, sequence: Tensor, sequences: int) -> Tensor:
    """Mean of each sequence's values [N] -> [sequences]; 0 for one without any.

    A product with who belongs where: adding to an index would add in another order each time on a GPU.
    """
    inside = (sequence == torch.arange(sequences, device=sequence.device)[:, None]).to(values.dtype)
    return (inside @ values) / inside.sum(1).clamp_min(1)


class _LinearObjective(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, call: _Call) -> tuple[Tensor, ...]:
        wanted = [call.grad and need for need in ctx.needs_input_grad[:3]]
        work = _Work(hidden, weight, bias, call, wanted)
        out = work.run()
        ctx.gradients, ctx.needed = work.gradients(), ctx.needs_input_grad[:3]
        ctx.mark_non_differentiable(*out[1:])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("linear_objective keeps its gradient for one backward; run the forward again")
        gradients, ctx.gradients = ctx.gradients, None
        scaled = [None if g is None else g.mul_(grads[0].to(g.dtype)) for g in gradients]
        return (*scaled, None)


def _apply(hidden: Tensor, weight: Tensor, bias: Tensor | None, call: _Call) -> tuple[Tensor, ...]:
    apply: Any = _LinearObjective.apply
    return tuple(apply(hidden, weight, bias, call))


class _Work:
    """One forward: buffers, the loop over chunks, and the gradients that it leaves."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, call: _Call, wanted: list[bool]) -> None:
        self.call, self.bias = call, bias
        self.row = objective_named(call.objective.spec.name)
        self.dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        self.low = _stays_narrow(hidden)
        self.hidden = hidden
        self.weight = weight if self.low else weight.to(self.dtype)
        device = hidden.device
        self.d_hidden = torch.zeros_like(hidden) if wanted[0] else None
        self.d_weight = torch.empty(weight.shape, dtype=self.dtype, device=device) if wanted[1] else None
        self.d_weight_started = False
        self.wanted = any(wanted)
        self.d_bias = torch.zeros(len(weight), dtype=self.dtype, device=device) if wanted[2] else None
        self.out_dtype = weight.dtype
        kl = self.row.kl
        self.kl_weight = call.objective.spec.arguments()[kl] if kl is not None else 0.0
        # rows of e alone cannot carry a second full-vocabulary term, nor the slope of a softcap
        self.dense = bool(self.kl_weight) or call.head.softcap is not None
        self.kernels = import_module("jobs.kernels") if not self.dense and _has_kernels(hidden) else None

    def _bytes_at_once(self) -> int:
        """On a GPU at least half of what the head's gradient takes: every chunk reads and writes all of that."""
        if self.call.chunk_bytes is not None:
            return self.call.chunk_bytes
        gradient = 4 * self.d_weight.numel() if self.d_weight is not None and self.hidden.is_cuda else 0
        return max(CHUNK_BYTES, gradient // 2)

    def run(self) -> tuple[Tensor, ...]:
        call, device = self.call, self.hidden.device
        n, vocab = len(self.hidden), len(self.weight)
        tensors = 1 + (call.head.softcap is not None) + 2 * ("reference" in self.row.needs)
        most = max(1, self._bytes_at_once() // (4 * vocab * tensors))
        rows = -(-n // -(-n // most)) if n else 1
        self.logits = torch.empty((rows, vocab), dtype=self.dtype, device=device)
        narrow = self.kernels is not None and self.low and self.wanted
        self.narrow = torch.empty((rows, vocab), dtype=torch.bfloat16, device=device) if narrow else None
        value = torch.empty(n, dtype=self.dtype, device=device)
        log_odds, kept = torch.empty_like(value), torch.empty(n, dtype=torch.bool, device=device)
        first = torch.empty_like(kept)
        for start in range(0, n, rows):
            part = slice(start, min(n, start + rows))
            value[part], log_odds[part], kept[part], first[part] = self._chunk(part)
        del self.logits, self.narrow
        return value.sum(), value, log_odds, kept, first

    def gradients(self) -> list[Tensor | None]:
        if self.d_weight is not None and not self.d_weight_started:
            self.d_weight.zero_()  # no chunk had a pull
        cast = [self.d_weight, self.d_bias]
        return [self.d_hidden, *(None if g is None else g.to(self.out_dtype) for g in cast)]

    def _chunk(self, part: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        call, head = self.call, self.call.head
        target = call.target[part].unsqueeze(1)
        hidden = self.hidden[part] if self.low else self.hidden[part].to(self.dtype)
        z = self._logits_of(hidden, self.weight, self.bias, head, self.logits[: len(target)])
        capped = z.clone() if head.softcap is not None and self.dense else None
        entropy = _top_entropy(z) if "entropy" in self.row.needs else None
        reference = self._reference(part, target, z)
        z_target, top, total, norm = self._statistics(z, target)
        log_odds = z_target - top - total.log()
        seen = Tokens(
            log_odds,
            log_odds,
            top_entropy=entropy,
            concentration=None if norm is None else _concentration(norm, total, log_odds),
            ref_logp=reference.logp if reference else None,
            ref_mass=reference.mass if reference else None,
            sequence_p=call.sequence_p[part] if call.sequence_p is not None else None,
            state=call.context.state,
        )
        token = call.objective(log_odds, seen)
        value = token.value
        if reference is not None and self.kl_weight:
            log_total = torch.logaddexp(z_target, top + total.log())
            value = value + token.kept.to(self.dtype) * self.kl_weight * (reference.cross_term + log_total)
        if self.wanted:
            pull = torch.where(token.pull.abs() < FLUSH, 0.0, token.pull)
            if self.dense:
                self._dense_gradient(part, hidden, z, target, total, pull, log_odds, token.kept, reference, capped)
            else:
                self._gradient(part, hidden, z, target, top, total, pull)
        return value, log_odds, token.kept, z_target >= top

    def _logits_of(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, head: Head, out: Tensor) -> Tensor:
        """[n, V] in fp32, into `out`."""
        _mm(hidden, weight.t(), out)
        if bias is not None:
            out.add_(bias.to(out.dtype))
        if head.scale != 1.0:
            out.mul_(head.scale)
        if head.softcap is not None:
            out.div_(head.softcap).tanh_().mul_(head.softcap)
        return out

    def _statistics(self, z: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """z at the target, and over all others: the maximum, the sum S of e, its 2-norm where it is needed, [n].

        Without kernels z is e afterwards, 0 at the target.
        """
        wanted = "concentration" in self.row.needs
        if self.kernels is not None:
            z_target, top, total, squares = self.kernels.statistics(z, target.squeeze(1), wanted)
            return z_target, top, total, None if squares is None else squares.sqrt()
        z_target = z.gather(1, target).squeeze(1)
        z.scatter_(1, target, -torch.inf)
        top, total = _exp_rows(z)
        return z_target, top, total, torch.linalg.vector_norm(z, dim=1) if wanted else None

    def _gradient(
        self, part: slice, hidden: Tensor, z: Tensor, target: Tensor, top: Tensor, total: Tensor, pull: Tensor
    ) -> None:
        """Gradient on the logits, (pull / S) * (e - S onehot), as a scaling of rows and two GEMMs.

        z: what _statistics has left of the logits
        """
        total = total.clamp_min(torch.finfo(total.dtype).tiny)
        rate = (pull / total * self.call.head.scale).unsqueeze(1)
        keep = pull.nonzero().squeeze(1) if self._worth_compacting(pull) else None
        e = self._shape(z, target, top, total, keep)
        if keep is None:
            self._accumulate(e, hidden, rate, part)
        else:
            self._accumulate(e, hidden[keep], rate[keep], keep + part.start)

    def _shape(self, z: Tensor, target: Tensor, top: Tensor, total: Tensor, keep: Tensor | None) -> Tensor:
        """e - S onehot of the rows `keep`, or of all; in bf16 where the GEMMs take it."""
        if self.kernels is None:
            z.scatter_(1, target, -total.unsqueeze(1))
        elif self.narrow is not None:
            rows = torch.arange(len(z), device=z.device) if keep is None else keep
            out: Tensor = self.kernels.exponentials(z, rows, target.squeeze(1), top, total, self.narrow)
            return out
        else:
            self.kernels.exponentials(z, torch.arange(len(z), device=z.device), target.squeeze(1), top, total, z)
        return z if keep is None else _compact(z, keep)

    def _worth_compacting(self, pull: Tensor) -> bool:
        """Rows without a pull need no backward GEMM. On CUDA the count is a host sync: only where a gate drops some."""
        if not len(pull) or (pull.is_cuda and self.call.objective.spec.gate is None):
            return False
        return int((pull == 0).sum()) * 16 > len(pull)

    def _dense_gradient(
        self,
        part: slice,
        hidden: Tensor,
        e: Tensor,
        target: Tensor,
        total: Tensor,
        pull: Tensor,
        log_odds: Tensor,
        kept: Tensor,
        reference: _Reference | None,
        capped: Tensor | None,
    ) -> None:
        """Gradient on the logits written out: pull (r - onehot) + kl (p - p_ref), times the softcap's slope."""
        kl = self.kl_weight * kept.to(e.dtype)
        p, rest = log_odds.sigmoid(), (-log_odds).sigmoid()
        e.mul_(((pull + kl * rest) / total.clamp_min(torch.finfo(total.dtype).tiny)).unsqueeze(1))
        if reference is not None and reference.probability is not None:
            e.sub_(reference.probability.mul_(kl.unsqueeze(1)))
        e.scatter_add_(1, target, (kl * p - pull).unsqueeze(1))
        head = self.call.head
        if capped is not None and head.softcap is not None:
            e.mul_(capped.div_(head.softcap).square_().neg_().add_(1))
        one = torch.full((len(e), 1), head.scale, dtype=e.dtype, device=e.device)
        self._accumulate(e, hidden, one, part)

    def _accumulate(self, e: Tensor, hidden: Tensor, rate: Tensor, into: slice | Tensor) -> None:
        """d_hidden[into] = rate (e @ weight), d_weight += e.T @ (rate hidden), d_bias += e.T @ rate."""
        low = e.to(torch.bfloat16) if self.low else e
        if self.d_bias is not None:
            self.d_bias.add_(_mm(low.t(), rate.to(low.dtype)).squeeze(1))
        if self.d_hidden is not None:
            self.d_hidden[into] = _mm(low, self.weight).mul_(rate).to(self.d_hidden.dtype)
        if self.d_weight is not None:
            self._accumulate_weight(low, hidden * rate.to(hidden.dtype))
            self.d_weight_started = True

    def _accumulate_weight(self, e: Tensor, scaled: Tensor) -> None:
        assert self.d_weight is not None
        if not self.low:
            self.d_weight.addmm_(e.t(), scaled, beta=float(self.d_weight_started))
        elif self.d_weight_started:
            _add_mm(self.d_weight, e.t(), scaled)
        else:
            _mm(e.t(), scaled, out=self.d_weight)

    def _reference(self, part: slice, target: Tensor, z: Tensor) -> _Reference | None:
        """What the frozen backbone says of these tokens; z: the model's own logits, before they are changed."""
        if "reference" not in self.row.needs:
            return None
        assert self.call.context.reference is not None
        hidden, head = self.call.context.reference
        weight = head.weight if self.low else head.weight.to(self.dtype)
        chunk = hidden[part] if self.low else hidden[part].to(self.dtype)
        logits = self._logits_of(chunk, weight, head.bias, head, torch.empty_like(z))
        log_total = logits.logsumexp(1)
        at_target = logits.gather(1, target)
        logp = at_target.squeeze(1) - log_total
        if self.kl_weight:
            p = (logits - log_total.unsqueeze(1)).exp_()
            cross = _dot(p, logits) - log_total - _dot(p, z)
            return _Reference(logp, None, p, cross)
        if "ref_mass" not in self.row.needs:
            return _Reference(logp, None, None, logp)
        likelier = logits > at_target
        mass = logits.sub_(log_total.unsqueeze(1)).exp_().masked_fill_(likelier, 0.0).sum(1)
        return _Reference(logp, mass, None, logp)


@dataclass(frozen=True)
class _Reference:
    """logp, mass [n] for weights; probability [n, V] and cross_term [n] for the KL.

    cross_term: sum_v p_ref (log p_ref - z); the KL is that plus the model's logsumexp
    """

    logp: Tensor
    mass: Tensor | None
    probability: Tensor | None
    cross_term: Tensor


def _exp_rows(z: Tensor) -> tuple[Tensor, Tensor]:
    """exp(z - max of its row) in place; returns the rows' maxima and the sums, [n].

    On a CPU a few rows at a time, so that the four passes run in the cache.
    """
    top, total = torch.empty_like(z[:, 0]), torch.empty_like(z[:, 0])
    rows = len(z) if z.is_cuda else max(1, CACHE_BYTES // (4 * z.shape[1]))
    for start in range(0, len(z), max(1, rows)):
        part = slice(start, start + rows)
        block = z[part]
        # where all others are masked out, p is 1 and the maximum is -inf
        top[part] = block.amax(1).clamp_min(torch.finfo(z.dtype).min)
        total[part] = block.sub_(top[part].unsqueeze(1)).exp_().sum(1)
    return top, total


def _stays_narrow(hidden: Tensor) -> bool:
    """Only CUDA multiplies bf16 into fp32; elsewhere hidden states and head are widened first."""
    return hidden.dtype == torch.bfloat16 and hidden.is_cuda


def _has_kernels(hidden: Tensor) -> bool:
    """Triton's are for GPUs, and for fp32 logits."""
    return hidden.is_cuda and hidden.dtype != torch.float64


def _mm(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a @ b, in fp32 out of bf16 operands: rounding a logit to bf16 would move tokens across a gate."""
    if a.dtype != torch.bfloat16:
        return torch.mm(a, b, out=out)
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32, out=out)
    return torch.mm(a.float(), b.float(), out=out)


def _add_mm(out: Tensor, a: Tensor, b: Tensor) -> None:
    """out += a @ b of bf16 operands, in fp32 and without a product of its own beside `out`."""
    if a.is_cuda:
        torch.addmm(out, a, b, out_dtype=torch.float32, out=out)
    else:
        out.addmm_(a.float(), b.float())


def _top_entropy(z: Tensor) -> Tensor:
    """Entropy of the TOP_K most likely tokens, renormalised among themselves, nats, [n, V] -> [n]."""
    return torch.special.entr(z.topk(min(TOP_K, z.shape[1]), dim=1).values.softmax(1)).sum(1)


def _concentration(norm: Tensor, total: Tensor, log_odds: Tensor) -> Tensor:
    """sum_v p_v^2 = p^2 + (1 - p)^2 sum r^2, [n]; norm: of e."""
    spread = norm / total.clamp_min(torch.finfo(total.dtype).tiny)
    return log_odds.sigmoid() ** 2 + ((-log_odds).sigmoid() * spread) ** 2


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Row by row, [n, V] -> [n], without a third [n, V]."""
    return torch.bmm(a.unsqueeze(1), b.unsqueeze(2)).flatten()


def _compact(e: Tensor, keep: Tensor) -> Tensor:
    """Rows `keep` (ascending) moved to the front of e in place, a few at a time; returns them."""
    step = 64
    for start in range(0, len(keep), step):
        block = keep[start : start + step]
        e[start : start + len(block)] = e[block]
    return e[: len(keep)]
