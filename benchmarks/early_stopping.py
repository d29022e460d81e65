"""What early stopping saves and what it costs, on a grid that was really trained: python benchmarks/early_stopping.py

    --storage DIR   where the grid is trained, once (minutes); a second call reads it
    --json          for programs

Trains every cell of the grid to its end, measured at every rung (`GRID`, the built-in continuum). Trials do not
depend on what runs beside them, so each policy can then be replayed on the record, seeing only what it would have seen:

    full          every trial to its end
    race          ours (sweeper/race.py), as `scheduler: {name: race}` decides it
    asha          asynchronous successive halving as published: each trial alone, no anchor; in 5 random orders
    round-robin   all trials in turn, a chunk each (RapidFire AI's schedule, re-implemented here), and the leader when
                  as many steps are spent as the race has spent

A winner is the objective with the best mean over its seeds that were trained furthest. It is as good as the full grid's
where it is the same, or where its 95 % interval over seeds, trained to the end, overlaps that one's.
"""

import argparse
import json
import math
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from sweeper.continuum import interval
from sweeper.plan import make_plan
from sweeper.race import Runner, rungs, standing
from sweeper.scheduler import cells_of
from sweeper.spec import SweepSpec, parse_sweep
from sweeper.store import Store

STEPS, GRACE, FACTOR, CONFIDENCE = 162, 18, 3, 0.8
GRID: dict[str, Any] = {
    "name": "early-stopping",
    "grid": [
        {
            "backbone": [{"builtin": "char-llama", "pretrain_steps": steps}],
            "task": [task],
            "objective": [
                "nll", "one-minus-p", "dft", "focal", "unlikelihood",
                {"name": "power", "alpha": [-0.5, 0.25, 0.5, 2, 5, 10]},
                {"name": "nll", "gate": {"side": "top", "at": 0.1}},
            ],
            "seed": [1, 2, 3],
        }
        for steps, task in (
            ([200, 800], {"builtin": "addition", "noise": 0.3}),
            ([1600], {"builtin": "cipher"}),
        )
    ],
    "train": {"lr": 1e-3, "schedule": "constant", "batch_size": 64, "steps": STEPS, "max_length": 32},
    "evaluation": {"samples": 4, "max_new_tokens": 4, "batch_size": 256, "every": GRACE, "every_problems": 128},
    "overrides": [{"where": {"task": "cipher"}, "train": {"steps": 252}}],  # a new task takes longer
    "scheduler": {"name": "race", "grace_steps": GRACE, "reduction_factor": FACTOR, "confidence": CONFIDENCE},
}  # fmt: skip

Cell = Sequence[Runner]
Reached = dict[str, int]  # key -> its last step


def train(storage: Path) -> tuple[SweepSpec, Store]:
    spec = GRID | {"scheduler": {"name": "fifo"}}
    storage.mkdir(parents=True, exist_ok=True)
    file = storage / "early-stopping.yaml"
    file.write_text(json.dumps(spec))
    subprocess.run([sys.executable, "-m", "sweeper", "run", file, "--storage", storage], check=True, stdout=sys.stderr)
    return parse_sweep(json.dumps(GRID), file.name), Store(storage)


def seen(cell: Cell, reached: Reached) -> list[Runner]:
    """The cell as it looks when its trials have come so far."""
    return [replace(r, scores={s: v for s, v in r.scores.items() if s <= reached.get(r.key, 0)}) for r in cell]


def full(cell: Cell) -> Reached:
    return {runner.key: runner.num_steps for runner in cell}


def race(cell: Cell) -> Reached:
    reached: Reached = {}
    while True:
        run = standing(seen(cell, reached), GRACE, FACTOR, CONFIDENCE).run
        end = full(cell)
        todo = {key: to or end[key] for key, to in run.items() if reached.get(key) != (to or end[key])}
        if not todo:
            return reached
        reached |= todo


def asha(cell: Cell, order: Sequence[Runner]) -> Reached:
    """Trials run two at a time in the given order; a trial goes on from a rung if it is in the best third so far."""
    at_rung: dict[int, list[float]] = {}
    reached: Reached = {}
    for runner in order:
        reached[runner.key] = runner.num_steps
        for rung in rungs(GRACE, FACTOR, runner.num_steps):
            scores = at_rung.setdefault(rung, [])
            scores.append(runner.scores[rung].value)
            if sum(s > scores[-1] for s in scores) >= math.ceil(len(scores) / FACTOR):
                reached[runner.key] = rung
                break
    return reached


