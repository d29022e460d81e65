"""Whether the files of a backbone are its weights: every tensor of the model, no other, of its shape, and finite.

The model is made without memory (on torch's meta device) and given tensors of the shapes that the files' headers name.
So transformers itself says what is missing, with its own renaming and tying. What was checked is marked in the storage:
a backbone is checked once, whatever is trained on it.

checked/<digest>   by what decides the weights and how they are read; holds the number of rows of the embeddings
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.backbone import add_adapters, backbone_config, local_dir
from jobs.faults import faults, said
from jobs.files import write_text
from jobs.hf import import_transformers
from jobs.spec import BackboneSpec
from jobs.weights import BackboneError, Stored, misfit, refused_tensors, stored_tensors, weight_files

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

VERSION = 1  # of what is checked
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
Told = Callable[[int, int], None]  # how many tensors are read, and how many there are


def check_weights(backbone: BackboneSpec, root: Path, told: Told = lambda done, total: None) -> int | None:
    """Check a prepared backbone, once a storage; returns how many rows its embeddings have.

    None where that is not known: of a built-in backbone, which is made here, and of a hub model whose headers cannot be
    read from this machine. Where it is loaded, its tensors are compared with the architecture again.
    Raises BackboneError.
    """
    if backbone.builtin is not None:
        return None
    folder = local_dir(backbone, root) or _downloaded(backbone)
    if folder is None:
        return _check_headers(backbone, root)
    files = weight_files(folder, backbone.name)
    sizes = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in [*files, folder / "config.json"]]
    facts = [backbone.fingerprint, sizes]
    mark = _mark(root, facts)
    used = _mark(root, [facts, backbone.lora.model_dump(mode="json") if backbone.lora is not None else None])
    if not mark.is_file() or not used.is_file():
        stored = stored_tensors(files, backbone.name)
        model = fitted(backbone, root, stored, folder)
        rows = f"{_rows(model)}\n"
        if not mark.is_file():
            check_values(backbone.name, stored, model.all_tied_weights_keys, told)
            write_text(mark, rows)
        check_use(backbone, model)
        write_text(used, rows)
    return int(mark.read_text())


def check_names(backbone: BackboneSpec, root: Path) -> None:
    """Compare names and shapes of a local backbone's tensors with its architecture, by headers. Raises BackboneError.

    For loading with DeepSpeed, where transformers does not.
    """
    folder = local_dir(backbone, root)
    if folder is not None:
        fitted(backbone, root, stored_tensors(weight_files(folder, backbone.name), backbone.name), folder)


def fitted(backbone: BackboneSpec, root: Path, stored: Mapping[str, Stored], source: object) -> PreTrainedModel:
    """The model without memory, all of whose tensors are stored. Raises BackboneError where they are not.

    source: what to call the place where they are stored
    """
    import torch

    hf = import_transformers()
    config = backbone_config(backbone, root)
    if hasattr(config, "quantization_config"):  # of a GGUF that an earlier version has unpacked, into plain weights
        del config.quantization_config
    tensors = {
        key: torch.empty(one.shape, dtype=getattr(torch, DTYPES.get(one.dtype, "int64")), device="meta")
        for key, one in stored.items()
    }
    how = {"dtype": torch.float32, "attn_implementation": "eager"}  # whichever attention trials take, the same tensors
    try:
        with torch.device("meta"):
            kind = type(hf.AutoModelForCausalLM.from_config(config, **how))
        model, found = kind.from_pretrained(
            None, config=config, state_dict=tensors, device_map={"": "meta"}, output_loading_info=True,
            ignore_mismatched_sizes=True, **how,
        )  # fmt: skip
    except faults(RuntimeError) as error:
        raise BackboneError(
            f"backbone '{backbone.name}': transformers cannot make a model of {source} ({said(error)}); "
            "is its config.json the one that was saved with the weights?"
        ) from error
    if reason := misfit(found["missing_keys"], found["unexpected_keys"], found["mismatched_keys"], stored):
        raise BackboneError(f"backbone '{backbone.name}': {source}: {reason}")
    return model


def check_use(backbone: BackboneSpec, model: PreTrainedModel) -> None:
    """What this backbone's trials do with the model, as far as that shows without its weights. Raises BackboneError."""
    from jobs.model import HeadError, head_of

    add_adapters(model, backbone)
    try:
        head_of(model)
    except HeadError as error:
        raise BackboneError(f"backbone '{backbone.name}': {error}") from None


