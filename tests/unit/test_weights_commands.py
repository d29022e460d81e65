"""What the commands and the page of errors say of a backbone whose files are not a model's."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.backbone import BackboneError
from jobs.spec import BackboneSpec
from sweeper.cli import main

from .test_weights import MISSING, UP, Tensors, checked, configured, edited, model, refusal, renamed, sharded


def command(verb: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str = "addition") -> str:
    """What `sweeper plan`, `run` or `probe` ends with: exit status 2 and one line, and nothing is recorded."""
    file, storage = tmp_path / "small.yaml", tmp_path / "storage"
    grid = {"backbone": [{"path": str(folder)}], "task": [{"builtin": task}], "objective": ["nll"]}
    file.write_text(json.dumps({"name": "s", "grid": grid, "train": {"lr": 1e-3, "steps": 2, "max_length": 32}}))
    what = ["probe", "--backbone", str(folder), "--task", task] if verb == "probe" else [verb, str(file)]
    assert main([*what, "--storage", str(storage)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert not list(storage.glob("trials/*"))
    *progress, line = said.err.splitlines()
    assert all(": tensor " in other or ": example " in other for other in progress)
    return line


@pytest.mark.parametrize("number", [0, 1, 4, 8, 12])
@pytest.mark.parametrize("verb", ["run", "probe"])
def test_run_and_probe_refuse_weights_that_are_not_the_models(
    number: int, verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit, wanted = MISSING[number]
    assert wanted in command(verb, edited(model(tmp_path / "it"), edit), tmp_path, capsys)


def broken(folder: Path, name: str) -> None:
    if name == "shard":
        sharded(folder)
        max(folder.glob("*.safetensors")).unlink()
    elif name == "cut":
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-8])
    elif name == "adapter":
        (folder / "adapter_config.json").write_text("{}")
    elif name == "config":
        (folder / "config.json").write_text("{")
    elif name == "quantised":
        configured(folder, quantization_config={"quant_method": "fp8"})
    else:
        configured(folder, hidden_size=name)


@pytest.mark.parametrize("name", ["shard", "cut", "adapter", "config", "quantised"])
@pytest.mark.parametrize("verb", ["plan", "run", "probe"])
def test_what_the_files_themselves_show_is_refused_by_plan_too(
    name: str, verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken(model(tmp_path / "it"), name)
    assert "backbone 'it'" in command(verb, tmp_path / "it", tmp_path, capsys)


@pytest.mark.parametrize("value", ["wide", 0, -1, None, 1.5, [], {}, True])
def test_no_field_of_config_json_ends_in_a_traceback(
    value: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for field in ("hidden_size", "num_attention_heads", "num_key_value_heads", "vocab_size", "num_hidden_layers"):
        folder = configured(model(tmp_path / field), **{field: value})
        file = tmp_path / "small.yaml"
        grid = {"backbone": [{"path": str(folder)}], "task": [{"builtin": "addition"}], "objective": ["nll"]}
        file.write_text(json.dumps({"name": "s", "grid": grid, "train": {"lr": 1e-3, "steps": 2, "max_length": 32}}))
        assert main(["plan", str(file), "--storage", str(tmp_path / "storage")]) in (0, 2)
        if not (field == "num_key_value_heads" and value is None):  # as many as there are heads
            refusal(folder, tmp_path)
    capsys.readouterr()


@pytest.mark.parametrize("verb", ["probe"])
def test_tokens_of_the_data_beyond_the_embeddings_are_refused(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tokenizer with more tokens than the model has rows: only data that use them are refused."""
    said = command(verb, model(tmp_path / "it", vocab_size=14), tmp_path, capsys, task="cipher")
    assert "task 'cipher': its tokens go up to the id " in said
    assert "the embeddings of backbone 'it' have 14 rows; the tokenizer is another model's" in said


PAGE = (Path(__file__).parents[2] / "docs" / "errors.md").read_text().partition("## What a backbone's files say")[2]
SHOWN = dict(re.findall(r"### ([^\n]+)\n+```text\n(.*?)\n```", PAGE, re.DOTALL))


def nan(tensors: Tensors) -> Tensors:
    tensors[UP][0, 0] = math.nan
    return tensors


DAMAGE: dict[str, Callable[[Path], object]] = {
    "A tensor is missing": lambda folder: edited(folder, MISSING[0][0]),
    "A wrapper's prefix": lambda folder: edited(folder, renamed("module.")),
    "A reward model": lambda folder: edited(folder, MISSING[8][0]),
    "A tensor of another shape": lambda folder: edited(folder, MISSING[12][0]),
    "A shard that is not there": lambda folder: broken(folder, "shard"),
    "A value that is no number": lambda folder: edited(folder, nan),
    "An adapter beside the model": lambda folder: broken(folder, "adapter"),
    "Quantised weights": lambda folder: broken(folder, "quantised"),
    "A padding token beyond the embeddings": lambda folder: configured(folder, pad_token_id=30),
}


def test_the_page_of_errors_has_these_cases() -> None:
    assert SHOWN.keys() == DAMAGE.keys()


@pytest.mark.parametrize("title", DAMAGE)
def test_what_the_page_of_errors_shows_of_backbones_is_what_is_said(title: str, tmp_path: Path) -> None:
    folder = model(tmp_path / "model")
    DAMAGE[title](folder)
    with pytest.raises(BackboneError) as error:
        checked(BackboneSpec(path=str(folder)), tmp_path)
    assert str(error.value).replace(f"{tmp_path}/", "") == SHOWN[title]
