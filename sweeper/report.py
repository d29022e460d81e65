"""The report of a sweep: one HTML file that opens offline, its figures, and the numbers as CSV and JSON."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from jobs.files import write_text
from jobs.plugins import objective_named
from jobs.spec import Gate, ObjectiveSpec
from jobs.yardsticks import HARDLY_ENDS, PRIMARY, TRUNCATED, YARDSTICKS, regime
from sweeper.continuum import AHEAD, ALONE, BACKBONE, BEHIND, HELDOUT_NLL, LEVEL, NLL, NOT_FINISHED, OPEN
from sweeper.continuum import alpha_curve as alpha_curve_of
from sweeper.continuum import gains as gains_of
from sweeper.continuum import leaderboard as leaderboard_of
from sweeper.continuum import verdicts as verdicts_of
from sweeper.figures import alpha_figure, colours, continuum_figure, limits, quantity, weight_figure
from sweeper.forecast import rank_correlations
from sweeper.recommend import Advice, cells_of, check, outlook, regrets
from sweeper.results import CUTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS_PER_INCH = 160
Url = Callable[[str], str]
Row = dict[str, Any]


def write_report(
    table: pd.DataFrame,
    out: Path,
    title: str,
    facts: dict[str, str],
    mlflow_url: Url | None = None,
    forecasts: Sequence[Row] = (),
) -> dict[str, Path]:
    """Write report.html, continuum.png, alpha.png, weights.png, trials.csv, leaderboard.csv and report.json into `out`.

    table:      `sweeper.results.results`; trials that are not finished are listed, and stand in no number
    facts:      where the numbers come from, shown as they are
    mlflow_url: MLflow run id -> address of the run; without it run ids are plain text
    forecasts:  what `sweeper forecast` has kept, if it was run
    Returns the paths by file name.
    """
    out.mkdir(parents=True, exist_ok=True)
    board, gains, curve, verdicts = (f(table) for f in (leaderboard_of, gains_of, alpha_curve_of, verdicts_of))
    objectives = objectives_of(table)
    figures = {"continuum": continuum_figure(gains), "alpha": alpha_figure(curve), "weights": weight_figure(objectives)}
    images = {name: _png(figure) for name, figure in figures.items()}
    parts = {"verdicts": verdicts, "leaderboard": board, "gains": gains, "alpha": curve}
    records = {name: [_plain(row) for row in frame.to_dict("records")] for name, frame in parts.items()}
    problems = [_problem(row) for row in table[table["status"] != "finished"].to_dict("records")]
    trials = table.drop_duplicates("key")
    counts = {status: int((trials["status"] == status).sum()) for status in ("finished", *NOT_FINISHED)}
    ranked = [_plain(row) for row in rank_correlations(table, list(forecasts)).to_dict("records")]
    answers = answer(records["verdicts"], records["gains"])
    measured = cells_of(records["gains"], title)
    next_rows = [_next(advice) for advice in outlook(measured)] if len(measured) > 1 else []
    endless = endless_of(table)
    meaning = YARDSTICKS[PRIMARY]
    numbers = {
        "title": title,
        "yardstick": {"name": PRIMARY, "meaning": meaning.meaning, "higher_is_better": meaning.higher_is_better},
        "interval": f"{LEVEL:.0%} Student t over seeds; gains are paired by seed",
        "trials": counts,
        "answers": answers,
        **records,
        "next": next_rows,
        "data": data_of(table),
        "endless": endless,
        "forecasts": ranked,
        "not_finished": problems,
        "facts": facts,
    }
    html = _environment(mlflow_url).get_template("report.html.j2").render(
        title=title,
        answers=answers,
        counts=counts,
        images={name: base64.b64encode(image).decode() for name, image in images.items()},
        cells=[
            v | {"rows": _rows_of(v, records["leaderboard"]), "endless": _endless_in(v, endless)}
            for v in records["verdicts"]
        ],
        data=data_of(table),
        next_rows=next_rows,
        lost=regrets(check(measured)),
        forecasts=ranked,
        mean_correlations=_means_of(ranked),
        regime=regime,
        colours=colours(objectives),
        formulas=[(label, o, objective_named(o.name)) for label, o in objectives.items()],
        problems=problems,
        facts=facts,
        quantity=quantity(PRIMARY),
        quantity_of=quantity,
        words={"ahead": AHEAD, "behind": BEHIND, "alone": ALONE, "backbone": BACKBONE},
    )  # fmt: skip
    paths = {f"{name}.png": out / f"{name}.png" for name in images}
    for name, image in images.items():
        paths[f"{name}.png"].write_bytes(image)
    flat = board.map(lambda v: " ".join(str(x) for x in v if x is not None) if isinstance(v, list) else v)
    texts = {
        "report.html": html,
        "report.json": json.dumps(numbers, indent=1, allow_nan=False) + "\n",
        "trials.csv": table.drop(columns="traceback").to_csv(index=False),
        "leaderboard.csv": flat.to_csv(index=False),
    }
    for name, text in texts.items():
        paths[name] = out / name
        write_text(paths[name], text)
    return paths


def objectives_of(table: pd.DataFrame) -> dict[str, ObjectiveSpec]:
    """The objectives of a tidy table, by label; a gate at a quantile stands where it was measured first, if it was."""
    found = {}
    for row in table[table["objective"] != BACKBONE].drop_duplicates("objective").to_dict("records"):
        spec = ObjectiveSpec.model_validate_json(row["objective_spec"])
        if spec.gate is not None and spec.gate.at is None:
            gate = None if pd.isna(row["gate_at"]) else Gate(side=spec.gate.side, at=row["gate_at"])
            spec = spec.model_copy(update={"gate": gate})
        found[row["objective"]] = spec
    return {label: found[label] for label in sorted(found)}


def endless_of(table: pd.DataFrame) -> list[Row]:
    """Backbones and objectives whose sampled answers mostly run into max_new_tokens: their mean share, over seeds."""
    if TRUNCATED not in table:
        return []
    done = table[(table["status"] == "finished") & table[TRUNCATED].notna()]
    cells = done.astype({TRUNCATED: float}).groupby(["backbone", "task", "objective"], sort=False)[TRUNCATED].mean()
    rows = [_plain(row) for row in cells.rename("truncated_rate").reset_index().to_dict("records")]
    return [row for row in rows if row["truncated_rate"] > HARDLY_ENDS]


def _endless_in(cell: Row, endless: list[Row]) -> str:
    """The objectives of a cell whose answers hardly end, with their shares; empty for none."""
    mine = [row for row in endless if (row["backbone"], row["task"]) == (cell["backbone"], cell["task"])]
    named = [("the backbone before SFT" if r["objective"] == BACKBONE else r["objective"], r) for r in mine]
    return ", ".join(f"{name} ({row['truncated_rate']:.0%})" for name, row in named)


def data_of(table: pd.DataFrame) -> list[Row]:
    """What was trained and measured on, a row for each corpus: sizes, hashes, what was cut or dropped, what leaks."""
    found: dict[str, Row] = {}
    for row in table.dropna(subset=["corpus"]).to_dict("records"):
        corpus = json.loads(row["corpus"])
        if "version" not in corpus:  # recorded when leaks were counted over templates, too
            corpus |= {"leaks": None, "problems": {}}
        mine = found.setdefault(
            corpus["digest"], {"task": row["task"], "answers": None, **corpus, **dict.fromkeys(CUTS, 0)}
        )
        for name in CUTS:
            value = row[name]
            mine[name] = max(mine[name], 0 if pd.isna(value) else int(value))
    return [found[digest] for digest in sorted(found, key=lambda d: (found[d]["task"], d))]


def answer(verdicts: list[Row], gains: list[Row]) -> list[dict[str, str]]:
    """The verdicts in plain words: a task each, its backbones from weak to strong, equal neighbours in one sentence."""
    gain_of = {(g["backbone"], g["task"], g["objective"]): g for g in gains}
    answers = []
    for task in sorted({v["task"] for v in verdicts}):
        mine = [
            v | {"gains": {o: gain_of[v["backbone"], task, o] for o in v["outcomes"]}}
            for v in verdicts if v["task"] == task
        ]  # fmt: skip
        sentences = [
            f"{_where(region)}: {_advice(kind, region)}."
            for (kind, _), group in groupby(mine, key=lambda v: (_kind(v), v["base_mean_p"] is None))
            for region in [list(group)]
        ]
        answers.append({"task": task, "text": " ".join(sentences)})
    return answers


def _kind(verdict: Row) -> str:
    """What can be said of a cell: ahead (something beats NLL), behind (nothing does), or not enough for either."""
    pairs = max((g["n"] for g in verdict["gains"].values()), default=0)
    if pairs < 2:
        return OPEN if pairs else ALONE
    return AHEAD if AHEAD in verdict["outcomes"].values() else BEHIND


def _where(region: list[Row]) -> str:
    names = ", ".join(v["backbone"] for v in region)
    known = [f"{v['base_mean_p']:.2f}" for v in region if v["base_mean_p"] is not None]
    if not known:
        return f"At unknown mean p ({names})"
    span = known[0] if known[0] == known[-1] else f"{known[0]} to {known[-1]}"
    return f"At mean p {span} ({names})"


def _advice(kind: str, region: list[Row]) -> str:
    if kind == ALONE:
        return "no comparison with NLL yet"
    if kind == OPEN:
        leaders = " or ".join(dict.fromkeys("NLL" if v["leader"] == NLL else v["leader"] for v in region))
        return f"{leaders} is highest, but one seed decides nothing: add seeds"
    if kind == AHEAD:
        best = [(o, v["gains"][o]["gain"]) for v in region for o in _ahead(v)[:1]]
        low, high = min(gain for _, gain in best), max(gain for _, gain in best)
        by = f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}"
        return f"use {' or '.join(dict.fromkeys(o for o, _ in best))}, ahead of NLL by {by}"
    every = list(dict.fromkeys(o for v in region for o in v["outcomes"]))
    behind = [o for o in every if all(v["outcomes"].get(o, BEHIND) == BEHIND for v in region)]
    unsure = [o for o in every if o not in behind]
    text = "keep NLL, nothing is certain to be ahead of it"
    text += f"; behind it: {', '.join(behind)}" if behind else ""
    return text + (f"; not separated from it: {', '.join(unsure)}" if unsure else "")


def _ahead(verdict: Row) -> list[str]:
    """Objectives ahead of NLL, in the order of their ranks."""
    return [objective for objective, words in verdict["outcomes"].items() if words == AHEAD]


def _rows_of(verdict: Row, board: list[Row]) -> list[Row]:
    """A cell's leaderboard rows, with the ends of their intervals as they are shown under `shown`."""
    rows = []
    for row in board:
        if (row["backbone"], row["task"]) != (verdict["backbone"], verdict["task"]):
            continue
        shown: dict[str, float | None] = {}
        for prefix, name in (("", PRIMARY), ("greedy_", "task/accuracy_greedy"), ("nll_", HELDOUT_NLL)):
            bottom, top = limits(name)
            for end in (f"{prefix}low", f"{prefix}high"):
                shown[end] = None if row[end] is None else min(max(row[end], bottom), top)
        rows.append(row | {"shown": shown})
    return rows


