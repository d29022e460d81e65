"""What the documentation shows is true: files load, commands exist, every key, module and objective has its line."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from jobs.objectives import OBJECTIVES
from jobs.spec import BackboneSpec, EvalSpec, Execution, Gate, ObjectiveSpec, TrainSpec
from jobs.task_spec import TaskSpec
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
def test_every_objective_has_its_section(name: str) -> None:
    page = (ROOT / "docs" / "objectives.md").read_text()
    section = re.search(rf"^### {name}\n(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL)
    assert section, f"docs/objectives.md has no section '### {name}'"
    said = section[1]
    assert re.search(r"\b[fa] = |\bthe same\b|a in a ", said, re.IGNORECASE)
    assert all(f"`{param}`" in said for param in OBJECTIVES[name].params)
    assert re.search(r"\d{4}\.\d{4,5}|section \d|Eq\. \d|code", said) or name.startswith("adaptive")


def test_objectives_figure_has_a_panel_for_each() -> None:
    spec = importlib.util.spec_from_file_location("draw_objectives", ROOT / "docs" / "draw_objectives.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    panels = {axes.get_title(loc="left").strip(): axes for axes in module.draw().axes}
    assert panels.keys() == OBJECTIVES.keys()
    assert all(len(axes.lines) >= 2 for axes in panels.values())  # its own, and NLL to compare with
    assert (ROOT / "docs" / "objectives.png").is_file()


def test_own_objective_as_documented(tmp_path: Path) -> None:
    """The package of docs/objectives.md, installed as pip would leave it, checked and planned."""
    page = (ROOT / "docs" / "objectives.md").read_text()
    entry = re.search(r"```toml\n\[project.entry-points.\"(\S+)\"\]\n(.*?)```", page, re.DOTALL)
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert entry
    assert code
    (tmp_path / "my_package.py").write_text(code[1])
    info = tmp_path / "my_package-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[{entry[1]}]\n" + entry[2].replace('"', ""))
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}

    def python(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *args], env=environment, capture_output=True, text=True, check=False)

    checked = python("-m", "jobs.conformance", "half-nll")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    identity = python(
        "-c",
        "from jobs.spec import ObjectiveSpec; print(ObjectiveSpec(name='half-nll').identity())",
    )
    assert "my-package 1.2" in identity.stdout, identity.stderr
    drawn = python(
        "-c",
        "import numpy; from jobs.curve import weights; from jobs.spec import ObjectiveSpec;"
        "gate = {'side': 'top', 'at': 0.3};"
        "print(weights(numpy.array([0.2, 0.6]), ObjectiveSpec.model_validate({'name': 'half-nll', 'gate': gate})))",
    )
    assert drawn.stdout.strip() == "[0.  0.2]", drawn.stderr


def test_every_command_has_a_page_of_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in (
        "plan", "run", "submit", "resume", "stop", "wait", "list", "logs", "status", "report", "sync", "ui", "doctor",
        "revive", "forecast", "recommend",
    ):  # fmt: skip
        with pytest.raises(SystemExit) as left:
            _parser().parse_args([name, "--help"])
        assert left.value.code == 0
        page = capsys.readouterr().out
        assert "--storage DIR" in page
        assert len(page.splitlines()) > 8


def test_the_recording_is_of_commands_that_there_are() -> None:
    """docs/recording.md is made by docs/record.py; what both type is parsed here, and run by test_submit.py."""
    page = (ROOT / "docs" / "recording.md").read_text()
    typed = [line.removeprefix("$ sweeper ").split() for line in page.splitlines() if line.startswith("$ sweeper ")]
    for words in typed:
        where = [] if "--address" in words else ["--address", "http://127.0.0.1:8265"]
        _parser().parse_args([*words, *where])
    script = (ROOT / "docs" / "record.py").read_text()
    submitted = (ROOT / "tests" / "integration" / "test_submit.py").read_text()
    assert {words[0] for words in typed} == {"submit", "status", "logs", "stop", "list", "resume", "wait"}
    for name in {words[0] for words in typed}:
        assert f'shown("{name}"' in script
        assert f'client("{name}"' in submitted or f'client.facts("{name}"' in submitted
