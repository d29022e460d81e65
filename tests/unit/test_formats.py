"""Formats by name, recognised by fields; templates over fields; indices as letters; rows that are left out."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from jobs.chats import Turn
from jobs.formats import recognised
from jobs.task_error import TaskError
from jobs.task_spec import TaskSpec
from jobs.tasks import Example, TaskData, load_task

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
ALPACA = {"instruction": "Add", "input": "1 1", "output": "2"}


def read(folder: Path, *rows: Any, **fields: Any) -> TaskData:
    file = folder / "d.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_task(TaskSpec.model_validate({"path": str(file), "heldout_path": str(file)} | fields))


def one(folder: Path, row: Any, **fields: Any) -> Example:
    return read(folder, row, **fields).train[0]


def test_alpaca_has_its_two_published_headings(tmp_path: Path) -> None:
    with_input = (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd\n\n### Input:\n1 1\n\n### Response:"
    )
    without = (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n### Instruction:\nAdd\n\n### Response:"
    )
    example = one(tmp_path, ALPACA, format="alpaca")
    assert (example.prompt, example.response, example.messages) == (with_input, "2", ())
    assert (example.asked, example.told) == ("Add 1 1", "2")  # the headings are no leak
    for row in ({"input": ""}, {"input": None}):
        assert one(tmp_path, ALPACA | row, format="alpaca").prompt == without
    assert one(tmp_path, {"instruction": "Add", "output": "2"}, format="alpaca").prompt == without
    assert one(tmp_path, ALPACA, format="instruction").prompt == "Add\n\n1 1"
    more = {"system": "Be brief.", "history": [["q", "a"]]}
    assert one(tmp_path, ALPACA | more, format="instruction").messages == (
        Turn("system", "Be brief."), Turn("user", "q"), Turn("assistant", "a"), Turn("user", "Add\n\n1 1"),
    )  # fmt: skip


def test_trl_as_texts_and_as_messages(tmp_path: Path) -> None:
    text = one(tmp_path, {"prompt": "q", "completion": " a"}, format="prompt-completion")
    assert (text.prompt, text.response, text.messages) == ("q", " a", ())
    chat = one(tmp_path, {"prompt": [USER], "completion": [ANSWER]}, format="prompt-completion")
    assert (chat.prompt, chat.response, chat.messages) == ("q", "a", (Turn("user", "q"),))
    for completion, message in (
        ([], "field 'completion' has no message"),
        ([ANSWER, USER, ANSWER], "field 'completion' has several assistant's messages"),
        ("a", "field 'completion' must be a list of messages, got str"),
        (None, "field 'completion' must be a list of messages, got null"),
        ([USER], "the last message must be the assistant's, got 'user'"),
    ):
        with pytest.raises(TaskError, match=r"d.jsonl:1: ") as caught:
            one(tmp_path, {"prompt": [USER], "completion": completion}, format="prompt-completion")
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("row", "fields"),
    [
        (ALPACA, {"format": "alpaca"}),
        ({"instruction": "q", "output": "a"}, {"format": "alpaca"}),
        ({"messages": [USER, ANSWER], "tools": []}, {"format": "openai"}),
        ({"prompt": "q", "prompt_id": 1, "messages": [USER, ANSWER]}, {"format": "openai"}),
        ({"id": 1, "conversations": []}, {"format": "sharegpt"}),
        ({"conversation": []}, {"format": "sharegpt"}),
        ({"prompt": "q", "completion": "a"}, {"format": "prompt-completion"}),
        ({"question": "q", "answer": "a"}, {"prompt": "question", "response": "answer"}),
        ({"input": "q", "output": "a"}, {"prompt": "input", "response": "output"}),
        ({"prompt": "q", "response": "a", "messages": []}, {}),  # the fields that a task reads anyway
        ({"instruction": "q", "response": "a", "context": "c"}, {}),  # the context would be lost
        ({"question": "q", "choices": ["x"], "answer": 0}, {}),
        ({"question": "q", "answer": "a", "solution": "s"}, {}),  # two readings
        ({"messages": [], "conversations": []}, {}),
        ({"text": "t"}, {}),
        ({}, {}),
    ],
)
def test_what_a_rows_fields_say(row: dict[str, Any], fields: dict[str, str]) -> None:
    assert recognised(row) == fields


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (ALPACA, "no text in field 'prompt'; this row has input, instruction, output; write format: alpaca"),
        ({"question": "q", "answer": "a", "solution": "s"}, "write prompt: question, response: answer or prompt:"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "preference pairs; to train on the better answers write"),
        ({"chosen": [USER, ANSWER], "rejected": []}, "to train on the better answers write messages: chosen"),
        ({"text": "t"}, "text without a prompt is pre-training data"),
        ({"question": "q", "choices": ["x", "y"], "answer": 1}, "response: '{answer:letter}' where the answer is an"),
        ({f"column {i:02d}": 1 for i in range(40)}, "this row has column 00, column 01, column 02, column 03, "),
    ],
)  # fmt: skip
def test_a_row_that_is_not_read_says_how_it_could_be(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError) as caught:
        one(tmp_path, row)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "alpaca", "template": "{a}"}, "format alpaca has fields of its own; leave template out, or format"),
        ({"format": "openai", "system": "s"}, "format openai has fields of its own; leave system out"),
        ({"format": "sharegpt", "prompt": "q"}, "leave prompt out"),
        ({"format": "alpace"}, "input should be 'alpaca', 'instruction', 'openai'"),
        ({"template": "{"}, "write {{ and }} for braces of the text"),
        ({"template": "\\boxed{}"}, "'{}' names no field of a row; write {{ and }} for braces of the text"),
        ({"response": "{a!r}"}, "'{a!r}': a field is written as it is; leave !r out"),
        ({"template": "{a b]}"}, "'{a b]}' is not a field"),
    ],
)
def test_what_a_sweep_file_may_not_say(fields: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TaskSpec.model_validate({"path": "d.jsonl"} | fields)
    assert message.lower() in str(caught.value).lower()


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), True, [1], {"a": 1}, "a\ud83d"])
@pytest.mark.parametrize(
    "fields",
    [
        {"response": "x"}, {"response": "{x}"}, {"prompt": "x", "response": "a"}, {"template": "{x}", "response": "a"},
        {"response_template": "It is {x}.", "prompt": "a"}, {"reference": "x", "response": "a", "prompt": "a"},
        {"template": "{x}\n{a}", "omit_empty": True, "response": "a"},
    ],
)  # fmt: skip
def test_what_only_python_would_write_is_refused_by_row_and_field(
    tmp_path: Path, value: Any, fields: dict[str, Any]
) -> None:
    if value is None and "omit_empty" in fields:
        assert one(tmp_path, {"x": value, "a": "q"}, **fields).prompt == "q"
        return
    rows = [{"prompt": "q", "a": "q", "x": "fine"}, {"prompt": "p", "a": "p", "x": value}]
    with pytest.raises(TaskError, match=r"^[^\n]*d.jsonl:2: [^\n]*field 'x'[^\n]*$"):
        read(tmp_path, *rows, **fields)
    assert len(read(tmp_path, *rows, **fields, invalid="drop").train) == 1


@pytest.mark.parametrize(
    ("spec", "value", "text"),
    [
        ("letter", 0, "A"), ("letter", 2, "C"), ("letter", "2", "C"), ("letter", 2.0, "C"), ("letter", "c", "C"),
        ("letter-from-1", 1, "A"), ("letter-from-1", "4", "D"), ("letter-from-1", "B", "B"),
        ("no|yes", 0, "no"), ("no|yes", True, "yes"), ("no|yes|maybe", "2", "maybe"),
        (".2f", 0.5, "0.50"), ("lines", ["a", 1], "a\n1"), ("lettered", ["x", "y"], "A. x\nB. y"),
        ("lettered", {"A": "x", "B": "y"}, "A. x\nB. y"),
    ],
)  # fmt: skip
def test_a_value_is_written_as_the_template_says(tmp_path: Path, spec: str, value: Any, text: str) -> None:
    assert one(tmp_path, {"prompt": "q", "x": value}, response=f"{{x:{spec}}}").response == text
    assert one(tmp_path, {"prompt": "q", "x": {"y": [value]}}, response=f"{{x[y][0]:{spec}}}").response == text


@pytest.mark.parametrize(
    ("spec", "value", "message"),
    [
        ("letter", -1, "field 'x' is -1, not a whole number from 0 to 25"),
        ("letter", 26, "is 26, not a whole number"), ("letter", 1.5, "is 1.5, not"), ("letter", None, "is null, not"),
        ("letter", True, "is true, not"), ("letter", "A or B", "is A or B, not"), ("letter-from-1", 0, "is 0, not"),
        ("no|yes", 2, "is 2, not a whole number from 0 to 1"), ("no|yes", "true", "is true, not"),
        ("lines", "text", "field 'x' is no list (str)"), ("lines", [], "is a list of 0"), ("lines", [None], "is null"),
        (".2f", "text", "field 'x' cannot be written as '.2f' (text); known are"), ("d", 0.5, "cannot be written"),
        ("colour", 1, "cannot be written as 'colour'"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_written_so(tmp_path: Path, spec: str, value: Any, message: str) -> None:
    with pytest.raises(TaskError, match=r"d.jsonl:1: ") as caught:
        one(tmp_path, {"prompt": "q", "x": value}, response=f"{{x:{spec}}}")
    assert message in str(caught.value)


def test_an_index_for_a_letter_says_how_to_write_it(tmp_path: Path) -> None:
    row, score = {"prompt": "q", "answer": 2}, {"kind": "choice", "options": "A-D"}
    with pytest.raises(TaskError, match=r"'2' is none of A-D; .*'\{answer:letter\}' \(0 is A\)"):
        one(tmp_path, row, response="answer", score=score)
    assert one(tmp_path, row, response="{answer:letter}", score=score).wanted == "C"


def test_rows_that_are_left_out_are_counted_and_decide_the_key(tmp_path: Path) -> None:
    good, bad = {"prompt": "q", "response": "a"}, {"prompt": "q"}
    (tmp_path / "e.jsonl").write_bytes(b'{"prompt": "q", "response": "a"}\n[]\n{"prompt": "\xe9"}\n{nonsense\n')
    data = read(tmp_path, good, bad, good, invalid="drop", heldout_path=str(tmp_path / "e.jsonl"))
    assert (len(data.train), len(data.heldout), data.left_out.rows) == (2, 1, 4)
    assert [reason.partition(": ")[0][-9:] for reason in data.left_out.reasons] == [
        "e.jsonl:2", "e.jsonl:3", "e.jsonl:4", "d.jsonl:2",
    ]  # fmt: skip
    with pytest.raises(TaskError, match=r"0 training and 0 held-out examples; both need some; 4 rows were left out"):
        read(tmp_path, bad, bad, invalid="drop")
    plain = TaskSpec(path="d.jsonl", fingerprint="f")
    dropping, named = (
        TaskSpec.model_validate({"path": "d.jsonl", "fingerprint": "f"} | more)
        for more in ({"invalid": "drop"}, {"format": "alpaca"})
    )
    assert len({json.dumps(task.identity()) for task in (plain, dropping, named)}) == 3
    assert "invalid" not in plain.identity()


def test_a_reference_that_is_no_option_may_be_left_out(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "response": letter} for i, letter in enumerate("ABE")]
    data = read(tmp_path, *rows, score={"kind": "choice", "options": "A-B"}, invalid="drop")
    assert sorted(example.wanted for example in data.heldout) == ["A", "B"]
    assert data.left_out.rows == 1


def test_noise_swaps_calls_with_their_words(tmp_path: Path) -> None:
    rows = []
    for city in "abcd":
        call = {"function": {"name": "w", "arguments": {"city": city}}}
        rows.append(
            {"messages": [USER | {"content": city}, {"role": "assistant", "content": "", "tool_calls": [call]}]}
        )
    data = read(tmp_path, *rows, format="openai", noise=1.0)
    assert data.noisy == 4
    assert all(e.reply and f'"{e.prompt}"' not in e.reply.more for e in data.train)
