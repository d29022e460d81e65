"""Backbones that cannot be had or used are one line, before any trial starts."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.backbone import BackboneError, add_adapters, check_backbone, has_chat_template, load_backbone
from jobs.hf import import_transformers
from jobs.pretrain import char_tokenizer
from jobs.spec import BackboneSpec, Execution

SMALL = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
}  # fmt: skip


def folder(path: Path, config: Any, eos: bool = True) -> BackboneSpec:
    config.save_pretrained(path)
    tokenizer = char_tokenizer()
    if not eos:
        tokenizer.eos_token = None
    tokenizer.save_pretrained(path)
    return BackboneSpec(path=str(path))


def one_line(error: pytest.ExceptionInfo[BackboneError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_decoder_with_eos_passes(tmp_path: Path) -> None:
    check_backbone(folder(tmp_path, import_transformers().LlamaConfig(**SMALL)), tmp_path)


def test_a_model_without_a_causal_head_is_named(tmp_path: Path) -> None:
    spec = folder(tmp_path, import_transformers().T5Config(d_model=16, num_layers=1))
    with pytest.raises(BackboneError) as error:
        check_backbone(spec, tmp_path)
    assert "is a t5, which has no causal language-model head; name a decoder" in one_line(error)


def test_examples_longer_than_the_context_are_named(tmp_path: Path) -> None:
    spec = folder(tmp_path, import_transformers().LlamaConfig(max_position_embeddings=64, **SMALL))
    check_backbone(spec, tmp_path, 64)
    with pytest.raises(BackboneError) as error:
        check_backbone(spec, tmp_path, 65)
    assert "train.max_length 65 is more than its 64 positions; lower it" in one_line(error)


def test_a_tokenizer_without_eos_is_named(tmp_path: Path) -> None:
    spec = folder(tmp_path, import_transformers().LlamaConfig(**SMALL), eos=False)
    with pytest.raises(BackboneError) as error:
        check_backbone(spec, tmp_path)
    assert "its tokenizer has no EOS token" in one_line(error)


def test_an_unknown_kind_of_model_is_named_and_no_code_of_its_own_runs(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}))
    (tmp_path / "own.py").write_text("raise SystemExit('ran')")
    with pytest.raises(BackboneError) as error:
        check_backbone(BackboneSpec(path=str(tmp_path)), tmp_path)
    assert f"cannot read {tmp_path}" in one_line(error)


def test_without_a_network_a_hub_id_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(BackboneError) as error:
        check_backbone(BackboneSpec(hub="no/where"), tmp_path)
    assert "model no/where is not in the cache and HF_HUB_OFFLINE is set" in one_line(error)
    assert "or give a local directory as path" in one_line(error)


def test_a_lora_target_that_is_no_layer_is_named() -> None:
    hf = import_transformers()
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL))
    spec = BackboneSpec.model_validate({"path": "x", "lora": {"targets": ["query"]}})
    with pytest.raises(BackboneError, match=r"lora\.targets query: "):
        add_adapters(model, spec)


def test_adapters_name_and_share_the_measure_of_their_backbone() -> None:
    full = BackboneSpec(path="m/x", fingerprint="f")
    adapted = BackboneSpec.model_validate({"path": "m/x", "fingerprint": "f", "lora": {"rank": 8}, "lr": 1e-4})
    assert adapted.name == "x-lora8"
    assert adapted.bare() == full
    assert adapted.identity() != full.identity()
    assert BackboneSpec.model_validate_json(adapted.model_dump_json()) == adapted


def test_attention_of_the_backbone_is_named_kept_in_its_measure_and_wins_over_executions(tmp_path: Path) -> None:
    hf = import_transformers()
    plain = folder(tmp_path, hf.LlamaConfig(**SMALL))
    hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL)).save_pretrained(tmp_path)
    fields = {"path": str(tmp_path), "name": "x", "attention": "eager", "lora": {"rank": 8}}
    eager = BackboneSpec.model_validate(fields)
    assert eager.name == "x-eager-lora8"
    assert (eager.bare().name, eager.bare().attention, eager.bare().lora) == ("x-eager", "eager", None)
    assert BackboneSpec.model_validate_json(eager.model_dump_json()) == eager
    assert "attention" not in plain.identity()  # keys of before stay
    assert eager.bare().identity() == plain.identity() | {"attention": "eager"}
    for spec, execution, found in (
        (eager, Execution(attention="sdpa"), "eager"), (eager, None, "eager"),
        (plain, Execution(attention="eager"), "eager"), (plain, None, "sdpa"),
    ):  # fmt: skip
        assert load_backbone(spec, tmp_path, execution).config._attn_implementation == found


def gguf(file: Path, **said: Any) -> BackboneSpec:
    """A GGUF of a Llama, as far as its header goes."""
    writer = pytest.importorskip("gguf").GGUFWriter(str(file), "llama")
    writer.add_context_length(64)
    for name, value in said.items():
        getattr(writer, f"add_{name}")(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return BackboneSpec(gguf=str(file), fingerprint="0" * 12)


def test_a_gguf_is_refused_by_its_header_before_it_is_unpacked(tmp_path: Path) -> None:
    chats = gguf(tmp_path / "chats.gguf", eos_token_id=2, chat_template="{{ messages }}")
    plain = gguf(tmp_path / "plain.gguf", eos_token_id=2)
    check_backbone(chats, tmp_path, 64)
    assert has_chat_template(chats, tmp_path)
    assert not has_chat_template(plain, tmp_path)
    assert has_chat_template(plain.model_copy(update={"chat_template": "{{ messages }}"}), tmp_path)
    with pytest.raises(BackboneError) as error:
        check_backbone(plain, tmp_path, 65)
    assert "train.max_length 65 is more than its 64 positions; lower it" in one_line(error)
    with pytest.raises(BackboneError) as error:
        check_backbone(gguf(tmp_path / "endless.gguf"), tmp_path, 64)
    assert "its tokenizer has no EOS token" in one_line(error)
    (tmp_path / "torn.gguf").write_bytes(b"no model at all, but long enough for a header")
    with pytest.raises(BackboneError) as error:
        check_backbone(BackboneSpec(gguf=str(tmp_path / "torn.gguf"), fingerprint="0" * 12), tmp_path, 64)
    assert "torn.gguf is not a GGUF file" in one_line(error)
