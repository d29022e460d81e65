"""The fused implementation equals its float64 twin: value, every gradient, statistics, at odd sizes."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from jobs import fused, reference
from jobs.fused import Context, Head, LinearLoss
from jobs.loss import BoundObjective
from jobs.objectives import OBJECTIVES, State
from jobs.spec import ObjectiveSpec
from sweeper import memory_need

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is first imported, which another test may do

N, D, V = 37, 8, 50

SPECS = [
    *(ObjectiveSpec(name=name) for name in OBJECTIVES if name not in ("power", "profit")),
    *(ObjectiveSpec(name="power", alpha=a) for a in (-0.5, 0.0, 1e-6, 0.5, 1.0, 10.0)),
    ObjectiveSpec(name="profit", params={"threshold": 0.01}),
    ObjectiveSpec(name="nll", gate={"side": "top", "at": 0.02}),
    ObjectiveSpec(name="unlikelihood", gate={"side": "bottom", "at": 0.02}),
    ObjectiveSpec(name="asft", gate={"side": "top", "at": 0.02}),
    ObjectiveSpec(name="eaft", gate={"side": "bottom", "at": 0.5}),
]
EXACT = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 1e-2}
CASES: list[tuple[torch.dtype, dict[str, float]]] = [
    *((dtype, {}) for dtype in EXACT),
    (torch.float64, {"scale": 0.5}),
    (torch.float64, {"softcap": 3.0}),
    (torch.bfloat16, {"scale": 2.0, "softcap": 3.0}),
]


def state(mean_p: float = 0.4, device: str = "cpu") -> State:
    return State(*(torch.tensor(x, device=device) for x in (mean_p, 1.2, 0.3, 0.5)))


class Case:
    """Hidden states, head, targets and a frozen backbone's; sharp enough for p from 1e-6 to nearly 1."""

    def __init__(self, dtype: torch.dtype, with_bias: bool = True, device: str = "cpu", **head: float) -> None:
        g = torch.Generator().manual_seed(0)
        drawn = [torch.randn(*s, generator=g).to(dtype) for s in ((N, D), (V, D), (V,), (N, D), (V, D))]
        self.tensors, self.device = [t.to(device) for t in drawn], device
        self.target = torch.randint(V, (N,), generator=g).to(device)
        self.sequence = torch.arange(N, device=device) // 5
        self.head, self.with_bias = head, with_bias

    def run(self, module: object, spec: ObjectiveSpec, **options: int) -> tuple[LinearLoss, list[Tensor]]:
        wide = (lambda t: t.double()) if module is reference else (lambda t: t)
        hidden, weight, bias = (wide(t).detach().clone().requires_grad_() for t in self.tensors[:3])
        frozen = (wide(self.tensors[3]), Head(wide(self.tensors[4]), **self.head))
        head = Head(weight, bias if self.with_bias else None, **self.head)
        loss = module.linear_objective(  # type: ignore[attr-defined]
            hidden, head, self.target, BoundObjective.bind(spec),
            Context(state(device=self.device), frozen, self.sequence), **options
        )  # fmt: skip
        (loss.total / 3).backward()
        grads = [t.grad for t in (hidden, weight, *((bias,) if self.with_bias else ()))]
        assert all(g is not None for g in grads)
        return loss, grads


def far(got: Tensor, want: Tensor) -> float:
    return ((got.double() - want).norm() / want.norm().clamp_min(1e-12)).item()


