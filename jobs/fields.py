"""A row's fields as text, and templates over them. What only Python would write (None, nan, a list) is refused."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from jobs.task_error import TaskError

_PATH = re.compile(r"([^\[\].]+)((?:\[[^\[\]]+\])*)")
_LETTERS = {"letter": 0, "letter-from-1": 1}
_SHOWN = 12  # names of fields in a message


def has(row: Mapping[str, Any]) -> str:
    """'this row has a, b': what could have been named."""
    names = sorted(str(name)[:40] for name in row)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"this row has {', '.join(names[:_SHOWN])}{more}" if names else "this row has no fields"


def spelt(value: Any) -> str:
    """A value as it is trained: text, or a number. Raises ValueError with what it is instead."""
    reason = None
    match value:
        case str():
            reason = _half_pair(value)
        case None:
            reason = "is null"
        case bool():
            reason = f"is {str(value).lower()}, which has no spelling of its own; name both, as in {{field:no|yes}}"
        case float() if not math.isfinite(value):
            reason = "is NaN" if math.isnan(value) else "is infinite"
        case int() | float() | Decimal():
            return str(value)
        case list() | tuple():
            reason = "is a list; write {field[0]} for one of its items, {field:lines} for all"
        case dict():
            reason = "is a mapping; write {field[key]} for one of its values"
        case bytes():
            reason = "is binary, not text"
        case _:
            reason = f"is a {type(value).__name__}, not text"
    if reason is not None:
        raise ValueError(reason)
    return str(value)


def _half_pair(text: str) -> str | None:
    """Why a text cannot be encoded; None where it can."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        return (
            f"has half a surrogate pair, \\u{code:04x}, at character {error.start + 1}; it was cut inside a character"
        )
    return None


def text_of(row: Mapping[str, Any], name: str, where: str, may_be_empty: bool = False) -> tuple[str, str | None]:
    """A field's text, or what a template makes of the row (see `formatted`). Raises TaskError."""
    if "{" in name:
        return formatted(name, row, where)
    if name not in row:
        raise TaskError(f"{where}: no text in field '{name}'; {has(row)}")
    try:
        text = spelt(row[name])
    except ValueError as error:
        raise TaskError(f"{where}: no text in field '{name}': it {str(error).replace('{field', '{' + name)}") from None
    if not text and not may_be_empty:
        raise TaskError(f"{where}: no text in field '{name}': it is empty")
    return text, None


def formatted(template: str, row: Mapping[str, Any], where: str, omit_empty: bool = False) -> tuple[str, str]:
    """The template filled in, and the row's own words in it. Raises TaskError.

    omit_empty: leave out lines with a field that is null or empty
    """
    try:
        if omit_empty:
            template = "\n".join(line for line in template.split("\n") if not _empty(line, row))
        fields = _Fields()
        return fields.vformat(template, (), row), " ".join(fields.values)
    except (KeyError, IndexError) as error:
        raise TaskError(f"{where}: the template asks for {error}; {has(row)}") from None
    except (ValueError, TypeError) as error:
        raise TaskError(f"{where}: {error}") from None


def check_template(template: str) -> str | None:
    """What is wrong with a template whatever the rows are; None for nothing."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        return f"{str(error)[:1].lower()}{str(error)[1:]}; write {{{{ and }}}} for braces of the text"
    for _, name, _, conversion in parts:
        if name is None:
            continue
        if not name or name.isdigit():
            return f"'{{{name}}}' names no field of a row; write {{{{ and }}}} for braces of the text"
        if conversion:
            return f"'{{{name}!{conversion}}}': a field is written as it is; leave !{conversion} out"
        if "." not in name and not _PATH.fullmatch(name):
            return f"'{{{name}}}' is not a field, such as question or choices[0]"
    return None


class _Fields(string.Formatter):
    """{field}, {field[0]}, {field[key]}: a row's own values and nothing behind them. `values`: as they were written.

    After a colon: how a number is written (Python's format), `letter` (0 is A), `letter-from-1` (1 is A), words to
    choose from (`no|yes`: 0 and false are the first), of a list `lines` (an item a line), `lettered` (A. and an item).
    """

    def __init__(self) -> None:
        self.values: list[str] = []
        self._name = ""

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> Any:
        if "." in field_name:
            raise ValueError(
                f"the template asks for '{field_name}': write {field_name.replace('.', '[', 1)}] for what lies inside "
                "a field"
            )
        path = _PATH.fullmatch(field_name)
        if path is None:
            raise ValueError(
                f"the template asks for '{field_name}', which is not a field; write {{{{ and }}}} for braces"
            )
        value = kwargs[path[1]]
        for key in re.findall(r"\[([^\[\]]+)\]", path[2]):
            value = _inside(value, key, field_name)
        self._name = field_name
        return value, path[1]

    def format_field(self, value: Any, format_spec: str) -> str:
        try:
            text = _chosen(value, format_spec) if format_spec else spelt(value)
        except (ValueError, TypeError) as error:
            raise ValueError(f"field '{self._name}' {str(error).replace('{field', '{' + self._name)}") from None
        self.values.append(text)
        return text


def _inside(value: Any, key: str, name: str) -> Any:
    if isinstance(value, Mapping):
        return value[key]
    if isinstance(value, Sequence) and not isinstance(value, str | bytes) and key.isdigit():
        return value[int(key)]
    kind = "null" if value is None else type(value).__name__
    raise ValueError(f"the template asks for '{name}', but [{key}] is asked of a {kind}")


def _chosen(value: Any, spec: str) -> str:
    """A value by a format: a letter, one of several words, a list's items, or Python's own for numbers."""
    if spec in ("lines", "lettered"):
        return _listed(value, lettered=spec == "lettered")
    if spec in _LETTERS:
        if isinstance(value, str) and re.fullmatch("[A-Za-z]", value.strip()):
            return value.strip().upper()
        return _at(string.ascii_uppercase, value, _LETTERS[spec])
    if "|" in spec:
        return _at(spec.split("|"), int(value) if isinstance(value, bool) else value, 0)
    spelt(value)
    try:
        return format(value, spec)
    except (ValueError, TypeError):
        raise ValueError(
            f"cannot be written as '{spec}' ({str(value)[:40]}); known are letter, letter-from-1, words "
            "such as no|yes, lines, lettered, and Python's formats of numbers"
        ) from None


def _listed(value: Any, lettered: bool) -> str:
    """A line an item; a mapping's keys are its letters."""
    if isinstance(value, Mapping) and lettered:
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [(chr(ord("A") + number), item) for number, item in enumerate(value)]
    else:
        raise ValueError(f"is no list ({type(value).__name__})")
    if not items or (len(items) > len(string.ascii_uppercase) and lettered):
        raise ValueError(f"is a list of {len(items)} items")
    return "\n".join(f"{key}. {spelt(item)}" if lettered else spelt(item) for key, item in items)


def _at(choices: Sequence[str], value: Any, first: int) -> str:
    """The choice with this number; `first` is the number of the first one."""
    number = value
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,9}", value.strip()):
        number = int(value)
    if isinstance(value, float) and value.is_integer():
        number = int(value)
    last = first + len(choices) - 1
    if isinstance(number, bool) or not isinstance(number, int) or not first <= number <= last:
        shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)[:40]
        raise ValueError(f"is {shown}, not a whole number from {first} to {last}")
    return choices[number - first]


def _empty(line: str, row: Mapping[str, Any]) -> bool:
    """Whether one of the line's fields is null or empty."""
    fields = _Fields()
    return any(fields.get_field(name, (), row)[0] in (None, "") for _, name, _, _ in fields.parse(line) if name)
