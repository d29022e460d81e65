"""Every objective holds the table of tests/vectors, made in 50 digits, in fp32 and bf16."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch

from jobs import fused
from jobs.conformance import example_tokens, findings
from jobs.curve import weights
from jobs.fused import Context, Head
from jobs.loss import BoundObjective, log_odds_of, target_log_odds, weight
from jobs.objectives import OBJECTIVES, canonical
from jobs.spec import ObjectiveSpec

VECTORS = Path(__file__).parents[1] / "vectors"
CONTEXT: dict[str, float] = json.loads((VECTORS / "context.json").read_text())
ROWS = list(csv.DictReader((VECTORS / "objectives.csv").read_text().splitlines()))
GROUPS: dict[str, list[dict[str, str]]] = {}
for _row in ROWS:
    GROUPS.setdefault(f"{_row['objective']} {_row['params']}", []).append(_row)


def spec_of(row: dict[str, str]) -> ObjectiveSpec:
    return ObjectiveSpec.model_validate({"name": row["objective"]} | json.loads(row["params"]))


def close(got: float, want: float, relative: float) -> bool:
    return got == want or math.isclose(got, want, rel_tol=relative, abs_tol=1e-37)


def raw(spec: ObjectiveSpec) -> BoundObjective:
    """Not in its canonical form: aliases have formulas of their own, which the table holds too."""
    return BoundObjective(spec)


@pytest.mark.parametrize("group", GROUPS)
def test_fp32_holds_the_vectors(group: str) -> None:
    rows = GROUPS[group]
    spec = spec_of(rows[0])
    odds = torch.tensor([float(r["log_odds"]) for r in rows])
    token = raw(spec)(odds, example_tokens(len(rows), **CONTEXT))
    # rounding the log-odds to fp32 moves p by up to 4e-6 at 1e-30, and p^alpha alpha times that
    relative = 8e-6 * max(1.0, abs(spec.alpha or 0.0))
    for row, loss, pull in zip(rows, token.value.tolist(), token.pull.tolist(), strict=True):
        assert close(loss, float(row["loss"]), relative), (row["p"], "loss", loss, row["loss"])
        assert close(pull, float(row["weight"]), relative), (row["p"], "weight", pull, row["weight"])


@pytest.mark.parametrize("group", GROUPS)
def test_curves_hold_the_vectors(group: str) -> None:
    rows = [r for r in GROUPS[group] if 0 < float(r["p"]) < 1]
    p = numpy.array([float(r["p"]) for r in rows])
    for row, pull in zip(rows, weights(p, spec_of(rows[0]), **CONTEXT), strict=True):
        # the file's 1 - 1e-9 has fewer digits of 1 - p than its log-odds
        assert close(pull, float(row["weight"]), 1e-6 if row["p"] == "0.999999999" else 1e-9), (row["p"], pull)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("gate", [None, {"side": "top", "at": 0.2345}, {"side": "bottom", "at": 0.2345}])
def test_a_curve_is_what_torch_makes_of_it(group: str, gate: dict[str, object] | None) -> None:
    row = GROUPS[group][0]
    spec = ObjectiveSpec.model_validate({"name": row["objective"], "gate": gate} | json.loads(row["params"]))
    p = numpy.arange(1, 1000) / 1000
    want = weight(torch.from_numpy(p), spec, example_tokens(len(p), torch.float64, mean_p=0.5))
    numpy.testing.assert_allclose(weights(p, spec, mean_p=0.5), want.numpy(), rtol=1e-12, atol=1e-14)


FUSED = [
    g for g in GROUPS if not {"entropy", "concentration", "reference", "sequence"} & OBJECTIVES[g.split()[0]].needs
]


@pytest.mark.parametrize("group", FUSED)
def test_bf16_operands_hold_the_vectors(group: str) -> None:
    """Logits leave the GEMM in fp32: three bf16 numbers that add up to the log-odds give them to 24 bits."""
    rows = [r for r in GROUPS[group] if r["p"] != "1"]
    spec = spec_of(rows[0])
    left = torch.tensor([float(r["log_odds"]) for r in rows])
    parts = []
    for _ in range(3):
        parts.append(left.bfloat16())
        left = left - parts[-1].float()
    hidden = torch.stack(parts, 1).requires_grad_()
    head = Head(torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]], dtype=torch.bfloat16))
    context = Context(example_tokens(len(rows), **CONTEXT).state)
    loss = fused.linear_objective(hidden, head, torch.zeros(len(rows), dtype=torch.long), raw(spec), context)
    loss.total.backward()
    assert hidden.grad is not None
    relative = 8e-6 * max(1.0, abs(spec.alpha or 0.0))
    for row, value, slope in zip(rows, loss.value.tolist(), hidden.grad[:, 0].tolist(), strict=True):
        assert close(value, float(row["loss"]), relative), (row["p"], value, row["loss"])
        want = float(row["weight"])
        if want > fused.FLUSH:
            assert close(-slope, want, 2**-7), (row["p"], slope, want)


def test_every_objective_has_its_vectors() -> None:
    assert {row["objective"] for row in ROWS} == OBJECTIVES.keys()


def test_vectors_come_from_their_script(tmp_path: Path) -> None:
    (tmp_path / "make.py").write_text((VECTORS / "make.py").read_text())
    subprocess.run([sys.executable, str(tmp_path / "make.py")], check=True)
    assert (tmp_path / "objectives.csv").read_text() == (VECTORS / "objectives.csv").read_text()


@pytest.mark.parametrize("group", GROUPS)
def test_conformance_finds_nothing(group: str) -> None:
    assert findings(spec_of(GROUPS[group][0])) == []


def test_conformance_finds_the_textbook_form() -> None:
    """1 - exp(alpha log p) loses its digits, log(1 - exp(log p)) its value: both are told."""
    from jobs import plugins
    from jobs.objectives import Objective

    bad = {
        "bad-small-alpha": lambda t: (1 - (1e-6 * t.logp).exp()) / 1e-6,
        "bad-log": lambda t: (1 - t.logp.exp()).log(),
        "bad-sign": lambda t: t.logp,
        "bad-detach": lambda t: -t.logp.detach().exp() * t.logp,
    }
    for name, loss in bad.items():
        OBJECTIVES[name] = Objective(name, loss, "", "")
        try:
            assert findings(ObjectiveSpec(name=name)), name
        finally:
            del OBJECTIVES[name]
            plugins.objective_named.cache_clear()


@pytest.mark.parametrize("name", ["dft", "power", "focal", "profit"])
def test_aliases_have_the_gradient_of_what_they_become(name: str) -> None:
    given = {"power": {"alpha": 1.0}, "focal": {"gamma": 0.0}, "profit": {"threshold": 0.3}}.get(name, {})
    spec = ObjectiveSpec.model_validate({"name": name} | given)
    assert spec.canonical().name != name
    odds = torch.linspace(-9, 9, 41)
    mine, canonical_one = raw(spec)(odds), BoundObjective.bind(spec.canonical())(odds)
    torch.testing.assert_close(mine.pull, canonical_one.pull)


def test_power_tends_to_nll_as_alpha_vanishes() -> None:
    p = torch.tensor([0.01])
    for alpha in (1e-3, 1e-6, 1e-9):
        small = weight(p, ObjectiveSpec(name="power", alpha=alpha))
        torch.testing.assert_close(small, 1 - p.double(), rtol=10 * alpha, atol=1e-8)
    assert canonical("power", {"alpha": 0.0}) == ("nll", {})


def test_log_odds_equal_log_softmax_in_float64() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(50, 11, dtype=torch.float64) * 5, torch.randint(11, (50,))
    expected = torch.logit(logits.softmax(1).gather(1, target[:, None])[:, 0])
    torch.testing.assert_close(target_log_odds(logits, target), expected)


@pytest.mark.parametrize(
    ("side", "at", "kept"),
    [
        ("top", 0.5, [False, True, True]),
        ("bottom", 0.5, [True, False, False]),
        ("top", 0.999999999, [False, False, True]),  # fp32 cannot tell this p from 1; its log-odds can
        ("top", 1.0, [False, False, False]),
        ("bottom", 0.0, [False, False, False]),
    ],
)
def test_gate_keeps_its_side_and_drops_value_and_pull(side: str, at: float, kept: list[bool]) -> None:
    odds = torch.tensor([log_odds_of(0.2), log_odds_of(0.8), log_odds_of(1 - 1e-10)])
    token = BoundObjective.bind(ObjectiveSpec(name="nll", gate={"side": side, "at": at}))(odds)
    assert token.kept.tolist() == kept
    assert (token.value != 0).tolist() == kept
    assert (token.pull != 0).tolist() == kept


def test_gate_at_a_quantile_has_to_be_measured_first() -> None:
    spec = ObjectiveSpec(name="nll", gate={"side": "top", "quantile": 0.4})
    assert spec.needs_probe
    with pytest.raises(ValueError, match="measured first"):
        BoundObjective.bind(spec)
    assert BoundObjective.bind(spec, 1.5).threshold == 1.5


def test_every_objective_states_formula_and_source() -> None:
    for objective in OBJECTIVES.values():
        assert objective.formula
        assert objective.source
        assert "W(p)" in (objective.loss.__doc__ or "")
