"""docs/errors.md shows malformed specs and their messages; each is executed here."""

import re
from pathlib import Path

import pytest

from sweeper.plan import make_plan
from sweeper.spec import SpecError, parse_sweep

PAGE = (Path(__file__).parents[2] / "docs" / "errors.md").read_text()
CASES = re.findall(r"### (.+?)\n+```yaml\n(.*?)```\n+```text\n(.*?)```", PAGE, re.DOTALL)
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


@pytest.mark.parametrize(("title", "fragment", "message"), CASES, ids=[c[0] for c in CASES])
def test_malformed_spec_gives_its_message(title: str, fragment: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        make_plan(parse_sweep(whole(fragment), "sweep.yaml"), Path("."), require_files=True)
    assert str(caught.value) == message.strip()
