"""The check before the first step can fail: on wrong logits, for every objective, where p is about 0 and about 1."""

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import jobs.check
from jobs.capability import Capability
from jobs.check import ObjectiveMismatch, check_objective
from jobs.data import Encoded
from jobs.engine import ensure_process_group
from jobs.evaluate import token_yardsticks
from jobs.head_check import LOGITS, check_head, logit_error
from jobs.hf import import_transformers
from jobs.loss import BoundObjective
from jobs.model import HeadError, ObjectiveModel
from jobs.objectives import OBJECTIVES
from jobs.probe import Probe
from jobs.spec import ObjectiveSpec

VOCABULARY = 48
SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
}  # fmt: skip
NEEDED: dict[str, dict[str, Any]] = {"power": {"alpha": 0.5}, "profit": {"threshold": 0.3}}
SPECS = [
    *({"name": name} | NEEDED.get(name, {}) for name in OBJECTIVES),
    {"name": "power", "alpha": 10.0}, {"name": "power", "alpha": -0.5}, {"name": "focal", "gamma": 5.0},
    {"name": "nll", "gate": {"side": "top", "at": 0.9}}, {"name": "nll", "gate": {"side": "bottom", "at": 0.1}},
    {"name": "one-minus-p", "gate": {"side": "top", "at": 0.5}},
    {"name": "one-minus-p", "gate": {"side": "bottom", "at": 0.5}, "normalisation": "kept"},
]  # fmt: skip
Spoil = Callable[[Any], None]


def llama(sharpness: float) -> Any:
    hf = import_transformers()
    torch.manual_seed(0)
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL))
    with torch.no_grad():
        model.lm_head.weight.mul_(sharpness)
    return model


def rows_at(model: Any, p: int) -> list[Encoded]:
    """Rows whose targets are all but impossible (p = 0) or all but sure (p = 1) by this model, as it is now."""
    generator = torch.Generator().manual_seed(3)
    rows = []
    for _ in range(4):
        ids = torch.randint(3, VOCABULARY, (4,), generator=generator).tolist()
        for _ in range(8):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
            ids.append(int(logits.argmax() if p else logits.argmin()))
        rows.append(Encoded(ids, 4))
    return rows


def checked(model: Any, spec: dict[str, Any], rows: list[Encoded], spoil: Spoil | None = None) -> dict[str, Any]:
    """The record of the check, of an engine around this model; spoil: what happens to its logits behind its back."""
    bound = BoundObjective.bind(ObjectiveSpec.model_validate(spec).canonical())
    wrapped = ObjectiveModel(copy.deepcopy(model), bound)
    for part in (wrapped.backbone, wrapped.reference):
        if spoil is not None and part is not None:
            spoil(part)
    engine = SimpleNamespace(module=wrapped, device=torch.device("cpu"))
    probe = Probe(0.4, 1.2, np.zeros(3), 1.0, 0.5, 0.5, [], [])
    return check_objective(engine, rows, 0, Capability(probe, engine.device))


def after_head(change: Callable[[Tensor], Tensor]) -> Spoil:
    return lambda model: model.get_output_embeddings().register_forward_hook(lambda _m, _a, out: change(out)) and None


def of_one_token(out: Tensor) -> Tensor:
    """The logit of one word of the vocabulary alone."""
    out = out.clone()
    out[..., 5] += 0.1 * out.abs().max()
    return out


SPOILS: dict[str, Spoil] = {
    "a scale": after_head(lambda out: out * 1.05),
    "a soft cap": after_head(lambda out: 50 * torch.tanh(out / 50)),
    "temperature": after_head(lambda out: out / 2),
    "one token": after_head(of_one_token),
    "rolled": after_head(lambda out: out.roll(1, -1)),
    "zeros": after_head(torch.zeros_like),
    "NaN": after_head(lambda out: out * float("nan")),
}


