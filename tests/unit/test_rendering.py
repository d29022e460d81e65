"""Chats by the model's own template: the same on every day, with tools and reasoning, or refused in one line."""

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.answers import Reading
from jobs.chats import Turn
from jobs.corpus import corpus
from jobs.data import IGNORED, Encoded, Encoder, collate
from jobs.evaluate import _places
from jobs.packing import pack
from jobs.rendering import Given, render
from jobs.scores import score
from jobs.sources import TaskError
from jobs.task_spec import TaskSpec
from jobs.tasks import Example, _with_noise, load_task
from tests.chat_models import CHAT_MODELS, CHATML

USER = (Turn("user", "weather in 0?"),)
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "é"}'}}
TOOLS = json.dumps([{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}])
DATED = (  # as Llama 3.2's
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "Today: {{ date_string }}\n" + CHATML
)


def tokenizer(template: str = CHATML, name: str = "chatml") -> Any:
    made = CHAT_MODELS[name].tokenizer()
    made.chat_template = template
    return made


def ids(template: str, **more: Any) -> list[int]:
    (row,) = Encoder(tokenizer(template)).encode([Example("q", "a", **more)])
    return row.ids


class Tomorrow(datetime.datetime):
    """A clock that is ten years ahead."""

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return cls(2036, 7, 1, tzinfo=tz)


def test_a_template_that_writes_the_date_has_it_from_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TaskError, match=r"'q': the chat template writes the date, .* give the task a date, e.g. date:"):
        ids(DATED)
    with_date, with_kwarg = {"date": "2026-01-31"}, {"template_kwargs": '{"date_string": "31 Jan 2026"}'}
    today = [ids(DATED, **with_date), ids(DATED, **with_kwarg)]
    assert today[0] == today[1] != ids(DATED, date="2026-02-01")
    assert "Today: 31 Jan 2026" in tokenizer().decode(today[0])
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Tomorrow)
    assert [ids(DATED, **with_date), ids(DATED, **with_kwarg)] == today


def test_date_and_kwargs_belong_to_the_task_and_reach_its_benchmarks(tmp_path: Path) -> None:
    for name in ("train", "asked"):
        rows = [{"prompt": f"{name} {i}", "response": str(i)} for i in range(20)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {"path": str(tmp_path / "asked.jsonl"), "chat_template_kwargs": {"b": 3}}
    fields = {
        "path": str(tmp_path / "train.jsonl"), "date": "2026-01-31", "chat_template_kwargs": {"a": 1, "b": 2},
        "benchmarks": [own],
    }  # fmt: skip
    task = TaskSpec.model_validate(fields)
    data = load_task(task)
    (asked,) = data.benchmarks.values()
    assert {(e.date, e.template_kwargs) for e in (*data.train, *data.heldout)} == {("2026-01-31", '{"a": 1, "b": 2}')}
    assert {(e.date, e.template_kwargs) for e in asked} == {("2026-01-31", '{"a": 1, "b": 3}')}
    for change in ({"date": "2026-02-01"}, {"chat_template_kwargs": {}}, {"train_on": "all"}):
        assert TaskSpec.model_validate(fields | change).identity() != task.identity()
    plain = {"path": fields["path"]}
    assert not {"date", "chat_template_kwargs", "train_on"} & TaskSpec.model_validate(plain).identity().keys()


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"enable_thinkin": False}, "reads no 'enable_thinkin'; did you mean 'enable_thinking'?"),
        ({"messages": []}, "'messages' is not for the task to set; leave it out"),
        ({"strftime_now": "x"}, "'strftime_now' is not for the task to set; give the task a date"),
    ],
)
def test_what_a_template_does_not_read_is_refused(kwargs: dict[str, Any], reason: str) -> None:
    example = Example("q", "a", template_kwargs=json.dumps(kwargs))
    with pytest.raises(TaskError) as error:
        Encoder(CHAT_MODELS["qwen3"].tokenizer()).encode([example])
    assert reason in str(error.value)


def test_a_variable_of_the_template_changes_what_it_writes() -> None:
    """Also in a template with transformers' own generation tag."""
    template = CHATML.replace("{{ m.content }}", "{% generation %}{{ m.content }}{% endgeneration %}{{ tail }}")
    assert ids(template, template_kwargs='{"tail": "!"}') != ids(template)
    made = Encoder(CHAT_MODELS["qwen3"].tokenizer())
    thinking, not_thinking = made.encode(
        [Example("q", "a"), Example("q", "a", template_kwargs='{"enable_thinking": false}')]
    )
    assert thinking.ids == not_thinking.ids
    assert made.tokenizer.decode(not_thinking.ids[not_thinking.prompt_length :]) == "a<|im_end|>"
    assert made.tokenizer.decode(thinking.ids[thinking.prompt_length :]).startswith("<think>\n\n</think>\n\na")
    assert made.after == {"</think>"}


