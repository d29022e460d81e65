"""The files of a backbone's weights, read without torch: which files are loaded, and which tensors they hold.

Only headers are read, so this is quick whatever the size of the model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
FLOATS = ("F64", "F32", "F16", "BF16")
SHOWN = 3  # names in a message; the rest is counted


class BackboneError(ValueError):
    """A backbone cannot be loaded, or is not the one that was named; the message says what to do."""


class NotAtHand(BackboneError):
    """Nothing is there under its name, on this machine; a plan can be made without it."""


class Stored(NamedTuple):
    """A tensor in a file. dtype: as safetensors names it, e.g. F32, BF16, I64."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """config.json of a model directory. Raises BackboneError."""
    file = folder / "config.json"
    if not file.is_file():
        if (folder / ADAPTER).is_file():
            raise BackboneError(
                f"backbone '{name}': {folder} holds an adapter ({ADAPTER}) without its model; merge the adapter into "
                "its model (peft: merge_and_unload, then save_pretrained) and name that directory"
            )
        raise (BackboneError if folder.is_dir() else NotAtHand)(
            f"backbone '{name}': {folder} is not a Hugging Face model directory (no config.json); "
            "relative paths start at --data-root"
        )
    return _json_object(file, name)


def weight_files(folder: Path, name: str) -> list[Path]:
    """The files that transformers loads from a model directory.

    Raises BackboneError where they are missing or ambiguous: no safetensors, two sets of weights, a shard that the
    index names and the directory lacks, a model and an adapter in one directory, quantised weights.
    """
    config = read_config(folder, name)
    if reason := refused_by_config(config):
        raise BackboneError(f"backbone '{name}': {folder / 'config.json'}: {reason}")
    if (folder / ADAPTER).is_file():
        raise BackboneError(f"backbone '{name}': {folder}: {with_adapter()}")
    whole, index = folder / str(config.get("transformers_weights") or WHOLE), folder / INDEX
    shards = _shards(index, name) if index.is_file() else []
    if whole.is_file() and shards not in ([], [whole]):
        raise BackboneError(
            f"backbone '{name}': {folder} holds two sets of weights, {whole.name} and the shards of {INDEX}; "
            "remove the set that is not meant"
        )
    if whole.is_file():
        return [whole]
    if shards:
        return shards
    found = sorted(file.name for file in folder.iterdir() if file.suffix in (".safetensors", ".bin", ".pt", ".pth"))
    raise BackboneError(
        f"backbone '{name}': no *.safetensors in {folder}; other formats are not loaded (looked for {WHOLE}, or for "
        f"shards with {INDEX}; found {named(found) or 'no weights'})"
    )


def stored_tensors(files: Iterable[Path], name: str) -> dict[str, Stored]:
    """Every tensor of these files by its name. Raises BackboneError for a file that is broken, cut off or empty."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, Stored] = {}
    for file in files:
        try:
            with safe_open(file, framework="numpy") as opened:
                slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118
                here = {k: Stored(file, tuple(s.get_shape()), s.get_dtype()) for k, s in slices.items()}
        except (OSError, SafetensorError) as error:
            raise BackboneError(
                f"backbone '{name}': {file} is not a whole safetensors file ({_first_line(error)}); copy it again"
            ) from None
        if twice := sorted(found.keys() & here.keys()):
            raise BackboneError(
                f"backbone '{name}': {named(twice)} is both in {found[twice[0]].file.name} and in {file.name}; "
                "save the model again"
            )
        found |= here
    if reason := refused_tensors(found):
        raise BackboneError(f"backbone '{name}': {reason}")
    return found


def refused_by_config(config: Mapping[str, Any]) -> str | None:
    """Why weights with this config.json cannot be trained here; None where nothing speaks against it."""
    quantised = config.get("quantization_config")
    if not quantised:
        return None
    method = quantised.get("quant_method", "an unnamed method") if isinstance(quantised, dict) else str(quantised)
    if method == "gguf":  # where the weights come from: they were dequantised when they were unpacked
        return None
    return (
        f"the weights are quantised ({method}), and quantised weights are not trained; name the unquantised model, or "
        "dequantise this one and save it again"
    )


def refused_tensors(stored: Mapping[str, Stored]) -> str | None:
    """Why these tensors are no weights of a model; None where nothing speaks against them."""
    if not stored:
        return "its files hold no tensor"
    odd = sorted(key for key, one in stored.items() if one.dtype not in FLOATS and _is_weight(key, one))
    if odd:
        one = stored[odd[0]]
        return (
            f"{named(odd)} in {one.file.name} is stored as {one.dtype}, which is no plain floating-point format; "
            "dequantise the model and save it again"
        )
    return None


