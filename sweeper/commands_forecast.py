"""`sweeper forecast`: which objectives of a sweep look promising before anything is trained."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jobs.files import write_text
from jobs.spec import TrialSpec
from sweeper.options import add, data_root_of, json_option, spec_options, sweep_of
from sweeper.store import FORECAST as KEPT
from sweeper.store import Store

FORECAST = """\
Rank the objectives of each backbone and task of a sweep before any training: how much a first step of each, all of
the same length, would gain on held-out examples. Weights are not changed and Ray is not started.

It is a guess, kept beside the sweep; the report shows how well it has ranked once trials are finished. With
--noise R a second one is made in which a share R of the training responses is assumed to be wrong.
"""


def add_commands(commands: Any) -> None:
    sub = add(commands, "forecast", FORECAST, forecast)
    spec_options(sub)
    sub.add_argument("--examples", metavar="N", type=int, default=64, help="training and held-out ones (default: 64)")
    sub.add_argument("--noise", metavar="R", type=float, help="share of wrong training responses to assume as well")
    json_option(sub)


def forecast(args: argparse.Namespace) -> int:
    from sweeper.inputs import check_inputs, prepare
    from sweeper.plan import make_plan
    from sweeper.spec import SpecError

    if args.noise is not None and not 0 < args.noise < 1:
        raise SpecError("--noise", [f"a share between 0 and 1, got {args.noise:g}"])
    if args.examples < 2:
        raise SpecError("--examples", [f"at least 2, got {args.examples}"])
    plan = make_plan(sweep_of(args), data_root_of(args), require_files=True)
    store = Store(args.storage.resolve())
    prepare(list(plan.trials), store.root, check_inputs(list(plan.trials), store.root))
    rates = [0.0, *([args.noise] if args.noise else [])]
    rows = [row for cell in cells(plan.trials) for row in forecast_cell(cell, store.root, args.examples, rates)]
    write_text(store.sweep_dir(plan.spec.settings.name) / KEPT, json.dumps(rows, indent=1))
    if args.json:
        print(json.dumps(rows, indent=1))
    else:
        _print(rows)
    return 0


def cells(trials: Iterable[TrialSpec]) -> list[list[TrialSpec]]:
    """Trained trials by (backbone, task), one an objective."""
    found: dict[tuple[str, str], dict[str, TrialSpec]] = {}
    for trial in trials:
        if trial.objective is not None:
            cell = found.setdefault((trial.backbone.name, trial.task.name), {})
            cell.setdefault(trial.objective_label, trial)
    return [list(cell.values()) for cell in found.values()]


def forecast_cell(cell: list[TrialSpec], root: Path, examples: int, rates: list[float]) -> list[dict[str, Any]]:
    """Rows of backbone, task, objective, noise, and the fields of jobs.forecast.Forecast."""
    import torch

    from jobs.backbone import load_backbone, load_tokenizer
    from jobs.engine import device, ensure_process_group
    from jobs.forecast import forecast as forecast_of
    from jobs.probe import probe
    from jobs.train import prepared_for

    ensure_process_group()
    one = cell[0]
    torch.manual_seed(0)
    model = load_backbone(one.backbone, root, one.execution).to(device())
    tokenizer = load_tokenizer(one.backbone, root)
    prepared = prepared_for(one.backbone.bare(), one.task, one.train.max_length, one.train.overlong, root)
    train, heldout = prepared.train, prepared.heldout
    pad = int(tokenizer.pad_token_id)
    probed = probe(one, root, lambda: nullcontext(model), train, pad, prepared.ends)
    specs = [trial.objective.canonical() for trial in cell if trial.objective is not None]
    return [
        {
            "backbone": trial.backbone.name, "task": trial.task.name, "objective": trial.objective_label,
            "noise": rate, **asdict(found),
        }
        for rate in rates
        for trial, found in zip(
            cell, forecast_of(model, specs, train[:examples], heldout[:examples], probed, pad, rate), strict=True
        )
    ]  # fmt: skip


def _print(rows: list[dict[str, Any]]) -> None:
    where = None
    for row in sorted(rows, key=lambda r: (r["backbone"], r["task"], r["noise"], -r["answer"])):
        here = (row["backbone"], row["task"], row["noise"])
        if here != where:
            noise = f", {row['noise']:.0%} assumed wrong" if row["noise"] else ""
            print(f"\n{row['backbone']} on {row['task']}{noise}: gain a unit step   whole answers  mean p     -log p")
            where = here
        print(f"  {row['objective']:40s} {row['answer']:13.4f} {row['mean_p']:9.4f} {row['nll']:9.4f}")
