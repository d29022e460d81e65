"""What is known of a task's examples without a tokenizer, where its data are at hand: read once a process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from jobs.pretrain import ALPHABET, SPECIAL
from jobs.task_error import NotAtHand
from jobs.task_spec import Benchmark, TaskSpec
from jobs.tasks import Example, LeftOut, TaskData, load_task

SAMPLED = 32  # items of a generator, for the length of its examples
MEASURED = 512  # examples whose length is averaged
SHAPES = 32  # orders of roles of which an example is looked at
LONGEST = 4


@dataclass(frozen=True)
class TaskFacts:
    """Sizes and samples of a task.

    train, heldout: how many examples; characters: of one, on average
    first:   a training example to show
    telling: those by which a backbone is tried: one of each shape of chat, and the longest
    longest: with the longest prompts, of training and held-out ones; asked: of those that are answered
    unknown: characters that the built-in backbones do not know -> the row that has it first
    """

    train: int
    heldout: int
    characters: float
    left_out: LeftOut
    first: Example
    telling: tuple[Example, ...]
    longest: tuple[Example, ...]
    asked: tuple[Example, ...]
    unknown: dict[str, str]


@lru_cache(maxsize=64)
def task_facts(task: TaskSpec) -> TaskFacts:
    """Raises NotAtHand where the rows are on the hub or not in this place; TaskError where they cannot be used."""
    if task.hub or any(part.hub for part in task.parts):
        raise NotAtHand(f"task '{task.name}': a plan does not ask the hub; give it `expected`")
    drawn = task.model_copy(update={"benchmarks": _local_benchmarks(task)})
    if task.generator is not None:  # item i is a function of i: a few of them tell the length
        few = task.generator.model_copy(update={"size": min(SAMPLED, task.generator.size), "heldout_size": 1})
        drawn = task.model_copy(update={"generator": few, "train_examples": None, "noise": 0.0, "benchmarks": ()})
    data = load_task(drawn)
    count = len(data.train)
    if task.generator is not None:
        count = min(task.generator.size, task.train_examples or task.generator.size)
    some = data.train[:MEASURED]
    characters = sum(len(text) for example in some for text in texts_of(example)) / len(some)
    asked = [example for examples in data.benchmarks.values() for example in examples]
    every = [*data.train, *data.heldout, *asked]
    return TaskFacts(
        count, len(data.heldout), characters, data.left_out, data.train[0], telling(data),
        _longest([*data.train, *data.heldout]), _longest(asked or data.heldout),
        {} if task.builtin else unknown_characters(every),
    )  # fmt: skip


def _longest(examples: Sequence[Example]) -> tuple[Example, ...]:
    """Those with the longest prompts, in characters."""

    def length(example: Example) -> int:
        return sum(map(len, texts_of(example))) - len(example.response)

    return tuple(sorted(examples, key=length, reverse=True)[:LONGEST])


def texts_of(example: Example) -> Iterator[str]:
    """What becomes tokens: the whole chat, or the prompt, and the response."""
    yield from (turn.content for turn in example.messages) if example.messages else (example.prompt,)
    yield example.response
    yield from (turn.more for turn in (*example.messages, *([example.reply] if example.reply else [])) if turn.more)
    yield example.tools


def telling(data: TaskData) -> tuple[Example, ...]:
    """A few examples that stand for all: one of each shape of chat, and the longest."""
    asked = [example for examples in data.benchmarks.values() for example in examples]
    every = [*data.train, *data.heldout, *asked]
    shapes: dict[object, Example] = {}
    for example in every:
        roles = tuple((turn.role, bool(turn.more)) for turn in example.messages)
        shapes.setdefault((roles, example.reply is not None, bool(example.tools)), example)
    longest = sorted(every, key=lambda example: sum(map(len, texts_of(example))), reverse=True)[:LONGEST]
    return tuple({id(example): example for example in [*list(shapes.values())[:SHAPES], *longest]}.values())


def unknown_characters(examples: Iterable[Example]) -> dict[str, str]:
    """Characters that are none of the built-in backbones', each with the row that has it first."""
    found: dict[str, str] = {}
    known = set(ALPHABET)
    for example in examples:
        for text in texts_of(example):
            for character in sorted(set(text) - known and set(_without_special(text)) - known):
                found.setdefault(character, example.where or example.prompt[:40])
                known.add(character)
    return found


def _without_special(text: str) -> str:
    """Their special tokens are no characters."""
    for token in SPECIAL:
        text = text.replace(token, "")
    return text


def at_hand(tasks: Sequence[TaskSpec]) -> dict[TaskSpec, TaskFacts]:
    """Facts of the tasks whose data are in this place. Raises TaskError where one of them cannot be used."""
    found = {}
    for task in dict.fromkeys(tasks):
        if task.expected is not None and task.generator is not None:
            continue  # made when it is run: some take minutes
        try:
            found[task] = task_facts(task)
        except NotAtHand:  # perhaps a part of it is
            at_hand(task.parts)
            if local := _local_benchmarks(task):
                at_hand([TaskSpec(builtin="reversal", name=task.name, benchmarks=local)])
    return found


def _local_benchmarks(task: TaskSpec) -> tuple[Benchmark, ...]:
    """Those that are read in a moment: neither of the hub nor of a generator."""
    return tuple(benchmark for benchmark in task.benchmarks if not benchmark.hub and benchmark.generator is None)
