"""What the documentation shows is true: files load, commands exist, every key, module and objective has its line."""

import re
import shlex
from pathlib import Path

import pytest
from pydantic import BaseModel

from jobs.objectives import OBJECTIVES
from jobs.spec import BackboneSpec, EvalSpec, Execution, Gate, ObjectiveSpec, TaskSpec, TrainSpec
from sweeper.cli import _parser
from sweeper.plan import make_plan
from sweeper.spec import AXES, Override, SchedulerSpec, Settings, parse_sweep

ROOT = Path(__file__).parents[2]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODELS = [
    Settings,
    BackboneSpec,
    TaskSpec,
    ObjectiveSpec,
    Gate,
    TrainSpec,
    EvalSpec,
    Execution,
    SchedulerSpec,
    Override,
]


def blocks(language: str) -> list[tuple[str, str]]:
    return [
        (page.name, text)
        for page in DOCS
        for text in re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)
    ]


COMMANDS = [line[2:] for _, text in blocks("console") for line in text.splitlines() if line.startswith("$ ")]
SWEEPS = [text for page, text in blocks("yaml") if page != "errors.md" and text.startswith("name:")]


@pytest.mark.parametrize("command", sorted(set(COMMANDS)))
def test_every_command_shown_exists(command: str) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif words[0] == "sweeper":
        _parser().parse_args(words[1:])
    else:
        assert command == ". .venv/bin/activate"


@pytest.mark.parametrize("text", SWEEPS)
def test_every_sweep_shown_plans(text: str) -> None:
    assert make_plan(parse_sweep(text, "shown.yaml"), ROOT).trials


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.__name__)
def test_every_key_of_a_sweep_file_is_explained(model: type[BaseModel]) -> None:
    page = (ROOT / "docs" / "sweep-file.md").read_text()
    missing = [name for name in model.model_fields if f"`{name}`" not in page and f"`{name}:" not in page]
    assert not [name for name in missing if name != "where"]
    assert all(f"### {axis}" in page for axis in AXES)


def test_every_module_has_its_line() -> None:
    page = (ROOT / "docs" / "structure.md").read_text()
    modules = [p.relative_to(ROOT) for d in ("cluster", "jobs", "sweeper") for p in (ROOT / d).rglob("[!_]*.py")]
    assert not [str(m) for m in modules if f"`{m}`" not in page]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_is_in_the_readme(name: str) -> None:
    assert f"`{name}`" in (ROOT / "README.md").read_text()


def test_every_command_has_a_page_of_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("plan", "run", "status", "report", "sync", "ui"):
        with pytest.raises(SystemExit) as left:
            _parser().parse_args([name, "--help"])
        assert left.value.code == 0
        page = capsys.readouterr().out
        assert "--storage DIR" in page
        assert len(page.splitlines()) > 8
