"""docs/architectures.md: its table is of this transformers, and some of its rows are measured again here."""

import re
from importlib.metadata import version
from pathlib import Path

import pytest

from benchmarks.architectures import heldout, measure
from jobs.engine import ensure_process_group

PAGE = (Path(__file__).parents[2] / "docs" / "architectures.md").read_text()
ROW = re.compile(r"^\| `([^`]+)` \| (\w+) \| ([\d,]+) \| ([\d.]+) \| ([\d.]*) \| (.*) \|$", re.MULTILINE)
ROWS = {  # own NLL, measured NLL where there is one, outcome
    kind: (float(own), float(measured) if measured else None, outcome)
    for kind, _, _, own, measured, outcome in ROW.findall(PAGE)
}


def test_the_table_says_when_and_with_what_it_was_measured() -> None:
    assert re.search(r"\(\d{4}-\d\d-\d\d, transformers " + re.escape(version("transformers")) + ",", PAGE)


def test_at_least_thirty_equal_their_own_forward_and_none_differs() -> None:
    equal = [row for row in ROWS.values() if row[2] == "equal"]
    assert len(equal) >= 30
    assert all(measured is not None and abs(measured - own) <= 1e-4 for own, measured, _ in equal)
    assert all(row[1] is None and row[2].startswith("refused: ") for row in ROWS.values() if row not in equal)
    assert f"{len(ROWS)} architectures: {len(equal)} equal" in PAGE


@pytest.mark.parametrize(
    "kind",
    ["llama", "gemma2", "cohere2", "granitemoe", "recurrent_gemma", "hyperclovax", "mixtral", "gpt2", "llama4_text",
     "mamba", "bert", "bert-generation", "rembert"],
)  # fmt: skip
def test_a_row_of_the_table_is_what_is_measured(kind: str) -> None:
    ensure_process_group()
    found, (own, measured, outcome) = measure(kind, heldout()), ROWS[kind]
    assert found.nll == pytest.approx(own, abs=1e-3)
    assert (found.measured is None) == (measured is None)
    if found.measured is not None:
        assert found.measured == pytest.approx(found.nll, abs=1e-4)
        assert outcome == "equal"
