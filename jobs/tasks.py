"""Tasks: from rows to examples, split, subset and noise. Built-in tasks are made here; other rows: jobs/sources.py.

No torch: `plan` counts examples with this module.
"""

from __future__ import annotations

import json
import random
import string
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from jobs import sources
from jobs.chats import Turn
from jobs.evalplus_checks import not_installed, unusable_row
from jobs.scores import ScoreSpec, unusable_reference
from jobs.sources import TaskError
from jobs.task_spec import Benchmark, Examples, GeneratorSpec, TaskSpec

DIGITS = "0123456789"
LETTERS = "abcdefghij"
EXACT = ScoreSpec()


@dataclass(frozen=True)
class Example:
    """One demonstration, and how an answer to its prompt is scored.

    messages:  the turns before the response, where the data are chats
    reply:     the response as a turn, where it is more than its text (it calls tools, or has its reasoning apart)
    tools:     JSON list of the tools that the chat may call; empty for none
    train_on:  which assistant turns are targets: the last one, or all of them
    template_kwargs: JSON of what the chat template is given besides (enable_thinking, ...); empty for nothing
    date:      the day that the chat template takes for today, ISO; empty for none
    reference: the right answer where the data name it; else the response is
    entry:     the generator's or problem set's own row, where its scorer reads one (held-out examples only)
    asked, told: prompt and response (and reference) without the words of their templates; None: they have none
    """

    prompt: str
    response: str
    messages: tuple[Turn, ...] = ()
    reply: Turn | None = None
    tools: str = ""
    train_on: Literal["last", "all"] = "last"
    template_kwargs: str = ""
    date: str = ""
    reference: str | None = None
    score: ScoreSpec = EXACT
    entry: dict[str, Any] | None = None
    asked: str | None = field(default=None, compare=False)
    told: str | None = field(default=None, compare=False)

    @property
    def wanted(self) -> str:
        return self.response if self.reference is None else self.reference


@dataclass(frozen=True)
class TaskData:
    """What a trial trains on and is measured on; train and heldout never share a prompt."""

    train: list[Example]
    heldout: list[Example]
    noisy: int = 0  # training responses that were swapped for a wrong one
    benchmarks: dict[str, list[Example]] = field(default_factory=dict)


def load_task(task: TaskSpec) -> TaskData:
    """Deterministic in `task`: the split, the subset and the noise follow data_seed alone. Raises TaskError."""
    data = _load(task)
    for name, examples in (data.benchmarks or {"held-out examples": data.heldout}).items():
        for number, example in enumerate(examples):
            if (reason := unusable_reference(example.score, example.wanted)) is not None:
                raise TaskError(f"task '{task.name}': {name}[{number}], '{example.prompt[:40]}': {reason}")
    return data


def _load(task: TaskSpec) -> TaskData:
    train, heldout = (for_template(examples, task) for examples in _both(task))
    if not train or not heldout:
        raise TaskError(
            f"task '{task.name}': {len(train)} training and {len(heldout)} held-out examples; both need some"
        )
    shuffled = random.Random(f"subset {task.data_seed}").sample(train, len(train))
    train = [replace(example, entry=None) for example in shuffled[: task.train_examples]]
    train, noisy = _with_noise(train, task)
    held = random.Random(f"heldout {task.data_seed}").sample(heldout, min(task.heldout_examples, len(heldout)))
    return TaskData(train, held, noisy, {b.name: for_template(_benchmark(task, b), b, task) for b in task.benchmarks})


def for_template(examples: list[Example], *sources: Examples) -> list[Example]:
    """The examples with what chat templates are given besides messages, from the first source that names it."""
    kwargs: dict[str, Any] = {}
    for source in reversed(sources):
        kwargs |= source.chat_template_kwargs
    date = next((source.date.isoformat() for source in sources if source.date is not None), "")
    train_on = sources[0].train_on
    if not kwargs and not date and train_on == "last":
        return examples
    text = json.dumps(kwargs, sort_keys=True, default=str) if kwargs else ""
    return [
        replace(one, train_on=train_on, template_kwargs=text or one.template_kwargs, date=date or one.date)
        for one in examples
    ]


def _both(task: TaskSpec) -> tuple[list[Example], list[Example]]:
    """Training and held-out examples, before subset and noise."""
    if task.builtin:
        return builtin_split(task.builtin)
    if task.parts:
        parts = [_load(part) for part in task.parts]
        return [e for part in parts for e in part.train], [e for part in parts for e in part.heldout]
    if task.generator is not None:
        train, heldout = _generated(task, task.generator)
        return train, heldout
    if task.heldout_path or task.heldout_split:
        return list(_read(task)), list(_read(task, task.heldout_path, task.heldout_split))
    return _split(list(_read(task)), task)


def _benchmark(task: TaskSpec, benchmark: Benchmark) -> list[Example]:
    if benchmark.builtin:
        examples = builtin_split(benchmark.builtin)[1]
    elif benchmark.generator is not None:
        examples = _generated(benchmark, benchmark.generator)[1]
    else:
        examples = list(_read(benchmark))
    if not examples:
        raise TaskError(f"task '{task.name}': benchmark '{benchmark.name}' has no problems")
    if benchmark.examples is None:
        return examples
    return random.Random(f"benchmark {benchmark.data_seed}").sample(examples, min(benchmark.examples, len(examples)))


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
    responses, reply = [e.response for e in train], {e.response: e.reply for e in train}
    if chosen and len(set(responses)) < 2:
        raise TaskError(f"task '{task.name}': noise needs at least two different responses")
    noisy, told = list(train), {e.response: e.told for e in train}
    for i in chosen:
        wrong = rng.choice(responses)
        while wrong == responses[i]:
            wrong = rng.choice(responses)
        noisy[i] = replace(train[i], response=wrong, reply=reply[wrong], told=told[wrong])
    return noisy, len(chosen)


