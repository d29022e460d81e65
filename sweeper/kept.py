"""Trained weights that a sweep is to keep, and that were not kept when its trials ran."""

from __future__ import annotations

from sweeper.plan import Plan
from sweeper.store import Store


def weights_not_kept(store: Store, plan: Plan) -> str | None:
    """What to say where trials that are to keep their weights have finished without; None where there are none."""
    asked = [store.trial(trial.key) for trial in plan.trials if trial.train.keep_model and trial.objective is not None]
    finished = [folder for folder in asked if (folder.result() or {}).get("status") == "finished"]
    without = [folder for folder in finished if not (folder.path / "model").is_dir()]
    if not without:
        return None
    return (
        f"train.keep_model: {len(without)} trials have finished without keeping their weights (the first is "
        f"{without[0].key}); move their folders out of {store.root / 'trials'} to train them again, or set keep_model "
        "to false"
    )
