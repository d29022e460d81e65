"""CI skips nothing unseen: .ci/run names the tests that must run where the lab is."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE = "tests/integration/test_gsm8k.py"


@pytest.mark.parametrize(("required", "code", "word"), [("", 0, "1 skipped"), ("hosts gsm8k", 1, "CI_REQUIRES names")])
def test_a_skip_of_what_is_required_is_a_failure(required: str, code: int, word: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", FILE], cwd=ROOT, check=False,
        env=os.environ | {"CI_REQUIRES": required, "SWEEPER_DATA": "/nonexistent"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == code, done.stdout
    assert word in done.stdout
    assert "no gsm8k/train.jsonl in /nonexistent" in done.stdout


def test_what_ci_requires_is_there() -> None:
    names = re.search(r'CI_REQUIRES="(.*)"', (ROOT / ".ci" / "run").read_text())
    assert names is not None
    assert [n for n in names[1].split() if not (ROOT / "tests" / "integration" / f"test_{n}.py").is_file()] == []
