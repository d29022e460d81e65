"""What a sweep reads before it starts: backbones' small files, tasks' rows, and which backbone refuses which task.

Rows that cannot be used, and a backbone that is not there, refuse the sweep. A backbone that refuses a task (no chat
template, a template that takes no system turn, unknown characters) costs its own trials on that task alone.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.backbone import (
    check_backbone,
    convert_gguf,
    has_chat_template,
    load_ending,
    load_tokenizer,
    local_dir,
    positions_of,
)
from jobs.pretrain import char_tokenizer, pretrain
from jobs.sources import NO_TEMPLATE
from jobs.spec import BackboneSpec, TrialSpec
from jobs.task_error import TaskError
from jobs.task_spec import TaskSpec
from jobs.tasks import Example
from sweeper.progress import bar
from sweeper.spec import SpecError
from sweeper.task_facts import telling, unknown_characters

if TYPE_CHECKING:
    from jobs.corpus import Corpus, Reader

SHOWN = 10  # characters in a message
Pair = tuple[BackboneSpec, TaskSpec]


@dataclass
class Refused:
    """Trials that cannot run: the reason by key."""

    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, trials: Sequence[TrialSpec], reason: str) -> None:
        for trial in trials:
            self.reasons.setdefault(trial.key, reason)

    def left(self, trials: Sequence[TrialSpec]) -> list[TrialSpec]:
        return [trial for trial in trials if trial.key not in self.reasons]

    def raise_if_all(self, trials: Sequence[TrialSpec]) -> None:
        """Raises TaskError with every reason where no trial is left."""
        if trials and not self.left(trials):
            raise TaskError("\n".join(dict.fromkeys(self.reasons[trial.key] for trial in trials)))


def check_inputs(trials: Sequence[TrialSpec], root: Path) -> Reader:
    """As `checked`, where one backbone that refuses a task is one too many. Raises TaskError, too, for that."""
    read, refused = checked(trials, root)
    for reason in refused.reasons.values():
        raise TaskError(reason)
    return read


def checked(trials: Sequence[TrialSpec], root: Path) -> tuple[Reader, Refused]:
    """Read every backbone's files, and the rows of tasks that no earlier run has read, before anything starts.

    Weights and rows are read once a storage.
    Returns what has read them, for `prepared`, so that nothing is read twice, and the trials whose backbone refuses the
    task.
    Raises TaskError, BackboneError or SpecError.
    """
    if any(trial.evaluation.engine == "vllm" for trial in trials) and importlib.util.find_spec("vllm") is None:
        reason = "vllm is not installed; pip install 'objective-continuum[vllm]', or leave engine out for transformers"
        raise SpecError("evaluation.engine", [reason])
    from jobs.corpus import Reader, kept_corpus

    read, refused = Reader(root), Refused()
    for task in dict.fromkeys(trial.task for trial in trials):
        read.check(task)
    for backbone, length in {(trial.backbone, trial.train.max_length) for trial in trials}:
        check_backbone(backbone, root, length)
    for backbone in dict.fromkeys(trial.backbone for trial in trials):
        if backbone.gguf is None:  # which is unpacked first
            _check_weights(backbone, root)
    for (backbone, task), mine in pairs(trials).items():
        why = no_template(backbone, task, root)
        if why is None and kept_corpus(backbone, task, root) is None:
            data = read(task)
            every = [*data.train, *data.heldout, *(e for examples in data.benchmarks.values() for e in examples)]
            unknown = unknown_characters(every) if backbone.builtin and not task.builtin else {}
            why = refusal(backbone, task, telling(data), unknown, root)
        if why is not None:
            refused.add(mine, why)
    return read, refused


def _check_weights(backbone: BackboneSpec, root: Path) -> int | None:
    """Rows of its embeddings, if they are known; see jobs.weights_check. Raises BackboneError."""
    from jobs.weights_check import check_weights

    with bar(f"checking the weights of {backbone.name}", "tensor") as progress:
        return check_weights(backbone, root, progress)


def pairs(trials: Sequence[TrialSpec]) -> dict[Pair, list[TrialSpec]]:
    """Trials by backbone (without adapters) and task."""
    found: dict[Pair, list[TrialSpec]] = {}
    for trial in trials:
        found.setdefault((trial.backbone.bare(), trial.task), []).append(trial)
    return found


def no_template(backbone: BackboneSpec, task: TaskSpec, root: Path) -> str | None:
    """Why a backbone cannot take a task's chats; None where it can, or there are none."""
    if _may_hold_chats(task) and not has_chat_template(backbone, root):
        return f"task '{task.name}', backbone '{backbone.name}': {NO_TEMPLATE}"
    return None


def _may_hold_chats(task: TaskSpec) -> bool:
    return any(one.holds_chats for one in (task, *task.benchmarks)) or any(map(_may_hold_chats, task.parts))


