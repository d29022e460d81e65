"""Messages as people have them: each is rendered as it was said, or refused by row and role."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.chats import Turn
from jobs.task_error import TaskError
from jobs.task_spec import TaskSpec
from jobs.tasks import Example, TaskData, load_task

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CALL = {"id": "c1", "type": "function", "function": {"name": "w", "arguments": '{"b": 1, "a": 2}'}}
CALLED = {"tool_calls": [CALL | {"function": {"name": "w", "arguments": {"b": 1, "a": 2}}}]}


def read(folder: Path, *rows: Any, **fields: Any) -> TaskData:
    file = folder / "d.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"path": str(file), "heldout_path": str(file), "messages": "messages"} | fields
    return load_task(TaskSpec.model_validate(task))


def one(folder: Path, messages: Any, row: dict[str, Any] | None = None, **fields: Any) -> Example:
    return read(folder, {"messages": messages} | (row or {}), **fields).train[0]


def test_a_last_turn_that_only_calls_tools(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "w"}}]
    called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    for given in (tools, json.dumps(tools)):
        example = one(tmp_path, [USER, called], {"tools": given})
        assert (example.messages, example.response) == ((Turn("user", "q"),), "")
        assert example.reply is not None
        assert example.reply.message() == {"role": "assistant", "content": ""} | CALLED
        assert list(example.reply.message()["tool_calls"][0]["function"]["arguments"]) == ["b", "a"]  # in their order
        assert json.loads(example.tools) == tools
    old = {"role": "assistant", "content": None, "function_call": {"name": "w", "arguments": "{}"}}
    example = one(tmp_path, [USER, old], {"functions": [{"name": "w"}]})
    assert example.reply is not None
    assert example.reply.message()["tool_calls"] == [{"type": "function", "function": {"name": "w", "arguments": {}}}]
    assert json.loads(example.tools) == tools


def test_tool_results_parts_reasoning_and_names_are_handed_on(tmp_path: Path) -> None:
    example = one(
        tmp_path,
        [
            {"role": "developer", "content": [{"type": "text", "text": "Be "}, "brief."]},
            USER | {"name": "Ann"},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "rain"}]},
            {"role": "assistant", "content": "It rains.", "reasoning_content": "Rain.", "tool_calls": None, "id": 7},
        ],
    )
    assert example.messages == (
        Turn("system", "Be brief."),
        Turn.of("user", "q", {"name": "Ann"}),
        Turn.of("assistant", "", CALLED),
        Turn.of("tool", "rain", {"tool_call_id": "c1"}),
    )
    assert example.reply == Turn.of("assistant", "It rains.", {"reasoning_content": "Rain."})
    assert example.response == "It rains."
    assert one(tmp_path, [USER, ANSWER]).reply is None


def test_sharegpt_calls_belong_to_the_turn_that_makes_them(tmp_path: Path) -> None:
    said = [
        ("human", "weather?"), ("gpt", "Let me see."), ("function_call", '{"name": "w", "arguments": {"c": 0}}'),
        ("function_call", '[{"name": "v", "arguments": {}}]'), ("observation", "rain"), ("gpt", "It rains."),
    ]  # fmt: skip
    row = {"conversations": [{"from": role, "value": text} for role, text in said], "tools": "[]"}
    example = read(tmp_path, row, messages=None, format="sharegpt").train[0]
    calls = [{"type": "function", "function": {"name": n, "arguments": a}} for n, a in (("w", {"c": 0}), ("v", {}))]
    assert example.messages == (
        Turn("user", "weather?"), Turn.of("assistant", "Let me see.", {"tool_calls": calls}), Turn("tool", "rain"),
    )  # fmt: skip
    assert (example.response, example.tools) == ("It rains.", "")


def test_the_model_may_begin_and_which_turns_are_trained_is_in_the_example(tmp_path: Path) -> None:
    chat = [{"from": "gpt", "value": "Hello!"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    example = one(tmp_path, chat)
    assert example.messages == (Turn("assistant", "Hello!"), Turn("user", "q"))
    assert example.train_on == "last"
    assert one(tmp_path, [USER, ANSWER, USER, ANSWER], train_on="all").train_on == "all"
    assert one(tmp_path, json.dumps([USER, ANSWER])).messages == (Turn("user", "q"),)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([USER, {"role": "assistant", "content": None}], "messages[1] (assistant): its content is null"),
        ([USER, {"role": "assistant"}], "messages[1] (assistant): its content is null"),
        ([USER, {"role": "assistant", "content": True}], "messages[1] (assistant): its content is true"),
        ([USER, {"role": "assistant", "content": {"a": 1}}], "messages[1] (assistant): its content is a mapping"),
        ([USER, {"role": "assistant", "content": float("nan")}], "messages[1] (assistant): its content is NaN"),
        ([USER, {"role": "assistant", "content": "a\ud83d"}], "its content has half a surrogate pair, \\ud83d, at"),
        ([USER, {"role": "assistant", "content": "  "}], "messages[1] (assistant): its content is empty, so there is"),
        ([USER, {"role": "assistant", "content": [{"type": "text", "text": None}]}], "its content[0] is null"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, ANSWER],
         "messages[0] (user): its content[0] is a part of type 'image_url'; backbones here read text alone"),
        ([USER | {"images": ["x.png"]}, ANSWER], "messages[0] (user): field 'images' is not empty"),
        ([USER, {"role": "asistant", "content": "a"}], "messages[1]: unknown role 'asistant'; did you mean 'ass"),
        ([USER, {"role": None, "content": "a"}], "messages[1]: unknown role 'None'"),
        ([USER, {"content": "a"}], "messages[1]: a message needs role and content (or from and value), got content"),
        ([USER, "a"], "messages[1]: a message needs role and content (or from and value), got str"),
        ([USER, ANSWER, USER], "the last message must be the assistant's, got 'user'"),
        ([USER, {"role": "tool", "content": "x"}], "the last message must be the assistant's, got 'tool'"),
        ([ANSWER], "must be a list of at least two messages, got 1"),
        ([], "must be a list of at least two messages, got 0"),
        (None, "field 'messages' must be a list of messages, got null"),
        ("hello", "field 'messages' must be a list of messages, got str"),
        ([USER, {"role": "assistant", "content": "", "tool_calls": [{"id": "c"}]}],
         "messages[1] (assistant): tool_calls[0] needs a function with name and arguments"),
        ([USER, {"role": "assistant", "tool_calls": [{"name": "w", "arguments": "c=1"}]}],
         "the arguments of tool_calls[0] must be a mapping, or JSON of one, got 'c=1'"),
        ([USER | {"tool_calls": [CALL]}, ANSWER], "messages[0] (user): only an assistant calls tools"),
        ([{"from": "human", "value": "q"}, {"from": "function_call", "value": "w(1)"}],
         "messages[1] (function_call): a call is JSON with name and arguments, got 'w(1)'"),
        ([USER, ANSWER | {"weight": 0}], "messages[1] (assistant) has weight 0, so it is not to be trained, but"),
    ],
)  # fmt: skip
def test_what_no_template_could_write_is_refused_by_row_and_role(tmp_path: Path, messages: Any, message: str) -> None:
    with pytest.raises(TaskError) as caught:
        read(tmp_path, {"messages": [USER, ANSWER]}, {"messages": messages})
    assert message in str(caught.value)
    assert "d.jsonl:2: " in str(caught.value)
    assert "\n" not in str(caught.value)
    left = read(tmp_path, *[{"messages": [USER, ANSWER]}] * 3, {"messages": messages}, invalid="drop")
    assert len(left.train) == 3
    assert left.left_out.rows == 2  # as training and as held-out rows
    assert message in left.left_out.reasons[0]


def test_all_turns_that_are_trained_must_say_something(tmp_path: Path) -> None:
    chat = [USER, {"role": "assistant", "content": ""}, USER, ANSWER]
    assert one(tmp_path, chat).response == "a"
    with pytest.raises(TaskError, match=r"messages\[1\] \(assistant\): its content is empty"):
        one(tmp_path, chat, train_on="all")
    untrained = [USER, ANSWER | {"weight": 0}, USER, ANSWER]
    assert one(tmp_path, untrained).response == "a"
    with pytest.raises(TaskError, match=r"messages\[1\] \(assistant\) has weight 0"):
        one(tmp_path, untrained, train_on="all")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tools": "a tool"}, "field 'tools' must be a list of tools, or JSON of one, got a tool"),
        ({"tools": [1]}, "field 'tools' must be a list of tools"),
        ({"tools": [{"name": "a\ud83d"}]}, "field 'tools' cannot be written as JSON"),
        ({"tools": [{"name": float("nan")}]}, "field 'tools' cannot be written as JSON"),
        ({"images": ["a.png"]}, "field 'images' is not empty; backbones here read text alone"),
    ],
)
def test_what_stands_beside_the_messages(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError) as caught:
        one(tmp_path, [USER, ANSWER], row)
    assert f"d.jsonl:1: {message}" in str(caught.value)
