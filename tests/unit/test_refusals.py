"""What cannot be trained is refused by the command itself: exit status 2, one line, nothing recorded, no traceback."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from jobs.hf import import_transformers
from jobs.pretrain import char_tokenizer
from sweeper.cli import main

ROW = {"prompt": "1+1=", "response": "2"}


def refused(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], backbone: Any, task: Any, **parts: Any
) -> list[str]:
    """What `sweeper plan` or `sweeper run` ends with, a line a problem."""
    spec = {
        "name": "small",
        "grid": {"backbone": [backbone], "task": [task], "objective": ["nll"]},
        "train": {"lr": 1e-3, "steps": 2, "batch_size": 8, "max_length": 32},
    } | parts
    file = tmp_path / "small.yaml"
    file.write_text(json.dumps(spec))
    storage = tmp_path / "storage"
    assert main([command, str(file), "--storage", str(storage)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert not list(storage.glob("trials/*"))
    return said.err.splitlines()


def model(folder: Path) -> dict[str, str]:
    """A model directory whose tokenizer has no chat template."""
    hf = import_transformers()
    tokenizer = char_tokenizer()
    config = hf.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    hf.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"path": str(folder)}


def written(file: Path, *rows: dict[str, Any]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


BUILTIN = {"builtin": "char-llama", "pretrain_steps": 0}


@pytest.mark.parametrize("command", ["plan", "run"])
def test_what_does_not_fit_in_a_workers_memory(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The limit is each worker's. What is measured before training needs less, so a wider limit leaves one line."""

    def lines(**execution: Any) -> list[str]:
        return refused(
            command, tmp_path, capsys, {"preset": "Qwen2.5-1.5B"}, {"builtin": "addition"}, execution=execution
        )

    for workers in (1, 2):
        measured, trained = lines(memory_gb=1, workers=workers)
        for who, line in (("Qwen2.5-1.5B, measured before training,", measured), ("Qwen2.5-1.5B", trained)):
            found = re.fullmatch(r".*small\.yaml: (.*) needs about \d+ GiB a worker \(mostly \w+\), (.*)", line)
            assert found is not None, line
            assert found[1] == who
            assert found[2].startswith("execution.memory_gb is 1; ")
    (line,) = lines(memory_gb=16)
    assert "needs about 2" in line  # 16 bytes a parameter in fp32
    assert "execution.memory_gb is 16; fits with " in line


def test_an_empty_data_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = written(tmp_path / "empty.jsonl")
    (line,) = refused("run", tmp_path, capsys, BUILTIN, {"path": empty})
    assert line == "task 'empty': 0 training and 0 held-out examples; both need some"
    one = written(tmp_path / "one.jsonl", ROW)
    (line,) = refused("run", tmp_path, capsys, BUILTIN, {"path": one, "heldout_path": empty})
    assert line == "task 'one': 1 training and 0 held-out examples; both need some"


def test_a_benchmark_without_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark = {"name": "hard", "path": written(tmp_path / "hard.jsonl"), "reference": "answer"}
    (line,) = refused("run", tmp_path, capsys, BUILTIN, {"builtin": "addition", "benchmarks": [benchmark]})
    assert line == "task 'addition': benchmark 'hard' has no problems"


@pytest.mark.parametrize("chats", ["messages", "system"])
def test_chats_for_a_tokenizer_without_a_template(
    chats: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}]
    data = written(tmp_path / "d.jsonl", *[ROW | {"turns": turns}] * 20)
    task = {"path": data, "heldout_path": data} | ({"messages": "turns"} if chats == "messages" else {"system": "Add."})
    (line,) = refused("run", tmp_path, capsys, model(tmp_path / "model"), task)
    assert "the tokenizer has no chat template; give the backbone a chat_template" in line
