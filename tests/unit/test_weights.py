"""A backbone is the one that was named: files that are not a model's weights are refused, by tensor and file."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from jobs.backbone import BackboneError, check_backbone, load_backbone, source_files
from jobs.hf import import_transformers
from jobs.pretrain import char_tokenizer
from jobs.spec import BackboneSpec
from jobs.weights_check import check_weights

SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
Tensors = dict[str, torch.Tensor]
UP = "model.layers.1.mlp.up_proj.weight"


def model(folder: Path, **config: Any) -> Path:
    """A whole tiny Llama with its tokenizer."""
    hf, tokenizer = import_transformers(), char_tokenizer()
    torch.manual_seed(0)
    made = hf.LlamaForCausalLM(hf.LlamaConfig(**{"vocab_size": len(tokenizer), **SIZE, **config}))
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def edited(folder: Path, edit: Callable[[Tensors], Tensors]) -> Path:
    file = folder / "model.safetensors"
    save_file(edit(load_file(file)), file, metadata={"format": "pt"})
    return folder


def configured(folder: Path, **fields: Any) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return folder


def sharded(folder: Path) -> Path:
    """The same model in two files and an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, inside in files.items():
        save_file({name: tensors[name] for name in inside}, folder / file, metadata={"format": "pt"})
    index = {"weight_map": {name: file for file, inside in files.items() for name in inside}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def spec(folder: Path, **more: Any) -> BackboneSpec:
    return BackboneSpec.model_validate({"path": str(folder), "name": "it", **more})


def checked(backbone: BackboneSpec, root: Path) -> int | None:
    """All that is done with a backbone before any trial."""
    source_files(backbone)
    check_backbone(backbone, root)
    return check_weights(backbone, root)


def refusal(folder: Path, root: Path, **more: Any) -> str:
    with pytest.raises(BackboneError) as error:
        checked(spec(folder, **more), root)
    said = str(error.value)
    assert said.startswith("backbone 'it")
    assert "\n" not in said
    return said


def without(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: value for name, value in tensors.items() if name not in names}


def renamed(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {prefix + name: value for name, value in tensors.items()}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shards", [False, True])
def test_a_whole_model_passes_and_is_checked_once(tied: bool, shards: bool, tmp_path: Path) -> None:
    folder = model(tmp_path / "it", tie_word_embeddings=tied)
    if shards:
        sharded(folder)
    assert checked(spec(folder), tmp_path) == len(char_tokenizer())
    (mark, again) = (tmp_path / "checked").iterdir()
    assert mark.read_text() == again.read_text()
    stamps = [file.stat().st_mtime_ns for file in (mark, again)]
    assert checked(spec(folder), tmp_path) == len(char_tokenizer())
    assert [file.stat().st_mtime_ns for file in (mark, again)] == stamps
    edited(folder, without(UP)) if not shards else (folder / "config.json").write_text("{")
    refusal(folder, tmp_path)  # what is changed is checked again


def test_the_same_tensors_in_half_precision_pass(tmp_path: Path) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        folder = edited(model(tmp_path / str(dtype)), lambda t: {k: v.to(dtype) for k, v in t.items()})  # noqa: B023
        checked(spec(folder), tmp_path)


def test_the_names_that_transformers_itself_takes_are_taken(tmp_path: Path) -> None:
    """A base model saved alone, under no prefix, with a head that is its embedding; and rotary buffers of old files."""
    folder = edited(
        model(tmp_path / "it", tie_word_embeddings=True), lambda t: {k.removeprefix("model."): v for k, v in t.items()}
    )
    checked(spec(folder), tmp_path)
    old = edited(model(tmp_path / "old"), lambda t: t | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    checked(spec(old), tmp_path)


MISSING = [
    (without("lm_head.weight"), "1 tensor is missing: lm_head.weight. A missing tensor would be drawn at random"),
    (without(UP), f"1 tensor is missing: {UP}."),
    (without("model.norm.weight"), "1 tensor is missing: model.norm.weight."),
    (
        lambda t: {k: v for k, v in t.items() if "layers.1." not in k},
        "9 tensors are missing: model.layers.1.input_layernorm.weight, ",
    ),
    (renamed("module."), "Every name begins with 'module.', a wrapper's prefix: unwrap the model"),
    (renamed("_orig_mod."), "Every name begins with '_orig_mod.', a wrapper's prefix"),
    (renamed("base_model.model."), "Every name begins with 'base_model.model.', a wrapper's prefix"),
    (renamed("module.module."), "Every name begins with 'module.module.', a wrapper's prefix"),
    (
        lambda t: without("lm_head.weight")(t) | {"score.weight": torch.ones(1, 16)},
        "1 tensor is missing: lm_head.weight; 1 tensor is not part of the model: score.weight (in model.safetensors). "
        "This is a classifier or reward model",
    ),
    (lambda t: t | {"v_head.summary.weight": torch.ones(1, 16)}, "not part of the model: v_head.summary.weight"),
    (lambda t: t | {"model.layers.2.mlp.up_proj.weight": torch.ones(32, 16)}, "model.layers.2.mlp.up_proj.weight"),
    (
        lambda t: (
            {(k if k != UP else UP.replace(".weight", ".base_layer.weight")): v for k, v in t.items()}
            | {UP.replace(".weight", ".lora_A.default.weight"): torch.ones(4, 16)}
        ),
        "The model was saved with adapters in it: merge them",
    ),
    (
        lambda t: t | {UP: torch.ones(33, 16)},
        f"{UP} of another shape: [33, 16] (in model.safetensors), [32, 16] by config.json",
    ),
    (lambda t: {k: v[:0] if v.dim() == 2 else v for k, v in t.items()}, "of another shape: [0, 16]"),
    (lambda t: t | {"lm_head.bias": torch.zeros(8)}, "not part of the model: lm_head.bias"),
]


@pytest.mark.parametrize(("edit", "wanted"), MISSING, ids=range(len(MISSING)))
def test_tensors_that_are_missing_unexpected_or_misshapen_are_named(
    edit: Callable[[Tensors], Tensors], wanted: str, tmp_path: Path
) -> None:
    folder = edited(model(tmp_path / "it"), edit)
    assert wanted in refusal(folder, tmp_path)
    with pytest.raises(BackboneError) as error:  # and where it is loaded, whoever has checked before
        load_backbone(spec(folder), tmp_path)
    assert "\n" not in str(error.value)


def test_a_reward_model_is_refused_though_its_head_would_be_its_embedding(tmp_path: Path) -> None:
    hf = import_transformers()
    folder = model(tmp_path / "it", tie_word_embeddings=True)
    config = hf.AutoConfig.from_pretrained(folder)
    hf.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    assert "not part of the model: score.weight" in refusal(folder, tmp_path)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_value_that_is_no_number_is_refused_with_file_and_tensor(
    value: float, dtype: torch.dtype, tmp_path: Path
) -> None:
    def spoil(tensors: Tensors) -> Tensors:
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        tensors[UP][31, 15] = value
        return tensors

    folder = sharded(edited(model(tmp_path / "it"), spoil))
    said = refusal(folder, tmp_path)
    assert f"{UP} in {folder}/model-0000" in said
    assert "has values that are NaN or infinite" in said


def test_shapes_that_do_not_fit_config_json_are_refused(tmp_path: Path) -> None:
    folder = model(tmp_path / "it")
    for fields in ({"hidden_size": 24}, {"vocab_size": 50}, {"num_key_value_heads": 1}, {"intermediate_size": 64}):
        changed = configured(Path(shutil.copytree(folder, tmp_path / str(fields))), **fields)
        assert "The weights and config.json are not of one model" in refusal(changed, tmp_path)
    deeper = configured(Path(shutil.copytree(folder, tmp_path / "deeper")), num_hidden_layers=3)
    assert "9 tensors are missing: model.layers.2." in refusal(deeper, tmp_path)
    flatter = configured(Path(shutil.copytree(folder, tmp_path / "flatter")), num_hidden_layers=1)
    assert "9 tensors are not part of the model: model.layers.1." in refusal(flatter, tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_attention_heads": 3}, {"hidden_size": "wide"}, {"hidden_size": None}, {"num_attention_heads": 0},
        {"vocab_size": -1}, {"hidden_act": "none"}, {"rope_parameters": 3}, {"model_type": 7}, {"model_type": None},
        {"num_hidden_layers": "two"}, {"layer_types": ["full_attention"]}, {"vocab_size": 1.5},
    ],
    ids=str,
)  # fmt: skip
def test_a_config_json_that_makes_no_model_is_one_line(fields: dict[str, Any], tmp_path: Path) -> None:
    refusal(configured(model(tmp_path / "it"), **fields), tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"model_type": "llama"', "\x00\x01"])
def test_a_config_json_that_is_no_json_is_one_line(text: str, tmp_path: Path) -> None:
    folder = model(tmp_path / "it")
    (folder / "config.json").write_text(text)
    assert f"{folder}/config.json is " in refusal(folder, tmp_path)


def test_a_shard_that_is_not_there_is_named_with_what_it_holds(tmp_path: Path) -> None:
    folder = sharded(model(tmp_path / "it"))
    (folder / "model-00002-of-00002.safetensors").unlink()
    said = refusal(folder, tmp_path)
    assert "lacks the shard model-00002-of-00002.safetensors, which holds model.embed_tokens.weight, " in said
    (folder / "model.safetensors.index.json").unlink()
    assert "found model-00001-of-00002.safetensors)" in refusal(folder, tmp_path)


@pytest.mark.parametrize("index", ["", "{}", '{"weight_map": {}}', '{"weight_map": [1]}', '{"weight_map": {"a": 1}}'])
def test_an_index_that_is_none_is_one_line(index: str, tmp_path: Path) -> None:
    folder = sharded(model(tmp_path / "it"))
    (folder / "model.safetensors.index.json").write_text(index)
    assert "model.safetensors.index.json" in refusal(folder, tmp_path)


@pytest.mark.parametrize("cut", [0, 4, 20, -1, -100])
def test_a_file_that_is_cut_off_is_named(cut: int, tmp_path: Path) -> None:
    for folder in (model(tmp_path / "whole"), sharded(model(tmp_path / "shards"))):
        file = max(folder.glob("*.safetensors"))
        file.write_bytes(file.read_bytes()[:cut])
        assert f"{file} is not a whole safetensors file" in refusal(folder, tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    folder = sharded(model(tmp_path / "it"))
    one, two = sorted(folder.glob("model-*.safetensors"))
    save_file(load_file(one) | {UP: torch.zeros(32, 16)}, one, metadata={"format": "pt"})
    save_file(load_file(two) | {UP: torch.zeros(32, 16)}, two, metadata={"format": "pt"})
    assert f"{UP} is both in {one.name} and in {two.name}" in refusal(folder, tmp_path)


def test_two_sets_of_weights_in_one_directory_are_refused(tmp_path: Path) -> None:
    folder = model(tmp_path / "it")
    kept = (folder / "model.safetensors").read_bytes()
    sharded(folder)
    (folder / "model.safetensors").write_bytes(kept)
    assert "two sets of weights, model.safetensors and the shards" in refusal(folder, tmp_path)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(load_file(folder / "model.safetensors"), "model.safetensors")})
    )
    checked(spec(folder), tmp_path)  # an index of that one file
    (folder / "consolidated.safetensors").write_bytes(b"of another library, never read")
    checked(spec(folder), tmp_path)


def test_an_adapter_beside_a_model_or_alone_is_refused(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    folder = model(tmp_path / "it")
    hf = import_transformers()
    adapted = peft.get_peft_model(
        hf.AutoModelForCausalLM.from_pretrained(folder), peft.LoraConfig(target_modules=["q_proj"], r=2)
    )
    adapted.save_pretrained(tmp_path / "adapter")
    assert "holds an adapter (adapter_config.json) without its model; merge" in refusal(tmp_path / "adapter", tmp_path)
    adapted.save_pretrained(folder)
    said = refusal(folder, tmp_path)
    assert "holds a full model and an adapter (adapter_config.json), which transformers would add" in said
    (folder / "adapter_config.json").unlink()
    checked(spec(folder), tmp_path)  # its weights alone are read by nobody


def test_other_formats_are_refused_by_name(tmp_path: Path) -> None:
    folder = model(tmp_path / "it")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "no *.safetensors in" in refusal(folder, tmp_path)
    assert "found pytorch_model.bin)" in refusal(folder, tmp_path)
    (folder / "pytorch_model.bin").unlink()
    assert "found no weights)" in refusal(folder, tmp_path)


@pytest.mark.parametrize("method", ["fp8", "gptq", "bitsandbytes", "mxfp4"])
def test_quantised_weights_are_refused(method: str, tmp_path: Path) -> None:
    folder = configured(model(tmp_path / "it"), quantization_config={"quant_method": method})
    assert f"the weights are quantised ({method}), and quantised weights are not trained" in refusal(folder, tmp_path)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantised_tensors_of_which_config_json_says_nothing_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = edited(model(tmp_path / "it"), lambda t: t | {UP: torch.ones(32, 16).to(dtype)})
    assert f"{UP} in model.safetensors is stored as " in refusal(folder, tmp_path)


def test_tied_tensors_that_differ_are_refused(tmp_path: Path) -> None:
    folder = edited(
        model(tmp_path / "it", tie_word_embeddings=True),
        lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"].clone()},
    )
    checked(spec(folder), tmp_path)
    edited(folder, lambda t: t | {"lm_head.weight": t["lm_head.weight"] + 1})
    assert "lm_head.weight and model.embed_tokens.weight differ, and config.json ties them" in refusal(folder, tmp_path)


def test_a_token_beyond_the_embeddings_is_refused(tmp_path: Path) -> None:
    rows = len(char_tokenizer())
    folder = model(tmp_path / "pad")
    tokenizer = char_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    said = refusal(folder, tmp_path)
    assert f"the pad_token of its tokenizer has the id {rows}, and its embeddings have {rows} rows" in said
    tokenizer = char_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "[END]"})
    tokenizer.save_pretrained(folder)
    said = refusal(folder, tmp_path)
    assert (
        f"its answers end with [END] (the tokenizer's eos_token), which is token {rows}, and the model has {rows}"
        in said
    )
    other = configured(model(tmp_path / "config"), pad_token_id=rows + 5)
    assert f"the pad_token_id in its config.json has the id {rows + 5}" in refusal(other, tmp_path)
    checked(spec(configured(model(tmp_path / "old"), pad_token_id=-1)), tmp_path)  # as older Llamas have it


