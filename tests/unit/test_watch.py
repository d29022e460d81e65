"""The live board: from the storage alone, each row read once, and quiet where there is no terminal."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest

from jobs.record import TrialFolder
from jobs.yardsticks import PRIMARY
from sweeper.plan import make_plan
from sweeper.spec import parse_sweep
from sweeper.store import Store
from sweeper.watch import SPEED, Watcher, board, from_lines, show, stream, summary

SPEC = """
name: seen
grid:
  backbone: [{builtin: char-llama, pretrain_steps: [10, 20]}]
  task: [{builtin: addition}]
  objective: [nll, one-minus-p]
  seed: [1, 2]
train: {lr: 1e-3, steps: 100}
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path)
    plan = make_plan(parse_sweep(SPEC, "seen.yaml"), tmp_path)
    made.save_plan("seen", SPEC, plan.trials, {})
    return made


def trials(store: Store, backbone: str, objective: str) -> list[TrialFolder]:
    found = [
        store.trial(key)
        for key, trial in store.trials("seen").items()
        if trial.backbone.name == backbone and trial.objective_label == objective
    ]
    for folder in found:
        folder.create(store.trials("seen")[folder.key])
    return found


def write(folder: TrialFolder, step: int, **values: float) -> None:
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "time": time.time()} | values) + "\n")


def text_of(store: Store) -> str:
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=160).print(board(Watcher(store, "seen").facts()))
    return out.getvalue()


def test_the_best_is_the_mean_over_seeds_of_what_is_finished(store: Store) -> None:
    for objective, scores in {"nll": (0.2, 0.4), "one-minus-p": (0.9, 0.1)}.items():
        for folder, score in zip(trials(store, "char-llama-10", objective), scores, strict=True):
            write(folder, 100, **{PRIMARY: score})
            folder.finish("finished", train_s=10.0, step=100)
    group = Watcher(store, "seen").facts()["groups"][0]
    assert (group["over"], group["trials"]) == (4, 5)
    assert group["best"] == "one-minus-p"
    assert group["best_score"] == pytest.approx(0.5)
    assert group["nll_score"] == pytest.approx(0.3)
    assert "one-minus-p (2 seeds)" in text_of(store)


def test_what_runs_is_shown_with_its_speed_and_the_time_that_is_left(store: Store) -> None:
    done, half = trials(store, "char-llama-10", "nll")
    write(done, 100)
    done.finish("finished", train_s=10.0, step=100)
    write(half, 50, **{SPEED: 1234.0, "train/nll": 0.5})
    facts = Watcher(store, "seen").facts()
    assert [r["step"] for r in facts["running"]] == [50]
    assert facts["tokens_per_s"] == 1234.0
    # eight of ten not begun and one half done, at 10 s each, one at a time
    assert facts["seconds_left"] == pytest.approx(10.0 * 8.5)
    assert "1,234" in text_of(store)
    assert "50/100" in text_of(store)


def test_a_failure_is_shown_with_its_reason(store: Store) -> None:
    trials(store, "char-llama-20", "nll")[0].finish("failed", error="Traceback\nRuntimeError: loss is NaN")
    assert "RuntimeError: loss is NaN" in text_of(store)
    assert "1 FAILED" in summary(Watcher(store, "seen").facts())


def test_rows_are_read_once_and_a_trial_taken_up_again_is_seen(store: Store) -> None:
    (folder, _), watcher = trials(store, "char-llama-10", "nll"), Watcher(store, "seen")
    write(folder, 10)
    watcher.facts()
    offset = watcher.offsets[folder.key]
    write(folder, 20)
    assert watcher.facts()["running"][0]["step"] == 20
    assert watcher.offsets[folder.key] > offset
    folder.finish("failed", error="gone")
    assert watcher.facts()["failures"]
    folder.reopen()
    assert not watcher.facts()["failures"]


def test_without_a_terminal_a_line_is_printed_when_something_has_changed(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    same = Watcher(store, "seen").facts()
    trials(store, "char-llama-10", "nll")[0].finish("finished", train_s=1.0, step=100)
    show([same, same, Watcher(store, "seen").facts()])
    assert capsys.readouterr().out.splitlines() == [
        "seen: 0 of 10 trials over, 0 running", "seen: 1 of 10 trials over, 0 running"
    ]  # fmt: skip


def test_the_stream_ends_when_no_driver_runs(store: Store) -> None:
    assert len(list(stream(store, "seen", every_s=0))) == 1


def test_facts_survive_the_journey_in_pieces(store: Store) -> None:
    facts = Watcher(store, "seen").facts()
    text = "a line of Ray's\n" + (json.dumps(facts) + "\n") * 2
    pieces = [text[i : i + 7] for i in range(0, len(text), 7)]
    assert list(from_lines(pieces)) == [facts, facts]
