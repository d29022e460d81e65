"""Early stopping on a store with two cells: rows are written here as trials would write them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from jobs.record import RowWriter
from sweeper.plan import Plan, make_plan
from sweeper.progress import Progress
from sweeper.run import _rounds, pending_trials
from sweeper.scheduler import WithinCells, cells_of, make_scheduler
from sweeper.shared import Shared
from sweeper.spec import parse_sweep
from sweeper.store import Claims, Store

STEPS = 40
SPEC = """
name: race
grid:
  backbone: [{builtin: char-llama, pretrain_steps: [10, 20]}]
  task: [{builtin: addition}]
  objective: [%s]
  seed: [1, 2]
train: {lr: 1e-3, steps: 40}
evaluation: {every: 10}
scheduler: {name: %s, metric: heldout/token_accuracy, grace_steps: 10, reduction_factor: 2}
"""
WIDER = "overrides: [{where: {objective: %s}, execution: {workers: 2}}]"


def plan_of(objectives: str, scheduler: str = "race", more: str = "") -> Plan:
    return make_plan(parse_sweep(SPEC % (objectives, scheduler) + more, "race.yaml"), Path())


def write(store: Store, plan: Plan, key: str, scores: Mapping[str, float], to: int | None) -> None:
    """What a trial leaves behind that goes to a step (None: its end); its score is its objective's."""
    trial = next(t for t in plan.trials if t.key == key)
    store.trial(key).create(trial)
    writer = RowWriter(store.trial(key))
    for step in range(10, (to or STEPS) + 1, 10) if trial.objective else [0]:
        writer.write({"step": step, "heldout/token_accuracy": scores[trial.objective_label] + trial.seed / 1000})
    if to is None:
        store.trial(key).finish("finished", step=STEPS)


def race(store: Store, plan: Plan, scores: Mapping[str, float]) -> list[list[str]]:
    """The race of a sweep whose trials are instant: the keys of its rounds. Fails if it does not end."""
    keys, rounds = [t.key for t in pending_trials(store, plan)], []
    say = Progress(plan, 0)
    with Claims(store.root) as claims:
        shared = Shared(store, "race", claims, keys, say.ended, say.line)
        for round_ in _rounds(plan, store, keys, say, shared):
            assert len(rounds) < 20
            rounds.append(list(round_))
            for key, to in round_.items():
                write(store, plan, key, scores, to)
    return rounds


SCORES = {"backbone": 0, "nll": 0.9, "one-minus-p": 0.6, "power a=10": 0.4, "talr": 0.2, "focal": 0.1}


def test_cells_are_backbones_and_a_trials_rows_stand_in_its_own(tmp_path: Path) -> None:
    plan, store = plan_of("nll, one-minus-p"), Store(tmp_path)
    first = next(t for t in plan.trials if t.objective_label == "one-minus-p" and t.backbone.name == "char-llama-20")
    write(store, plan, first.key, SCORES, 20)
    cells = cells_of(plan, store)
    assert [cell for cell, _ in cells] == ["char-llama-10", "char-llama-20"]
    assert {len(runners) for runners in cells.values()} == {4}
    seen = {r.key: sorted(r.scores) for runners in cells.values() for r in runners if r.scores}
    assert seen == {first.key: [10, 20]}
    assert {r.objective for runners in cells.values() for r in runners if r.exempt} == {"nll"}


def test_what_a_race_has_stopped_stays_stopped_when_objectives_are_added_until_it_is_revived(tmp_path: Path) -> None:
    """Beside two that are worse, the loser would be among the better half; it has not come to the next rung."""
    store = Store(tmp_path)
    race(store, plan_of("nll, one-minus-p, {name: power, alpha: 10}"), SCORES)
    more = plan_of("nll, one-minus-p, {name: power, alpha: 10}, talr, focal")
    lost = [t.key for t in more.trials if t.objective_label == "power a=10"]
    before = {key: store.trial(key).result() for key in lost}
    assert {(r or {}).get("by") for r in before.values()} == {"race"}
    race(store, more, SCORES)
    assert pending_trials(store, more) == []
    assert {key: store.trial(key).result() for key in lost} == before
    store.trial(lost[0]).revive()
    race(store, more, SCORES)
    assert (store.trial(lost[0]).result() or {})["status"] == "finished"
    assert pending_trials(store, more) == []


def test_a_seed_added_to_what_was_stopped_ends_too(tmp_path: Path) -> None:
    store = Store(tmp_path)
    few = plan_of("nll, one-minus-p, {name: power, alpha: 10}")
    race(store, few, SCORES)
    more = make_plan(parse_sweep(few.spec.text.replace("[1, 2]", "[1, 2, 3]"), "race.yaml"), Path())
    race(store, more, SCORES | {"power a=10": 0.95})  # the new seed is good; the others are not trained again
    assert pending_trials(store, more) == []
    by_seed = {
        t.seed: (store.trial(t.key).result() or {})["status"]
        for t in more.trials
        if t.objective_label == "power a=10" and t.backbone.name == "char-llama-10"
    }
    assert by_seed[1] == by_seed[2] == "stopped"


def test_trials_go_by_shape_the_largest_first_in_every_round(tmp_path: Path) -> None:
    plan, store = plan_of("nll, one-minus-p", more=WIDER % "one-minus-p"), Store(tmp_path)
    workers = {t.key: t.execution.workers for t in plan.trials}
    pending = [t.key for t in pending_trials(store, plan)]
    assert [workers[key] for key in pending] == [2] * 4 + [1] * 6
    assert [key for key in pending if workers[key] == 1] == [t.key for t in plan.trials if t.execution.workers == 1]
    for round_ in race(store, plan, SCORES):
        assert round_ == [key for key in pending if key in round_]


def test_asha_judges_cells_apart_and_spares_the_anchor_and_the_leader(tmp_path: Path) -> None:
    plan = plan_of("nll, one-minus-p, talr, focal", "asha")
    scheduler = make_scheduler(plan, Store(tmp_path))
    assert isinstance(scheduler, WithinCells)
    trials = {t.key: Trial("cell", config={"key": t.key}, stub=True) for t in plan.trials if t.objective}
    for trial in trials.values():
        scheduler.on_trial_add(None, trial)
    decisions: dict[tuple[str, str], set[str]] = {}
    for step in (10, 20, 30):
        # the second backbone is the better one throughout: judged with the first, none of its trials would stop
        for t in sorted((t for t in plan.trials if t.objective), key=lambda t: -SCORES[t.objective_label]):
            score = SCORES[t.objective_label] if t.objective_label != "nll" else 0.0  # the anchor is behind
            row = {"step": step, "heldout/token_accuracy": score + (5 if t.backbone.name == "char-llama-20" else 0)}
            said = scheduler.on_trial_result(None, trials[t.key], row | {"training_iteration": step})
            decisions.setdefault((t.backbone.name, t.objective_label), set()).add(said)
    for backbone in ("char-llama-10", "char-llama-20"):
        for objective in ("nll", "one-minus-p"):
            assert decisions[backbone, objective] == {TrialScheduler.CONTINUE}, (backbone, objective)
        assert TrialScheduler.STOP in decisions[backbone, "focal"]
