"""Objectives of installed packages: what is wrong with one is said in a line, and by its own name."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEC = """
name: own
grid:
  backbone: [{builtin: char-llama, pretrain_steps: 0}]
  task: [{builtin: addition}]
  objective: [mine]
train: {lr: 1e-3, steps: 10, batch_size: 8}
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import no_such_module", "cannot be imported: ModuleNotFoundError: No module named 'no_such_module'"),
        ("def broken(:\n    pass", "cannot be imported: SyntaxError"),
        ("assert False", "cannot be imported: AssertionError (mine.py:1 in <module>: assert False)"),
        ("OTHER = 1", "cannot be imported: AttributeError"),
        ("MINE = 'nll'", "it has to be a jobs.objectives.Objective with name='mine'"),
    ],
)
def test_a_package_whose_objective_cannot_be_had_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "mine.py").write_text(text)
    info = tmp_path / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[objective_continuum.objectives]\nmine = mine:MINE\n")
    (tmp_path / "own.yaml").write_text(SPEC)
    path = f"{tmp_path}:{ROOT}"
    command = [sys.executable, "-m", "sweeper", "plan", str(tmp_path / "own.yaml"), "--storage", str(tmp_path)]
    done = subprocess.run(
        command, env={"PYTHONPATH": path}, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
