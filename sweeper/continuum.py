"""From the tidy table of trials to the answer: leaderboard, gains over NLL, alpha response, verdicts. Pure, df -> df.

A cell is one (backbone, task); cells are ordered by the backbone's mean p on the task's training set, weak to strong.
Every number stands beside `keys` and `run_ids`, the trials and MLflow runs that it was made from (None where MLflow
has no run). Intervals are 95 % over seeds, Student's t, and NaN with one seed. Finished trials count, and those that
diverged, with the worst value of each yardstick.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
from scipy.special import stdtrit

from jobs.yardsticks import PRIMARY, YARDSTICKS
from sweeper.results import COUNTED

LEVEL = 0.95
BACKBONE = "backbone"  # the label of the untrained one
NLL = "nll"
GREEDY, HELDOUT_NLL = "task/accuracy_greedy", "heldout/nll"
AHEAD, BEHIND, OPEN, ALONE = "ahead of NLL", "behind NLL", "not separated", "no comparison"
NOT_FINISHED = ("damaged", "diverged", "failed", "paused", "stopped", "unfinished")


def quantile_of_t(freedom: float) -> float:
    """Student's t at the upper end of a two-sided interval of LEVEL; freedom: degrees of it, not always whole."""
    return float(stdtrit(freedom, (1 + LEVEL) / 2))


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % Student t interval of one value a seed: (mean, low, high); NaN where too few values say nothing."""
    if not values:
        return math.nan, math.nan, math.nan
    mean = sum(values) / len(values)
    if len(values) == 1 or not math.isfinite(mean):
        return mean, math.nan, math.nan
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    half = quantile_of_t(len(values) - 1) * spread / math.sqrt(len(values))
    return mean, mean - half, mean + half


def leaderboard(table: pd.DataFrame, yardstick: str = PRIMARY) -> pd.DataFrame:
    """One row per (backbone, task, objective), best first, the untrained backbone (one run, no interval) last.

    Columns: backbone, task, base_mean_p, base_run_ids, base_keys, objective, rank (missing for the backbone and where
    nothing is finished), mean, low, high, n (seeds with a value), greedy_* and nll_* (mean, low, high), gain,
    gain_low, gain_high, gain_n, gain_outcome, gain_run_ids, gain_keys (see `gains`), num_finished, one of
    num_<status> for each of NOT_FINISHED, run_ids, keys.
    """
    sign = _sign(yardstick)
    gain_of = {(r["backbone"], r["task"], r["objective"]): r for r in gains(table, yardstick).to_dict("records")}
    rows: list[dict[str, Any]] = []
    for where, cell in _cells(table):
        ranked = []
        for objective, trials in cell.groupby("objective", sort=False):
            done = trials[trials["status"].isin(COUNTED)]
            gain = gain_of.get((where["backbone"], where["task"], objective), {})
            row = where | {"objective": objective, "rank": None} | _summary(done, yardstick)
            for prefix, name in (("greedy", GREEDY), ("nll", HELDOUT_NLL)):
                row |= {f"{prefix}_{k}": v for k, v in _summary(done, name).items() if k in ("mean", "low", "high")}
            row |= {"gain": gain.get("gain", math.nan)}
            row |= {f"gain_{k}": gain.get(k, math.nan) for k in ("low", "high")}
            row |= {"gain_n": gain.get("n", 0), "gain_outcome": gain.get("outcome")}
            row |= {f"gain_{k}": gain.get(k, []) for k in ("run_ids", "keys")}
            row |= {"num_finished": int((trials["status"] == "finished").sum())}
            row |= {f"num_{s}": int((trials["status"] == s).sum()) for s in NOT_FINISHED}
            ranked.append(row | _traced(done))
        # of equal means the one with fewer trials that diverged is ahead; the rest share a rank
        ranked.sort(
            key=lambda r: (r["objective"] == BACKBONE, math.isnan(r["mean"]), -sign * r["mean"], r["num_diverged"])
        )
        for row in ranked:
            if row["objective"] != BACKBONE and not math.isnan(row["mean"]):
                own = (sign * row["mean"], -row["num_diverged"])
                row["rank"] = 1 + sum((sign * r["mean"], -r["num_diverged"]) > own for r in ranked if r["rank"])
        rows += ranked
    return pd.DataFrame(rows).astype({"rank": "Int64"}) if rows else pd.DataFrame()


def gains(table: pd.DataFrame, yardstick: str = PRIMARY) -> pd.DataFrame:
    """The continuum: one row per (backbone, task, objective other than NLL), paired with NLL by seed.

    Columns: backbone, task, base_mean_p (x; NaN where the backbone was not measured), base_run_ids, base_keys,
    objective, gain (mean over seeds of objective - NLL, positive is better also where the yardstick is better low),
    low, high, n (pairs), outcome ('ahead of NLL', 'behind NLL', 'not separated'; 'no comparison' without a pair),
    run_ids, keys (both sides of the pairs).
    """
    rows = []
    for where, cell in _cells(table):
        done = cell[cell["status"].isin(COUNTED) & cell[yardstick].notna()]
        anchor = done[done["objective"] == NLL]
        for objective in cell["objective"].drop_duplicates():
            if objective in (NLL, BACKBONE):
                continue
            own = done[done["objective"] == objective]
            pairs = own.merge(anchor, on="seed", suffixes=("", "_nll"))
            difference = _sign(yardstick) * (pairs[yardstick] - pairs[f"{yardstick}_nll"])
            gain, low, high = interval([float(v) for v in difference])
            outcome = ALONE if pairs.empty else AHEAD if low > 0 else BEHIND if high < 0 else OPEN
            used = _traced(done[done["key"].isin([*pairs["key"], *pairs["key_nll"]])])
            row = where | {"objective": objective, "gain": gain, "low": low, "high": high, "n": len(pairs)}
            rows.append(row | {"outcome": outcome} | used)
    return pd.DataFrame(rows)


def alpha_curve(table: pd.DataFrame, yardstick: str = PRIMARY) -> pd.DataFrame:
    """The yardstick against alpha, objectives without a gate: NLL is alpha 0, 1 - p is alpha 1 (paper Eq. 3).

    Columns: backbone, task, base_mean_p, base_run_ids, base_keys, objective, alpha, mean, low, high, n, run_ids, keys.
    """
    rows = []
    for where, cell in _cells(table):
        done = cell[cell["status"].isin(COUNTED) & cell["gate_side"].isna() & cell[yardstick].notna()]
        for objective, trials in done.groupby("objective", sort=False):
            ends = {NLL: 0.0, "one-minus-p": 1.0}
            alpha = ends.get(str(objective), trials["alpha"].iloc[0])
            if not pd.isna(alpha):
                row = where | {"objective": objective, "alpha": float(alpha)} | _summary(trials, yardstick)
                rows.append(row | _traced(trials))
    return pd.DataFrame(rows).sort_values("alpha", kind="stable").reset_index(drop=True) if rows else pd.DataFrame()


def verdicts(table: pd.DataFrame, yardstick: str = PRIMARY) -> pd.DataFrame:
    """One row a cell: the leading objective, and whether its lead is certain.

    Columns: backbone, task, base_mean_p, base_run_ids, base_keys, leader (None: nothing finished), certain (the paired
    interval excludes 0: of the leader's gain, or of every other's where NLL leads), outcomes {objective: words of
    `gains`}, sentence, run_ids, keys.
    """
    rows: list[dict[str, Any]] = []
    board = leaderboard(table, yardstick)
    for where, cell in _cells(table):
        mine = board[(board["backbone"] == where["backbone"]) & (board["task"] == where["task"])]
        lines = mine[mine["rank"].notna()].to_dict("records")
        outcomes = {r["objective"]: r["gain_outcome"] for r in lines if r["objective"] != NLL}
        leader = lines[0]["objective"] if lines else None
        if leader == NLL:
            certain = bool(outcomes) and set(outcomes.values()) == {BEHIND}
        else:
            certain = outcomes.get(leader) == AHEAD
        traced = _traced(cell[cell["key"].isin([key for r in lines for key in r["keys"]])])
        sentence = _sentence(lines, certain)
        rows.append(where | {"leader": leader, "certain": certain, "outcomes": outcomes, "sentence": sentence} | traced)
    return pd.DataFrame(rows)


def _sentence(lines: list[dict[str, Any]], certain: bool) -> str:
    """lines: the cell's leaderboard without the backbone, best first."""
    if not lines:
        return "No trial has finished."
    first, others = lines[0], lines[1:]
    text = f"{_name(first)} leads: {_plus_minus(first)}"
    anchor = next((r for r in others if r["objective"] == NLL), None)
    if first["objective"] == NLL:
        if not others:
            return f"Only NLL has finished: {_plus_minus(first)}."
        text += f", next {_name(others[0])} {_plus_minus(others[0])}"
        undecided = [_name(r) for r in others if r["gain_outcome"] != BEHIND]
        return text + ("." if certain else f"; not separated from {', '.join(undecided)}.")
    if anchor is None:
        return f"{text}; no NLL trial has finished to compare with."
    text += f", NLL {_plus_minus(anchor)}"
    return f"{text}." if certain else f"{text}; the lead over NLL is not certain."


