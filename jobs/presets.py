"""The paper's backbones, tasks and benchmarks as data (jobs/presets.yaml): a name stands for the fields it fills in.

What a user writes beside a preset's name wins over the preset.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from jobs.strict import nearest

SOURCES = ("builtin", "path", "hub", "generator", "parts", "gguf")
_OF_A_SOURCE = {*SOURCES, "subset", "split", "revision", "heldout_path", "heldout_split", "package"}


@lru_cache(maxsize=1)
def presets() -> dict[str, dict[str, dict[str, Any]]]:
    """backbones, tasks and benchmarks by name."""
    text = Path(__file__).with_name("presets.yaml").read_text(encoding="utf-8")
    return dict(yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def fields_of(kind: str, name: str) -> dict[str, Any]:
    """A preset's fields. Raises ValueError with the nearest known name."""
    known = presets()[kind]
    if name not in known:
        raise ValueError(f"no {kind.removesuffix('s')} preset '{name}';{nearest(name, known)}")
    return known[name]


def with_preset(kind: str, data: Any) -> Any:
    """`data` over the fields of the preset that it names; as it is where it names none.

    Who brings a source of their own (the same data from a local file, say) keeps the rest of the preset.
    """
    if not isinstance(data, dict) or not isinstance(data.get("preset"), str):
        return data
    fields = {"name": data["preset"]} | fields_of(kind, data["preset"])
    if any(data.get(source) is not None for source in SOURCES):
        fields = {name: value for name, value in fields.items() if name not in _OF_A_SOURCE}
    return fields | data
