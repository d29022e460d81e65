"""YAML that a user writes about a cluster: read as data, wrong files refused with where, what and what instead.

sweeper/spec.py reads sweeps with the same loader; the one module of jobs that it imports is jobs/strict.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from jobs.strict import Strict, nearest

__all__ = ["Loader", "Strict", "ValuesError", "nearest", "parse", "read", "readable", "text_of"]


class ValuesError(ValueError):
    """The values cannot be used as written; one line a problem."""

    def __init__(self, source: str, problems: list[str]) -> None:
        super().__init__("\n".join(f"{source}: {problem}" for problem in problems))


Model = TypeVar("Model", bound=Strict)


class Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key written twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' is written twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read(path: Path, model: type[Model]) -> Model:
    """A file as a model. Raises ValuesError with every problem found."""
    return parse(text_of(path, ValuesError), path.name, model)


def text_of(path: Path, error: Callable[[str, list[str]], Exception]) -> str:
    """What a file says. Raises error(where, [what]) in a line, whatever the reason is."""
    try:
        if not path.is_file():
            raise error(str(path), ["no such file"])
        return path.read_text(encoding="utf-8")
    except OSError as problem:
        raise error(str(path), [f"cannot be read: {problem.strerror}"]) from None
    except UnicodeDecodeError:
        raise error(str(path), ["is no text in UTF-8"]) from None


def parse(text: str, source: str, model: type[Model]) -> Model:
    try:
        raw = yaml.load(text, Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise ValuesError(source, [f"{where}not YAML: {getattr(error, 'problem', error)}"]) from None
    if not isinstance(raw, dict):
        raise ValuesError(source, [f"a mapping with {', '.join(model.model_fields)}"])
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise ValuesError(source, readable(error)) from None


def readable(error: ValidationError, where: str = "") -> list[str]:
    """pydantic's findings as 'workers[0].gpus: what is wrong, got ...'; where: what all of them are below."""
    lines = []
    for problem in error.errors(include_url=False):
        place = where
        for part in problem["loc"]:
            place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "missing":
            message = "is missing"
        elif problem["type"] != "value_error":
            message = f"{message[0].lower()}{message[1:]}, got {problem['input']!r}"
        lines.append(f"{place}: {message}" if place else message)
    return lines