@pytest.mark.parametrize(("dtype", "head"), CASES, ids=str)
@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.label)
def test_equals_the_plain_formula(spec: ObjectiveSpec, dtype: torch.dtype, head: dict[str, float]) -> None:
    tolerance = EXACT[dtype]
    case = Case(dtype, **head)
    got, got_grads = case.run(fused, spec, chunk_bytes=4 * V * 10)  # several chunks, the last one short
    want, want_grads = case.run(reference, spec)
    exact = 1e-11 if dtype == torch.float64 else 2e-5  # logits are fp32 whatever the operands
    assert far(got.value, want.value) < exact
    assert far(got.log_odds, want.log_odds) < exact
    if spec.alpha == 10 and dtype != torch.float64:
        tolerance = max(tolerance, 1e-4) * 3  # p^10 has ten times the relative error of p
    assert torch.equal(got.kept, want.kept)
    assert torch.equal(got.first, want.first)
    for mine, plain in zip(got_grads, want_grads, strict=True):
        assert mine.dtype == dtype
        assert far(mine, plain) < tolerance


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.label)
def test_the_path_of_bf16_on_cuda_with_its_products_made_here(
    spec: ObjectiveSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything of that path but the GEMM itself, which only CUDA has: bf16 operands all through, fp32 results."""
    monkeypatch.setattr(fused, "_stays_narrow", lambda hidden: hidden.dtype == torch.bfloat16)
    case = Case(torch.bfloat16)
    got, got_grads = case.run(fused, spec, chunk_bytes=4 * V * 10)
    want, want_grads = case.run(reference, spec)
    assert far(got.value, want.value) < 2e-5 * (15 if spec.alpha == 10 else 1)
    for mine, plain in zip(got_grads, want_grads, strict=True):
        assert far(mine, plain) < 2e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.label)
def test_the_kernels_equal_the_plain_formula(
    spec: ObjectiveSpec, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU where there is one, else by Triton's interpreter; rows of several blocks, one of them short."""
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        monkeypatch.setattr(fused, "_has_kernels", lambda hidden: hidden.dtype != torch.float64)
        monkeypatch.setattr(fused, "_stays_narrow", lambda hidden: hidden.dtype == torch.bfloat16)
    pytest.importorskip("triton")
    from jobs import kernels

    monkeypatch.setattr(kernels, "BLOCK", 32)
    case = Case(dtype, device="cuda" if on_gpu else "cpu")
    got, got_grads = case.run(fused, spec, chunk_bytes=4 * V * 10)
    want, want_grads = case.run(reference, spec)
    exact = 2e-5 * (15 if spec.alpha == 10 else 1)
    assert far(got.value, want.value) < exact
    assert far(got.log_odds, want.log_odds) < 2e-5
    assert torch.equal(got.kept, want.kept)
    assert torch.equal(got.first, want.first)
    for mine, plain in zip(got_grads, want_grads, strict=True):
        assert far(mine, plain) < (2e-2 if dtype == torch.bfloat16 else exact)


@pytest.mark.parametrize("rows", [1, 7, 10**6])
@pytest.mark.parametrize("name", ["nll", "asft", "adaptive-sequence"])
def test_chunking_changes_nothing(rows: int, name: str) -> None:
    case = Case(torch.float64, with_bias=False)
    one, grads = case.run(fused, ObjectiveSpec(name=name), chunk_bytes=4 * V * rows)
    other, other_grads = case.run(fused, ObjectiveSpec(name=name))
    torch.testing.assert_close(one.value, other.value)
    torch.testing.assert_close(grads, other_grads)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.label)
def test_no_target_and_no_kept_token_give_zero(spec: ObjectiveSpec) -> None:
    case = Case(torch.float32)
    nothing = spec.model_copy(update={"gate": ObjectiveSpec(name="nll", gate={"side": "top", "at": 1.0}).gate})
    loss, grads = case.run(fused, nothing)
    assert loss.total.item() == 0
    assert all((g == 0).all() for g in grads)
    hidden, weight = torch.zeros(0, D, requires_grad=True), torch.randn(V, D, requires_grad=True)
    empty = torch.zeros(0, dtype=torch.long)
    context = Context(state(), (torch.zeros(0, D), Head(torch.randn(V, D))), empty)
    total = fused.linear_objective(hidden, Head(weight), empty, BoundObjective.bind(spec), context).total
    total.backward()
    assert total.item() == 0
    assert weight.grad is not None
    assert (weight.grad == 0).all()


