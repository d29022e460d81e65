"""No silent objective, heads that do more than a matrix product, LoRA, and the probe, on real models."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import jobs.train
from jobs import reference
from jobs.check import ObjectiveMismatch
from jobs.data import Batch
from jobs.fused import Head
from jobs.hf import import_transformers
from jobs.loss import BoundObjective
from jobs.model import HeadError, ObjectiveModel, Targets, head_of, target_statistics
from jobs.probe import Probe, probe_dir, read_probe
from jobs.spec import ObjectiveSpec, TrialSpec
from jobs.train import train

pytestmark = pytest.mark.integration


def trial(objective: dict[str, Any] | None, **train_settings: Any) -> TrialSpec:
    return TrialSpec.model_validate(
        {
            "backbone": {"builtin": "char-llama", "pretrain_steps": 60}, "task": {"builtin": "addition"},
            "objective": objective, "seed": 1,
            "train": {"lr": 1e-3, "batch_size": 16, "steps": 2, "max_length": 32, "log_every": 1} | train_settings,
            "evaluation": {"samples": 1, "max_new_tokens": 4, "probe_examples": 64},
        }
    )  # fmt: skip


def run(spec: TrialSpec, root: Path) -> tuple[list[dict[str, float]], dict[str, Any]]:
    rows: list[dict[str, float]] = []
    facts: dict[str, Any] = {}

    def report(row: dict[str, float], _save: Any, _due: bool) -> bool:
        rows.append(row)
        return True

    assert train(spec, root, report, facts=facts)
    return rows, facts


def test_the_record_has_both_numbers_and_a_digest(backbones: Path) -> None:
    check = run(trial({"name": "power", "alpha": 0.5}), backbones)[1]["objective_check"]
    assert check["loss"] == pytest.approx(check["reference"], rel=1e-5)
    assert check["gradient_error"] < 1e-4
    same = run(trial({"name": "power", "alpha": 0.5}, lr=1e-4), backbones)[1]["objective_check"]
    other = run(trial({"name": "power", "alpha": 0.6}), backbones)[1]["objective_check"]
    assert same["digest"] == check["digest"] != other["digest"]


def scaled_logits(model: nn.Module) -> None:
    """A wrapper that somebody left in the way: the head's output is changed behind its back."""
    model.get_output_embeddings().register_forward_hook(lambda _m, _a, out: out * 1.05)  # type: ignore[operator]


def patched_forward(model: nn.Module) -> None:
    """A patched model: its forward drops the last layer's normalisation."""
    plain = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        out = plain(*args, **kwargs)
        out.logits = out.logits.softmax(-1)
        return out

    model.forward = forward


@pytest.mark.parametrize("spoil", [scaled_logits, patched_forward])
@pytest.mark.parametrize("stage", [1, 3])
def test_a_model_that_was_tampered_with_fails_with_both_numbers(
    backbones: Path, monkeypatch: pytest.MonkeyPatch, spoil: Any, stage: int
) -> None:
    load = jobs.train.load_backbone

    def spoiled(*args: Any) -> Any:
        model = load(*args)
        spoil(model)
        return model

    monkeypatch.setattr(jobs.train, "load_backbone", spoiled)
    with pytest.raises(ObjectiveMismatch, match=r"nll: training would minimise \d.* says \d"):
        run(trial({"name": "nll"}, zero_stage=stage), backbones)


def test_a_fused_loss_that_is_another_objective_is_caught(backbones: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import jobs.check

    def always_nll(hidden: Any, head: Any, target: Any, objective: Any, *rest: Any) -> Any:
        return reference.linear_objective(hidden, head, target, BoundObjective.bind(ObjectiveSpec(name="nll")))

    monkeypatch.setattr(jobs.check, "linear_objective", always_nll)
    with pytest.raises(ObjectiveMismatch, match="one-minus-p"):
        run(trial({"name": "one-minus-p"}), backbones)


SMALL = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("Gemma2", {"final_logit_softcapping": 2.0, "head_dim": 8}),
        ("Cohere", {"logit_scale": 0.25}),
        ("Granite", {"logits_scaling": 3.0}),
        ("Phi", {}),  # a head with a bias
    ],
)
def test_heads_with_softcap_scale_or_bias_give_the_models_own_probabilities(name: str, extra: dict[str, Any]) -> None:
    hf = import_transformers()
    torch.manual_seed(0)
    config = getattr(hf, f"{name}Config")(**SMALL | extra)
    model = getattr(hf, f"{name}ForCausalLM")(config).eval()
    head: Any = model.get_output_embeddings()
    with torch.no_grad():
        head.weight.mul_(20)
        if head.bias is not None:
            head.bias.normal_()
    ids = torch.randint(3, 60, (3, 9))
    batch = Batch(ids, torch.ones_like(ids), ids, torch.zeros_like(ids), 1)
    with torch.no_grad():
        wanted = Targets.of(model(input_ids=ids).logits, batch)
        got, _ = target_statistics(model, batch)
    p = wanted.hidden.double().softmax(1).gather(1, wanted.ids[:, None])[:, 0]
    torch.testing.assert_close(got.log_odds.double().sigmoid(), p, rtol=1e-4, atol=1e-6)
    parts: Head = head_of(model)
    assert (parts.softcap, parts.scale, parts.bias is not None) != (None, 1.0, False)


