"""Rows of a task: from local files, from the hub, from a generator. What cannot be read is one line that says why."""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs.task_spec import Examples, GeneratorSpec

Rows = Iterator[tuple[str, dict[str, Any]]]  # where a row stands, and the row
NO_TEMPLATE = (
    "the examples are chats and the tokenizer has no chat template; "
    "give the backbone a chat_template, or the task prompt and response fields"
)


class TaskError(ValueError):
    """The data of a task cannot be used; the message says which file, which row and what instead."""


def file_rows(path: str | None) -> Rows:
    """Rows of a .jsonl, .json, .parquet or .csv file."""
    file = Path(str(path))
    if not file.is_file():
        raise TaskError(f"no file {file}; relative paths start at --data-root")
    readers = {".parquet": _parquet, ".csv": _csv, ".json": _json}
    for where, row in readers.get(file.suffix, _jsonl)(file):
        if not isinstance(row, dict):
            raise TaskError(f"{file}:{where}: one object of fields a row, got {type(row).__name__}")
        yield f"{file}:{where}", row


def _jsonl(file: Path) -> Iterator[tuple[int, Any]]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except json.JSONDecodeError as error:
                    raise TaskError(f"{file}:{number}: not JSON ({error.msg}); one object a line") from None


def _json(file: Path) -> Iterator[tuple[int, Any]]:
    """A list of rows, or a mapping from ids to rows."""
    try:
        whole = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise TaskError(f"{file}:{error.lineno}: not JSON ({error.msg})") from None
    if not isinstance(whole, list | dict):
        raise TaskError(f"{file}: a list of rows or a mapping from ids to rows, got {type(whole).__name__}")
    yield from enumerate(whole.values() if isinstance(whole, dict) else whole, 1)


def _parquet(file: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(file)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise TaskError(f"{file}: not a readable parquet file ({error})") from None
    yield from enumerate(table.to_pylist(), 1)


def _csv(file: Path) -> Iterator[tuple[int, Any]]:
    with file.open(encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(lines)
        for row in reader:
            if None in row or None in row.values():
                raise TaskError(f"{file}:{reader.line_num}: not as many values as the header has names")
            yield reader.line_num, row


def hub_rows(source: Examples, split: str) -> Rows:
    """Rows of a data set of the hub, by the datasets library and its cache. Never runs code from a repository."""
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    from jobs.hub import cached_commit, hub_reason

    name = f"{source.hub}" + (f" ({source.subset})" if source.subset else "")

    def why(error: Exception) -> str:
        return hub_reason(error, "dataset", str(source.hub), source.revision, "a local file as path")

    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(str(source.hub), source.subset, split=split, revision=source.revision)
    except ValueError as error:  # it is there: the split or the subset is not
        if error.__cause__ is None and error.__context__ is None:
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise TaskError(f"cannot get split '{split}' of data set {name}: {reason}; name one that it has") from None
        raise TaskError(why(error)) from None
    except (OSError, HfHubHTTPError, datasets.exceptions.DatasetsError) as error:
        raise TaskError(why(error)) from None
    if source.revision is not None and rows.cache_files:
        # without a network, datasets takes the newest that it has kept, whatever the revision
        got, wanted = Path(rows.cache_files[0]["filename"]).parent.name, source.revision
        if got not in (wanted, cached_commit(str(source.hub), wanted)):
            raise TaskError(
                f"data set {name}: revision '{wanted}' is not in the cache (commit {got[:12]} is) and the hub does not "
                "answer; check the network and HF_HUB_OFFLINE, or give a local file as path"
            )
    for number, row in enumerate(rows):
        yield f"{name}/{split}[{number}]", dict(row)


def generated(generator: GeneratorSpec) -> list[dict[str, Any]]:
    """Items of reasoning-gym: question, answer, metadata. Training items first, then the held-out ones."""
    if importlib.util.find_spec("reasoning_gym") is None:
        raise TaskError(
            f"generator {generator.name}: reasoning-gym is not installed; pip install 'objective-continuum[reasoning]'"
        )
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if generator.name not in DATASETS:
        from jobs.strict import nearest

        raise TaskError(f"reasoning-gym has no generator '{generator.name}';{nearest(generator.name, DATASETS)[:200]}")
    size = generator.size + generator.heldout_size
    try:
        made = reasoning_gym.create_dataset(generator.name, seed=generator.seed, size=size, **generator.settings)
    except (TypeError, AssertionError, ValueError) as error:
        raise TaskError(f"generator {generator.name}: its settings do not fit ({error})") from None
    return [made[i] for i in range(size)]
