"""The numbers of the report, against values worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest

from jobs.yardsticks import CAPABILITY, PRIMARY, YARDSTICKS
from sweeper.continuum import alpha_curve, gains, interval, leaderboard, verdicts

T_2 = 4.302652729911275  # Student's t, 97.5 %, 2 degrees of freedom (any printed table: 4.303)

FORMS = {
    "backbone": ("backbone", None, None, None),
    "nll": ("nll", None, None, None),
    "one-minus-p": ("one-minus-p", None, None, None),
    "power a=0.5": ("power", 0.5, None, None),
    "nll p>=0.1": ("nll", None, "top", 0.1),
}


def make_table(scores: dict[str, list[float | None]], backbone: str = "b", base: float | None = 0.5) -> pd.DataFrame:
    """One cell: objective -> its accuracy by seed (None: failed); base is mean p, None: backbone not measured."""
    measured: dict[str, list[float | None]] = {} if base is None else {"backbone": [0.0]}
    rows: list[dict[str, Any]] = []
    for objective, values in (measured | scores).items():
        name, alpha, side, at = FORMS[objective]
        for seed, value in enumerate(values):
            rows.append(
                {
                    "key": f"{backbone}_{objective}_{seed}", "backbone": backbone, "task": "t", "objective": objective,
                    "name": name, "alpha": alpha, "gate_side": side, "gate_at": at, "seed": seed,
                    "status": "failed" if value is None else "finished",
                    "error": "boom <script>" if value is None else None, "steps": 10, "train_s": 1.0,
                    "stopped_by": None,
                    "mlflow_run_id": f"run-{backbone}-{objective}-{seed}", CAPABILITY: 0.5, "base_mean_p": base,
                    **dict.fromkeys(YARDSTICKS, value), **{f"base/{y}": 0.0 for y in YARDSTICKS},
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def line(frame: pd.DataFrame, objective: str) -> dict[str, Any]:
    (row,) = frame[frame["objective"] == objective].to_dict("records")
    return {str(k): v for k, v in row.items()}


def test_interval_of_three_numbers_is_students_t() -> None:
    # 0.1, 0.2, 0.3: mean 0.2, standard deviation 0.1, standard error 0.1 / sqrt(3)
    half = T_2 * 0.1 / math.sqrt(3)
    assert interval([0.1, 0.2, 0.3]) == pytest.approx((0.2, 0.2 - half, 0.2 + half))


def test_gain_is_paired_by_seed_so_it_is_tighter_than_the_difference_of_means() -> None:
    # Both objectives move by 0.2 between seeds; their differences are 0.10, 0.11, 0.12.
    row = line(gains(make_table({"nll": [0.2, 0.4, 0.6], "one-minus-p": [0.30, 0.51, 0.72]})), "one-minus-p")
    half = T_2 * 0.01 / math.sqrt(3)
    assert (row["gain"], row["low"], row["high"]) == pytest.approx((0.11, 0.11 - half, 0.11 + half))
    assert row["outcome"] == "ahead of NLL"
    own = interval([0.30, 0.51, 0.72])
    assert own[2] - own[1] > 10 * (row["high"] - row["low"])


def test_gain_uses_only_seeds_that_both_have_finished() -> None:
    row = line(gains(make_table({"nll": [0.2, None, 0.4], "one-minus-p": [None, 0.9, 0.5]})), "one-minus-p")
    assert (row["gain"], row["n"]) == (pytest.approx(0.1), 1)
    assert row["run_ids"] == ["run-b-nll-2", "run-b-one-minus-p-2"]


def test_gain_is_positive_when_a_yardstick_that_is_better_low_falls() -> None:
    table = make_table({"nll": [0.5, 0.5], "one-minus-p": [0.3, 0.3]})
    assert line(gains(table, "heldout/nll"), "one-minus-p")["gain"] == pytest.approx(0.2)
    assert line(leaderboard(table, "heldout/nll"), "one-minus-p")["rank"] == 1


def test_one_seed_has_a_mean_but_no_interval_and_no_verdict() -> None:
    table = make_table({"nll": [0.2], "one-minus-p": [0.9]})
    row = line(leaderboard(table), "one-minus-p")
    assert (row["mean"], row["n"]) == (0.9, 1)
    assert math.isnan(row["low"])
    assert math.isnan(row["high"])
    (verdict,) = verdicts(table).to_dict("records")
    assert verdict["outcomes"] == {"one-minus-p": "not separated"}
    assert not verdict["certain"]
    assert verdict["sentence"] == "one-minus-p leads: 0.90 (n=1), NLL 0.20 (n=1); the lead over NLL is not certain."


def test_a_cell_without_nll_has_means_but_no_gain() -> None:
    table = make_table({"one-minus-p": [0.8, 0.9]})
    row = line(gains(table), "one-minus-p")
    assert math.isnan(row["gain"])
    assert row["outcome"] == "no comparison"
    (verdict,) = verdicts(table).to_dict("records")
    assert verdict["leader"] == "one-minus-p"
    assert verdict["sentence"].endswith("no NLL trial has finished to compare with.")


def test_failed_trials_are_counted_and_stand_in_no_mean() -> None:
    row = line(leaderboard(make_table({"nll": [0.2, 0.4, None]})), "nll")
    assert (row["mean"], row["n"], row["num_finished"], row["num_failed"]) == (pytest.approx(0.3), 2, 2, 1)
    assert row["run_ids"] == ["run-b-nll-0", "run-b-nll-1"]


def test_a_cell_where_nothing_finished_says_so() -> None:
    table = make_table({"nll": [None], "one-minus-p": [None]}, base=None)
    assert leaderboard(table)["rank"].isna().all()
    (verdict,) = verdicts(table).to_dict("records")
    assert (verdict["leader"], verdict["sentence"]) == (None, "No trial has finished.")
    assert alpha_curve(table).empty


def test_leaderboard_ranks_best_first_and_puts_the_unranked_backbone_last() -> None:
    board = leaderboard(make_table({"nll": [0.2, 0.2], "one-minus-p": [0.9, 0.9], "power a=0.5": [0.2, 0.2]}))
    assert list(board["objective"]) == ["one-minus-p", "nll", "power a=0.5", "backbone"]
    assert list(board["rank"][:3]) == [1, 2, 2]
    assert pd.isna(board["rank"].iloc[3])


def test_cells_go_from_weak_to_strong_and_unmeasured_backbones_come_last() -> None:
    cells = [("unknown", None), ("strong", 0.8), ("weak", 0.1)]
    table = pd.concat([make_table({"nll": [0.2], "one-minus-p": [0.3]}, name, p) for name, p in cells])
    assert list(gains(table)["backbone"]) == ["weak", "strong", "unknown"]
    assert math.isnan(gains(table)["base_mean_p"].iloc[2])


def test_nll_leads_with_certainty_only_when_every_other_is_behind() -> None:
    clear: dict[str, list[float | None]] = {"nll": [0.80, 0.82, 0.84], "one-minus-p": [0.10, 0.11, 0.12]}
    (verdict,) = verdicts(make_table(clear)).to_dict("records")
    assert (verdict["leader"], verdict["certain"]) == ("nll", True)
    (verdict,) = verdicts(make_table(clear | {"nll p>=0.1": [0.70, 0.92, 0.80]})).to_dict("records")
    assert (verdict["leader"], verdict["certain"]) == ("nll", False)
    assert verdict["outcomes"] == {"nll p>=0.1": "not separated", "one-minus-p": "behind NLL"}
    assert verdict["sentence"].endswith("not separated from nll p>=0.1.")


def test_alpha_runs_from_nll_to_one_minus_p_without_gated_objectives() -> None:
    curve = alpha_curve(make_table({"one-minus-p": [0.9], "nll p>=0.1": [0.5], "power a=0.5": [0.7], "nll": [0.2]}))
    assert list(zip(curve["alpha"], curve["mean"], strict=True)) == [(0.0, 0.2), (0.5, 0.7), (1.0, 0.9)]


def test_a_finished_trial_without_a_value_is_no_seed() -> None:
    table = make_table({"nll": [0.2, 0.4], "one-minus-p": [0.3, 0.6]})
    table.loc[table["key"] == "b_one-minus-p_1", PRIMARY] = math.nan
    row = line(leaderboard(table), "one-minus-p")
    assert (row["mean"], row["n"], row["num_finished"], row["gain_n"]) == (pytest.approx(0.3), 1, 2, 1)


def test_what_diverged_counts_with_the_worst_value_and_is_behind_what_is_as_bad() -> None:
    table = make_table({"one-minus-p": [0.0, 0.0], "nll": [0.0, 0.0], "power a=0.5": [0.4, 0.0]})
    gone = ((table["objective"] == "one-minus-p") | (table["objective"] == "power a=0.5")) & (table["seed"] == 1)
    table.loc[gone, "status"] = "diverged"
    board = leaderboard(table)
    ranks = {row["objective"]: row["rank"] for row in board.to_dict("records") if row["objective"] != "backbone"}
    assert ranks == {"power a=0.5": 1, "nll": 2, "one-minus-p": 3}
    power = line(board, "power a=0.5")
    assert (power["mean"], power["n"], power["num_finished"], power["num_diverged"]) == (pytest.approx(0.2), 2, 1, 1)
    (verdict,) = verdicts(table[table["objective"] != "power a=0.5"]).to_dict("records")
    assert verdict["leader"] == "nll"