def test_lora_body_trains_and_a_lora_head_is_refused_by_name() -> None:
    peft = pytest.importorskip("peft")
    hf = import_transformers()
    torch.manual_seed(0)
    plain = hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL))
    ids = torch.randint(3, 60, (3, 9))
    batch = Batch(ids, torch.ones_like(ids), ids, torch.zeros_like(ids), 1)
    body = peft.get_peft_model(copy.deepcopy(plain), peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=4))
    for name, parameter in body.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    bound = BoundObjective.bind(ObjectiveSpec(name="one-minus-p"))
    loss, *_ = ObjectiveModel(body.get_base_model(), bound)(batch, 1.0)
    loss.backward()
    mine = {n: p.grad.clone() for n, p in body.named_parameters() if p.grad is not None}
    assert mine
    assert all("lora" in name for name in mine)
    body.zero_grad()
    targets = Targets.of(body(input_ids=ids).logits, batch)
    (1 - targets.hidden.softmax(1).gather(1, targets.ids[:, None])).sum().backward()
    for name, parameter in body.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(mine[name], parameter.grad, rtol=1e-4, atol=1e-6)
    head = peft.get_peft_model(copy.deepcopy(plain), peft.LoraConfig(target_modules=["lm_head"], r=4))
    with pytest.raises(HeadError, match=r"LlamaForCausalLM: its head is a peft.*leave the head out of LoRA"):
        ObjectiveModel(head.get_base_model(), bound)


def test_the_probe_is_measured_once_and_its_quantile_sets_the_gate(backbones: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "backbones").parent.mkdir()
    (root / "backbones").symlink_to(backbones / "backbones")
    spec = trial({"name": "nll", "gate": {"side": "top", "quantile": 0.3}}, batch_size=64, steps=1)
    rows, facts = run(spec, root)
    folder = probe_dir(spec, root)
    written = (folder / "probe.json").stat().st_mtime_ns
    found = read_probe(folder)
    assert facts["gate_at"] == pytest.approx(1 / (1 + np.exp(-found.quantile(0.3))), rel=1e-6)
    assert rows[0]["train/kept"] == pytest.approx(0.7, abs=0.06)  # of other examples than those probed
    base, _ = run(trial(None), root)
    assert base[0]["trainset/mean_p"] == found.mean_p
    assert base[0]["trainset/p_q30"] == pytest.approx(facts["gate_at"], rel=1e-6)
    assert (folder / "probe.json").stat().st_mtime_ns == written
    assert len(list((root / "probes").iterdir())) == 1


def test_a_sure_model_and_a_kl_of_zero_are_no_mismatch(tmp_path: Path) -> None:
    """At the start ASFT's KL is 0: what fp32 makes of it is rounding, next to losses that are tiny themselves."""
    from jobs.pretrain import pretrain

    pretrain(tmp_path, "char-llama", [400])
    spec = trial({"name": "asft"})
    sure = spec.model_copy(update={"backbone": spec.backbone.model_copy(update={"pretrain_steps": 400})})
    check = run(sure, tmp_path)[1]["objective_check"]
    assert check["loss"] == pytest.approx(check["reference"], abs=1e-3)


def test_a_quantile_is_a_tokens_own_value() -> None:
    found = Probe(0.5, 1.0, np.array([-2.0, -1.0, 0.0, 1.0], dtype=np.float32), 1.0, 0.5, 0.5, [], [])
    assert [found.quantile(q) for q in (0.0, 0.25, 0.26, 0.5, 1.0)] == [-2.0, -2.0, -1.0, -1.0, 1.0]


def test_adaptive_starts_at_the_probe_and_follows_the_steps(backbones: Path) -> None:
    rows, _ = run(trial({"name": "adaptive"}, steps=3), backbones)
    probed = read_probe(probe_dir(trial({"name": "adaptive"}, steps=3), backbones)).mean_p
    alphas, means = ([row[name] for row in rows] for name in ("objective/alpha", "train/mean_p"))
    expected = [probed]
    for mean in means[:-1]:
        expected.append(0.9 * expected[-1] + 0.1 * mean)
    assert alphas == pytest.approx(expected, rel=1e-5)
