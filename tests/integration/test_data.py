"""A sweep over data as people have them: every format by name or by its fields, and a backbone that refuses some."""

import json
from pathlib import Path
from typing import Any

import pytest

from sweeper.store import Store
from tests.unit.chat_backbones import CHATML, CHATML_WITH_TOOLS, STRICT, chat_backbone
from tests.unit.test_inputs import CASES, WANTED

from .conftest import sweeper

pytestmark = pytest.mark.integration


def written(file: Path, rows: list[Any]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_one_backbone_that_refuses_chats_with_a_system_turn_costs_its_own_trials_alone(tmp_path: Path) -> None:
    """Exit status 1, the reason in the record; run again, it is the same; the other trials are not trained twice."""
    turns = [("system", "Be brief."), ("human", "q"), ("gpt", "a")]
    rows = [{"conversations": [{"from": r, "value": f"{v}{n}"} for r, v in turns]} for n in range(12)]
    alpaca = [{"instruction": f"Say {n}", "input": "", "output": str(n)} for n in range(12)]
    spec = {
        "name": "mixed",
        "grid": {
            "backbone": [{"path": chat_backbone(tmp_path / n, t)} for n, t in (("open", CHATML), ("strict", STRICT))],
            "task": [
                {"path": written(tmp_path / "chats.jsonl", [*rows, {"conversations": []}]), "invalid": "drop"},
                {"path": written(tmp_path / "alpaca.jsonl", alpaca)},
            ],
            "objective": ["nll"],
        },
        "train": {"lr": 1e-3, "steps": 1, "batch_size": 4, "max_length": 512},
        "evaluation": {"max_new_tokens": 2, "samples": 1},
    }
    (tmp_path / "mixed.yaml").write_text(json.dumps(spec))
    storage = tmp_path / "storage"
    for turn in range(2):
        done = sweeper("run", tmp_path / "mixed.yaml", storage=storage)
        assert done.returncode == 1, done.stderr
        store = Store(storage)
        ended: dict[tuple[str, str], set[str]] = {}
        for key, trial in store.trials("mixed").items():
            result = store.trial(key).result()
            assert result is not None
            ended.setdefault((trial.backbone.name, trial.task.name), set()).add(result["status"])
            if result["status"] == "failed":
                assert "roles must alternate user/assistant" in result["error"]
        assert ended == {
            ("open", "chats"): {"finished"}, ("open", "alpaca"): {"finished"},
            ("strict", "chats"): {"failed"}, ("strict", "alpaca"): {"finished"},
        }  # fmt: skip
        assert done.stdout.count("FAILED: task 'chats', backbone 'strict'") == 2
        assert ("1 rows of chats cannot be used and are left out" in done.stdout) == (turn == 0)
    assert "6 done before" in done.stdout
    rows = [row for key in store.trials("mixed") if "open_chats" in key for row in store.trial(key).rows()]
    assert {row["data/invalid"] for row in rows if "data/invalid" in row} == {1}


@pytest.mark.skipif(not CASES.is_dir(), reason=f"{CASES} is not here")
def test_inputs_as_people_have_them_are_trained(tmp_path: Path) -> None:
    """All of them that `plan` does not refuse, in one sweep."""
    files = [str(CASES / name) for name, wanted in WANTED.items() if not isinstance(wanted, str)]
    tasks = [{"path": file, "name": Path(file).name.replace(".", "-")} for file in files]
    spec = {
        "name": "cases",
        "grid": {
            "backbone": [{"path": chat_backbone(tmp_path / "open", CHATML_WITH_TOOLS)}],
            "task": tasks,
            "objective": ["nll"],
        },
        "train": {"lr": 1e-3, "steps": 1, "batch_size": 2, "max_length": 1024},
        "evaluation": {"max_new_tokens": 2, "samples": 1},
    }
    (tmp_path / "cases.yaml").write_text(json.dumps(spec))
    done = sweeper("run", tmp_path / "cases.yaml", storage=tmp_path / "storage")
    assert done.returncode == 0, done.stderr
    store = Store(tmp_path / "storage")
    results = [store.trial(key).result() for key in store.trials("cases")]
    assert [result["status"] for result in results if result] == ["finished"] * 2 * len(tasks)
