"""Weights that are asked for after the trials have finished were not kept: refused before any compute."""

from pathlib import Path

import pytest

from sweeper.kept import weights_not_kept
from sweeper.plan import Plan, make_plan
from sweeper.run import run_sweep
from sweeper.spec import SpecError, parse_sweep
from sweeper.store import Store
from sweeper.table import plan_facts

SPEC = """
name: kept
grid:
  backbone: [{builtin: char-llama, pretrain_steps: 0}]
  task: [{builtin: addition}]
  objective: [nll, one-minus-p]
train: {lr: 1e-3, steps: 10, batch_size: 8, keep_model: KEEP}
"""


def planned(keep: bool) -> Plan:
    return make_plan(parse_sweep(SPEC.replace("KEEP", str(keep).lower()), "kept.yaml"), Path())


def test_weights_asked_for_too_late_are_refused_and_noted(tmp_path: Path) -> None:
    store = Store(tmp_path)
    before, now = planned(False), planned(True)
    assert weights_not_kept(store, now) is None  # nothing has finished yet
    for trial in before.trials:
        store.trial(trial.key).finish("finished")
    assert weights_not_kept(store, before) is None
    reason = weights_not_kept(store, now)
    assert reason is not None
    assert reason.startswith("train.keep_model: 2 trials have finished without keeping their weights")
    assert plan_facts(now, store)["notes"] == [reason]
    with pytest.raises(SpecError, match="train.keep_model: 2 trials"):
        run_sweep(now, store, f"sqlite:///{tmp_path / 'mlflow.db'}", None, tmp_path)
    for trial in now.trials:
        (store.trial(trial.key).path / "model").mkdir()
    assert weights_not_kept(store, now) is None
