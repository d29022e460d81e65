"""The objectives hold their formulas in fp32 at both extremes."""

import math

import pytest
import torch

from jobs.loss import target_log_odds, token_loss, weight
from jobs.objectives import OBJECTIVES
from jobs.spec import ObjectiveSpec

PROBABILITIES = [1e-30, 1e-6, 0.01, 0.5, 0.9, 1 - 1e-9]
SPECS = [
    ObjectiveSpec(name="nll"),
    ObjectiveSpec(name="one-minus-p"),
    ObjectiveSpec(name="unlikelihood"),
    *(ObjectiveSpec(name="power", alpha=a) for a in (-0.5, 0, 1e-6, 0.5, 1, 10)),
]


def logit(p: float) -> float:
    return math.log(p) - math.log1p(-p)


def formula(spec: ObjectiveSpec, p: float) -> float:
    alpha = spec.alpha
    if spec.name == "nll" or alpha == 0:
        return -math.log(p)
    if spec.name == "one-minus-p":
        return 1 - p
    if spec.name == "unlikelihood":
        return math.log1p(-p)
    assert alpha is not None
    return -math.expm1(alpha * math.log(p)) / alpha


def slope(spec: ObjectiveSpec, p: float) -> float:
    """W_f(p) of the paper's table."""
    if spec.name == "unlikelihood":
        return p
    power = {"nll": 0.0, "one-minus-p": 1.0}.get(spec.name, spec.alpha or 0.0)
    return p**power * (1 - p)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.label)
@pytest.mark.parametrize("p", PROBABILITIES)
def test_fp32_value_equals_the_formula(spec: ObjectiveSpec, p: float) -> None:
    got = token_loss(torch.tensor([logit(p)]), spec).value.item()
    assert got == pytest.approx(formula(spec, p), rel=2e-6, abs=1e-38)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.label)
@pytest.mark.parametrize("p", [1e-6, 0.01, 0.5, 0.9])
def test_weight_equals_the_papers_table(spec: ObjectiveSpec, p: float) -> None:
    assert weight(torch.tensor([p]), spec).item() == pytest.approx(slope(spec, p), rel=1e-5)


@pytest.mark.parametrize("margin", [-200.0, -30.0, 0.0, 30.0, 200.0])
@pytest.mark.parametrize("spec", [s for s in SPECS if (s.alpha or 0) >= 0], ids=lambda s: s.label)
def test_no_nan_or_inf_however_sure_the_model_is(spec: ObjectiveSpec, margin: float) -> None:
    logits = torch.zeros(1, 7)
    logits[0, 2] = margin
    logits.requires_grad_()
    token_loss(target_log_odds(logits, torch.tensor([2])), spec).value.sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_log_odds_equal_log_softmax_in_float64() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(50, 11, dtype=torch.float64) * 5, torch.randint(11, (50,))
    expected = torch.logit(logits.softmax(1).gather(1, target[:, None])[:, 0])
    torch.testing.assert_close(target_log_odds(logits, target), expected)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.label)
def test_gradient_on_logits_passes_gradcheck(spec: ObjectiveSpec) -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    target = torch.randint(5, (6,))
    assert torch.autograd.gradcheck(lambda z: token_loss(target_log_odds(z, target), spec).value, logits)


def test_power_tends_to_nll_as_alpha_vanishes() -> None:
    gap = torch.tensor([logit(0.01)])
    small = token_loss(gap, ObjectiveSpec(name="power", alpha=1e-6)).value
    assert small.item() == pytest.approx(-math.log(0.01), rel=1e-5)  # 1 - exp(.) would give 4.5896


@pytest.mark.parametrize(
    ("side", "at", "kept"), [("top", 0.5, [False, True]), ("bottom", 0.5, [True, False]), ("top", 1.0, [False, False])]
)
def test_gate_keeps_its_side_and_drops_value_and_gradient(side: str, at: float, kept: list[bool]) -> None:
    gap = torch.tensor([logit(0.2), logit(0.8)], requires_grad=True)
    token = token_loss(gap, ObjectiveSpec(name="nll", gate={"side": side, "at": at}))
    assert token.kept.tolist() == kept
    assert (token.value != 0).tolist() == kept
    token.value.sum().backward()
    assert gap.grad is not None
    assert (gap.grad != 0).tolist() == kept


def test_every_objective_states_formula_and_source() -> None:
    for objective in OBJECTIVES.values():
        assert objective.formula
        assert objective.source
        assert "W(p)" in (objective.loss.__doc__ or "")
