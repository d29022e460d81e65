"""`sweeper recommend`: which objective to take for a backbone and a task that nobody has trained yet."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.files import write_text
from jobs.spec import TrialSpec
from jobs.yardsticks import CAPABILITY, regime
from sweeper.commands_probe import backbone_fields, measure, probe_options, task_fields, trial_of
from sweeper.options import add, json_option
from sweeper.spec import SpecError
from sweeper.store import Store

if TYPE_CHECKING:
    from sweeper.recommend import Advice, Cell, Check

RECOMMEND = """\
Recommend an objective for a backbone and a task that nobody has trained yet: from what the sweeps of the storage have
measured where backbones knew their tasks as well as this one does, and how sure that is.

The backbone is measured first (as `sweeper probe` does it), or give its --mean-p. What is advised is checked on the
record: every cell that was measured is foretold from the others. --sweep writes the sweep file that would settle it.

  sweeper recommend --backbone char-llama-1000 --task addition
  sweeper recommend --mean-p 0.8
"""
PAPER = {  # arXiv 2510.00526, section 4 and Table 5
    "strong": "objectives that lean on the prior (1 - p, large alpha, a gate on low p) are ahead of NLL",
    "intermediate": "no objective dominates",
    "weak": "NLL is ahead",
}
SHOWN = 8
SEEDS = [1, 2, 3]


def add_commands(commands: Any) -> None:
    sub = add(commands, "recommend", RECOMMEND, recommend)
    sub.add_argument("sweeps", metavar="SWEEP", nargs="*", help="sweeps to learn from (default: all of the storage)")
    sub.add_argument("--mean-p", metavar="P", type=float, help="the backbone's mean p on the task, instead of a probe")
    probe_options(sub, required=False)
    sub.add_argument("--sweep", metavar="FILE", type=Path, help="write a sweep of NLL and the best of the others here")
    sub.add_argument("--out", metavar="FILE", type=Path, help="the picture (default: recommend.png in the storage)")
    json_option(sub)


def recommend(args: argparse.Namespace) -> int:
    from sweeper.recommend import advise, check

    if (args.mean_p is None) == (args.backbone is None):
        raise SpecError("sweeper recommend", ["give --backbone and --task, or --mean-p, one of the two"])
    if args.backbone is not None and args.task is None:
        raise SpecError("--task", ["is missing; what a backbone knows is measured on a task"])
    if args.mean_p is not None and not 0 < args.mean_p < 1:
        raise SpecError("--mean-p", [f"between 0 and 1, got {args.mean_p:g}"])
    if args.sweep is not None and args.backbone is None:
        raise SpecError("--sweep", ["needs --backbone and --task: a sweep file names them"])
    store = Store(args.storage.resolve())
    cells = evidence(store, args.sweeps or store.sweeps())
    trial = trial_of(args) if args.backbone is not None else None
    mean_p = args.mean_p if trial is None else measure(trial, store.root)[CAPABILITY]
    task = args.task if trial is None else trial.task.name
    advice, checks = advise(cells, mean_p, task), check(cells)
    what = "a backbone" if trial is None else f"{trial.backbone.name} on {trial.task.name}"
    facts = facts_of(advice, cells, checks, what)
    if cells:
        picture = _draw(cells, advice, what, args.out or store.root / "recommend.png")
        facts["picture"] = str(picture)
    if args.sweep is not None:
        write_text(args.sweep, next_sweep(store, advice, args))
        facts["sweep"] = str(args.sweep)
    print(json.dumps(facts, indent=1) if args.json else "\n".join(lines_of(facts)))
    return 0


def evidence(store: Store, sweeps: Sequence[str]) -> list[Cell]:
    """What the sweeps have measured, each cell once."""
    from sweeper.continuum import gains
    from sweeper.recommend import cells_of, distinct
    from sweeper.results import results

    found = []
    for sweep in sweeps:
        rows = gains(results(store, sweep)).to_dict("records")
        found += cells_of([{str(name): value for name, value in row.items()} for row in rows], sweep)
    return distinct(found)


def facts_of(advice: Advice, cells: Sequence[Cell], checks: Sequence[Check], what: str) -> dict[str, Any]:
    """All that is said, for programs; a number that there is not is null."""
    from sweeper.recommend import log_odds, regrets

    nearest = min(cells, key=lambda c: abs(log_odds(c.mean_p) - log_odds(advice.mean_p)), default=None)
    place = regime(advice.mean_p)
    return {
        "of": what, "mean_p": advice.mean_p, "regime": place, "take": advice.take, "sure": advice.sure,
        "contenders": advice.contenders(), "paper": PAPER[place],
        "expected": [_plain(asdict(one)) for one in advice.expected],
        "evidence": {
            "cells": len(cells), "near": [_named(cell) for cell in advice.near], "same_task": advice.same_task,
            "smoother": asdict(advice.smoother), "nearest": None if nearest is None else _named(nearest),
        },
        "check": {
            "cells": len(checks), "best_or_equal": sum(one.gain >= one.best for one in checks),
            "mean_loss": regrets(checks), "held": sum(one.held for one in checks),
            "intervals": sum(one.intervals for one in checks),
        },
    }  # fmt: skip


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}


def _named(cell: Cell) -> dict[str, Any]:
    return {
        "sweep": cell.sweep, "backbone": cell.backbone, "task": cell.task, "mean_p": cell.mean_p, "best": cell.best(),
        "keys": list(cell.keys),
    }  # fmt: skip


def lines_of(facts: dict[str, Any]) -> list[str]:
    near, nearest = facts["evidence"]["near"], facts["evidence"]["nearest"]
    lines = [f"{facts['of']}: mean p {facts['mean_p']:.3f}, {facts['regime']}"]
    if not near:
        where = "the storage has no finished sweep with NLL in it"
        if nearest is not None:
            where = f"the nearest is {nearest['backbone']} on {nearest['task']}, mean p {nearest['mean_p']:.3f}"
        return [
            *lines, f"nothing was measured near it: {where}",
            f"the paper, for {facts['regime']} backbones: {facts['paper']}. A sweep would tell: sweeper run",
        ]  # fmt: skip
    of = "of the same task" if facts["evidence"]["same_task"] else "of any task"
    low, high = min(c["mean_p"] for c in near), max(c["mean_p"] for c in near)
    among = facts["evidence"]["cells"]
    lines.append(f"evidence   {len(near)} of {among} measured cells are near, {of}: mean p {low:.3f} to {high:.3f}")
    lines.append("")
    lines.append(f"{'objective':32} gain over NLL, expected    came first near here")
    for one in facts["expected"][:SHOWN]:
        bounds = "" if one["low"] is None else f"  [{one['low']:+.2f}, {one['high']:+.2f}]"
        shown = "0" if one["objective"] == "nll" else f"{one['gain']:+.2f}{bounds}"
        lines.append(f"{one['objective']:32} {shown:26} {one['won']:.0%}")
    if more := len(facts["expected"]) - SHOWN:
        lines += [f"... and {more} more (--json)"] if more > 0 else []
    return [*lines, "", sentence(facts), _checked(facts["check"]), *_files(facts)]


def sentence(facts: dict[str, Any]) -> str:
    first, others = facts["expected"][0], ", ".join(facts["contenders"])
    if facts["take"] == "nll":
        if facts["sure"]:
            return "Take nll: all that was measured beside it near here fell behind."
        ahead = [one for one in facts["expected"] if one["gain"] > 0]
        if ahead:
            return (
                f"Take nll: of {ahead[0]['objective']}, which looks ahead of it, too little is known; measure {others}."
            )
        return f"Take nll: nothing is expected ahead of it. Not for sure; measure it beside {others}."
    if facts["sure"]:
        return f"Take {facts['take']}: one more cell like these would put it ahead of NLL, for sure (95 %)."
    if first["low"] is None:
        return f"{facts['take']} did best, on too little evidence for an interval: measure {others} beside nll."
    return f"{facts['take']} looks best, but not surely ahead of NLL: measure {others} beside nll."


def _checked(check: dict[str, Any]) -> str:
    lost = {name: loss for name, loss in check["mean_loss"].items() if name != "advice"}
    if check["cells"] < 2:
        return "Not checked: it takes two cells or more."
    fixed = ", ".join(f"always {name} {loss:.3f}" for name, loss in sorted(lost.items(), key=lambda one: one[1])[:3])
    held = f"; intervals held {check['held']} of {check['intervals']} gains" if check["intervals"] else ""
    return (
        f"Checked on the record, each of {check['cells']} cells foretold from the others: the best one advised in "
        f"{check['best_or_equal']}; lost to the best on average {check['mean_loss']['advice']:.3f} ({fixed}){held}."
    )


def _files(facts: dict[str, Any]) -> list[str]:
    return [f"{name}  {facts[key]}" for name, key in (("picture", "picture"), ("sweep  ", "sweep")) if key in facts]


def next_sweep(store: Store, advice: Advice, args: argparse.Namespace) -> str:
    """A sweep file that would settle it: NLL and the contenders, trained as the nearest cell was."""
    import yaml

    from sweeper.spec import parse_sweep

    if not advice.near:
        raise SpecError("--sweep", ["nothing was measured near, so there is no cell whose settings could be taken"])
    nearest = advice.near[0]
    trials = [trial for key, trial in store.trials(nearest.sweep).items() if key in nearest.keys]
    like = next(trial for trial in trials if trial.objective is not None)
    specs = {trial.objective_label: trial for cell in advice.near for trial in _trials(store, cell)}
    wanted = ["nll", *advice.contenders()]
    spec = {
        "name": "next",
        "grid": {
            "backbone": [backbone_fields(args.backbone)], "task": [task_fields(args.task)],
            "objective": [_objective(specs[name]) for name in wanted if name in specs], "seed": SEEDS,
        },
        "train": like.train.model_dump(mode="json", exclude_defaults=True),
        "evaluation": like.evaluation.model_dump(mode="json", exclude_defaults=True),
    }  # fmt: skip
    text = (
        f"# What sweeper recommend would measure next: {', '.join(wanted)} at mean p {advice.mean_p:.3f}.\n"
        f"# Trained as {nearest.backbone} on {nearest.task} was, in sweep '{nearest.sweep}': look at lr and steps.\n"
        + yaml.safe_dump(spec, sort_keys=False, width=110)
    )
    parse_sweep(text, str(args.sweep))
    return text


def _trials(store: Store, cell: Cell) -> list[TrialSpec]:
    return [t for key, t in store.trials(cell.sweep).items() if key in cell.keys and t.objective is not None]


def _objective(trial: TrialSpec) -> Any:
    assert trial.objective is not None
    fields = trial.objective.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    return fields["name"] if fields.keys() == {"name"} else fields


def _draw(cells: Sequence[Cell], advice: Advice, what: str, file: Path) -> Path:
    from sweeper.figures import recommend_figure

    file.parent.mkdir(parents=True, exist_ok=True)
    recommend_figure(cells, advice, what).savefig(file, dpi=160)
    return file