def test_a_tokenizer_that_is_broken_or_missing_is_one_line(tmp_path: Path) -> None:
    folder = model(tmp_path / "it")
    for text in ("", "{", "{}", '{"model": {"type": "?"}}'):
        (folder / "tokenizer.json").write_text(text)
        assert "its tokenizer: " in refusal(folder, tmp_path)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert "its tokenizer: " in refusal(folder, tmp_path)


def test_adapters_that_fit_no_layer_and_those_on_the_head_are_refused_before_any_trial(tmp_path: Path) -> None:
    folder = model(tmp_path / "it")
    assert "lora.targets query: " in refusal(folder, tmp_path, lora={"targets": ["query"]})
    assert "leave the head out of LoRA" in refusal(folder, tmp_path, lora={"targets": ["lm_head"]})
    checked(spec(folder, lora={"targets": ["q_proj"]}), tmp_path)
    checked(spec(folder, lora={}), tmp_path)


def test_what_a_process_has_drawn_before_does_not_decide_the_weights(tmp_path: Path) -> None:
    """Nor does loading change what is drawn after it."""
    folder = model(tmp_path / "it")
    found, after = [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        loaded = load_backbone(spec(folder), tmp_path)
        found.append({name: value.clone() for name, value in (*loaded.named_parameters(), *loaded.named_buffers())})
        after.append(torch.rand(3))
        torch.manual_seed(seed)
        assert torch.equal(torch.rand(3), after[-1])
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
