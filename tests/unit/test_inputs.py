"""What `plan` and `run` say of data before anything is trained: the same, for the same reasons, with exit status 2."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sweeper.cli import main
from sweeper.inputs import checked, prepared
from sweeper.plan import make_plan
from sweeper.spec import parse_sweep

from .chat_backbones import CHATML, CHATML_WITH_TOOLS, STRICT, chat_backbone

ROOT = Path(__file__).parents[2]
CASES = Path(os.environ.get("SWEEPER_CASES", ROOT.parent / "shared" / "cases"))
USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
BUILTIN = {"builtin": "char-llama", "pretrain_steps": 0}


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    folder = tmp_path_factory.mktemp("backbones")
    templates = {"chatml": CHATML, "tools": CHATML_WITH_TOOLS, "strict": STRICT, "plain": None}
    return {name: {"path": chat_backbone(folder / name, template)} for name, template in templates.items()}


def written(file: Path, *rows: Any) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def sweep(folder: Path, backbone: list[Any], task: list[Any], **parts: Any) -> Path:
    spec = {
        "name": "small",
        "grid": {"backbone": backbone, "task": task, "objective": ["nll", "one-minus-p"]},
        "train": {"lr": 1e-3, "steps": 1, "batch_size": 2, "max_length": 900},
        "evaluation": {"max_new_tokens": 2, "samples": 1},
    } | parts
    file = folder / "small.yaml"
    file.write_text(json.dumps(spec))
    return file


def said(command: str, file: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    status = main([command, str(file), "--storage", str(file.parent / "storage")])
    captured = capsys.readouterr()
    return status, captured.out if status == 0 else captured.err


def planned(file: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["plan", str(file), "--json", "--storage", str(file.parent / "storage")]) == 0
    return dict(json.loads(capsys.readouterr().out))


@pytest.mark.parametrize(
    ("rows", "fields", "message"),
    [
        ([{"prompt": "q"}], {}, "d.jsonl:1: no text in field 'response'"),
        ([{"prompt": "q", "response": float("nan")}], {}, "d.jsonl:1: no text in field 'response': it is NaN"),
        ([{"prompt": "q", "response": "a\ud83d"}], {}, "has half a surrogate pair"),
        ([{"messages": [USER]}], {}, "d.jsonl:1: field 'messages' must be a list of at least two messages, got 1"),
        ([{"text": "t"}], {}, "text without a prompt is pre-training data"),
        ([], {}, "0 training and 0 held-out examples"),
        ([{"prompt": "q" * 1000, "response": "a"}], {}, "its prompt alone has 1000 tokens, train.max_length is 900"),
        (
            [{"prompt": "q", "response": "a"}],
            {"benchmarks": [{"path": "d.jsonl", "prompt": "x"}]},
            "no text in field 'x'",
        ),
    ],
)
@pytest.mark.parametrize("command", ["plan", "run"])
def test_what_run_refuses_plan_refuses(
    command: str, rows: list[Any], fields: dict[str, Any], message: str, tmp_path: Path,
    backbones: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path / "d.jsonl", *rows)
    if command == "run" and "prompt alone" in message:  # said while tokenising, which needs no Ray here
        trials = make_plan(
            parse_sweep(sweep(tmp_path, [backbones["plain"]], [{"path": path, "heldout_path": path}]).read_text(), "s"),
            tmp_path, require_files=True,
        ).trials  # fmt: skip
        reasons = prepared(trials, tmp_path, checked(trials, tmp_path)[0]).reasons
        assert len(reasons) == 3
        assert all(message in reason for reason in reasons.values())
        return
    status, text = said(
        command, sweep(tmp_path, [backbones["plain"]], [{"path": path, "heldout_path": path} | fields]), capsys
    )
    assert status == 2, text
    assert message in text
    assert text.count("\n") == 1
    assert not list((tmp_path / "storage").glob("trials/*"))


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "d.jsonl:1: char-llama knows digits, '+', '=' and some letters, not 'é'; name a backbone of your own"),
        ("Q{{ messages[0].content }}", "has no token for 'Q'"),
    ],
)
def test_characters_that_the_built_in_backbone_does_not_know(
    command: str, template: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = "1+1=" if template else "caf\u00e9"
    path = written(tmp_path / "d.jsonl", {"prompt": prompt, "response": "2"})
    file = sweep(tmp_path, [BUILTIN | {"chat_template": template}], [{"path": path, "heldout_path": path}])
    status, text = said(command, file, capsys)
    assert status == 2
    assert message in text
    assert text.count("\n") == 1


def test_plan_recognises_a_format_and_shows_an_example(
    tmp_path: Path, backbones: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    chat = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    path = written(tmp_path / "d.jsonl", *[chat] * 3, {"conversations": []})
    task = {"path": path, "heldout_path": path, "invalid": "drop"}
    file = sweep(tmp_path, [backbones["chatml"]], [task])
    facts = planned(file, capsys)
    (data,) = facts["data"]
    assert (data["task"], data["read_as"], data["train"], data["left_out"]) == ("d", "format: sharegpt", 3, 2)
    assert data["first"]["text"] == "user: q\nassistant: ⟦a⟧"
    assert facts["notes"] == [
        "task 'd': recognised as format: sharegpt by its first row's fields; write that to be sure"
    ]
    named = planned(sweep(tmp_path, [backbones["chatml"]], [task | {"format": "sharegpt"}]), capsys)
    assert [t["key"] for t in named["trials"]] == [t["key"] for t in facts["trials"]]
    assert named["notes"] == []
    status, text = said("plan", file, capsys)
    assert status == 0
    assert "data of d: 3 training and 3 held-out examples, 2 rows left out (format: sharegpt)\n" in text
    assert "  left out: " in text
    assert "  | assistant: ⟦a⟧\n" in text


def test_plan_marks_every_turn_that_is_trained(
    tmp_path: Path, backbones: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "d.jsonl", {"messages": [USER, ANSWER, USER, ANSWER]})
    task = {"path": path, "heldout_path": path, "format": "openai", "train_on": "all"}
    (data,) = planned(sweep(tmp_path, [backbones["chatml"]], [task]), capsys)["data"]
    assert data["first"]["text"] == "user: q\nassistant: ⟦a⟧\nuser: q\nassistant: ⟦a⟧"


def test_a_backbone_that_refuses_a_task_is_said_by_plan_and_others_are_not_refused(
    tmp_path: Path, backbones: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    chat = {"messages": [{"role": "system", "content": "s"}, USER, ANSWER]}
    path = written(tmp_path / "d.jsonl", *[chat] * 4)
    task = {"path": path, "heldout_path": path}
    file = sweep(tmp_path, [backbones[name] for name in ("chatml", "strict", "plain")], [task, {"builtin": "cipher"}])
    notes = planned(file, capsys)["notes"][1:]
    assert [note.partition(": ")[0] for note in notes] == ["3 trials will fail, the others run"] * 2
    assert "backbone 'strict': " in notes[0]
    assert "roles must alternate user/assistant" in notes[0]
    assert "backbone 'plain': the examples are chats and the tokenizer has no chat template" in notes[1]
    trials = make_plan(parse_sweep(file.read_text(), "s"), tmp_path, require_files=True).trials
    refused = checked(trials, tmp_path / "storage")[1]
    assert {(t.backbone.name, t.task.name) for t in trials if t.key in refused.reasons} == {
        ("strict", "d"),
        ("plain", "d"),
    }
    status, text = said("plan", sweep(tmp_path, [backbones["strict"], backbones["plain"]], [task]), capsys)
    assert status == 2
    assert len(text.splitlines()) == 2  # a line a backbone


def test_what_is_not_here_is_a_note_of_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in ("d.jsonl", "d/*.jsonl"):
        facts = planned(sweep(tmp_path, [BUILTIN], [{"path": path, "name": "d"}]), capsys)
        assert facts["data"] == []
        assert any("relative paths start at --data-root" in note or "no data files" in note for note in facts["notes"])


WANTED = {  # file -> what plan says of it: a format and a piece of the example, or a refusal
    "alpaca.jsonl": ("format: alpaca", "### Response:⟦"),
    "bom.csv": ("prompt: prompt, response: response", "⟦a"),
    "bom.jsonl": ("prompt: prompt, response: response", "⟦a"),
    "latin.jsonl": "latin.jsonl:2: byte 0xe9 (number 16 of the row) is not UTF-8",
    "nan.jsonl": "nan.jsonl:1: no text in field 'response': it is NaN",
    "null.jsonl": ("prompt: prompt, response: response", "⟦a⟧"),
    "surrogate.jsonl": "surrogate.jsonl:1: no text in field 'response': it has half a surrogate pair, \\ud83d",
    "openai_multiturn.jsonl": ("format: openai", "assistant: first answer"),
    "openai_parts.jsonl": ("format: openai", "assistant: ⟦a"),
    "openai_reasoning.jsonl": ("format: openai", '{"reasoning_content": "Let me think about it."}⟧'),
    "openai_toolcall_last.jsonl": ("format: openai", 'assistant: ⟦{"tool_calls"'),
    "sharegpt.jsonl": ("format: sharegpt", "system: You plan trips.\nuser: How far"),
    "sharegpt_gptfirst.jsonl": ("format: sharegpt", "assistant: Hello!\nuser: q"),
    "sharegpt_tools.jsonl": ("format: sharegpt", "tool: rain\nassistant: ⟦It rains.⟧"),
    "sharegpt_userend.jsonl": ("format: sharegpt", "assistant: ⟦"),
    "code_answers.json": "code_answers.json:1: no text in field 'prompt'; this row has answer, right, shape, tests",
}


@pytest.mark.skipif(not CASES.is_dir(), reason=f"{CASES} is not here")
def test_plan_over_inputs_as_people_have_them(
    tmp_path: Path, backbones: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted(file for file in CASES.iterdir() if file.suffix != ".md")
    assert {file.name for file in files} <= WANTED.keys()
    for file in files:
        wanted = WANTED[file.name]
        asked = sweep(tmp_path, [backbones["tools"]], [{"path": str(file)}])
        if isinstance(wanted, str):
            status, text = said("plan", asked, capsys)
            assert (status, wanted in text, text.count("\n")) == (2, True, 1), text
        else:
            (data,) = planned(asked, capsys)["data"]
            assert data["read_as"] == wanted[0]
            assert wanted[1] in data["first"]["text"], data


def test_plan_stays_light(tmp_path: Path) -> None:
    """Nothing heavy is imported for a plan over the built-in backbones and files of one's own."""
    path = written(tmp_path / "d.jsonl", *[{"question": f"{i}+1=", "answer": f"{i + 1}"} for i in range(20)])
    file = sweep(tmp_path, [BUILTIN], [{"path": path}])
    code = (
        "import sys; from sweeper.cli import main; main(sys.argv[1:]);"
        "print([m for m in ('torch', 'ray', 'mlflow', 'deepspeed', 'transformers', 'pandas') if m in sys.modules])"
    )
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, "plan", str(file), "--storage", str(tmp_path)],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[]"
    assert time.monotonic() - start < 10  # under a second on an idle machine