def check_values(name: str, stored: Mapping[str, Stored], tied: Mapping[str, str], told: Told) -> None:
    """Read every tensor once. Raises BackboneError for one with NaN or infinite values, or where tied ones differ.

    tied: names of tensors that the model takes for one, as transformers maps them
    """
    import torch
    from safetensors import safe_open

    done = 0
    for file, keys in groupby(sorted(stored, key=lambda key: stored[key].file), key=lambda key: stored[key].file):
        with safe_open(file, framework="pt") as opened:
            for key in keys:
                if not _finite(opened.get_tensor(key)):
                    raise BackboneError(
                        f"backbone '{name}': {key} in {file} has values that are NaN or infinite; "
                        "name weights from before the run that left them"
                    )
                done += 1
                told(done, len(stored))
    for one, other in tied.items():
        if one in stored and other in stored and not torch.equal(_read(stored, one), _read(stored, other)):
            raise BackboneError(
                f"backbone '{name}': {one} and {other} differ, and config.json ties them; write tie_word_embeddings: "
                "false into it if both are meant, else save the model again"
            )


def _read(stored: Mapping[str, Stored], key: str) -> Tensor:
    from safetensors import safe_open

    with safe_open(stored[key].file, framework="pt") as opened:
        tensor: Tensor = opened.get_tensor(key)
        return tensor


def _finite(tensor: Tensor) -> bool:
    """By its extremes, which NaN is one of; in one pass and without memory of its own."""
    import torch

    if not tensor.is_floating_point() or not tensor.numel():
        return True
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low) & torch.isfinite(high))


def _rows(model: PreTrainedModel) -> int:
    embeddings: Any = model.get_input_embeddings()
    return len(embeddings.weight)


def _mark(root: Path, facts: Any) -> Path:
    what = json.dumps([VERSION, version("transformers"), version("torch"), facts])
    return root / "checked" / hashlib.sha256(what.encode()).hexdigest()[:16]


def _downloaded(backbone: BackboneSpec) -> Path | None:
    """Where a hub model's files lie, if all of its weights were downloaded before."""
    from jobs.hub import cached_model, commit_of_model

    folder = cached_model(str(backbone.hub), commit_of_model(str(backbone.hub), backbone.revision) or backbone.revision)
    try:
        return folder if folder is not None and weight_files(folder, backbone.name) else None
    except BackboneError:
        return None


def _check_headers(backbone: BackboneSpec, root: Path) -> int | None:
    """Of a hub model that is not downloaded yet: its values are not read."""
    from jobs.hub import commit_of_model, tensors_of_model

    hub = str(backbone.hub)
    commit = commit_of_model(hub, backbone.revision)
    if commit is None:
        return None
    mark = _mark(root, [hub, commit, backbone.lora.model_dump(mode="json") if backbone.lora is not None else None])
    if not mark.is_file():
        found = tensors_of_model(hub, commit)
        if found is None:
            return None
        stored = {key: Stored(Path(file), shape, dtype) for key, (file, shape, dtype) in found.items()}
        if reason := refused_tensors(stored):
            raise BackboneError(f"backbone '{backbone.name}': {hub}: {reason}")
        model = fitted(backbone, root, stored, hub)
        check_use(backbone, model)
        write_text(mark, f"{_rows(model)}\n")
    return int(mark.read_text())
