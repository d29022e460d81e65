"""The paper's sweeps in miniature, run end to end: the same files, the same objectives, backbones made on the spot."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.integration
@pytest.mark.parametrize(("file", "trials"), [("medical", 4 + 2), ("openbookqa", 8 + 4), ("figfont", 4 + 2)])
def test_a_miniature_runs_to_its_report(file: str, trials: int, backbones: Path, tmp_path: Path) -> None:
    storage = tmp_path / "s"
    storage.mkdir()
    (storage / "backbones").symlink_to(backbones / "backbones")
    command = [sys.executable, "-m", "sweeper", "run", str(ROOT / "examples" / "paper" / f"{file}.yaml")]
    ran = subprocess.run(
        [*command, "--profile", "mini", "--set", "train.steps=4", "--storage", str(storage)],
        capture_output=True, text=True, timeout=900, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    name = f"paper-{file}-mini"
    report = json.loads((storage / "sweeps" / name / "report" / "report.json").read_text())
    assert report["trials"]["finished"] == trials
    assert all(row["runs"] == 1 for row in report["data"])  # tokenised once, whatever the number of trials
    text = (storage / "sweeps" / name / "sweep.yaml").read_text()
    assert text.startswith(f"# {file}.yaml with profile mini, --set train.steps=4\n")
