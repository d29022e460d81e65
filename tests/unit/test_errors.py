"""docs/errors.md shows malformed specs and their messages; each is executed here."""

import re
from pathlib import Path

import pytest

from jobs.sources import TaskError
from sweeper.inputs import check_inputs
from sweeper.plan import make_plan
from sweeper.spec import SpecError, parse_sweep

PAGE = (Path(__file__).parents[2] / "docs" / "errors.md").read_text()
ROWS = r"(?:```jsonl\n(.*?)```\n+)?"
CASES = re.findall(rf"### ([^\n]+)\n+{ROWS}```yaml\n(.*?)```\n+```text\n(.*?)```", PAGE, re.DOTALL)
GOOD = {
    "name": "name: demo\n",
    "grid": "grid:\n  backbone: [{builtin: char-llama, pretrain_steps: 0}]\n  task: [{builtin: addition}]\n"
    "  objective: [nll]\n",
    "train": "train: {lr: 1e-3, steps: 10, batch_size: 8}\n",
}


def whole(fragment: str) -> str:
    """The fragment, completed with good parts for the top-level keys that it leaves out."""
    given = set(re.findall(r"^(\w+):", fragment, re.MULTILINE))
    if not given or fragment.startswith("# whole"):
        return fragment
    return fragment + "".join(text for key, text in GOOD.items() if key not in given)


def test_the_page_has_cases() -> None:
    assert len(CASES) >= 20


@pytest.mark.parametrize(("title", "rows", "fragment", "message"), CASES, ids=[c[0] for c in CASES])
def test_malformed_spec_gives_its_message(title: str, rows: str, fragment: str, message: str, tmp_path: Path) -> None:
    if rows:
        (tmp_path / "train.jsonl").write_text(rows)
    root = tmp_path if rows else Path(".")
    with pytest.raises(TaskError if rows else SpecError) as caught:
        check_inputs(list(make_plan(parse_sweep(whole(fragment), "sweep.yaml"), root, require_files=True).trials), root)
    assert str(caught.value).replace(f"{tmp_path}/", "") == message.strip()