@pytest.fixture(scope="module")
def sharp() -> tuple[Any, dict[int, list[Encoded]]]:
    """A model that is sure of itself: p is 0 or 1 to all digits that fp32 has."""
    ensure_process_group()
    model = llama(3000.0).eval()
    return model, {p: rows_at(model, p) for p in (0, 1)}


@pytest.mark.parametrize("p", [0, 1])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_right_logits_pass_and_wrong_ones_fail_at_both_ends(
    spec: dict[str, Any], p: int, sharp: tuple[Any, dict[int, list[Encoded]]]
) -> None:
    model, rows = sharp
    record = checked(model, spec, rows[p])
    assert record["loss"] == pytest.approx(record["reference"], rel=1e-3, abs=1e-3)
    for name in SPOILS if spec == {"name": "one-minus-p"} else ("a scale", "one token"):
        with pytest.raises(ObjectiveMismatch, match=r"logits of the model's forward reach|log-odds"):
            checked(model, spec, rows[p], SPOILS[name])


def test_value_and_gradient_alone_would_have_passed_what_is_wrong(
    sharp: tuple[Any, dict[int, list[Encoded]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why logits are compared: 1 - p is 1, with a gradient of 0, on half of every logit as on the whole."""
    model, rows = sharp
    monkeypatch.setattr(jobs.check, "logit_error", lambda *_: None)
    monkeypatch.setattr(jobs.check, "_odds_differ", lambda *_: 0)
    monkeypatch.setattr(jobs.check, "check_head", lambda *_: None)
    checked(model, {"name": "one-minus-p"}, rows[0], SPOILS["temperature"])


def test_log_odds_are_compared_where_the_fused_path_alone_is_wrong(
    sharp: tuple[Any, dict[int, list[Encoded]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that takes another target, on tokens of which one-minus-p says the same: 1, without a pull."""
    model, rows = sharp
    fused = jobs.check.linear_objective

    def another(hidden: Any, head: Any, target: Any, *more: Any) -> Any:
        return fused(hidden, head, (target + 1) % VOCABULARY, *more)

    monkeypatch.setattr(jobs.check, "linear_objective", another)
    with pytest.raises(ObjectiveMismatch, match="the log-odds of the target differ on"):
        checked(model, {"name": "one-minus-p"}, rows[0])


def test_the_references_logits_are_compared_too(sharp: tuple[Any, dict[int, list[Encoded]]]) -> None:
    model, rows = sharp
    bound = BoundObjective.bind(ObjectiveSpec(name="asft"))
    wrapped = ObjectiveModel(copy.deepcopy(model), bound)
    SPOILS["a scale"](wrapped.reference)
    engine = SimpleNamespace(module=wrapped, device=torch.device("cpu"))
    with pytest.raises(ObjectiveMismatch, match="of the frozen reference, the logits of the model's forward"):
        check_objective(engine, rows[0], 0, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_no_difference(dtype: torch.dtype) -> None:
    model = llama(20.0).to(dtype).eval()
    ensure_process_group()
    for p in (0, 1):
        for spec in ({"name": "nll"}, {"name": "one-minus-p"}, {"name": "asft"}):
            checked(model, spec, rows_at(model, p))


def test_logits_agree_up_to_their_precision_and_no_further() -> None:
    own = torch.randn(40, 100) * 30
    for dtype in (torch.float32, torch.bfloat16):
        size = own.abs().amax(1, keepdim=True)
        assert logit_error(own + 0.5 * LOGITS[dtype] * size, own, dtype) is None
        off = own.clone()
        off[:5, 7] += 2 * LOGITS[dtype] * size[:5, 0]
        assert "on 5 of 40 tokens" in str(logit_error(off, own, dtype))
        off[1:5] = own[1:5]  # a single token in ten may turn on a router's choice
        assert logit_error(off, own, dtype) is None
    assert "gives 99 logits a token, its head has 100 rows" in str(logit_error(own, own[:, 1:], torch.float32))


class Tuple(nn.Module):
    def forward(self, *_: Any, **__: Any) -> Any:
        raise TypeError("forward() needs pixel_values")


def heads() -> dict[str, tuple[Any, str]]:
    """Models whose head or body is not what is computed here, and what is said of them."""
    hf = import_transformers()
    torch.manual_seed(0)
    encoder = hf.BertGenerationDecoder(hf.BertGenerationConfig(**SMALL, max_position_embeddings=64))
    mute = hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL))
    mute.model = Tuple()
    scaled = hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL))
    SPOILS["a scale"](scaled)
    before = hf.ModernBertDecoderForCausalLM(
        hf.ModernBertDecoderConfig(**SMALL, cls_token_id=1, sep_token_id=1, max_position_embeddings=64)
    )
    wide = hf.RemBertForCausalLM(hf.RemBertConfig(**SMALL, is_decoder=True, max_position_embeddings=64))
    return {
        "encoder": (encoder, "the states before a token depend on the tokens after it, so it is no causal language"),
        "mute": (mute, "its forward cannot be run on token ids alone (forward() needs pixel_values)"),
        "scaled": (scaled, "the logits of the model's forward reach"),
        "a layer before it": (before, "the logits of the model's forward reach"),
        "wide": (wide, "its hidden states are 16 wide and its head takes 1664"),
    }