def round_robin(cell: Cell, budget: int) -> Reached:
    """Chunks of GRACE steps, each trial in turn, until the budget is spent."""
    reached: Reached = {}
    for chunk in range(GRACE, cell[0].num_steps + 1, GRACE):
        for runner in cell:
            if sum(reached.values()) + GRACE > budget:
                return reached
            reached[runner.key] = chunk
    return reached


def winner(cell: Cell, reached: Reached) -> str:
    """The best mean over seeds among the objectives that came furthest, at the last step which all their seeds have."""
    arms: dict[str, list[Runner]] = {}
    for runner in cell:
        arms.setdefault(runner.objective, []).append(runner)
    common = {name: min(reached.get(r.key, 0) for r in mine) for name, mine in arms.items()}
    furthest = max(common.values())
    best = {name: fmean(_at(r, step) for r in arms[name]) for name, step in common.items() if step == furthest}
    return max(best, key=lambda name: best[name])


def _at(runner: Runner, step: int) -> float:
    return runner.scores[step].value if step in runner.scores else -math.inf


def judged(cell: Cell, name: str, best: str) -> dict[str, Any]:
    """How a winner does when trained to its end, beside the full grid's."""
    final = {n: [_at(r, r.num_steps) for r in cell if r.objective == n] for n in (name, best)}
    (mean, low, high), (top, top_low, top_high) = interval(final[name]), interval(final[best])
    return {"winner": name, "same": name == best, "as_good": name == best or (high >= top_low and low <= top_high),
            "regret": top - mean}  # fmt: skip


def compare(cells: dict[tuple[str, str], list[Runner]], orders: int = 5) -> list[dict[str, Any]]:
    """A line a policy and order: steps as a share of the full grid's, and its winners."""
    everything = sum(runner.num_steps for cell in cells.values() for runner in cell)
    best = {where: winner(cell, full(cell)) for where, cell in cells.items()}
    runs: list[tuple[str, dict[tuple[str, str], Reached]]] = [
        ("full", {w: full(c) for w, c in cells.items()}),
        ("race", {w: race(c) for w, c in cells.items()}),
    ]
    for number in range(orders):
        shuffled = {w: random.Random(number).sample(list(c), len(c)) for w, c in cells.items()}
        runs.append((f"asha {number + 1}", {w: asha(cells[w], shuffled[w]) for w in cells}))
        spent = {w: sum(reached.values()) for w, reached in runs[1][1].items()}
        runs.append((f"round-robin {number + 1}", {w: round_robin(shuffled[w], spent[w]) for w in cells}))
    lines = []
    for policy, reached in sorted(runs, key=lambda run: run[0].split()[0] not in ("full", "race")):
        verdicts = {w: judged(c, winner(c, reached[w]), best[w]) for w, c in cells.items()}
        lines.append(
            {
                "policy": policy,
                "share": sum(sum(r.values()) for r in reached.values()) / everything,
                "same": sum(v["same"] for v in verdicts.values()),
                "as_good": sum(v["as_good"] for v in verdicts.values()),
                "regret": fmean(v["regret"] for v in verdicts.values()),
                "winners": {f"{b} on {t}": v["winner"] for (b, t), v in verdicts.items()},
            }
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", type=Path, default=Path("sweeps-early-stopping"))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    spec, store = train(args.storage.resolve())
    cells = cells_of(make_plan(spec, args.storage), store)
    lines = compare(cells)
    if args.json:
        print(json.dumps(lines, indent=1))
        return
    print(f"{'policy':15} steps  same winner  as good  mean regret   of {len(cells)} cells")
    for line in lines:
        print(
            f"{line['policy']:15} {line['share']:5.2f} {line['same']:9d} {line['as_good']:11d} {line['regret']:12.3f}"
        )
    for policy in ("full", "race"):
        print(policy, next(line["winners"] for line in lines if line["policy"] == policy))


if __name__ == "__main__":
    main()