def _means_of(ranked: list[Row]) -> list[Row]:
    """The mean rank correlation over cells, for each kind of forecast and assumed noise rate."""
    found: dict[tuple[str, float], list[float]] = {}
    for row in ranked:
        if row["correlation"] is not None:
            found.setdefault((row["yardstick"], row["noise"]), []).append(row["correlation"])
    return [
        {"yardstick": yardstick, "noise": noise, "mean": fmean(values), "cells": len(values)}
        for (yardstick, noise), values in found.items()
    ]


def _problem(row: dict[Any, Any]) -> Row:
    """A trial that is not finished. error: a line; traceback: all of it, where something was raised."""
    names = (
        "key", "backbone", "task", "objective", "seed", "status", "stopped_by", "mlflow_run_id", "error",
        "failure_kind", "traceback",
    )  # fmt: skip
    return _plain({name: row[name] for name in names} | {"steps": int(row["steps"])})


def _next(advice: Advice) -> Row:
    """A row of what is advised along the continuum."""
    first = advice.expected[0]
    row = {"mean_p": advice.mean_p, "take": first.objective, "sure": advice.sure, "near": len(advice.near)}
    return _plain(row | {"gain": first.gain, "low": first.low, "high": first.high})


def _plain(row: dict[Any, Any]) -> Row:
    """JSON has no NaN and no infinity: both are null there."""
    return {str(k): None if _missing(v) else v for k, v in row.items()}


def _missing(value: Any) -> bool:
    if isinstance(value, list | dict):
        return False
    return bool(pd.isna(value)) or (isinstance(value, float) and math.isinf(value))


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DOTS_PER_INCH)
    return stream.getvalue()


def _environment(mlflow_url: Url | None) -> Environment:
    def runs(run_ids: list[str | None], keys: list[str]) -> list[dict[str, str | None]]:
        """What a number is traced to: the MLflow run, or the trial's key where MLflow has none."""
        return [
            {"text": run_id[:8] if run_id else key, "full": run_id or key,
             "url": mlflow_url(run_id) if run_id and mlflow_url else None}
            for run_id, key in zip(run_ids, keys, strict=True)
        ]  # fmt: skip

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["runs"] = runs
    return environment