@pytest.mark.parametrize("word", ["{{ [1, 2] | random }}", "{{ lipsum() }}"])
def test_a_template_that_draws_at_random_is_refused(word: str) -> None:
    with pytest.raises(TaskError, match="draws at random"):
        ids(word + CHATML)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (
            "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}"
            "{% endif %}{{ m.content }}{% endfor %}",
            "refuses a chat with the roles system, user: System role not supported",
        ),
        ("{{ messages[7]['content'] }}", "refuses a chat with the roles system, user: "),
        ("{{ messages[0].content + 1 }}", "refuses a chat with the roles system, user: TypeError: "),
        ("{% for m in messages %}{{ m.content }}", "the chat template is not valid Jinja: line 1: "),
    ],
)
def test_what_a_template_refuses_is_one_line(template: str, reason: str) -> None:
    with pytest.raises(TaskError) as error:
        ids(template, messages=(Turn("system", "be nice"), Turn("user", "q")))
    assert str(error.value).startswith("'q': ")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "Let me look."])
@pytest.mark.parametrize("arguments", ['{"city": "é"}', {"city": "é"}])
@pytest.mark.parametrize(
    "written",
    ["{{ call.function.arguments | tojson }}", "{{ call.function.arguments + '' }}", "{{ call.function.arguments }}"],
)
def test_tool_calls_are_trained_as_json_whatever_the_data_and_the_template_take(
    written: str, arguments: Any, content: str
) -> None:
    """Templates that print a mapping as JSON, those that add text to text, those that print what they get."""
    template = (
        "{% if tools %}{{ tools | tojson }}\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% for call in m.tool_calls or [] %}<call>{{ call.function.name }}"
        + written
        + "</call>{% endfor %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    call = CALL | {"function": {"name": "weather", "arguments": arguments}}
    reply = Turn.of("assistant", content, {"tool_calls": [call]})
    made = tokenizer(template)
    (row,) = Encoder(made).encode([Example("weather in 0?", content, USER, reply, TOOLS)])
    assert made.decode(row.ids[row.prompt_length :]) == f'{content}<call>weather{{"city": "é"}}</call><|im_end|>'
    assert '"name": "weather"' in made.decode(row.ids[: row.prompt_length])


def test_tool_calls_that_a_template_drops_or_garbles_are_refused() -> None:
    reply = Turn.of("assistant", "", {"tool_calls": [CALL]})
    with pytest.raises(TaskError, match="does not write tool calls \\(of 'weather'\\)"):
        ids(CHATML, messages=USER, reply=reply)
    calls = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ c }}{% endfor %}{% endfor %}"
    with pytest.raises(TaskError, match="as Python, not as JSON"):
        ids(calls, messages=USER, reply=reply)
    earlier = (*USER, reply, Turn.of("tool", "sunny", {"tool_call_id": "c1"}), Turn("user", "thanks"))
    with pytest.raises(TaskError, match="does not write tool calls"):
        ids(CHATML, messages=earlier)


def test_a_turn_without_text_is_never_none() -> None:
    reply = Turn.of("assistant", "", {"tool_calls": [CALL]})
    qwen = CHAT_MODELS["qwen3"].tokenizer()
    text = render(qwen, (*USER, reply), Given(TOOLS), False)
    assert "None" not in text
    assert '{"name": "weather", "arguments": {"city": "é"}}' in text


def test_reasoning_is_trained_where_the_template_writes_it_and_told_where_not() -> None:
    reply = Turn.of("assistant", "a0", {"reasoning_content": "Let me think."})
    example = Example("q", "a0", (Turn("user", "q"),), reply)
    qwen = Encoder(CHAT_MODELS["qwen3"].tokenizer())
    (row,) = qwen.encode([example])
    assert qwen.tokenizer.decode(row.ids[row.prompt_length :]) == "<think>\nLet me think.\n</think>\n\na0<|im_end|>"
    assert not qwen.notes
    plain = Encoder(tokenizer())
    (row,) = plain.encode([example])
    assert plain.tokenizer.decode(row.ids[row.prompt_length :]) == "a0<|im_end|>"
    assert list(plain.notes) == ["the chat template writes no reasoning, so it is left out of {} turns"]


def test_a_template_that_drops_what_the_response_says_does_not_take_it_from_the_data() -> None:
    """As of models that forget their reasoning in the history: the text itself is trained behind the prompt."""
    template = CHATML.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}").replace(
        "assistant\n{% endif %}", "assistant\n<think>\n{% endif %}"
    )
    made = tokenizer(template)
    (row,) = Encoder(made).encode([Example("q", "because</think>four")])
    assert made.decode(row.ids[row.prompt_length :]) == "because</think>four<|im_end|>"
    assert made.decode(row.ids[: row.prompt_length]).endswith("<|im_start|>assistant\n<think>\n")


SPANS = Encoded(list(range(1, 13)), 9, ((2, 4), (6, 7)))


