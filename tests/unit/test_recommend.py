"""Recommendation: what is expected near a mean p, how sure, and what the record says of advice like it."""

import json
import math
from pathlib import Path

import pytest

from jobs.record import RowWriter
from jobs.yardsticks import CAPABILITY, PRIMARY
from sweeper.cli import main
from sweeper.commands_recommend import facts_of, sentence
from sweeper.continuum import NLL
from sweeper.figures import recommend_figure
from sweeper.plan import make_plan
from sweeper.recommend import USUAL, Cell, advise, best_smoother, cells_of, check, distinct, log_odds, regrets
from sweeper.spec import load_sweep, parse_sweep
from sweeper.store import Store


def cell(mean_p: float, task: str = "t", sweep: str = "s", **gains: float) -> Cell:
    return Cell(sweep, f"b{mean_p}", task, mean_p, gains, (f"{sweep}-{task}-{mean_p}",))


# leaning wins where p is high and loses where it is low
CONTINUUM = [
    cell(p, lean=0.25 * log_odds(p), half=0.1 * log_odds(p)) for p in (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95)
]


def test_strong_backbones_are_advised_to_lean_on_the_prior_and_weak_ones_nll() -> None:
    strong, weak = advise(CONTINUUM, 0.9), advise(CONTINUUM, 0.08)
    assert (strong.take, strong.sure) == ("lean", True)
    assert (weak.take, weak.sure) == (NLL, True)
    assert strong.contenders() == ["lean", "half"]
    assert weak.contenders() == []


def test_where_near_cells_disagree_the_advice_is_not_sure() -> None:
    middle = advise([cell(0.45, lean=-0.3), cell(0.5, lean=0.3), cell(0.52, lean=-0.2), cell(0.55, lean=0.35)], 0.5)
    (lean,) = [one for one in middle.expected if one.objective == "lean"]
    assert lean.low < 0 < lean.high
    assert not middle.sure
    assert middle.contenders() == ["lean"]


def test_the_interval_is_made_of_how_far_each_cell_was_from_what_the_others_foretold() -> None:
    """At one place all weights are 1: errors -0.075, 0, 0.075, of two degrees of freedom."""
    advice = advise([Cell("s", f"b{i}", "t", 0.5, {"lean": v}) for i, v in enumerate((0.1, 0.15, 0.2))], 0.5)
    lean = advice.expected[0]
    assert lean.gain == pytest.approx(0.15)
    half = 4.302653 * math.sqrt(2 * 0.075**2 / 3)
    assert (lean.high - lean.gain, lean.gain - lean.low) == pytest.approx((half, half), rel=1e-6)
    assert lean.cells == pytest.approx(3)
    assert lean.won == pytest.approx(1)


def test_of_two_that_look_alike_the_one_is_taken_of_which_more_is_known() -> None:
    pairs = [(0.30, 0.00), (0.28, 0.62), (0.31, 0.05), (0.29, 0.55)]
    cells = [Cell("s", f"b{i}", "t", 0.8, {"steady": a, "wild": b}) for i, (a, b) in enumerate(pairs)]
    first, second = advise(cells, 0.8).expected[:2]
    assert (first.objective, second.objective) == ("steady", "wild")
    assert second.gain > first.gain


def test_one_cell_gives_advice_without_an_interval_and_none_gives_none() -> None:
    alone = advise([cell(0.8, lean=0.5)], 0.8)
    assert alone.take == "lean"
    assert math.isnan(alone.expected[0].low)
    assert not alone.sure
    for nothing in (advise([], 0.8), advise([cell(0.01, lean=0.5)], 0.8)):
        assert nothing.take is None
        assert not nothing.sure
        assert nothing.near == ()


def test_enough_cells_of_the_same_task_are_asked_alone() -> None:
    cells = [*CONTINUUM, *(cell(p, task="other", lean=-1.0) for p in (0.85, 0.88, 0.9))]
    assert advise(cells, 0.9, "other").take == NLL
    assert advise(cells, 0.9, "other").same_task
    assert not advise(cells[:-1], 0.9, "other").same_task


