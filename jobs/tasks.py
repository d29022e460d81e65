"""Tasks: from rows to examples, split, subset and noise. Built-in tasks are made here; other rows: jobs/sources.py.

No torch: `plan` counts examples with this module.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from jobs import sources
from jobs.chats import Turn
from jobs.evalplus_checks import not_installed, unusable_row
from jobs.fields import formatted, text_of
from jobs.formats import Reading, advice, read_row
from jobs.row_files import file_rows
from jobs.scores import ScoreSpec, unusable_reference
from jobs.task_error import NotAtHand, TaskError
from jobs.task_spec import Benchmark, Examples, GeneratorSpec, TaskSpec

DIGITS = "0123456789"
LETTERS = "abcdefghij"
EXACT = ScoreSpec()
SHOWN = 5  # reasons why rows were left out


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
    where:     file and row, or what else it was made from
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
    where: str = field(default="", compare=False)

    @property
    def wanted(self) -> str:
        return self.response if self.reference is None else self.reference


@dataclass
class LeftOut:
    """Rows that could not be used (invalid: drop): how many, and what was wrong with the first few."""

    rows: int = 0
    reasons: list[str] = field(default_factory=list)

    def add(self, reason: str) -> None:
        self.rows += 1
        self.reasons += [reason][: max(0, SHOWN - len(self.reasons))]

    def __str__(self) -> str:
        return f"{self.rows} rows were left out (invalid: drop), the first: {self.reasons[0]}" if self.rows else ""


@dataclass(frozen=True)
class TaskData:
    """What a trial trains on and is measured on; train and heldout never share a prompt."""

    train: list[Example]
    heldout: list[Example]
    noisy: int = 0  # training responses that were swapped for a wrong one
    benchmarks: dict[str, list[Example]] = field(default_factory=dict)
    left_out: LeftOut = field(default_factory=LeftOut)


def load_task(task: TaskSpec) -> TaskData:
    """Deterministic in `task`: the split, the subset and the noise follow data_seed alone. Raises TaskError."""
    data = _load(task)
    for name, examples in (data.benchmarks or {"held-out examples": data.heldout}).items():
        for number, example in enumerate(examples):
            if (reason := unusable_reference(example.score, example.wanted)) is not None:
                place = f"{name}[{number}] ({example.where})" if example.where else f"{name}[{number}]"
                raise TaskError(f"task '{task.name}': {place}, '{example.prompt[:40]}': {reason}{_index(example)}")
    return data


def _index(example: Example) -> str:
    """What to write where a reference is a number, and options are letters."""
    if not example.wanted.strip().isdigit():
        return ""
    return "; where it is an index, '{answer:letter}' (0 is A) or '{answer:letter-from-1}' makes a letter of it"


def _one_prompt(examples: list[Example]) -> bool:
    return len(examples) > 1 and len({(example.prompt, example.messages) for example in examples}) == 1


def _load(task: TaskSpec) -> TaskData:
    left_out = LeftOut()
    train, heldout = (for_template(examples, task) for examples in _both(task, left_out))
    if not train or not heldout:
        raise TaskError(
            f"task '{task.name}': {len(train)} training and {len(heldout)} held-out examples; both need some"
            + (f"; {left_out}" if left_out.rows else "")
            + ("; all rows have the same prompt, and equal prompts stay on one side" if _one_prompt(train) else "")
        )
    shuffled = random.Random(f"subset {task.data_seed}").sample(train, len(train))
    train = [replace(example, entry=None) for example in shuffled[: task.train_examples]]
    train, noisy = _with_noise(train, task)
    held = random.Random(f"heldout {task.data_seed}").sample(heldout, min(task.heldout_examples, len(heldout)))
    benchmarks = {b.name: for_template(_benchmark(task, b, left_out), b, task) for b in task.benchmarks}
    return TaskData(train, held, noisy, benchmarks, left_out)


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


def _both(task: TaskSpec, left_out: LeftOut) -> tuple[list[Example], list[Example]]:
    """Training and held-out examples, before subset and noise."""
    if task.builtin:
        return builtin_split(task.builtin)
    if task.parts:
        parts = [_load(part) for part in task.parts]
        for part in parts:
            left_out.rows += part.left_out.rows
            left_out.reasons += part.left_out.reasons[: max(0, SHOWN - len(left_out.reasons))]
        return [e for part in parts for e in part.train], [e for part in parts for e in part.heldout]
    if task.generator is not None:
        train, heldout = _generated(task, task.generator)
        return train, heldout
    if task.heldout_path or task.heldout_split:
        heldout = list(_read(task, left_out, task.heldout_path, task.heldout_split))
        return list(_read(task, left_out)), _usable(task, heldout, left_out)
    train, heldout = _split(list(_read(task, left_out)), task)
    return train, _usable(task, heldout, left_out)


def _usable(source: Examples, measured: list[Example], left_out: LeftOut) -> list[Example]:
    """Without those by whose reference no answer could be right, where such rows are left out."""
    if source.invalid == "refuse":
        return measured
    kept = []
    for example in measured:
        reason = unusable_reference(example.score, example.wanted)
        if reason is None:
            kept.append(example)
        else:
            left_out.add(f"{example.where}: {reason}")
    return kept


def _benchmark(task: TaskSpec, benchmark: Benchmark, left_out: LeftOut) -> list[Example]:
    if benchmark.builtin:
        examples = builtin_split(benchmark.builtin)[1]
    elif benchmark.generator is not None:
        examples = _generated(benchmark, benchmark.generator)[1]
    else:
        examples = _usable(benchmark, list(_read(benchmark, left_out)), left_out)
    if not examples:
        more = f"; {left_out}" if left_out.rows else ""
        raise TaskError(f"task '{task.name}': benchmark '{benchmark.name}' has no problems{more}")
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
    responses = [(e.response, e.reply) for e in train]
    if chosen and len(set(responses)) < 2:
        raise TaskError(f"task '{task.name}': noise needs at least two different responses")
    noisy, told = list(train), {(e.response, e.reply): e.told for e in train}
    for i in chosen:
        wrong = rng.choice(responses)
        while wrong == responses[i]:
            wrong = rng.choice(responses)
        noisy[i] = replace(train[i], response=wrong[0], reply=wrong[1], told=told[wrong])
    return noisy, len(chosen)


def _read(source: Examples, left_out: LeftOut, path: str | None = None, split: str | None = None) -> Iterator[Example]:
    """The examples of local files or of a data set of the hub. left_out: gets the rows that cannot be used."""
    evalplus = source.score.kind == "evalplus"
    if evalplus and (reason := not_installed()) is not None:
        raise NotAtHand(f"{source.short}: {reason}")
    place = path or source.path
    rows = sources.hub_rows(source, split or source.split) if source.hub else file_rows(str(place))
    for where, row in rows:
        try:
            if isinstance(row, TaskError):
                raise row
            if evalplus and (reason := unusable_row(row)) is not None:
                raise TaskError(f"{where}: {reason}")
            yield _example(source, row, where)
        except TaskError as error:
            if source.invalid == "refuse":
                raise
            left_out.add(str(error))


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


def _system(source: Examples, prompt: str) -> tuple[Turn, ...]:
    return (Turn("system", source.system), Turn("user", prompt)) if source.system else ()


def _example(source: Examples, row: dict[str, Any], where: str, may_be_empty: bool = False) -> Example:
    """may_be_empty: whether an empty response is one (a generator's may be)"""
    reference, of_reference = (None, None) if source.reference is None else text_of(row, source.reference, where)
    entry = row if source.score.kind in ("generator", "code", "evalplus") else None
    found = read_row(source, row, where) or _by_fields(source, row, where, reference, of_reference, may_be_empty)
    told = found.told
    if told is not None or of_reference is not None:
        both = [found.response if told is None else told, reference if of_reference is None else of_reference]
        told = " ".join(dict.fromkeys(text for text in both if text is not None))
    turns = found.turns or _system(source, found.prompt)
    if source.system and turns[0].role != "system":
        turns = (Turn("system", source.system), *turns)
    return Example(
        found.prompt, found.response, turns, found.reply, found.tools,
        reference=reference, score=_score_of(source), entry=entry, asked=found.asked, told=told, where=where,
    )  # fmt: skip


def _by_fields(
    source: Examples, row: dict[str, Any], where: str, reference: str | None, of_reference: str | None, empty: bool
) -> Reading:
    """A row whose fields the task names one by one. reference, of_reference: what answers for a benchmark's response"""
    asked: str | None
    told: str | None
    stands = reference is not None and isinstance(source, Benchmark)  # a benchmark has no demonstrations
    plain = [
        name
        for name, template in (("prompt", source.template), ("response", source.response_template))
        if getattr(source, name) == name
        and template is None
        and name not in row
        and not (name == "response" and stands)
    ]
    if plain:
        raise TaskError(f"{where}: no text in field '{plain[0]}'; {advice(row)}")
    if source.template is not None:
        prompt, asked = formatted(source.template, row, where, source.omit_empty)
    else:
        prompt, asked = text_of(row, source.prompt, where)
    if reference is not None and stands:
        response, told = reference, of_reference
    elif source.response_template is not None:
        response, told = formatted(source.response_template, row, where)
    else:
        response, told = text_of(row, source.response, where, empty)
    return Reading(prompt, response, asked=asked, told=told)
