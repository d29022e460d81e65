"""Rows of a task from the hub and from generators; those of local files: jobs/row_files.py."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs.row_files import Row
from jobs.task_error import NotAtHand, TaskError
from jobs.task_spec import Examples, GeneratorSpec

__all__ = ["NO_TEMPLATE", "TaskError", "generated", "hub_rows"]

NO_TEMPLATE = (
    "the examples are chats and the tokenizer has no chat template; "
    "give the backbone a chat_template, or the task prompt and response fields"
)


def hub_rows(source: Examples, split: str) -> Iterator[tuple[str, Row]]:
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
        raise NotAtHand(
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
