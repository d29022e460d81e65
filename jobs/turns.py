"""A row's messages -> the turns of a chat, whoever wrote them: OpenAI's role and content, ShareGPT's from and value.

What a chat template can lay out is handed on; what it would drop or write as Python's None is refused by row and role.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from jobs.chats import Turn
from jobs.fields import spelt
from jobs.strict import nearest
from jobs.task_error import TaskError

# role as data write it -> as templates know it
ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant",
    "function_call": "assistant", "tool_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "tool_response": "tool", "function_response": "tool",
}  # fmt: skip
_CALLS = ("function_call", "tool_call")  # roles whose content is the call itself, as JSON
_READ = ("reasoning_content", "reasoning", "thinking", "tool_plan", "tool_call_id", "name")  # by some templates
_TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}  # parts -> their text
_UNTRAINED = ("weight", "train", "loss")  # a turn's own mark that it is not to be learnt: 0 or false
_MEDIA = ("images", "image", "videos", "video", "audios", "audio")


def chat_of(messages: Any, name: str, where: str, train_on: Literal["last", "all"] = "last") -> list[Turn]:
    """The turns of a chat that ends with an answer to train. `name`: the field that holds it. Raises TaskError."""
    turns = turns_of(messages, name, where)
    if len(turns) < 2:
        raise TaskError(f"{where}: field '{name}' must be a list of at least two messages, got {len(turns)}")
    last = len(turns) - 1
    if turns[last].role != "assistant":
        raise TaskError(f"{where}: the last message must be the assistant's, got '{turns[last].role}'")
    for number, turn in enumerate(turns):
        if turn.role == "assistant" and (number == last or train_on == "all") and not _says(turn):
            raise TaskError(
                f"{where}: {name}[{number}] (assistant): its content is empty, so there is nothing to train"
            )
    given = _from_text(messages)
    for number, message in enumerate(given):
        if _role(message) == "assistant" and (number == len(given) - 1 or train_on == "all"):
            _refuse_mark(message, f"{where}: {name}[{number}] (assistant)", train_on)
    return turns


def _refuse_mark(message: Mapping[str, Any], where: str, train_on: str) -> None:
    """Raises TaskError where the data say that a message is not to be trained, and it would be."""
    for key in _UNTRAINED:
        if message.get(key) in (0, False):
            raise TaskError(
                f"{where} has {key} {json.dumps(message[key])}, so it is not to be trained, but train_on is "
                f"'{train_on}'; remove the mark, or leave such rows out (invalid: drop)"
            )


def _role(message: Mapping[str, Any]) -> str | None:
    said = message.get("role", message.get("from"))
    return ROLES.get(said.lower()) if isinstance(said, str) else None


def _says(turn: Turn) -> bool:
    return bool(turn.content.strip()) or "tool_calls" in turn.message()


def turns_of(messages: Any, name: str, where: str) -> list[Turn]:
    """Each message as a turn; calls that follow an assistant's words belong to the same turn. Raises TaskError."""
    messages = _from_text(messages)
    if not isinstance(messages, list):
        kind = "null" if messages is None else type(messages).__name__
        raise TaskError(f"{where}: field '{name}' must be a list of messages, got {kind}")
    turns: list[Turn] = []
    for number, message in enumerate(messages):
        turn, is_call = _turn(message, f"{where}: {name}[{number}]")
        if is_call and turns and turns[-1].role == "assistant":
            before, now = turns.pop().message(), turn.message()
            calls = [*before.get("tool_calls", []), *now["tool_calls"]]
            more = {key: value for key, value in before.items() if key not in ("role", "content")}
            turn = Turn.of("assistant", before["content"], more | {"tool_calls": calls})
        turns.append(turn)
    return turns


def tools_of(row: Mapping[str, Any], where: str) -> str:
    """JSON list of the tools that a row's chat may call; empty for none. Raises TaskError."""
    tools = _from_text(row.get("tools"))
    if not tools and (functions := _from_text(row.get("functions"))):  # OpenAI's, until 2023
        tools = [{"type": "function", "function": function} for function in functions]
    if not tools:
        return ""
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise TaskError(f"{where}: field 'tools' must be a list of tools, or JSON of one, got {str(tools)[:60]}")
    return _json(tools, f"{where}: field 'tools'")


