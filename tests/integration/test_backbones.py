"""The backbone that is measured, trained and saved is the one that was named: through the loop and the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from jobs.backbone import BackboneError, load_backbone
from jobs.hf import import_transformers
from jobs.model import HeadError
from jobs.pretrain import char_tokenizer
from jobs.spec import BackboneSpec, TrialSpec
from jobs.train import train
from jobs.weights_check import check_weights
from sweeper.cli import main
from tests.unit.test_weights import MISSING, configured, edited, model

pytestmark = pytest.mark.integration


def trial(folder: Path, objective: str | None = "nll", seed: int = 1, **backbone: Any) -> TrialSpec:
    return TrialSpec.model_validate(
        {
            "backbone": {"path": str(folder), **backbone}, "task": {"builtin": "addition"}, "seed": seed,
            "objective": None if objective is None else {"name": objective},
            "train": {"lr": 1e-2, "batch_size": 8, "steps": 2, "max_length": 32},
            "evaluation": {"samples": 1, "max_new_tokens": 4, "probe_examples": 16},
        }
    )  # fmt: skip


def run(spec: TrialSpec, root: Path, into: Path | None = None) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = []

    def report(row: dict[str, float], *_: Any) -> bool:
        rows.append(row)
        return True

    assert train(spec, root, report, model_dir=into)
    return rows


def odd_head(folder: Path) -> Path:
    """A model whose head has a layer before it: its own forward says something else than its head on its states."""
    hf, tokenizer = import_transformers(), char_tokenizer()
    torch.manual_seed(0)
    config = hf.ModernBertDecoderConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        pad_token_id=0, eos_token_id=1, bos_token_id=2, cls_token_id=1, sep_token_id=1, max_position_embeddings=2048,
    )  # fmt: skip
    hf.ModernBertDecoderForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("tied", [False, True])
def test_what_is_saved_has_the_backbones_own_configuration(tied: bool, tmp_path: Path) -> None:
    folder = model(tmp_path / "it", tie_word_embeddings=tied)
    edited(folder, lambda tensors: {name: tensor.bfloat16() for name, tensor in tensors.items()})
    configured(folder, dtype="bfloat16", use_cache=True, eos_token_id=[1, 5], a_field_of_the_users=[1, {"b": None}])
    generation = {"eos_token_id": [1, 5], "temperature": 0.6, "do_sample": True, "top_k": 20, "pad_token_id": 3}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    run(trial(folder), tmp_path, tmp_path / "trained")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    saved = tmp_path / "trained"
    assert (saved / "generation_config.json").read_bytes() == before["generation_config.json"]
    fields = json.loads((saved / "config.json").read_text())
    assert fields == json.loads(before["config.json"]) | {"dtype": "float32"}  # what the files hold now
    assert {tensor.dtype for tensor in load_file(saved / "model.safetensors").values()} == {torch.float32}
    assert check_weights(BackboneSpec(path=str(saved)), tmp_path) == len(char_tokenizer())
    again = run(trial(saved), tmp_path)  # and is a backbone itself
    assert again[-1]["heldout/nll"] < run(trial(folder, objective=None), tmp_path)[0]["heldout/nll"]


def test_without_generation_defaults_none_are_saved_and_adapters_are_saved_alone(tmp_path: Path) -> None:
    folder = model(tmp_path / "it")
    (folder / "generation_config.json").unlink()
    run(trial(folder), tmp_path, tmp_path / "full")
    assert not (tmp_path / "full" / "generation_config.json").exists()
    assert (tmp_path / "full" / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 5]}')
    run(trial(folder, lora={"rank": 2}), tmp_path, tmp_path / "adapters")
    assert (tmp_path / "adapters" / "generation_config.json").read_text() == '{"eos_token_id": [1, 5]}'
    assert not (tmp_path / "adapters" / "config.json").exists()


def test_the_same_backbone_whatever_the_trials_seed(tmp_path: Path) -> None:
    folder = model(tmp_path / "it", attention_dropout=0.0)
    nll = {
        seed: run(trial(folder, objective=None, seed=seed), tmp_path / f"root-{seed}")[0]["heldout/nll"]
        for seed in (0, 1)
    }
    assert nll[0] == nll[1]


@pytest.mark.parametrize("objective", [None, "nll", "one-minus-p", "adaptive", "asft"])
def test_a_head_that_is_not_reproduced_is_refused_wherever_it_is_used(objective: str | None, tmp_path: Path) -> None:
    with pytest.raises((HeadError, RuntimeError), match=r"ModernBertDecoderForCausalLM.*|.*logits of the model's forw"):
        run(trial(odd_head(tmp_path / "it"), objective), tmp_path)
    assert not (tmp_path / "probes").exists()


def test_probe_and_forecast_refuse_such_a_head_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, file = odd_head(tmp_path / "it"), tmp_path / "small.yaml"
    grid = {"backbone": [{"path": str(folder)}], "task": [{"builtin": "addition"}], "objective": ["nll", "one-minus-p"]}
    file.write_text(json.dumps({"name": "s", "grid": grid, "train": {"lr": 1e-3, "steps": 2, "max_length": 32}}))
    for command in (["probe", "--backbone", str(folder), "--task", "addition"], ["forecast", str(file)]):
        assert main([*command, "--storage", str(tmp_path / "storage")]) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert "ModernBertDecoderForCausalLM: the logits of the model's forward reach" in line


@pytest.mark.parametrize("number", range(len(MISSING)))
def test_sharded_loading_refuses_them_too(number: int, tmp_path: Path) -> None:
    """Where DeepSpeed holds the parameters, transformers neither compares shapes nor names what is left over."""
    from jobs.sharded import load_sharded

    folder = edited(model(tmp_path / "it"), MISSING[number][0])
    spec = trial(folder).model_dump()
    spec["train"] |= {"zero_stage": 3}
    spec["execution"] = {"offload": "parameters"}
    with pytest.raises(BackboneError):
        load_sharded(TrialSpec.model_validate(spec), tmp_path, "fp32")
    load_backbone(BackboneSpec(path=str(model(tmp_path / "whole"))), tmp_path)  # nothing is left behind