def with_adapter() -> str:
    """What to say of a model whose directory or repository holds an adapter, too."""
    return (
        f"holds a full model and an adapter ({ADAPTER}), which transformers would add to the model without a word; "
        "move the adapter's files elsewhere to train the model alone, or merge the adapter into it"
    )


def misfit(
    missing: Iterable[str],
    unexpected: Iterable[str],
    mismatched: Iterable[tuple[str, Sequence[int], Sequence[int]]],
    stored: Mapping[str, Stored] | None = None,
) -> str | None:
    """What of a set of tensors does not fit an architecture, in one line; None where all of it fits.

    mismatched: name, shape in the file, shape in the model; stored: where the tensors lie, if that is known
    """
    absent, extra = sorted(missing), sorted(unexpected)
    wrong = sorted((key, tuple(has), tuple(wants)) for key, has, wants in mismatched)
    parts = []
    if absent:
        parts.append(f"{_count(absent)} missing: {named(absent)}")
    if extra:
        parts.append(f"{_count(extra)} not part of the model: {named(extra)}{_where(extra, stored)}")
    if wrong:
        key, has, wants = wrong[0]
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        parts.append(f"{key}{more} of another shape: {list(has)}{_where([key], stored)}, {list(wants)} by config.json")
    return f"{'; '.join(parts)}. {_remedy(absent, extra, bool(wrong))}" if parts else None


def named(names: Sequence[str]) -> str:
    """The first few of these names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _remedy(missing: list[str], unexpected: list[str], shapes: bool) -> str:
    if prefix := _prefix(missing, unexpected):
        return f"Every name begins with '{prefix}', a wrapper's prefix: unwrap the model and save it again"
    if any(".lora_" in key or ".base_layer." in key for key in unexpected):
        return "The model was saved with adapters in it: merge them (peft: merge_and_unload) and save it again"
    if any(key.split(".")[0] in ("score", "classifier", "v_head", "value_head", "reward_head") for key in unexpected):
        return "This is a classifier or reward model: name the language model that it was made from"
    if shapes:
        return "The weights and config.json are not of one model: restore the config.json that was saved with them"
    if missing:
        return "A missing tensor would be drawn at random: save the model again, whole"
    return "Remove these tensors, or name the architecture that they belong to in config.json"


def _prefix(missing: list[str], unexpected: list[str]) -> str | None:
    """What stands before every name too many, where without it they are names that are missing."""
    for key in missing:
        ends = [other for other in unexpected if other.endswith(f".{key}")]
        for other in ends:
            prefix = other.removesuffix(key)
            if all(one.startswith(prefix) for one in unexpected):
                return prefix
    return None


def _shards(index: Path, name: str) -> list[Path]:
    """The files that an index names. Raises BackboneError."""
    of = _json_object(index, name).get("weight_map")
    if not isinstance(of, dict) or not of or not all(isinstance(file, str) for file in of.values()):
        raise BackboneError(f"backbone '{name}': {index} has no weight_map of tensors to files; save the model again")
    files = sorted(set(of.values()))
    for file in files:
        if not (index.parent / file).is_file():
            lost = sorted(key for key, where in of.items() if where == file)
            raise BackboneError(
                f"backbone '{name}': {index.parent} lacks the shard {file}, which holds {named(lost)}; "
                "copy or download it again"
            )
    return [index.parent / file for file in files]


def _json_object(file: Path, name: str) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackboneError(f"backbone '{name}': {file} is not JSON ({_first_line(error)})") from None
    if not isinstance(found, dict):
        raise BackboneError(f"backbone '{name}': {file} is JSON of a {type(found).__name__}, not of an object")
    return found


def _is_weight(key: str, one: Stored) -> bool:
    """Whether a tensor is a weight rather than a mask, positions or a counter, which are of whole numbers."""
    return one.dtype.startswith("F") or (key.endswith("weight") and len(one.shape) > 1)


def _where(keys: Sequence[str], stored: Mapping[str, Stored] | None) -> str:
    """In which file the first of these tensors lies; a converted name is in none."""
    return f" (in {stored[keys[0]].file.name})" if stored and keys[0] in stored else ""


def _count(names: Sequence[str]) -> str:
    return "1 tensor is" if len(names) == 1 else f"{len(names)} tensors are"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