def refuse_media(row: Mapping[str, Any], where: str) -> None:
    """Raises TaskError where a row's chat is about pictures, sound or film, which are not trained here."""
    for name in _MEDIA:
        if row.get(name):
            raise TaskError(f"{where}: field '{name}' is not empty; backbones here read text alone")


def _turn(message: Any, where: str) -> tuple[Turn, bool]:
    """A message as a turn, and whether it is nothing but a call."""
    if not isinstance(message, dict):
        raise TaskError(f"{where}: a message needs role and content (or from and value), got {type(message).__name__}")
    keys = ("role", "content") if "role" in message else ("from", "value")
    if keys[0] not in message:
        given = ", ".join(map(str, message))[:60] or "none"
        raise TaskError(f"{where}: a message needs role and content (or from and value), got {given}")
    said, role = message[keys[0]], _role(message)
    if role is None:
        raise TaskError(f"{where}: unknown role '{str(said)[:40]}';{nearest(str(said), ROLES)}")
    where = f"{where} ({said})"
    refuse_media(message, where)
    content = message.get(keys[1])
    if said.lower() in _CALLS:
        return Turn.of(role, "", {"tool_calls": _calls(_called(content, where), where)}), True
    more = {key: message[key] for key in _READ if message.get(key)}
    for key, value in more.items():
        more[key] = _content(value, f"{where}: its {key}")
    calls = message.get("tool_calls") or ([message["function_call"]] if message.get("function_call") else None)
    if calls:
        if role != "assistant":
            raise TaskError(f"{where}: only an assistant calls tools")
        more["tool_calls"] = _calls(_from_text(calls), where)
        content = content or ""
    return Turn.of(role, _content(content, f"{where}: its {keys[1]}"), more), False


def _content(value: Any, where: str) -> str:
    """The text of a message: of all parts, where it comes in parts."""
    if isinstance(value, list):
        return "".join(_part(part, f"{where}[{number}]") for number, part in enumerate(value))
    try:
        return spelt(value)
    except ValueError as error:
        raise TaskError(f"{where} {str(error).partition(';')[0].partition(', which')[0]}") from None


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return _content(part, where)
    kind = part.get("type", "text") if isinstance(part, dict) else type(part).__name__
    if not isinstance(part, dict) or kind not in _TEXTS:
        raise TaskError(f"{where} is a part of type '{str(kind)[:40]}'; backbones here read text alone")
    return _content(part.get(_TEXTS[kind]), where)


def _called(text: Any, where: str) -> Any:
    """What a message of the role function_call holds: a call, or a list of them, as JSON."""
    calls = _from_text(text)
    if isinstance(calls, dict):
        return [calls]
    if not isinstance(calls, list):
        raise TaskError(f"{where}: a call is JSON with name and arguments, got '{str(text)[:60]}'")
    return calls


def _calls(calls: Any, where: str) -> list[dict[str, Any]]:
    """Tool calls as templates read them: {"type", "id", "function": {"name", "arguments"}}, arguments a mapping."""
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise TaskError(f"{where}: tool_calls must be a list, got {type(calls).__name__}")
    found = []
    for number, call in enumerate(calls):
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise TaskError(f"{where}: tool_calls[{number}] needs a function with name and arguments")
        arguments = _from_text(function.get("arguments", function.get("parameters")) or {})
        if not isinstance(arguments, dict):
            raise TaskError(
                f"{where}: the arguments of tool_calls[{number}] must be a mapping, or JSON of one, got "
                f"'{str(arguments)[:60]}'"
            )
        identity = {"id": call["id"]} if call.get("id") else {}
        found.append(identity | {"type": "function", "function": {"name": function["name"], "arguments": arguments}})
    _json(found, f"{where}: its tool_calls")
    return found


def _from_text(value: Any) -> Any:
    """What a JSON list or mapping says, where the row holds it as text; any other value as it is."""
    if not isinstance(value, str) or not value.strip().startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _json(value: Any, where: str) -> str:
    """JSON that a template can read and a tokenizer encode. Raises TaskError."""
    try:
        spelt(json.dumps(value, ensure_ascii=False, allow_nan=False))
        return json.dumps(value)
    except (ValueError, TypeError, RecursionError) as error:
        raise TaskError(f"{where} cannot be written as JSON ({error})") from None
