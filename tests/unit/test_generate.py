"""Answers: the same texts and draws with either cache, greedy without chance, sampled by seed and temperature alone."""

from typing import Any

import pytest
import torch

from jobs.answers import Answer, Reading
from jobs.engine import ensure_process_group
from jobs.evaluate import answering
from jobs.hf import import_transformers
from jobs.pretrain import char_tokenizer
from jobs.spec import EvalSpec, TrialSpec

PROMPTS = ("12+34=", "r417=", "1", "cabj=380714")


def answers(
    model: Any,
    cache: str,
    samples: int,
    temperature: float = 1.0,
    seed: int = 7,
    stop: tuple[str, ...] = (),
    **execution: Any,
) -> list[Answer]:
    trial = TrialSpec.model_validate(
        {
            "backbone": {"builtin": "char-llama", "pretrain_steps": 0}, "task": {"builtin": "addition"},
            "objective": None, "seed": 0, "train": {"lr": 1e-3, "steps": 1}, "evaluation": {"max_new_tokens": 12},
            "execution": {"cache": cache} | execution,
        }
    )  # fmt: skip
    ensure_process_group()
    tokenizer = char_tokenizer()
    reading = Reading(tokenizer, (int(tokenizer.eos_token_id),), stop)
    with answering(model, reading, trial) as answer:
        return answer([tokenizer(prompt)["input_ids"] for prompt in PROMPTS], samples, temperature, seed)


@pytest.fixture
def model() -> Any:
    hf = import_transformers()
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=len(char_tokenizer()), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.5,
    )  # fmt: skip
    return hf.LlamaForCausalLM(config)


@pytest.mark.parametrize("samples", [0, 3])
def test_a_static_cache_says_what_a_growing_one_says(model: Any, samples: int) -> None:
    one, other = answers(model, "dynamic", samples), answers(model, "static", samples)
    assert one == other
    assert len(one) == len(PROMPTS) * max(samples, 1)
    assert len({answer.text for answer in one}) > 1


def test_greedy_knows_no_seed_and_draws_do(model: Any) -> None:
    assert answers(model, "dynamic", 0, seed=1) == answers(model, "dynamic", 0, seed=2)
    assert answers(model, "dynamic", 4, seed=1) == answers(model, "dynamic", 4, seed=1)
    assert answers(model, "dynamic", 4, seed=1) != answers(model, "dynamic", 4, seed=2)


def test_a_low_temperature_sharpens_towards_greedy(model: Any) -> None:
    greedy = [answer.text for answer in answers(model, "dynamic", 0)]

    def like_greedy(temperature: float) -> float:
        drawn = answers(model, "dynamic", 8, temperature)
        return sum(answer.text == greedy[i // 8] for i, answer in enumerate(drawn)) / len(drawn)

    assert like_greedy(1e-3) == 1.0
    assert like_greedy(1.0) < 0.9


def test_what_came_later_is_in_a_key_only_where_it_is_used() -> None:
    assert EvalSpec(engine="vllm").identity() == EvalSpec().identity() | {"engine": "vllm"}
    assert "engine" not in EvalSpec().identity()


@pytest.mark.parametrize("samples", [0, 3])
@pytest.mark.parametrize("at_once", [1, 3])
def test_fewer_at_once_draw_what_the_whole_batch_draws(model: Any, samples: int, at_once: int) -> None:
    """Also where a part is at its end before the others, and where the last part is short."""
    whole = answers(model, "dynamic", samples)
    assert answers(model, "dynamic", samples, evaluate_at_once=at_once) == whole
    hotter = answers(model, "dynamic", 3, 2.0, evaluate_at_once=at_once)
    assert hotter == answers(model, "dynamic", 3, 2.0)
    assert hotter != answers(model, "dynamic", 3, 2.0, seed=8, evaluate_at_once=at_once)


def test_a_stop_text_ends_generation_there_and_changes_nothing_before(model: Any) -> None:
    """Of two signs, the second pair of some greedy answer; a row that has it stops, and others go on."""
    whole = answers(model, "dynamic", 0)
    longest = max(whole, key=lambda answer: answer.tokens)
    stop = longest.text[2:4]
    cut = answers(model, "dynamic", 0, stop=(stop,))
    for one, other in zip(whole, cut, strict=True):
        before, found, _ = one.text.partition(stop)
        assert (other.text, other.ended) == (before, bool(found) or one.ended)
        assert other.tokens >= len(before)  # a sign a token, and special ones that are no text
    assert any(stop in answer.text for answer in whole)


def test_the_models_own_generation_settings_are_left_as_they_were(model: Any) -> None:
    own = model.generation_config
    answers(model, "dynamic", 2)
    assert model.generation_config is own