def test_each_cell_is_foretold_without_itself_even_where_another_sweep_has_it_too() -> None:
    twice = [*CONTINUUM, cell(0.9, sweep="again", lean=0.55, half=1.0)]
    foretold = {(one.cell.sweep, one.cell.mean_p): one for one in check(twice)}
    assert foretold["s", 0.9].take == foretold["again", 0.9].take == "lean"  # what is 1.0 there has told neither
    checks = check(CONTINUUM)
    lost = regrets(checks)
    assert lost["advice"] < min(lost[NLL], lost["lean"], lost["half"])
    assert lost[NLL] == pytest.approx(sum(max(0, c.gains["lean"]) for c in CONTINUUM) / 8)
    assert all(one.held <= one.intervals for one in checks)


def test_the_smoother_is_the_one_that_foretells_best() -> None:
    steep = [cell(p, lean=math.copysign(1, p - 0.5)) for p in (0.3, 0.35, 0.4, 0.45, 0.55, 0.6, 0.65, 0.7)]
    flat = [cell(p, lean=0.3 + 0.1 * (-1) ** i) for i, p in enumerate((0.1, 0.3, 0.5, 0.7, 0.9))]
    assert best_smoother(steep).bandwidth < best_smoother(flat).bandwidth
    assert best_smoother(CONTINUUM).line  # the gains lie on one
    assert not best_smoother(flat).line
    assert best_smoother(CONTINUUM[:4]) == USUAL  # too few to choose by


def test_cells_come_from_gains_and_shared_ones_count_once() -> None:
    row = {"backbone": "b", "task": "t", "base_mean_p": 0.5, "objective": "lean", "gain": 0.1, "keys": ["k1", "k2"]}
    rows = [row, row | {"objective": "half", "gain": math.nan}, row | {"backbone": "c", "base_mean_p": math.nan}]
    (found,) = cells_of(rows, "s")
    assert (found.sweep, found.backbone, found.task, found.mean_p) == ("s", "b", "t", 0.5)
    assert (found.gains, found.keys) == ({"lean": 0.1}, ("k1", "k2"))
    more = Cell("more", "b", "t", 0.5, {"lean": 0.1, "half": 0.0}, ("k1", "k2", "k3"))
    assert distinct([found, more]) == [more]


SWEEP = {
    "name": "measured",
    "grid": {
        "backbone": [{"builtin": "char-llama", "pretrain_steps": [100, 200, 400, 800]}],
        "task": [{"builtin": "addition", "noise": 0.3}],
        "objective": ["nll", "one-minus-p", {"name": "power", "alpha": 0.5},
                      {"name": "nll", "gate": {"side": "top", "at": 0.2}}],
        "seed": [1, 2],
    },
    "train": {"lr": 2e-3, "steps": 30, "batch_size": 32, "max_length": 32},
}  # fmt: skip


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """A sweep on record: mean p 0.7 to 0.85, where 1 - p is ahead by 0.3 or so and the gate by 0.1."""
    plan = make_plan(parse_sweep(json.dumps(SWEEP), "measured"), tmp_path)
    store = Store(tmp_path / "storage")
    store.save_plan("measured", plan.spec.text, plan.trials, {"source": "measured"})
    for trial in plan.trials:
        store.trial(trial.key).create(trial)
        place = [100, 200, 400, 800].index(trial.backbone.pretrain_steps or 0)
        gain = {"one-minus-p": 0.3 + 0.02 * place, "power a=0.5": -0.2, "nll p>=0.2": 0.1}.get(trial.objective_label, 0)
        row = {"step": trial.train.steps or 0, PRIMARY: 0.5 + gain + 0.001 * trial.seed}
        row |= {CAPABILITY: 0.7 + 0.05 * place} if trial.objective is None else {}
        RowWriter(store.trial(trial.key)).write(row)
        store.trial(trial.key).finish("finished", train_s=1.0, step=30)
    return store.root


