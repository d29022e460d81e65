"""Chats as text, by the model's own chat template: the same text on every day, or refused in one line.

A template may read more than messages: tools, a date, `enable_thinking` and others. All of it comes from the task, so
that one trial key always stands for the same text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from jobs.chats import Turn
from jobs.sources import TaskError
from jobs.strict import nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from jobs.ending_files import Files

    WritesChats: TypeAlias = PreTrainedTokenizerBase | Files

RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt", "strftime_now"})  # filled in here
OWN = frozenset({"raise_exception", "namespace", "dict", "range", "loop"})  # of every template's environment
NO_DATE = "the chat template writes the date"
DATE_HINT = "give the task a date, e.g. date: 2026-01-31"
# what the code in a template raises on messages that it was not written for
FAULTS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)


@dataclass(frozen=True)
class Given:
    """What a template gets besides messages. tools, kwargs: JSON, empty for none; date: ISO, empty for none."""

    tools: str = ""
    kwargs: str = ""
    date: str = ""


def render(tokenizer: WritesChats, turns: Sequence[Turn], given: Given, prompt: bool) -> str:
    """The chat as the template writes it.

    prompt: whether it ends with the start of an assistant turn, which the model continues
    Raises TaskError: the template refuses the chat, reads the clock without a date, or loses or garbles a tool call.
    """
    fault: TaskError | None = None
    for messages in _spellings(turns):
        try:
            text = _applied(tokenizer, messages, given, prompt)
        except TaskError as error:
            fault = fault or error
            continue
        reason = _tool_call_fault(messages, text, lambda some: _applied(tokenizer, some, given, prompt))
        if reason is None:
            return text
        fault = fault or TaskError(reason)
    raise fault or TaskError("the chat has no turns")


def check_template(tokenizer: PreTrainedTokenizerBase, given: Given) -> None:
    """Raises TaskError where the template does not read one of the task's kwargs, or draws at random."""
    template = _template_of(tokenizer, json.loads(given.tools) if given.tools else None)
    reads = _reads(template)
    if reads.random:
        raise TaskError(
            f"the chat template draws at random ({reads.random}), so prompts would differ from run to run; "
            "give the backbone a chat_template without it"
        )
    for name in json.loads(given.kwargs) if given.kwargs else ():
        if name in RESERVED:
            instead = DATE_HINT if name == "strftime_now" else "leave it out"
            raise TaskError(f"chat_template_kwargs: '{name}' is not for the task to set; {instead}")
        if name not in reads.names:
            raise TaskError(
                f"chat_template_kwargs: the chat template reads no '{name}';{nearest(name, reads.names - RESERVED)}"
            )


def plain_tags(template: str) -> str:
    """The template without transformers' own tag, which marks what the assistant wrote."""
    plain = re.sub(r"(\{%[-+]?\s*)generation(\s*[-+]?%\})", r"\1if true\2", template)
    return re.sub(r"(\{%[-+]?\s*)endgeneration(\s*[-+]?%\})", r"\1endif\2", plain)


@dataclass(frozen=True)
class _Reads:
    """What a template reads from outside: variables; forms of the date; what it draws at random with, if anything."""

    names: frozenset[str]
    forms: tuple[str, ...]
    random: str


@lru_cache(maxsize=16)
def _reads(template: str) -> _Reads:
    from jinja2 import Environment, TemplateSyntaxError, meta, nodes

    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(plain_tags(template))
    except TemplateSyntaxError as error:
        raise TaskError(f"the chat template is not valid Jinja: line {error.lineno}: {error.message}") from None
    drawn = {found.name for found in tree.find_all(nodes.Filter)} & {"random"}
    drawn |= {found.name for found in tree.find_all(nodes.Name)} & {"lipsum"}
    forms = [
        node.value
        for call in tree.find_all(nodes.Call)
        if isinstance(call.node, nodes.Name) and call.node.name == "strftime_now"
        for node in call.args
        if isinstance(node, nodes.Const)
    ]
    names = frozenset(meta.find_undeclared_variables(tree) - OWN)
    return _Reads(names, tuple(map(str, forms)), ", ".join(sorted(drawn)))


def _with_fixed_date(template: str, date: str) -> tuple[str | None, dict[str, Any]]:
    """The template with the task's date in the place of the clock, and a variable that it needs; None: as it is.

    transformers hands a template nothing that can be called, so the clock is replaced inside it.
    """
    if "strftime_now" not in template:
        return None, {}
    day = datetime.fromisoformat(date) if date else None
    dates = {form: day.strftime(form) for form in _reads(template).forms} if day is not None else {}
    clock = "{{ fixed_dates[form] if form in fixed_dates else raise_exception('" + NO_DATE + "') }}"
    # the newline is what ends a block's line, and goes with it
    return "{%- macro strftime_now(form) -%}" + clock + "{%- endmacro %}\n" + template, {"fixed_dates": dates}


