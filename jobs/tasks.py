"""Tasks: where examples come from. Built-in tasks are made here; others are read from local files.

No torch: `plan` counts examples with this module.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.spec import TaskSpec

DIGITS = "0123456789"
LETTERS = "abcdefghij"


class TaskError(ValueError):
    """The data of a task cannot be used; the message says which file, which row and what instead."""


@dataclass(frozen=True)
class Example:
    """One demonstration. `messages` holds the turns before the response, where the data are chats."""

    prompt: str
    response: str
    messages: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class TaskData:
    """What a trial trains on and is measured on; the two never share a prompt."""

    train: list[Example]
    heldout: list[Example]
    noisy: int = 0  # training responses that were swapped for a wrong one


def load_task(task: TaskSpec) -> TaskData:
    """Deterministic in `task`: the split, the subset and the noise follow data_seed alone."""
    if task.builtin:
        train, heldout = builtin_split(task.builtin)
    elif task.heldout_path:
        train, heldout = list(_read(task, task.path)), list(_read(task, task.heldout_path))
    else:
        train, heldout = _split(list(_read(task, task.path)), task)
    if not train or not heldout:
        raise TaskError(
            f"task '{task.name}': {len(train)} training and {len(heldout)} held-out examples; both need some"
        )
    shuffled = random.Random(f"subset {task.data_seed}").sample(train, len(train))
    train = shuffled[: task.train_examples]
    train, noisy = _with_noise(train, task)
    held = random.Random(f"heldout {task.data_seed}").sample(heldout, min(task.heldout_examples, len(heldout)))
    return TaskData(train, held, noisy)


def builtin_split(name: str) -> tuple[list[Example], list[Example]]:
    """All examples of a built-in task; every tenth prompt is held out, from pre-training too."""
    examples = list({"addition": _addition, "reversal": _reversal, "cipher": _cipher}[name]())
    order = random.Random(f"builtin {name}").sample(examples, len(examples))
    cut = len(order) // 10
    return order[cut:], order[:cut]


def _addition() -> Iterator[Example]:
    """Two-digit sums, last digit first: '38+45=' -> '380' (83 padded to three, reversed)."""
    for a in range(100):
        for b in range(100):
            yield Example(f"{a:02d}+{b:02d}=", f"{a + b:03d}"[::-1])


def _reversal() -> Iterator[Example]:
    """Three digits backwards: 'r417=' -> '714'."""
    for n in range(1000):
        yield Example(f"r{n:03d}=", f"{n:03d}"[::-1])


def _cipher() -> Iterator[Example]:
    """Letters shifted by 3, 1 and 7 places: a task that the built-in backbones have never answered."""
    for word in ((a, b, c) for a in LETTERS for b in LETTERS for c in LETTERS):
        moved = (LETTERS[(LETTERS.index(c) + k) % len(LETTERS)] for c, k in zip(word, (3, 1, 7), strict=True))
        yield Example(f"c{''.join(word)}=", "".join(moved))


def _split(rows: list[Example], task: TaskSpec) -> tuple[list[Example], list[Example]]:
    """Hold out up to heldout_examples, at most a tenth; equal prompts stay on one side."""
    prompts = sorted({(e.prompt, e.messages) for e in rows})
    random.Random(f"split {task.data_seed}").shuffle(prompts)
    held = set(prompts[: max(1, min(task.heldout_examples, len(prompts) // 10))]) if len(prompts) > 1 else set()
    side = [(e.prompt, e.messages) in held for e in rows]
    return [e for e, h in zip(rows, side, strict=True) if not h], [e for e, h in zip(rows, side, strict=True) if h]


def _with_noise(train: list[Example], task: TaskSpec) -> tuple[list[Example], int]:
    """Swap the responses of a share of the examples for those of others that differ."""
    rng = random.Random(f"noise {task.data_seed}")
    chosen = rng.sample(range(len(train)), round(task.noise * len(train)))
    responses = [e.response for e in train]
    if chosen and len(set(responses)) < 2:
        raise TaskError(f"task '{task.name}': noise needs at least two different responses")
    noisy = list(train)
    for i in chosen:
        wrong = rng.choice(responses)
        while wrong == responses[i]:
            wrong = rng.choice(responses)
        noisy[i] = replace(train[i], response=wrong)
    return noisy, len(chosen)


def _read(task: TaskSpec, path: str | None) -> Iterator[Example]:
    file = Path(str(path))
    if not file.is_file():
        raise TaskError(f"task '{task.name}': no file {file}; relative paths start at --data-root")
    for where, row in _rows(file):
        yield _example(task, row, f"{file}:{where}")


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if file.suffix == ".parquet":
        import pyarrow.parquet

        try:
            table = pyarrow.parquet.read_table(file)
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise TaskError(f"{file}: not a readable parquet file ({error})") from None
        yield from enumerate(table.to_pylist(), 1)
        return
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise TaskError(f"{file}:{number}: not JSON ({error.msg}); one object a line") from None
                if not isinstance(row, dict):
                    raise TaskError(f"{file}:{number}: one JSON object a line, got {type(row).__name__}")
                yield number, row


def _example(task: TaskSpec, row: dict[str, Any], where: str) -> Example:
    if task.messages is None:
        for field in (task.prompt, task.response):
            if not isinstance(row.get(field), str) or not row[field]:
                raise TaskError(f"{where}: no text in field '{field}'; this row has {', '.join(sorted(row))}")
        return Example(row[task.prompt], row[task.response])
    turns = row.get(task.messages)
    if not isinstance(turns, list) or len(turns) < 2:
        raise TaskError(f"{where}: field '{task.messages}' must be a list of at least two messages")
    try:
        said = tuple((str(turn["role"]), str(turn["content"])) for turn in turns)
    except (TypeError, KeyError):
        raise TaskError(f"{where}: each message needs role and content") from None
    if said[-1][0] != "assistant":
        raise TaskError(f"{where}: the last message must be the assistant's, got '{said[-1][0]}'")
    return Example(said[-2][1], said[-1][1], said[:-1])


def final_answer(text: str, marker: str | None) -> str:
    """What is compared: the text, or what follows the last marker; white space folded, commas in numbers dropped."""
    if marker is not None:
        _, found, text = text.rpartition(marker)
        if not found:
            return ""
    answer = " ".join(text.split())
    bare = answer.replace(",", "")
    return bare if bare.lstrip("-+$").replace(".", "", 1).isdigit() else answer
