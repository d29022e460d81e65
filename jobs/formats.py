"""Formats of SFT data by name, and how they are recognised by a row's fields.

A format is a reading of whole rows; fields that are named one by one (prompt, response, messages, template) are the
other way to say what a row holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobs.chats import Turn
from jobs.fields import has, text_of
from jobs.task_error import TaskError
from jobs.task_spec import Examples
from jobs.turns import chat_of, refuse_media, tools_of, turns_of

# Stanford Alpaca's two headings, as published with its data (github.com/tatsu-lab/stanford_alpaca, README)
_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction}\n\n### Response:"
)
_ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
CHAT_FIELDS = {"openai": ("messages",), "sharegpt": ("conversations", "conversation")}
# pairs of fields that many data sets have
PAIRS = (
    ("question", "answer"), ("question", "response"), ("instruction", "response"), ("instruction", "completion"),
    ("input", "output"), ("query", "response"), ("query", "answer"), ("prompt", "answer"), ("prompt", "output"),
    ("problem", "solution"), ("problem", "answer"), ("question", "solution"),
)  # fmt: skip
# what would be lost if a pair alone were read
_MORE = ("input", "context", "passage", "choices", "options", "system", "history", "background", "document")


@dataclass(frozen=True)
class Reading:
    """What a row says. turns: before the response, where it is a chat; asked, told: as in Example."""

    prompt: str
    response: str
    turns: tuple[Turn, ...] = ()
    reply: Turn | None = None
    tools: str = ""
    asked: str | None = None
    told: str | None = None


def read_row(source: Examples, row: Mapping[str, Any], where: str) -> Reading | None:
    """A row in the source's format; None where its fields are named one by one. Raises TaskError."""
    if source.messages is not None or source.format in CHAT_FIELDS:
        return _chat(source, row, where)
    match source.format:
        case "alpaca" | "instruction":
            return _instruction(source, row, where)
        case "prompt-completion":
            return _prompt_completion(source, row, where)
    return None


def _chat(source: Examples, row: Mapping[str, Any], where: str) -> Reading:
    names = (source.messages,) if source.messages is not None else CHAT_FIELDS[str(source.format)]
    name = next((name for name in names if name in row), None)
    if name is None:
        raise TaskError(f"{where}: no field '{names[0]}'; {has(row)}")
    refuse_media(row, where)
    turns = chat_of(row[name], name, where, source.train_on)
    if source.format == "sharegpt" and row.get("system") and turns[0].role != "system":
        turns.insert(0, Turn("system", text_of(row, "system", where)[0]))
    return _reading(turns, tools_of(row, where))


def _reading(turns: list[Turn], tools: str) -> Reading:
    last = turns[-1]
    reply = last if last.more else None
    return Reading(turns[-2].content, last.content, tuple(turns[:-1]), reply, tools)


def _instruction(source: Examples, row: Mapping[str, Any], where: str) -> Reading:
    """alpaca: under its headings; instruction: the instruction, an empty line, the input.

    A row's `system` and `history` (pairs of a question and an answer) make it a chat.
    """
    words, _ = text_of(row, "instruction", where)
    more = row.get("input") not in (None, "")
    asked = f"{words} {text_of(row, 'input', where)[0]}" if more else words
    if source.format == "alpaca":
        prompt, _ = text_of(row, _ALPACA_WITH_INPUT if more else _ALPACA, where)
    else:
        prompt = f"{words}\n\n{text_of(row, 'input', where)[0]}" if more else words
    response, _ = text_of(row, "output", where)
    turns = [Turn("system", text_of(row, "system", where)[0])] if row.get("system") else []
    for number, pair in enumerate(row.get("history") or []):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise TaskError(f"{where}: history[{number}] must be a question and its answer")
        at = {"question": pair[0], "answer": pair[1]}
        place = f"{where}: history[{number}]"
        turns += [Turn("user", text_of(at, "question", place)[0]), Turn("assistant", text_of(at, "answer", place)[0])]
    chat = (*turns, Turn("user", prompt)) if turns else ()
    return Reading(prompt, response, chat, asked=asked, told=response)


def _prompt_completion(source: Examples, row: Mapping[str, Any], where: str) -> Reading:
    """TRL's, as texts or as lists of messages."""
    given = [row.get(name) for name in ("prompt", "completion")]
    if not any(isinstance(value, list) for value in given):
        return Reading(text_of(row, "prompt", where)[0], text_of(row, "completion", where)[0])
    refuse_media(row, where)
    before = turns_of(given[0], "prompt", where)
    turns = [*before, *turns_of(given[1], "completion", where)]
    if len(turns) == len(before):
        raise TaskError(f"{where}: field 'completion' has no message")
    if any(turn.role == "assistant" for turn in turns[len(before) : -1]):
        raise TaskError(
            f"{where}: field 'completion' has several assistant's messages; write the chat as messages, and which of "
            "them are trained as train_on"
        )
    return _reading(chat_of([turn.message() for turn in turns], "prompt and completion", where), tools_of(row, where))


def recognised(row: Mapping[str, Any]) -> dict[str, str]:
    """The fields of a task that reads such rows: {format: alpaca}, {prompt: question, response: answer}; {} for none.

    Only for a task that names none itself. Rows that fit several readings, or one that would leave words out, fit none.
    """
    if {"prompt", "response"} <= row.keys():
        return {}
    found = [reading for reading in _readings(row) if reading]
    return found[0] if len(found) == 1 else {}


def _readings(row: Mapping[str, Any]) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    if isinstance(row.get("messages"), list | str):
        found.append({"format": "openai"})
    if any(isinstance(row.get(name), list | str) for name in CHAT_FIELDS["sharegpt"]):
        found.append({"format": "sharegpt"})
    if {"prompt", "completion"} <= row.keys():
        found.append({"format": "prompt-completion"})
    if {"instruction", "output"} <= row.keys():
        found.append({"format": "alpaca"})
    pairs = [pair for pair in PAIRS if row.keys() >= {*pair}]
    if not found and not any(row.get(name) for name in _MORE if name not in {n for pair in pairs for n in pair}):
        found += [{"prompt": prompt, "response": response} for prompt, response in pairs]
    return found


def advice(row: Mapping[str, Any]) -> str:
    """What to write for rows whose prompt or response has another name."""
    readings = _readings(row)
    if {"chosen", "rejected"} <= row.keys():
        chats = isinstance(row["chosen"], list)
        what = "messages: chosen" if chats else "response: chosen, and prompt"
        return f"preference pairs; to train on the better answers write {what}"
    if len(row) == 1 and isinstance(row.get("text"), str):
        return (
            "text without a prompt is pre-training data; sweeps need a prompt and its response in fields of their own"
        )
    if readings:
        ways = " or ".join(", ".join(f"{name}: {value}" for name, value in one.items()) for one in readings)
        return f"{has(row)}; write {ways}"
    if {"choices", "answer"} <= row.keys() or {"options", "answer"} <= row.keys():
        name = "choices" if "choices" in row else "options"
        return (
            f'{has(row)}; write a template, such as "{{question}}\\n{{{name}:lettered}}", and '
            "response: '{answer:letter}' where the answer is an index"
        )
    return has(row)
