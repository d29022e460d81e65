"""What was forecast before training, beside what came of it. Pure, table -> table."""

from __future__ import annotations

from typing import Any

import pandas as pd

from jobs.yardsticks import PRIMARY, YARDSTICKS
from sweeper.continuum import BACKBONE, leaderboard

# what is forecast (jobs.forecast.Forecast) -> the yardstick that it forecasts
FORECASTS = {"answer": PRIMARY, "mean_p": "heldout/mean_p", "nll": "heldout/nll"}
FEWEST = 3  # objectives of a cell: two have no rank correlation worth the name


def rank_correlations(table: pd.DataFrame, forecasts: list[dict[str, Any]]) -> pd.DataFrame:
    """How well objectives were ranked: one row per cell, kind of forecast and assumed noise rate.

    table:     `sweeper.results.results`
    forecasts: rows of backbone, task, objective, noise, nll, mean_p, answer
    Columns: backbone, task, kind, yardstick, noise, correlation (Spearman's, over objectives; mean of ranks for ties;
    NaN where all are equal), objectives, first (forecast best), best (trained best).
    """
    rows = []
    foreseen = pd.DataFrame(forecasts)
    for kind, yardstick in FORECASTS.items():
        board = leaderboard(table, yardstick)
        board = board[(board["objective"] != BACKBONE) & board["mean"].notna()] if len(board) else board
        if board.empty or foreseen.empty:
            continue
        both = foreseen.merge(board[["backbone", "task", "objective", "mean"]], on=["backbone", "task", "objective"])
        both["outcome"] = both["mean"] * (1 if YARDSTICKS[yardstick].higher_is_better else -1)
        for (backbone, task, noise), cell in both.groupby(["backbone", "task", "noise"]):
            if len(cell) < FEWEST:
                continue
            rows.append(
                {
                    "backbone": backbone, "task": task, "kind": kind, "yardstick": yardstick, "noise": noise,
                    "correlation": float(cell[kind].rank().corr(cell["outcome"].rank())), "objectives": len(cell),
                    "first": str(cell["objective"].iloc[int(cell[kind].argmax())]),
                    "best": str(cell["objective"].iloc[int(cell["outcome"].argmax())]),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)
