"""The first-order forecast: against steps really taken; and how a ranking is judged."""

import pandas as pd
import pytest
import torch

from jobs.capability import Capability
from jobs.data import Encoded, collate, tokenise
from jobs.forecast import _swapped, forecast, objective_gradient, target_logp, yardstick_gradient
from jobs.hf import import_transformers
from jobs.loss import BoundObjective
from jobs.model import ObjectiveModel
from jobs.pretrain import char_tokenizer
from jobs.probe import Probe
from jobs.spec import ObjectiveSpec
from jobs.task_spec import TaskSpec
from jobs.tasks import load_task
from sweeper.forecast import rank_correlations

from .test_report import make_table

NAMES = ("nll", "mean_p", "answer")
OBJECTIVES = [ObjectiveSpec(name="nll"), ObjectiveSpec(name="one-minus-p"), ObjectiveSpec(name="power", alpha=2.0)]


@pytest.fixture(scope="module")
def rows() -> tuple[list[Encoded], list[Encoded]]:
    data = load_task(TaskSpec(builtin="addition", train_examples=24, heldout_examples=24))
    tokenizer = char_tokenizer()
    return list(tokenise(tokenizer, data.train)), list(tokenise(tokenizer, data.heldout))


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    hf = import_transformers()
    config = hf.LlamaConfig(
        vocab_size=len(char_tokenizer()), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    return hf.LlamaForCausalLM(config).double()


@pytest.fixture
def probe() -> Probe:
    odds = torch.linspace(-3, 3, 50).numpy()
    return Probe(0.4, 1.0, odds, 1.0, 0.3, 0.5, [0.5], [1])


def measured(model: torch.nn.Module, rows: list[Encoded]) -> dict[str, float]:
    """What the forecast's quantities are, with signs so that more is better."""
    with torch.no_grad():
        logp, row = target_logp(model, collate(rows, 0))  # type: ignore[arg-type]
    answers = torch.zeros(len(rows), dtype=logp.dtype).index_add_(0, row, logp).exp()
    return {"nll": float(logp.mean()), "mean_p": float(logp.exp().mean()), "answer": float(answers.mean())}


def test_a_small_step_gains_what_was_forecast(
    model: torch.nn.Module, rows: tuple[list[Encoded], list[Encoded]], probe: Probe
) -> None:
    train, heldout = rows
    found = forecast(model, OBJECTIVES, train, heldout, probe, 0)  # type: ignore[arg-type]
    start = {name: value.clone() for name, value in model.state_dict().items()}
    before = measured(model, heldout)
    for spec, foreseen in zip(OBJECTIVES, found, strict=True):
        trained = ObjectiveModel(model, BoundObjective.bind(spec))
        gradient = objective_gradient(trained, train, 0, Capability(probe, torch.device("cpu")))
        size = 1e-3
        with torch.no_grad():
            place = 0
            for parameter in model.parameters():
                step = gradient[place : place + parameter.numel()].view_as(parameter) / gradient.norm()
                parameter.sub_(size * step)
                place += parameter.numel()
        after = measured(model, heldout)
        for name in NAMES:
            assert (after[name] - before[name]) / size == pytest.approx(getattr(foreseen, name), rel=0.02), name
        model.load_state_dict(start)


def test_nll_foresees_most_of_its_own_yardstick_on_its_own_data(
    model: torch.nn.Module, rows: tuple[list[Encoded], list[Encoded]], probe: Probe
) -> None:
    """No direction of unit length does better than the gradient itself."""
    train, _ = rows
    found = forecast(model, OBJECTIVES, train, train, probe, 0)  # type: ignore[arg-type]
    assert found[0].nll == pytest.approx(float(yardstick_gradient(model, train, 0, "nll").norm()), rel=1e-3)  # type: ignore[arg-type]
    assert found[0].nll == max(f.nll for f in found)
    assert found[1].mean_p == max(f.mean_p for f in found)


def test_the_model_is_left_as_it_was(
    model: torch.nn.Module, rows: tuple[list[Encoded], list[Encoded]], probe: Probe
) -> None:
    start = {name: value.clone() for name, value in model.state_dict().items()}
    forecast(model, OBJECTIVES[:1], *rows, probe, 0, noise=0.3)  # type: ignore[arg-type]
    assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_assumed_noise_keeps_prompts_and_moves_responses(rows: tuple[list[Encoded], list[Encoded]]) -> None:
    train, _ = rows
    swapped = _swapped(train)
    for row, other, following in zip(train, swapped, [*train[1:], train[0]], strict=True):
        assert other.ids[: other.prompt_length] == row.ids[: row.prompt_length]
        assert other.ids[other.prompt_length :] == following.ids[following.prompt_length :]


def foreseen(*answers: float) -> list[dict[str, object]]:
    names = ("nll", "one-minus-p", "power a=0.5")
    return [
        {"backbone": "weak", "task": "<sums>", "objective": name, "noise": 0.0, "answer": a, "mean_p": a, "nll": a}
        for name, a in zip(names, answers, strict=True)
    ]


@pytest.mark.parametrize(
    ("answers", "correlation"), [((3.0, 1.0, 2.0), 1.0), ((1.0, 3.0, 2.0), -1.0), ((2.0, 1.0, 3.0), 0.5)]
)
def test_a_ranking_is_judged_over_the_objectives_of_a_cell(answers: tuple[float, ...], correlation: float) -> None:
    table = make_table(
        {("weak", "backbone"): [0.01], ("weak", "nll"): [0.8, 0.82], ("weak", "one-minus-p"): [0.1, 0.11],
         ("weak", "power a=0.5"): [0.4, 0.42]}
    )  # fmt: skip
    found = rank_correlations(table, foreseen(*answers))
    line = found[found["kind"] == "answer"].iloc[0]
    assert line["correlation"] == pytest.approx(correlation)
    assert (line["best"], line["objectives"]) == ("nll", 3)


def test_equal_forecasts_rank_nothing_and_no_forecast_is_no_table() -> None:
    table = make_table({("weak", "nll"): [0.8], ("weak", "one-minus-p"): [0.1], ("weak", "power a=0.5"): [0.4]})
    found = rank_correlations(table, foreseen(1.0, 1.0, 1.0))
    assert pd.isna(found["correlation"]).all()
    assert rank_correlations(table, []).empty