def _name(row: dict[str, Any]) -> str:
    return "NLL" if row["objective"] == NLL else str(row["objective"])


def _plus_minus(row: dict[str, Any]) -> str:
    return f"{row['mean']:.2f} " + ("(n=1)" if math.isnan(row["low"]) else f"± {row['mean'] - row['low']:.2f}")


def _sign(yardstick: str) -> int:
    return 1 if YARDSTICKS[yardstick].higher_is_better else -1


def _cells(table: pd.DataFrame) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """(what all rows of a cell share, its trials), weak to strong; cells of unknown mean p come last."""
    if table.empty:
        return
    numeric = {name: pd.to_numeric(table[name]) for name in ("base_mean_p", "alpha", *YARDSTICKS)}
    found: list[tuple[dict[str, Any], pd.DataFrame]] = []
    for (backbone, task), cell in table.assign(**numeric).groupby(["backbone", "task"]):
        base = _traced(cell[(cell["objective"] == BACKBONE) & (cell["status"] == "finished")])
        where = {"backbone": backbone, "task": task, "base_mean_p": float(cell["base_mean_p"].iloc[0])}
        found.append((where | {f"base_{k}": v for k, v in base.items()}, cell))
    yield from sorted(found, key=lambda f: (math.isnan(f[0]["base_mean_p"]), f[0]["base_mean_p"]))


def _summary(done: pd.DataFrame, yardstick: str) -> dict[str, Any]:
    values = [float(v) for v in done[yardstick].dropna()]
    mean, low, high = interval(values)
    return {"mean": mean, "low": low, "high": high, "n": len(values)}


def _traced(trials: pd.DataFrame) -> dict[str, list[Any]]:
    """The trials behind a number: MLflow run ids and keys, in the same order."""
    return {
        "run_ids": [None if pd.isna(run_id) else str(run_id) for run_id in trials["mlflow_run_id"]],
        "keys": [str(key) for key in trials["key"]],
    }