def refusal(
    backbone: BackboneSpec,
    task: TaskSpec,
    examples: Sequence[Example],
    unknown: Mapping[str, str],
    root: Path,
    light: bool = False,
) -> str | None:
    """Why a backbone cannot take a task, by the examples that tell most; None where it seems that it can.

    unknown: characters of the task that no built-in backbone knows, with the row of each; light: as of `sizes`
    """
    who = f"task '{task.name}', backbone '{backbone.name}'"
    if any(example.messages for example in examples) and not has_chat_template(backbone, root):
        return f"{who}: {NO_TEMPLATE}"
    if unknown and backbone.builtin is not None:
        some = " ".join(repr(character) for character in list(unknown)[:SHOWN])
        more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        return (
            f"{who}: {next(iter(unknown.values()))}: {backbone.builtin} knows digits, '+', '=' and some letters, not "
            f"{some}{more}; name a backbone of your own (path, hub or gguf) for this task"
        )
    try:
        sizes(backbone, examples, root, light)
    except TaskError as error:
        return f"{who}: {error}"
    return None


def sizes(
    backbone: BackboneSpec, examples: Sequence[Example], root: Path, light: bool = False
) -> list[tuple[int, int]]:
    """Tokens of each example's prompt, and in all; empty for a GGUF that is not unpacked yet. Raises TaskError.

    light: count those of the built-in backbones without their tokenizer
    """
    if light and backbone.builtin is not None and backbone.chat_template is None:  # a character a token, and EOS
        return [(len(example.prompt), len(example.prompt) + len(example.response) + 1) for example in examples]
    tokenizer = _tokenizer(backbone, root)
    if tokenizer is None:
        return []
    from jobs.data import tokenise

    ending = load_ending(backbone, root, tokenizer)
    return [(row.prompt_length, len(row.ids)) for row in tokenise(tokenizer, examples, ending)]


@lru_cache(maxsize=16)
def _tokenizer(backbone: BackboneSpec, root: Path) -> Any:
    """None for a GGUF that is not unpacked yet."""
    if backbone.builtin is not None:
        tokenizer = char_tokenizer()
        tokenizer.chat_template = backbone.chat_template
        return tokenizer
    folder = local_dir(backbone, root)
    return load_tokenizer(backbone, root) if folder is None or folder.is_dir() else None


def prepare(trials: Sequence[TrialSpec], root: Path, read: Reader | None = None) -> None:
    """As `prepared`, where one pair that does not fit is one too many: raises its TaskError."""
    for error in prepared(trials, root, read).reasons.values():
        raise TaskError(error)


def prepared(trials: Sequence[TrialSpec], root: Path, read: Reader | None = None) -> Refused:
    """Make what trials load, once a storage: built-in backbones, unpacked GGUF files, tasks as token ids.

    Returns the trials whose examples do not fit in their max_length, whose problems and answers do not fit in the
    backbone's positions, whose tokens do not fit in its embeddings, or whose chats its template refuses.
    Raises BackboneError for a GGUF that cannot be trained, and for weights that are not those of the model.
    """
    from jobs.corpus import Reader, corpus_for

    builtin: dict[str, set[int]] = {}
    for trial in trials:
        backbone = trial.backbone
        if backbone.builtin is not None:
            builtin.setdefault(backbone.builtin, set()).add(backbone.pretrain_steps or 0)
        elif backbone.gguf is not None:
            convert_gguf(backbone, root)
            check_backbone(backbone, root, trial.train.max_length)
    for name, steps in builtin.items():
        with bar(f"pre-training {name}", "step") as progress:
            pretrain(root, name, steps, progress)
    rows: dict[BackboneSpec, int | None] = {}
    for backbone in dict.fromkeys(trial.backbone for trial in trials):
        rows[backbone.bare()] = _check_weights(backbone, root)
    refused, read = Refused(), read or Reader(root)
    for (backbone, task), mine in pairs(trials).items():
        try:
            with bar(f"tokenising {task.name} for {backbone.name}", "example") as progress:
                made = corpus_for(backbone, task, root, progress, read)
            made.check_ids(backbone.name, rows[backbone])
        except TaskError as error:
            refused.add(mine, str(error))
            continue
        for note in made.facts["answers"]["notes"]:
            print(f"note: {task.name} for {backbone.name}: {note}", file=sys.stderr)
        for trial in mine:
            reason = _does_not_fit(trial, made, root)
            if reason is not None:
                refused.add([trial], reason)
    return refused


def _does_not_fit(trial: TrialSpec, made: Corpus, root: Path) -> str | None:
    try:
        with warnings.catch_warnings(action="ignore"):  # what is cut is said with the backbone's measure
            made.rows("train", trial.train.max_length, trial.train.overlong)
            made.heldout_rows(trial.train.max_length, trial.train.overlong)
        backbone = trial.backbone.bare()
        made.check_positions(backbone.name, positions_of(backbone, root), trial.evaluation.max_new_tokens)
    except TaskError as error:
        return str(error)
    return None
