"""The benchmarks run, on small shapes, and print what they promise. Nothing here asserts a time."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.record import RowWriter
from jobs.yardsticks import PRIMARY
from sweeper.plan import make_plan
from sweeper.recommend import Cell
from sweeper.spec import load_sweep, parse_sweep
from sweeper.store import Store

from .conftest import write_spec

ROOT = Path(__file__).parents[2]
RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE")  # a test that trained in this process leaves them behind


def run(name: str, *args: str) -> Any:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / name), *args, "--json"],
        cwd=ROOT, env={n: v for n, v in os.environ.items() if n not in RANKS},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout[done.stdout.index("\n[" if name == "objective_cost.py" else "{") :])


def test_objective_cost_measures_every_objective_and_its_rivals() -> None:
    (result,) = run("objective_cost.py", "--shape", "96", "128", "500", "--rounds", "1")
    rows = result["rows"]
    assert {"nll", "nll again", "one-minus-p", "asft", "F.cross_entropy", "nll p>=0.2"} <= rows.keys()
    assert all(row["seconds"] > 0 and row["transient_mb"] >= 0 for row in rows.values())
    low, middle, high = result["median_p"]
    assert low < 1e-5
    assert 0.4 < middle < 0.6
    assert high > 1 - 1e-8


def test_train_step_measures_ours_beside_the_trainer() -> None:
    result = run("train_step.py", "--layers", "1", "--batch", "1", "--length", "16", "--steps", "3", "--rounds", "1")
    assert {"ours nll", "ours dft", "Trainer nll"} <= result["rows"].keys()


def jsonl(folder: Path) -> str:
    file = folder / "d.jsonl"
    rows = [{"question": f"{i} and {i}?", "answer": "so " * (1 + 37 * i % 200) + str(2 * i)} for i in range(400)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_tokenise_makes_one_corpus_for_all_trials(tmp_path: Path) -> None:
    result = run("tokenise.py", jsonl(tmp_path), "--trials", "3")
    assert (result["tokenised"], result["trials"]) == (1, 3)


def test_packing_lays_fewer_rows_with_less_padding(tmp_path: Path) -> None:
    size = ("--examples", "128", "--width", "64", "--layers", "1", "--rounds", "1")
    rows = run("packing.py", jsonl(tmp_path), *size)["rows"]
    assert all(row["padding_packed"] < row["padding_padded"] and row["rows"] < 1 for row in rows.values())


def test_generate_says_the_same_with_either_cache() -> None:
    result = run("generate.py", "--prompts", "2", "--samples", "1", "--max-new-tokens", "8", "--rounds", "1")
    assert result["same_texts"]
    assert all(row["ratio"] > 0 for row in result["rows"].values())


def test_leaks_finds_what_was_planted() -> None:
    result = run("leaks.py", "--train", "300", "--measured", "40", "--planted", "7")
    assert result["found"] == result["planted"] == 7


def test_checkpoint_measures_ours_beside_deepspeed(tmp_path: Path) -> None:
    result = run("checkpoint.py", "--layers", "1", "--rounds", "1", "--folder", str(tmp_path))
    assert result["seconds"].keys() == {"deepspeed", "held up", "written"}
    assert not list(tmp_path.iterdir())


def test_together_measures_each_way_at_the_same_work() -> None:
    size = ("--layers", "1", "--vocab", "200", "--batch", "1", "--steps", "3")
    rows = run("together.py", "--trials", "2", *size)["rows"]
    assert [(row["trials"], row["way"]) for row in rows] == [(2, way) for way in ("in turn", "processes", "together")]
    assert all(row["cpu_s_a_step"] > 0 and row["peak_mb"] > 0 for row in rows)


def test_sweep_wall_tells_training_from_the_rest(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    result = run("sweep_wall.py", str(spec), "--prepared", "--set", "grid.backbone.0.pretrain_steps=0")
    assert result["trials"] == 3
    assert result["ratio"] > 1
    assert result["setup_s"] > 0
    parts = sum(result[f"{name}_s"] for name in ("ideal", "before", "setup", "between", "after"))
    assert parts == pytest.approx(result["wall_s"])


def test_plan_time_is_measured_beside_a_python_that_does_nothing() -> None:
    result = run("plan_time.py")
    assert result["plan"]["min_s"] > result["nothing"]["max_s"]


def test_scale_measures_every_part_of_a_sweep_whose_training_is_instant() -> None:
    (result,) = run("scale.py", "--sizes", "20", "--mlflow", "5").values()
    assert result.keys() == {"plan", "save", "record", "resume", "mlflow", "report", "peak_mb"}


def test_early_stopping_compares_policies_on_a_record(tmp_path: Path) -> None:
    """Scores are given: accuracy grows with steps, and the further down the list, the faster."""
    early = importlib.import_module("benchmarks.early_stopping")
    plan = make_plan(parse_sweep(json.dumps(early.grid("first")), "first"), tmp_path)
    store = Store(tmp_path)
    order = list(dict.fromkeys(t.objective_label for t in plan.trials if t.objective is not None))
    for trial in plan.trials:
        store.trial(trial.key).create(trial)
        writer = RowWriter(store.trial(trial.key))
        for step in range(early.EVERY, (trial.train.steps or 0) + 1, early.EVERY) if trial.objective else ():
            value = order.index(trial.objective_label) / len(order) * step / 252 + trial.seed / 1e4
            writer.write({"step": step, early.TOKENS: value, PRIMARY: value})
        store.trial(trial.key).finish("finished", step=trial.train.steps)
    lines = {line["policy"]: line for line in early.compare(plan, store, PRIMARY)}
    assert len(lines) == 3 + 5 + 5
    assert (lines["full"]["share"], lines["full"]["same"], lines["full"]["regret"]) == (1, 3, 0)
    assert set(lines["full"]["winners"].values()) == {order[-1]}
    assert 0.2 < lines["race"]["share"] < lines["race, sure"]["share"] < 1
    assert lines["race"]["same"] == 3
    assert all(lines[f"round-robin {n}"]["share"] <= lines["race"]["share"] for n in range(1, 6))


def test_recommend_judges_advice_on_cells_that_it_has_not_seen() -> None:
    """Gains are given: one objective leads from mean p 0.5 on, and in an unseen task it never does."""
    bench = importlib.import_module("benchmarks.recommend")

    def cell(sweep: str, mean_p: float, gain: float) -> Cell:
        return Cell(sweep, f"b-{mean_p}", sweep, mean_p, {"one-minus-p": gain})

    known = [cell("atlas", p, p - 0.5) for p in (0.1, 0.2, 0.3, 0.45, 0.55, 0.7, 0.8, 0.9)]
    as_told = bench.row(bench.judge(known, [cell("between", p, p - 0.5) for p in (0.15, 0.25, 0.75, 0.85)]))
    assert (as_told["cells"], as_told["best"], as_told["lost"]["advice"]) == (4, 4, 0)
    assert as_told["lost"]["nll"] == pytest.approx((0.25 + 0.35) / 4)
    assert as_told["held"] == as_told["intervals"] == 4
    otherwise = bench.row(bench.judge(known, [cell("task", p, -0.2) for p in (0.15, 0.75, 0.85)]))
    assert otherwise["lost"]["advice"] == pytest.approx(0.2 * 2 / 3)
    assert otherwise["sure"] == 2
    assert otherwise["ahead"] == 0

    atlas = {trial.key for trial in make_plan(load_sweep(bench.ATLAS), ROOT).trials}
    like = yaml.safe_load(bench.ATLAS.read_text())
    for name, grids in bench.GROUPS.items():  # what it trains is not in the atlas
        plan = make_plan(parse_sweep(json.dumps(bench.unseen(name, grids, like)), name), ROOT)
        assert not atlas & {trial.key for trial in plan.trials if trial.objective is not None}


def test_startup_measures_every_way_to_start_a_trial() -> None:
    result = run("startup.py", "--trials", "2", "--more", "2", "--others", "1")
    ways = {"lanes", "a trial more", "no lanes", "tune + train", "plain", "torchrun", "deepspeed"}
    assert result.keys() == ways
    assert all(result[way]["cpu_s"] > 0 for way in ways - {"a trial more"})
