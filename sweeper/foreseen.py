"""What `run` would refuse, as far as a plan can tell: rows, characters, chat templates, the longest examples.

No torch and no hub. A tokenizer is loaded (transformers, a second) only for a model directory that is in this place.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from jobs.backbone import local_dir
from jobs.spec import BackboneSpec, TrialSpec
from sweeper.inputs import Refused, no_template, pairs, refusal, sizes
from sweeper.plan import Plan
from sweeper.task_facts import TaskFacts, at_hand

Limits = tuple[int, str, int]  # train.max_length, train.overlong, evaluation.max_new_tokens


def foreseen(plan: Plan, root: Path) -> list[str]:
    """A line for each reason that refuses some of the trials.

    Raises TaskError where rows cannot be used, or every trial would be refused.
    """
    refused = Refused()
    facts = at_hand([trial.task for trial in plan.trials])
    for (backbone, task), mine in pairs(plan.trials).items():
        missing = backbone.fingerprint is None and backbone.builtin is None
        if missing or backbone.hub is not None or task not in facts:
            continue
        found = facts[task]
        reason = no_template(backbone, task, root)
        if reason is None and not task.builtin:
            reason = refusal(backbone, task, found.telling, found.unknown, root, light=True)
        if reason is not None:
            refused.add(mine, reason)
            continue
        for limits, some in _by_limits(mine).items():
            reason = _too_long(backbone, found, limits, root)
            if reason is not None:
                refused.add(some, f"task '{task.name}', backbone '{backbone.name}': {reason}")
    refused.raise_if_all(plan.trials)
    counts = Counter(refused.reasons.values())
    return [f"{count} trials will fail, the others run: {reason}" for reason, count in counts.items()]


def _by_limits(trials: Sequence[TrialSpec]) -> dict[Limits, list[TrialSpec]]:
    found: dict[Limits, list[TrialSpec]] = {}
    for trial in trials:
        limits = (trial.train.max_length, trial.train.overlong, trial.evaluation.max_new_tokens)
        found.setdefault(limits, []).append(trial)
    return found


def _too_long(backbone: BackboneSpec, facts: TaskFacts, limits: Limits, root: Path) -> str | None:
    """Why examples do not fit; None where they seem to. Only those that are longest in characters are tokenised."""
    length, overlong, answer = limits
    for example, (prompt, whole) in zip(facts.longest, sizes(backbone, facts.longest, root, light=True), strict=False):
        place = example.where or f"'{example.prompt[:40]}'"
        if prompt >= length and overlong != "drop":
            return (
                f"{place}: its prompt alone has {prompt} tokens, train.max_length is {length}; raise max_length, or "
                "set train.overlong to drop"
            )
        if whole > length and overlong == "refuse":
            return (
                f"{place}: it has {whole} tokens, train.max_length is {length}; raise max_length, or set "
                "train.overlong to cut or drop"
            )
    positions = _positions(backbone, root)
    for example, (prompt, _) in zip(facts.asked, sizes(backbone, facts.asked, root, light=True), strict=False):
        if positions is not None and prompt + answer > positions:
            return (
                f"{example.where or example.prompt[:40]}: its prompt has {prompt} tokens, with "
                f"evaluation.max_new_tokens {answer} that is more than the {positions} positions; lower it, or leave "
                "such problems out"
            )
    return None


def _positions(backbone: BackboneSpec, root: Path) -> int | None:
    """Of a model directory that is in this place, without transformers; None: no limit, or not known."""
    folder = local_dir(backbone, root)
    if backbone.builtin is not None or folder is None or not (folder / "config.json").is_file():
        return None
    config = json.loads((folder / "config.json").read_text())
    return (config.get("text_config") or config).get("max_position_embeddings") or None