def _read(source: Examples, path: str | None = None, split: str | None = None) -> Iterator[Example]:
    """The examples of a local file or a data set of the hub."""
    evalplus = source.score.kind == "evalplus"
    if evalplus and (reason := not_installed()) is not None:
        raise TaskError(f"{source.short}: {reason}")
    rows = sources.hub_rows(source, split or source.split) if source.hub else sources.file_rows(path or source.path)
    for where, row in rows:
        if evalplus and (reason := unusable_row(row)) is not None:
            raise TaskError(f"{where}: {reason}")
        yield _example(source, row, where)


def _generated(source: Examples, generator: GeneratorSpec) -> tuple[list[Example], list[Example]]:
    """Training items, and the held-out ones after them: rows with question, answer and metadata."""
    names = {"prompt": "question", "response": "answer"}  # where the task names no others
    default = {name: own for name, own in names.items() if getattr(source, name) == name}
    read = source.model_copy(update=default)
    made = [
        replace(
            _example(read, item, f"{generator.name}[{i}]", may_be_empty="response" in default),
            entry={**item, "generator": generator.name},
        )
        for i, item in enumerate(sources.generated(generator))
    ]
    return made[: generator.size], made[generator.size :]


def _score_of(source: Examples) -> ScoreSpec:
    if source.answer_marker is None:
        return source.score
    return source.score.model_copy(update={"marker": source.answer_marker})


def _chat(source: Examples, prompt: str) -> tuple[Turn, ...]:
    return (Turn("system", source.system), Turn("user", prompt)) if source.system else ()


def _example(source: Examples, row: dict[str, Any], where: str, may_be_empty: bool = False) -> Example:
    """may_be_empty: whether an empty response is one (a generator's may be)"""
    reference, of_reference = (None, None) if source.reference is None else _text(row, source.reference, where)
    entry = row if source.score.kind in ("generator", "code", "evalplus") else None
    if source.messages is not None:
        said = _said(row.get(source.messages), source.messages, where)
        return Example(
            said[-2].content, said[-1].content, said[:-1], reference=reference, score=_score_of(source),
            entry=entry,
        )  # fmt: skip
    asked: str | None
    told: str | None
    if source.template is not None:
        prompt, asked = _formatted(source.template, row, where, source.omit_empty)
    else:
        prompt, asked = _text(row, source.prompt, where)
    # a benchmark has no demonstrations: its reference stands for them
    if reference is not None and isinstance(source, Benchmark):
        response, told = reference, of_reference
    elif source.response_template is not None:
        response, told = _formatted(source.response_template, row, where)
    else:
        response, told = _text(row, source.response, where, may_be_empty)
    if told is not None or of_reference is not None:
        both = [response if told is None else told, reference if of_reference is None else of_reference]
        told = " ".join(dict.fromkeys(text for text in both if text is not None))
    return Example(
        prompt, response, _chat(source, prompt), reference=reference, score=_score_of(source), entry=entry,
        asked=asked, told=told,
    )  # fmt: skip


def _text(row: dict[str, Any], name: str, where: str, may_be_empty: bool = False) -> tuple[str, str | None]:
    """A field's text, or what a template makes of the row (see _formatted); numbers are as good as text."""
    if "{" in name:
        return _formatted(name, row, where)
    value = row.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not (value or may_be_empty):
        raise TaskError(f"{where}: no text in field '{name}'; this row has {', '.join(sorted(map(str, row)))}")
    return value, None


# how data sets of the hub write chats
_ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}


def _said(turns: Any, name: str, where: str) -> tuple[Turn, ...]:
    if not isinstance(turns, list) or len(turns) < 2:
        raise TaskError(f"{where}: field '{name}' must be a list of at least two messages")
    try:
        said = tuple(
            Turn(str(t["role"]), str(t["content"])) if "role" in t else Turn(_ROLES[t["from"]], str(t["value"]))
            for t in turns
        )
    except (TypeError, KeyError):
        raise TaskError(f"{where}: each message needs role and content (or from and value)") from None
    if said[-1].role != "assistant":
        raise TaskError(f"{where}: the last message must be the assistant's, got '{said[-1].role}'")
    return said


class _Fields(string.Formatter):
    """{field}, {field[0]}, {field[key]}: a row's own values and nothing behind them. `values`: as they were written."""

    def __init__(self) -> None:
        self.values: list[str] = []

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> Any:
        if "." in field_name:
            raise ValueError(f"'{field_name}': write {field_name.replace('.', '[', 1)}] for what lies inside a field")
        return super().get_field(field_name, args, kwargs)

    def format_field(self, value: Any, format_spec: str) -> str:
        self.values.append(str(super().format_field(value, format_spec)))
        return self.values[-1]


def _formatted(template: str, row: dict[str, Any], where: str, omit_empty: bool = False) -> tuple[str, str]:
    """The template filled in, and the row's own words in it.

    omit_empty: leave out lines with a field that is null or empty
    """
    try:
        if omit_empty:
            template = "\n".join(line for line in template.split("\n") if not _empty(line, row))
        fields = _Fields()
        return fields.vformat(template, (), row), " ".join(fields.values)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        has = ", ".join(sorted(map(str, row)))
        raise TaskError(f"{where}: the template asks for {error}; this row has {has}") from None


def _empty(line: str, row: dict[str, Any]) -> bool:
    """Whether one of the line's fields has nothing to say."""
    fields = _Fields()
    return any(fields.get_field(name, (), row)[0] in (None, "") for _, name, _, _ in fields.parse(line) if name)