def test_the_command_says_what_to_take_and_draws_it(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend", "--mean-p", "0.78", "--storage", str(storage)]) == 0
    said = capsys.readouterr().out
    assert "a backbone: mean p 0.780, strong" in said
    assert "evidence   4 of 4 measured cells are near, of any task: mean p 0.700 to 0.850" in said
    assert "Take one-minus-p: one more cell like these would put it ahead of NLL, for sure (95 %)." in said
    assert "Checked on the record, each of 4 cells foretold from the others: the best one advised in 4" in said
    assert (storage / "recommend.png").stat().st_size > 10_000
    assert main(["recommend", "measured", "--mean-p", "0.78", "--json", "--storage", str(storage)]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["take"], facts["sure"], facts["contenders"]) == ("one-minus-p", True, ["one-minus-p", "nll p>=0.2"])
    assert len(facts["evidence"]["near"][0]["keys"]) == 8  # every number can be traced to trials
    assert facts["check"]["mean_loss"]["advice"] == 0


def test_nothing_near_is_said_with_the_nearest_and_the_paper(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend", "--mean-p", "0.02", "--storage", str(storage)]) == 0
    said = capsys.readouterr().out
    assert "nothing was measured near it: the nearest is char-llama-100 on addition-noise0.3, mean p 0.700" in said
    assert "the paper, for weak backbones: NLL is ahead" in said
    assert main(["recommend", "--mean-p", "0.5", "--storage", str(storage / "none")]) == 0
    assert "the storage has no finished sweep with NLL in it" in capsys.readouterr().out


def test_what_looks_ahead_of_nll_and_is_hardly_known_is_not_taken() -> None:
    cells = [Cell("s", f"b{i}", "t", 0.5, {"wild": v}) for i, v in enumerate((0.9, -0.7, 0.5, -0.6))]
    facts = facts_of(advise(cells, 0.5), cells, check(cells), "b on t")
    assert facts["take"] == NLL
    assert sentence(facts) == ("Take nll: of wild, which looks ahead of it, too little is known; measure wild.")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "give --backbone and --task, or --mean-p, one of the two"),
        (("--mean-p", "0.5", "--backbone", "char-llama-60", "--task", "addition"), "one of the two"),
        (("--backbone", "char-llama-60"), "--task: is missing"),
        (("--mean-p", "1.5"), "--mean-p: between 0 and 1, got 1.5"),
        (("--mean-p", "0.5", "--sweep", "next.yaml"), "--sweep: needs --backbone and --task"),
        (("--mean-p", "0.5", "no-such-sweep"), "no sweep 'no-such-sweep'"),
    ],
)
def test_wrong_options_say_what_instead(
    options: tuple[str, ...], words: str, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recommend", *options, "--storage", str(storage)]) == 2
    assert words in capsys.readouterr().err


def test_the_next_sweep_measures_nll_and_what_may_be_ahead_of_it(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sweeper.commands_recommend.measure", lambda *_: {CAPABILITY: 0.78})  # probed in test_probe.py
    file = tmp_path / "next.yaml"
    options = ["--backbone", "char-llama-600", "--task", "{builtin: addition, noise: 0.3}", "--sweep", str(file)]
    assert main(["recommend", *options, "--storage", str(storage)]) == 0
    said = capsys.readouterr().out
    assert "evidence   4 of 4 measured cells are near, of the same task" in said
    spec = load_sweep(file, None, [])
    plan = make_plan(spec, tmp_path)
    labels = {trial.objective_label for trial in plan.trials}
    assert labels == {"backbone", "nll", "one-minus-p", "nll p>=0.2"}
    assert {trial.backbone.name for trial in plan.trials} == {"char-llama-600"}
    assert {(trial.train.lr, trial.train.steps) for trial in plan.trials if trial.objective} == {(2e-3, 30)}
    assert len(plan.trials) == 1 + 3 * 3


def test_the_figure_shows_lines_points_and_the_place(storage: Path) -> None:
    advice = advise(CONTINUUM, 0.5)
    (axes,) = recommend_figure(CONTINUUM, advice, "b on t").axes
    lines = {str(line.get_label()) for line in axes.get_lines()}
    assert {"lean", "half"} <= lines
    assert len(axes.collections) >= 2 + 1  # points of two objectives, and a band
    assert any("b on t: mean p 0.50" in text.get_text() for text in axes.texts)