def _template_of(tokenizer: WritesChats, tools: Any) -> str:
    """The one that is used, of several by name (some models have another for chats with tools)."""
    try:
        return str(tokenizer.get_chat_template(tools=tools))
    except ValueError as error:
        reason = str(error).strip().splitlines()[0]
        raise TaskError(f"no chat template can be taken ({reason}); give the backbone a chat_template") from None


def _applied(tokenizer: WritesChats, messages: Sequence[dict[str, Any]], given: Given, prompt: bool) -> str:
    from jinja2 import TemplateError

    tools = json.loads(given.tools) if given.tools else None
    template, dates = _with_fixed_date(_template_of(tokenizer, tools), given.date)
    kwargs = (json.loads(given.kwargs) if given.kwargs else {}) | dates
    try:
        return str(
            tokenizer.apply_chat_template(
                list(messages),
                tools=tools,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=prompt,
                **kwargs,
            )
        )
    except TemplateError as error:
        reason = error.message or type(error).__name__
        if reason == NO_DATE:
            hint = (
                "in a form that it makes itself; give the backbone a chat_template without it"
                if given.date
                else DATE_HINT
            )
            raise TaskError(f"{NO_DATE}, and every day would have other tokens; {hint}") from None
    except FAULTS as error:
        reason = f"{type(error).__name__}: {error}"
    roles = ", ".join(str(message["role"]) for message in messages)
    raise TaskError(f"the chat template refuses a chat with the roles {roles}: {' '.join(reason.split())}")


def _spellings(turns: Sequence[Turn]) -> Iterator[list[dict[str, Any]]]:
    """The messages as templates may want them: a call's arguments as a mapping or as JSON text, its content '' or none.

    Without tool calls there is one spelling.
    """
    plain = [turn.message() for turn in turns]
    if not any(message.get("tool_calls") for message in plain):
        yield plain
        return
    for empty in ("", None):
        for as_text in (False, True):
            yield [_spelled(message, empty, as_text) for message in plain]


def _spelled(message: dict[str, Any], empty: str | None, as_text: bool) -> dict[str, Any]:
    calls = message.get("tool_calls")
    if not calls:
        return message
    content = message["content"] or empty
    return message | {"content": content, "tool_calls": [_with_arguments(call, as_text) for call in calls]}


def _with_arguments(call: Any, as_text: bool) -> Any:
    """One call, in OpenAI's form ({function: {name, arguments}}) or flat ({name, arguments})."""
    if not isinstance(call, dict):
        return call
    if isinstance(call.get("function"), dict):
        return call | {"function": _with_arguments(call["function"], as_text)}
    arguments = call.get("arguments")
    if as_text and isinstance(arguments, dict | list):
        return call | {"arguments": json.dumps(arguments, ensure_ascii=False)}
    if not as_text and isinstance(arguments, str):
        try:
            return call | {"arguments": json.loads(arguments)}
        except json.JSONDecodeError:
            return call
    return call


def _tool_call_fault(
    messages: Sequence[dict[str, Any]], text: str, written: Callable[[Sequence[dict[str, Any]]], str]
) -> str | None:
    """Why the text does not hold each of the messages' tool calls; None where it does."""
    for place, message in enumerate(messages):
        for number, call in enumerate(message.get("tool_calls") or ()):
            function = call.get("function", call) if isinstance(call, dict) else {}
            name, arguments = str(function.get("name", "")), function.get("arguments")
            if any(isinstance(part, dict) and part and repr(part) in text for part in (call, function, arguments)):
                return f"the chat template writes tool call '{name}' as Python, not as JSON"
            others = [one for i, one in enumerate(message["tool_calls"]) if i != number]
            without = message | {"tool_calls": others} if others else _without_calls(message)
            try:
                same = written([*messages[:place], without, *messages[place + 1 :]]) == text
            except TaskError:
                continue  # it cannot do without, so it is written
            if same:
                return f"the chat template does not write tool calls (of '{name}'); give the backbone one that does"
        if message["content"] is None and "None" in text and "None" not in json.dumps(messages):
            return "the chat template writes None for a turn without text"
    return None


def _without_calls(message: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in message.items() if name != "tool_calls"} | {
        "content": message["content"] or ""
    }