@pytest.mark.parametrize("spec", [s for s in SPECS if (s.alpha or 0) >= 0], ids=lambda s: s.label)
@pytest.mark.parametrize("margin", [-3000.0, -80.0, 80.0, 3000.0, float("inf")])
def test_finite_gradient_however_sure_the_model_is(spec: ObjectiveSpec, margin: float) -> None:
    weight = torch.zeros(V, 1)
    weight[3] = margin if margin != float("inf") else 1.0
    bias = torch.zeros(V)
    if margin == float("inf"):
        bias[torch.arange(V) != 3] = -margin  # every other token masked out
    hidden, weight = torch.ones(2, 1, requires_grad=True), weight.requires_grad_()
    context = Context(state(), (torch.ones(2, 1), Head(torch.randn(V, 1))), torch.zeros(2, dtype=torch.long))
    if margin == float("inf") and spec.name == "asft":
        pytest.skip("the KL to a backbone that allows what the model masks out is infinite")
    loss = fused.linear_objective(hidden, Head(weight, bias), torch.tensor([3, 3]), BoundObjective.bind(spec), context)
    loss.total.backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    assert torch.isfinite(hidden.grad).all()
    assert torch.isfinite(weight.grad).all()
    assert not loss.value.isnan().any()


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.label)
def test_gradcheck_where_nothing_is_detached(spec: ObjectiveSpec) -> None:
    """gradcheck differentiates the value itself, so it holds where weights are not functions of the model."""
    if spec.name in {"dft", "talr", "infosft", "eaft", "eaft-fixed", "asft", "deft", "deft-cayley", "profit"} or (
        spec.name in {"adaptive-sequence", "adaptive-token"}
    ):
        pytest.skip("carries a detached weight")
    case = Case(torch.float64)
    hidden, weight, bias, ref_hidden, ref_weight = (t[:6] if t.shape[0] == N else t[:9] for t in case.tensors)
    target = case.target[:6] % 9
    context = Context(state(), (ref_hidden, Head(ref_weight)), case.sequence[:6])

    class Again(torch.autograd.Function):
        """gradcheck asks one graph several times; ours keeps its gradient for one backward, so it is made anew."""

        @staticmethod
        def forward(ctx: Any, *inputs: Tensor) -> Tensor:
            ctx.save_for_backward(*inputs)
            return Again.total(*inputs).detach()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
            inputs = [t.detach().requires_grad_() for t in ctx.saved_tensors]
            with torch.enable_grad():
                return torch.autograd.grad(Again.total(*inputs) * grad, inputs)

        @staticmethod
        def total(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
            return fused.linear_objective(h, Head(w, b), target, BoundObjective.bind(spec), context, 4 * 9 * 4).total

    inputs = tuple(t.detach().clone().requires_grad_() for t in (hidden, weight, bias))
    assert torch.autograd.gradcheck(Again.apply, inputs)


def test_frozen_head_gets_no_gradient_and_the_same_hidden_gradient() -> None:
    case = Case(torch.float32)
    _, (d_hidden, *_) = case.run(fused, ObjectiveSpec(name="nll"))
    hidden = case.tensors[0].clone().requires_grad_()
    weight, bias = case.tensors[1], case.tensors[2]
    loss = fused.linear_objective(
        hidden, Head(weight, bias), case.target, BoundObjective.bind(ObjectiveSpec(name="nll"))
    )
    (loss.total / 3).backward()
    assert hidden.grad is not None
    torch.testing.assert_close(hidden.grad, d_hidden)
    assert weight.grad is None


def test_autocast_multiplies_in_bf16_and_keeps_fp32_statistics() -> None:
    case = Case(torch.float32, with_bias=False)
    hidden, weight = (t.clone().requires_grad_() for t in case.tensors[:2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = fused.linear_objective(hidden, Head(weight), case.target, BoundObjective.bind(ObjectiveSpec(name="nll")))
    loss.total.backward()
    rounded = Case(torch.bfloat16, with_bias=False).run(fused, ObjectiveSpec(name="nll"))[0]
    assert loss.value.dtype == torch.float32
    torch.testing.assert_close(loss.value, rounded.value)
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


def test_nothing_of_vocabulary_size_lives_on_between_forward_and_backward() -> None:
    """What autograd keeps is the two gradients: no logits, whatever the number of tokens."""
    tokens, vocab = 400, 3000
    hidden, weight = torch.randn(tokens, 4, requires_grad=True), torch.randn(vocab, 4, requires_grad=True)
    loss = fused.linear_objective(
        hidden, Head(weight), torch.randint(vocab, (tokens,)), BoundObjective.bind(ObjectiveSpec(name="nll"))
    )
    import gc

    alive = [t for t in gc.get_objects() if type(t) is Tensor and t.numel() >= tokens * vocab // 10]
    assert not alive
    assert loss.total.requires_grad


def test_second_backward_is_refused() -> None:
    case = Case(torch.float32)
    hidden = case.tensors[0].clone().requires_grad_()
    total = fused.linear_objective(
        hidden, Head(case.tensors[1]), case.target, BoundObjective.bind(ObjectiveSpec(name="nll"))
    ).total
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward"):
        total.backward()


def test_the_plan_estimates_the_chunk_that_is_used() -> None:
    assert memory_need.LOGITS_BYTES == fused.CHUNK_BYTES
