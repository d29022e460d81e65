"""The base of everything that a user writes: unknown keys are refused, with the nearest known one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, model_validator


def nearest(word: str, known: Iterable[str]) -> str:
    """' did you mean X? known: A, B' — the tail of an error about an unknown name."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    hint = f" did you mean '{close[0]}'?" if close else ""
    return f"{hint} known: {', '.join(names)}"


class Strict(BaseModel):
    """Immutable; refuses unknown keys before anything else is looked at."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for key in data:
                if key not in cls.model_fields:
                    raise ValueError(f"unknown key '{key}';{nearest(str(key), cls.model_fields)}")
        return data

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """pydantic's, without what was computed from the fields as they were (cached_property)."""
        copied = super().model_copy(update=update, deep=deep)
        for name in copied.__dict__.keys() - type(self).model_fields.keys():
            del copied.__dict__[name]
        return copied

    def __hash__(self) -> int:
        return hash(self.model_dump_json())  # mappings among the fields have no hash of their own


def exactly_one(what: str, given: dict[str, Any]) -> None:
    """Raises ValueError unless one of `given` is not None."""
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        got = " and ".join(names) if names else "none"
        raise ValueError(f"{what} needs exactly one of {', '.join(given)}; got {got}")
