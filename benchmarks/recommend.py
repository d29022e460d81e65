"""What advice loses on cells that it has never seen: python benchmarks/recommend.py

    --storage DIR   where it is trained, once (a quarter of an hour); a second call reads it
    --json          for programs

Trains examples/atlas.yaml, from which `sweeper recommend` learns, and then cells that are not in it, in three groups:

    between   tasks of the atlas, on backbones between its own
    noise     addition with a share of wrong answers that the atlas has not
    task      a task that it has not (reversal, which the backbones know from pre-training)

Each cell is foretold from the atlas alone, by its mean p and its task's name, as a user would who has only probed it.
What is lost is accuracy at T = 1 to the cell's best objective; beside it, what each objective loses if it is always
taken. Nothing of the advice was chosen on these cells.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from sweeper.commands_recommend import evidence
from sweeper.recommend import Cell, Check, advise, judged, regrets
from sweeper.store import Store

ATLAS = Path(__file__).parents[1] / "examples" / "atlas.yaml"
BETWEEN = [150, 250, 500, 700, 1000, 1400]
SOME = [250, 500, 1000]
GROUPS: dict[str, list[tuple[list[int], list[dict[str, Any]]]]] = {
    "between": [
        (BETWEEN, [{"builtin": "addition"}, {"builtin": "addition", "noise": 0.3}]),
        ([450, 1000], [{"builtin": "cipher"}]),
    ],
    "noise": [(SOME, [{"builtin": "addition", "noise": 0.15}, {"builtin": "addition", "noise": 0.5}])],
    "task": [(SOME, [{"builtin": "reversal"}, {"builtin": "reversal", "noise": 0.3}])],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", type=Path)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        found = measure(args.storage or Path(folder), ATLAS)
    if args.json:
        print(json.dumps(found, indent=1))
        return
    heads = (
        "cells  best or equal  intervals held  sure (ahead of NLL)  lost on average: advice, then what is always taken"
    )
    print(f"{'':10}{heads}")
    for name, line in found.items():
        lost = dict(sorted(line["lost"].items(), key=lambda one: (one[0] != "advice", one[1])))
        said = ", ".join(f"{objective} {loss:.3f}" for objective, loss in lost.items())
        sure, held = (f"{line[key]} of {line[of]}" for key, of in (("ahead", "sure"), ("held", "intervals")))
        print(f"{name:10}{line['cells']:5}  {line['best']:13}  {held:>14}  {sure:>19}  {said}")


def measure(storage: Path, atlas: Path, groups: dict[str, Any] = GROUPS) -> dict[str, dict[str, Any]]:
    """Rows of the table by group, and of all. storage: made if it is not there"""
    storage.mkdir(parents=True, exist_ok=True)
    _run(atlas, storage)
    like = yaml.safe_load(atlas.read_text())
    for name, grids in groups.items():
        file = storage / f"unseen-{name}.json"
        file.write_text(json.dumps(unseen(name, grids, like)))
        _run(file, storage)
    store = Store(storage.resolve())
    known = evidence(store, ["atlas"])
    found = {name: judge(known, evidence(store, [f"unseen-{name}"])) for name in groups}
    rows = {name: row(checks) for name, checks in found.items()}
    return rows | {"all": row([check for checks in found.values() for check in checks])}


def unseen(name: str, grids: list[tuple[list[int], list[dict[str, Any]]]], like: dict[str, Any]) -> dict[str, Any]:
    """The sweep of a group, trained and measured as the atlas is."""
    first = like["grid"][0]
    tasks = {task["builtin"] for _, tasks in grids for task in tasks}
    return like | {
        "name": f"unseen-{name}",
        "grid": [
            {"backbone": [{"builtin": "char-llama", "pretrain_steps": steps}], "task": tasks,
             "objective": first["objective"], "seed": first["seed"]}
            for steps, tasks in grids
        ],
        "overrides": [one for one in like.get("overrides", []) if one["where"]["task"] in tasks],
    }  # fmt: skip


def _run(file: Path, storage: Path) -> None:
    command = [sys.executable, "-m", "sweeper", "run", file, "--storage", storage]
    subprocess.run(command, check=True, stdout=sys.stderr)


def judge(known: list[Cell], cells: list[Cell]) -> list[tuple[Check, bool]]:
    """Each cell with whether its advice was sure of being ahead of NLL."""
    found = []
    for cell in cells:
        advice = advise(known, cell.mean_p, cell.task)
        found.append((judged(cell, advice), advice.sure and advice.take != "nll"))
    return found


def row(found: list[tuple[Check, bool]]) -> dict[str, Any]:
    checks = [check for check, _ in found]
    return {
        "cells": len(checks), "best": sum(one.gain >= one.best for one in checks), "lost": regrets(checks),
        "held": sum(one.held for one in checks), "intervals": sum(one.intervals for one in checks),
        "sure": sum(sure for _, sure in found), "ahead": sum(sure and one.gain > 0 for one, sure in found),
        "of": [
            {"backbone": c.cell.backbone, "task": c.cell.task, "mean_p": c.cell.mean_p, "take": c.take, "gain": c.gain,
             "best": c.cell.best(), "best_gain": c.best, "sure": sure}
            for c, sure in found
        ],
    }  # fmt: skip


if __name__ == "__main__":
    main()
