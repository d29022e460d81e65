"""The report on disk: complete, offline, escaped, and every number traced to its runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from jobs.spec import ObjectiveSpec
from jobs.yardsticks import CAPABILITY, YARDSTICKS
from sweeper.figures import colours
from sweeper.report import answer, objectives_of, write_report
from sweeper.results import CUTS

Accuracy = dict[tuple[str, str], list[float | None]]
FORMS: dict[str, tuple[str, float | None, str | None, float | None]] = {
    "backbone": ("backbone", None, None, None),
    "nll": ("nll", None, None, None),
    "one-minus-p": ("one-minus-p", None, None, None),
    "power a=0.5": ("power", 0.5, None, None),
    "nll p>=0.1": ("nll", None, "top", 0.1),
}
ROOT = Path(__file__).parents[2]
FILES = {"report.html", "continuum.png", "alpha.png", "weights.png", "trials.csv", "leaderboard.csv", "report.json"}
ERROR = "first line\n" * 40 + "RuntimeError: <b>loss & grad</b> are wrong"


def spec_json(name: str, alpha: float | None, side: str | None, at: float | None) -> str | None:
    if name == "backbone":
        return None
    gate = {"side": side, "at": at} if side else None
    return ObjectiveSpec.model_validate({"name": name, "alpha": alpha, "gate": gate}).model_dump_json()


CORPUS = {
    "version": 2, "digest": "d1", "task": "t", "noisy": 2, "runs": 1,
    "problems": {"sums": {"examples": 12, "longest_prompt": 9, "sha256": "0a0b0c0d0e0f"}},
    "train": {"examples": 900, "tokens": 9000, "targets": 4000, "longest": 80, "sha256": "aaaabbbbcccc"},
    "heldout": {"examples": 40, "tokens": 400, "targets": 160, "longest": 70, "sha256": "ddddeeeeffff"},
    "leaks": {"measured": 40, "exact": 1, "ngram": 4, "pairs": [[7, 0]]},
    "invalid": {"rows": 7, "reasons": ["d.jsonl:3: no text"]},
}  # fmt: skip


def make_table(accuracy: Accuracy, run_ids: bool = True) -> pd.DataFrame:
    """(backbone, objective) -> accuracy by seed, None: failed. Backbone 'weak' has mean p 0.1, 'strong' 0.8."""
    rows: list[dict[str, Any]] = []
    for (backbone, objective), values in accuracy.items():
        name, alpha, side, at = FORMS[objective]
        for seed, value in enumerate(values):
            key = f"{backbone}_{objective}_{seed}"
            rows.append(
                {
                    "key": key, "backbone": backbone, "task": "<sums>", "objective": objective, "name": name,
                    "alpha": alpha, "gate_side": side, "gate_at": at, "seed": seed,
                    "objective_spec": spec_json(name, alpha, side, at),
                    "status": "failed" if value is None else "finished", "stopped_by": None,
                    "error": "RuntimeError: <b>loss & grad</b> are wrong" if value is None else None,
                    "failure_kind": "error" if value is None else None, "traceback": ERROR if value is None else None,
                    "steps": 10, "train_s": 1.0, "mlflow_run_id": f"0123456789abcdef-{key}" if run_ids else None,
                    "train_cut": 3.0, "train_dropped": 0.0, "heldout_cut": 0.0, "heldout_dropped": 5.0,
                    "corpus": json.dumps(CORPUS),
                    CAPABILITY: 0.5, "base_mean_p": {"weak": 0.1, "strong": 0.8}.get(backbone),
                    **dict.fromkeys(YARDSTICKS, value), **{f"base/{y}": 0.0 for y in YARDSTICKS},
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return make_table(
        {
            ("weak", "backbone"): [0.01], ("weak", "nll"): [0.80, 0.82, 0.84],
            ("weak", "one-minus-p"): [0.10, 0.11, 0.12], ("weak", "power a=0.5"): [0.40, 0.42, None],
            ("strong", "backbone"): [0.30], ("strong", "nll"): [0.20, 0.22, 0.21],
            ("strong", "one-minus-p"): [0.95, 0.96, 0.94], ("strong", "nll p>=0.1"): [0.2, 0.3, 0.25],
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def paths(table: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_report(table, tmp_path_factory.mktemp("report"), "my <sweep>", {"spec": "a & b.yaml"})


def test_all_files_are_written_and_returned(paths: dict[str, Path]) -> None:
    assert set(paths) == FILES
    for name, path in paths.items():
        assert path.name == name
        assert path.stat().st_size > 0
    assert all(paths[n].read_bytes().startswith(b"\x89PNG") for n in FILES if n.endswith(".png"))


def test_html_opens_offline(paths: dict[str, Path]) -> None:
    html = paths["report.html"].read_text()
    links = re.findall(r'(?:src|href)\s*=\s*"([^"]*)"', html)
    assert len([link for link in links if link.startswith("data:image/png;base64,")]) == 3
    assert all(link.startswith(("data:", "#")) for link in links)
    assert "url(" not in html
    assert "@import" not in html


def test_only_given_mlflow_links_leave_the_file(table: pd.DataFrame, tmp_path: Path) -> None:
    written = write_report(table, tmp_path, "s", {}, lambda run_id: f"http://127.0.0.1:5000/#/runs/{run_id}")
    links = re.findall(r'(?:src|href)="(http[^"]*)"', written["report.html"].read_text())
    assert links
    assert all(link.startswith("http://127.0.0.1:5000/#/runs/0123456789abcdef-") for link in links)


def test_failed_trials_are_visible_with_all_of_their_error_escaped(paths: dict[str, Path]) -> None:
    html = paths["report.html"].read_text()
    assert "Not in the numbers: 1 of 20 trials." in html
    assert html.count("RuntimeError: &lt;b&gt;loss &amp; grad&lt;/b&gt; are wrong") == 2
    assert html.count("first line") == 40
    assert "first line" not in paths["trials.csv"].read_text()
    assert "<b>loss" not in html


def test_everything_from_outside_is_escaped(paths: dict[str, Path]) -> None:
    html = paths["report.html"].read_text()
    assert "my &lt;sweep&gt;" in html
    assert "&lt;sums&gt;" in html
    assert "a &amp; b.yaml" in html
    assert "<sums>" not in html


def test_the_data_are_named_with_hashes_cuts_and_leaks(paths: dict[str, Path]) -> None:
    html = paths["report.html"].read_text()
    assert "900 (4000 target tokens; 2 with a wrong response)" in html
    assert (
        'training <span class="behind">3 cut, 0 dropped</span>; held-out <span class="behind">0 cut, 5 dropped' in html
    )
    assert 'title="d.jsonl:3: no text">7 invalid rows left out</span>' in html
    assert "1 questions, 4 with a run of 13 words, of 40" in html
    assert 'title="aaaabbbbcccc"' in html
    assert 'sums <span title="0a0b0c0d0e0f">0a0b0c0d</span>' in html
    (row,) = json.loads(paths["report.json"].read_text())["data"]
    assert row["task"] == "t"
    assert [row[name] for name in CUTS] == [3, 0, 0, 5]


def test_what_no_trial_has_cut_is_said_of_each_kind(table: pd.DataFrame, tmp_path: Path) -> None:
    whole = table.assign(**dict.fromkeys(CUTS[:2], 0.0), **dict.fromkeys(CUTS[2:], float("nan")))  # of an old record
    assert "<td>training none; held-out none; " in write_report(whole, tmp_path, "s", {})["report.html"].read_text()


def test_leaks_of_an_earlier_count_are_not_shown(table: pd.DataFrame, tmp_path: Path) -> None:
    old = {name: value for name, value in CORPUS.items() if name not in ("version", "problems")}
    written = write_report(table.assign(corpus=json.dumps(old)), tmp_path, "s", {}, str)
    html = written["report.html"].read_text()
    assert "counted by an older rule, not shown" in html
    assert "with a run of 13 words, of 40" not in html


def test_every_cell_says_beside_which_regime_it_lies(paths: dict[str, Path]) -> None:
    html = paths["report.html"].read_text()
    assert "0.100, weak" in html
    assert "0.800, strong" in html


def test_every_leaderboard_row_shows_its_runs(paths: dict[str, Path]) -> None:
    html = paths["report.html"].read_text()
    assert html.count(">01234567</span>") == 19  # all finished trials
    assert 'title="0123456789abcdef-strong_one-minus-p_2"' in html


def test_keys_stand_in_where_mlflow_has_no_run(tmp_path: Path) -> None:
    table = make_table({("weak", "nll"): [0.5], ("weak", "one-minus-p"): [0.6]}, run_ids=False)
    written = write_report(table, tmp_path, "s", {}, lambda run_id: f"http://x/{run_id}")
    assert ">weak_one-minus-p_0</span>" in written["report.html"].read_text()
    assert json.loads(written["report.json"].read_text())["leaderboard"][0]["run_ids"] == [None]


def test_json_traces_each_number_to_runs(paths: dict[str, Path]) -> None:
    numbers = json.loads(paths["report.json"].read_text())
    for row in numbers["leaderboard"] + numbers["alpha"]:
        prefix = f"0123456789abcdef-{row['backbone']}_{row['objective']}_"
        assert row["run_ids"] == [f"{prefix}{seed}" for seed in range(row["n"])]
    (gain,) = [g for g in numbers["gains"] if (g["backbone"], g["objective"]) == ("weak", "power a=0.5")]
    assert gain["keys"] == ["weak_nll_0", "weak_nll_1", "weak_power a=0.5_0", "weak_power a=0.5_1"]
    assert gain["base_keys"] == ["weak_backbone_0"]
    assert numbers["trials"]["failed"] == 1


def test_json_has_null_where_there_is_no_interval(paths: dict[str, Path]) -> None:
    rows = json.loads(paths["report.json"].read_text())["leaderboard"]
    assert {(r["low"], r["rank"]) for r in rows if r["objective"] == "backbone"} == {(None, None)}


def test_answer_advises_from_weak_to_strong_in_plain_words(paths: dict[str, Path]) -> None:
    numbers = json.loads(paths["report.json"].read_text())
    (item,) = answer(numbers["verdicts"], numbers["gains"])
    assert item["text"] == (
        "At mean p 0.10 (weak): keep NLL, nothing is certain to be ahead of it; behind it: power a=0.5, one-minus-p. "
        "At mean p 0.80 (strong): use one-minus-p, ahead of NLL by 0.74."
    )


def test_answer_does_not_advise_on_one_seed_and_sets_unmeasured_backbones_apart(tmp_path: Path) -> None:
    accuracy: Accuracy = {
        ("strong", "nll"): [0.2], ("strong", "one-minus-p"): [0.9],
        ("new", "nll"): [0.3], ("new", "one-minus-p"): [0.8],
    }  # fmt: skip
    written = write_report(make_table(accuracy), tmp_path, "s", {})
    (item,) = json.loads(written["report.json"].read_text())["answers"]
    advice = "one-minus-p is highest, but one seed decides nothing: add seeds."
    assert item["text"] == f"At mean p 0.80 (strong): {advice} At unknown mean p (new): {advice}"


@pytest.mark.parametrize(
    "accuracy",
    [
        {("weak", "nll"): [None]},
        {("new", "nll"): [0.1, 0.2], ("new", "one-minus-p"): [0.3, 0.4]},
        {("weak", "backbone"): [0.1]},
        {("weak", "one-minus-p"): [0.5]},
        {("weak", "nll"): [1.0, 1.0], ("weak", "one-minus-p"): [1.0, 1.0]},
    ],
    ids=["nothing finished", "mean p unknown", "only the backbone", "no NLL", "no spread"],
)
def test_a_report_of_little_is_still_a_report(accuracy: Accuracy, tmp_path: Path) -> None:
    assert set(write_report(make_table(accuracy), tmp_path, "s", {})) == FILES


def test_what_to_take_for_the_next_backbone_stands_along_the_continuum(table: pd.DataFrame, tmp_path: Path) -> None:
    paths = write_report(table, tmp_path, "next", {})
    rows = {row["mean_p"]: row for row in json.loads(paths["report.json"].read_text())["next"]}
    assert (rows[0.1]["take"], rows[0.8]["take"]) == ("nll", "one-minus-p")
    assert rows[0.8]["gain"] == pytest.approx(0.74, abs=1e-3)
    assert rows[0.8]["low"] is None  # one cell near has no interval
    assert 0.3 not in rows or rows[0.3]["near"] < 2  # between the two hardly anything was measured
    page = paths["report.html"].read_text()
    assert "For the next backbone" in page
    assert "with nll everywhere 0.370, one-minus-p everywhere" in page
    one = table[table["backbone"] == "weak"]
    assert "For the next backbone" not in write_report(one, tmp_path, "one", {})["report.html"].read_text()


def test_objectives_are_read_back_from_the_table(table: pd.DataFrame) -> None:
    assert list(objectives_of(table)) == ["nll", "nll p>=0.1", "one-minus-p", "power a=0.5"]


def test_a_report_is_written_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.unit.test_report import make_table, write_report;"
        "table = make_table({('weak', name): [0.1, 0.2] for name in ('backbone', 'nll', 'nll p>=0.1', 'power a=0.5')});"
        f"write_report(table, Path({str(tmp_path)!r}), 'lean', {{}}); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert {file.name for file in tmp_path.iterdir()} == FILES


def test_an_objective_keeps_its_colour_in_every_figure() -> None:
    assert colours(["power a=0.5", "one-minus-p"]) == colours(["nll", "one-minus-p", "power a=0.5"])
    assert len(set(colours(FORMS).values())) == len(FORMS)


def test_a_gate_at_a_quantile_keeps_its_label_and_stands_where_it_was_measured(tmp_path: Path) -> None:
    table = make_table({("weak", "backbone"): [0.1], ("weak", "nll"): [0.2], ("weak", "nll p>=0.1"): [0.3]})
    spec = ObjectiveSpec(name="nll", gate={"side": "top", "quantile": 0.3})
    gated = table["objective"] == "nll p>=0.1"
    table.loc[gated, ["objective", "objective_spec", "gate_at"]] = [spec.label, spec.model_dump_json(), 0.73]
    found = objectives_of(table)[spec.label]
    assert found.gate is not None
    assert found.gate.at == 0.73
    page = write_report(table, tmp_path, "quantile", {}, None)["report.html"].read_text()
    assert "nll p&gt;=Q0.3" in page
    assert "tokens with p ≥ 0.73" in page


def test_what_was_forecast_stands_beside_what_came_of_it(table: pd.DataFrame, tmp_path: Path) -> None:
    said = [
        {
            "backbone": "weak",
            "task": "<sums>",
            "objective": name,
            "noise": noise,
            "answer": value,
            "mean_p": 0,
            "nll": 0,
        }
        for noise in (0.0, 0.3)
        for name, value in (("nll", 3.0), ("one-minus-p", 1.0), ("power a=0.5", 2.0))
    ]
    written = write_report(table, tmp_path, "s", {}, forecasts=said)
    rows = json.loads(written["report.json"].read_text())["forecasts"]
    answers = [row for row in rows if row["kind"] == "answer"]
    assert [(row["noise"], row["correlation"], row["first"], row["best"]) for row in answers] == [
        (0.0, pytest.approx(1.0), "nll", "nll"), (0.3, pytest.approx(1.0), "nll", "nll")
    ]  # fmt: skip
    html = written["report.html"].read_text()
    assert "What was forecast before training" in html
    assert "30 % assumed wrong" in html
    assert "all forecasts are equal" in html  # of mean p and -log p
    assert "What was forecast" not in write_report(table, tmp_path, "s", {})["report.html"].read_text()


def test_answers_that_hardly_end_are_said_beside_the_score(table: pd.DataFrame, tmp_path: Path) -> None:
    ended = {"sentence": "an answer ends with <end>", "notes": ["3 responses end so already"]}
    rate = {("weak", "backbone"): 0.97, ("weak", "nll"): 0.2, ("strong", "one-minus-p"): 0.6, ("strong", "nll"): 0.5}
    shares = [rate.get((row["backbone"], row["objective"])) for row in table.to_dict("records")]
    told = table.assign(**{"task/truncated_rate": shares, "corpus": json.dumps(CORPUS | {"answers": ended})})
    written = write_report(told, tmp_path, "s", {})
    html = written["report.html"].read_text()
    said = re.findall(r"Answers that hardly end by themselves within max_new_tokens: ([^.]*)\.", html)
    assert said == ["the backbone before SFT (97%)", "one-minus-p (60%)"]
    assert "an answer ends with &lt;end&gt;" in html
    assert "3 responses end so already" in html
    endless = json.loads(written["report.json"].read_text())["endless"]
    assert [(row["backbone"], row["objective"]) for row in endless] == [("weak", "backbone"), ("strong", "one-minus-p")]


def test_older_records_say_nothing_of_ends(paths: dict[str, Path]) -> None:
    html = paths["report.html"].read_text()
    assert "hardly end" not in html
    assert "<td>not recorded</td>" in html