def test_a_model_that_is_not_reproduced_is_refused_where_it_is_measured() -> None:
    ensure_process_group()
    rows = [Encoded([3, 4, 5, 6, 7, 8, 9, 1], 4), Encoded([5, 9, 11, 1], 2)]
    for name, (model, wanted) in heads().items():
        with pytest.raises(HeadError) as error:
            token_yardsticks(model, rows, 0, 2, "heldout")
        assert wanted in str(error.value), name
        assert "\n" not in str(error.value)
    whole = llama(20.0)
    whole.train()
    token_yardsticks(whole, rows, 0, 2, "heldout")
    assert whole.training
    SPOILS["a scale"](whole)
    check_head(whole, rows, 0)  # once a loaded model: what is trained later is held by check_objective


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("RecurrentGemma", {"logits_soft_cap": 2.0, "lru_width": 16, "attention_window_size": 8}),
        ("NanoChat", {"final_logit_softcapping": 2.0}),
        ("FalconH1", {"lm_head_multiplier": 0.25, "num_key_value_heads": 2, "mamba_d_ssm": 32, "mamba_n_heads": 4,
                      "mamba_d_head": 8}),
        ("MiniCPM3", {"dim_model_base": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 4,
                      "qk_rope_head_dim": 4, "v_head_dim": 4}),
        ("HyperCLOVAX", {"logits_scaling": 3.0}),
        ("GraniteMoe", {"logits_scaling": 3.0, "num_local_experts": 2}),
        ("Cohere2", {"logit_scale": 0.25}),
        ("Mpt", {"d_model": 16, "n_layers": 1, "n_heads": 2}),
    ],
)  # fmt: skip
def test_scales_and_caps_under_other_names_give_the_models_own_nll(name: str, extra: dict[str, Any]) -> None:
    ensure_process_group()
    hf = import_transformers()
    torch.manual_seed(0)
    config = getattr(hf, f"{name}Config")
    known = set(config.__dataclass_fields__) | set(config.attribute_map)
    made = config(**{k: v for k, v in SMALL.items() if k in known} | extra)
    if name == "Mpt":
        made.logit_scale = 2.0  # which its forward does not read
    model = getattr(hf, f"{name}ForCausalLM")(made).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(30)
    generator = torch.Generator().manual_seed(1)
    rows = [Encoded([*torch.randint(3, VOCABULARY, (n,), generator=generator).tolist(), 1], 2) for n in (9, 6, 7)]
    parts = []
    for row in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0, 1:-1].double()
        parts.append(-logits.log_softmax(1).gather(1, torch.tensor(row.ids[2:])[:, None])[:, 0])
    found = token_yardsticks(model, rows, 0, 2, "heldout")["heldout/nll"]
    assert found == pytest.approx(float(torch.cat(parts).mean()), abs=1e-4)
