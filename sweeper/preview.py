"""An example as text, as a person reads it before anything is tokenised; the trained part stands in brackets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jobs.chats import Turn
from jobs.task_spec import TaskSpec
from jobs.tasks import Example
from sweeper.task_facts import TaskFacts

OPEN, CLOSE = "⟦", "⟧"
HEAD, TAIL = 400, 200  # characters of a text that are shown


def data_facts(tasks: Iterable[tuple[TaskSpec, TaskFacts]]) -> list[dict[str, Any]]:
    """What `sweeper plan` knows of each task's data, as JSON types."""
    return [
        {
            "task": task.name,
            "read_as": read_as(task),
            "train": facts.train,
            "heldout": facts.heldout,
            "left_out": facts.left_out.rows,
            "left_out_reasons": facts.left_out.reasons,
            "first": {"where": facts.first.where, "text": marked(facts.first)},
        }
        for task, facts in tasks
    ]


def read_as(task: TaskSpec) -> str:
    """How its rows are read, in the words of the sweep file."""
    if task.builtin is not None:
        return f"builtin: {task.builtin}"
    if task.parts:
        return "parts"
    named = {name: getattr(task, name) for name in ("format", "messages", "template", "response_template")}
    ways = [f"{name}: {value}" for name, value in named.items() if value is not None and "template" not in name]
    if ways:
        return ", ".join(ways)
    sides = [
        f"{side}: {'a template' if named[template] is not None else getattr(task, side)}"
        for side, template in (("prompt", "template"), ("response", "response_template"))
    ]
    return ", ".join(sides)


def marked(example: Example) -> str:
    """Turns by role where the example is a chat; else prompt and response as they follow each other."""
    if not example.messages:
        return f"{_cut(example.prompt)}{OPEN}{_cut(example.response)}{CLOSE}"
    last = example.reply or Turn("assistant", example.response)
    lines = [f"tools: {_cut(example.tools)}"] if example.tools else []
    for turn in example.messages:
        trained = example.train_on == "all" and turn.role == "assistant"
        lines.append(_turn(turn, trained))
    return "\n".join([*lines, _turn(last, trained=True)])


def _turn(turn: Turn, trained: bool) -> str:
    said = " ".join(part for part in (_cut(turn.content), _cut(turn.more)) if part)
    return f"{turn.role}: {OPEN}{said}{CLOSE}" if trained else f"{turn.role}: {said}"


def _cut(text: str) -> str:
    if len(text) <= HEAD + TAIL:
        return text
    return f"{text[:HEAD]} ... ({len(text) - HEAD - TAIL} characters) ... {text[-TAIL:]}"


def print_data(facts: list[dict[str, Any]]) -> None:
    for task in facts:
        left = f", {task['left_out']} rows left out" if task["left_out"] else ""
        print(
            f"data of {task['task']}: {task['train']} training and {task['heldout']} held-out examples{left}", end=" "
        )
        print(f"({task['read_as']})")
        for reason in task["left_out_reasons"]:
            print(f"  left out: {reason}")
        where = f" ({task['first']['where']})" if task["first"]["where"] else ""
        print(f"  a training example{where}; the trained part is in {OPEN} {CLOSE}:")
        for line in task["first"]["text"].split("\n"):
            print(f"  | {line}")
    if facts:
        print()