def test_all_trained_turns_are_labels_padded_and_packed() -> None:
    other = Encoded([21, 22, 23], 1)
    wanted = [3, 4, 7, 10, 11, 12]
    assert SPANS.num_targets == len(wanted)
    for batch in (collate([SPANS, other], 0), pack([SPANS, other, Encoded([31, 32], 1)], 0)):
        for number, targets in ((0, wanted), (1, [22, 23])):
            labels = batch.labels[batch.sequence == number]
            assert labels[labels != IGNORED].tolist() == targets
            assert batch.ids[(batch.labels != IGNORED) & (batch.sequence == number)].tolist() == targets
    position, last = _places([SPANS, other])
    assert position.tolist() == [0, 1, 0, 0, 1, 2, 0, 1]
    assert last.tolist() == [False, True, True, False, False, True, False, True]
    assert torch.equal(collate([SPANS], 0).before, torch.tensor([1, 2, 5, 8, 9, 10]))


def test_a_corpus_keeps_all_trained_turns_and_cuts_them(tmp_path: Path) -> None:
    chats = [
        [("user", f"q{i}"), ("assistant", "x" * (i % 3 + 1)), ("user", "and?"), ("assistant", f"a{i}<|im_end|>")]
        for i in range(30)
    ]
    rows = [{"m": [{"role": role, "content": text} for role, text in chat]} for chat in chats]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = {}
    for train_on in ("last", "all"):
        task = TaskSpec(path=str(tmp_path / "c.jsonl"), messages="m", train_on=train_on, fingerprint="f")
        made[train_on] = corpus(tokenizer(), task, tmp_path)
    last, every = (made[train_on].rows("train", 64) for train_on in ("last", "all"))
    assert [row.ids for row in last] == [row.ids for row in every]
    assert list(every) == Encoder(tokenizer()).encode(load_task(task).train)
    assert {len(row.spans) for row in last} == {1}
    assert {len(row.spans) for row in every} == {2}
    sizes = [sum(row.num_targets for row in rows) for rows in (last, every)]
    assert sizes == [made[train_on].facts["train"]["targets"] for train_on in ("last", "all")]
    with pytest.warns(UserWarning, match="are cut to"):
        cut = made["all"].rows("train", last[0].prompt_length)  # nothing is left of the last turn
    assert all(len(row.ids) <= last[0].prompt_length and row.num_targets > 0 for row in cut)
    with pytest.raises(TaskError, match="its prompt alone has"):
        made["last"].rows("train", last[0].prompt_length - 8)
    answers = made["all"].facts["answers"]
    assert answers["sentence"].startswith("an answer ends with <|im_end|> (the chat template)")
    assert answers["notes"] == ["30 responses end with the end of an answer already, which is written once"]
    assert all(not example.response.endswith("<|im_end|>") for example in made["all"].heldout())


def test_a_right_tool_call_is_what_the_template_writes(tmp_path: Path) -> None:
    """So the answer that a model was trained on scores 1, and an empty one, or another call, does not."""
    qwen = CHAT_MODELS["qwen3"].tokenizer()
    reply = Turn.of("assistant", "", {"tool_calls": [CALL]})
    example = Example("weather in 0?", "", USER, reply, TOOLS)
    made = Encoder(qwen)
    (row,) = made.encode([example])
    right = made.with_reference(example, row)
    reading = Reading(qwen, made.ending.stops, (), frozenset(made.kept), tuple(made.after))
    said = reading.answer(row.ids[row.prompt_length :])
    wanted = reading.content(right.wanted)
    assert '"name": "weather"' in wanted
    assert score(right.score, reading.content(said.text), wanted, None).value == 1
    assert score(right.score, reading.content(said.text.replace("é", "e")), wanted, None).value == 0
    assert score(right.score, "", wanted, None).value == 0
    named = Example("weather in 0?", "", USER, reply, TOOLS, reference="sunny")
    assert made.with_reference(named, row) is named


def test_of_several_templates_the_one_for_tools_is_taken_with_tools() -> None:
    """As Command R and others have them; one without a default is refused."""
    with_tools = CHATML.replace("{{ m.content }}", "{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls else '' }}")
    made = tokenizer()
    made.chat_template = {"default": CHATML, "tool_use": "{{ tools | tojson }}" + with_tools}
    reply = Turn.of("assistant", "", {"tool_calls": [CALL]})
    plain, calling = Encoder(made).encode([Example("q", "a"), Example("q", "", USER, reply, TOOLS)])
    assert not made.decode(plain.ids).startswith("[")
    assert made.decode(calling.ids).startswith('[{"type": "function"')
    made.chat_template = {"rag": CHATML, "tool_use": with_tools}
    with pytest.raises(TaskError, match="no chat template can be taken .* give the backbone a chat_template"):
        Encoder(made).encode([Example("q", "a")])


def test_noise_swaps_replies_with_their_texts() -> None:
    """A turn that stands for its text must not keep the right answer where noise wants a wrong one."""
    answers = {f"a{i}": Turn.of("assistant", f"a{i}", {"reasoning_content": f"why {i}"}) for i in range(40)}
    train = [Example(f"q{i}", text, reply=reply) for i, (text, reply) in enumerate(answers.items())]
    noisy, count = _with_noise(train, TaskSpec(builtin="addition", noise=0.5))
    assert count == sum(one.response != other.response for one, other in zip(train, noisy, strict=True)) == 20
    assert all(example.reply == answers[example.response] for example in noisy)
