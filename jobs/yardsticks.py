"""The neutral metrics: names, directions and meaning. Every trial logs the same ones, whatever it minimises.

Objectives differ in scale by orders of magnitude, so nothing may compare trials by their own loss:
schedulers and reports accept only what stands here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Yardstick:
    name: str
    meaning: str
    higher_is_better: bool = True
    worst: float = 0.0  # what a trial that diverged counts as


YARDSTICKS: dict[str, Yardstick] = {
    y.name: y
    for y in (
        Yardstick("task/accuracy_sampled", "share of right answers, sampled at T = 1, mean over k draws a prompt"),
        Yardstick("task/accuracy_greedy", "share of right answers, greedy"),
        Yardstick("heldout/nll", "mean -log p of held-out target tokens, nats", higher_is_better=False, worst=math.inf),
        Yardstick("heldout/mean_p", "mean p of held-out target tokens"),
        Yardstick("heldout/token_accuracy", "share of held-out target tokens that are the model's first choice"),
    )
}
PRIMARY = "task/accuracy_sampled"

# Not a yardstick: how well the backbone predicts the training set before training (Eq. 5), the continuum's x axis.
CAPABILITY = "trainset/mean_p"

TRUNCATED = "task/truncated_rate"
# Share of sampled answers that ran into max_new_tokens from which a score says more of ends than of knowledge
HARDLY_ENDS = 0.5

# Half-way between the groups of the paper's Table 5: 0.76 and up (MS), 0.50 to 0.59 (MI), 0.07 and less (MW).
# The paper names no cut-off; these only say beside which of its groups a cell lies.
STRONG_FROM, WEAK_BELOW = 0.675, 0.285


def regime(mean_p: float) -> str:
    """Where a backbone stands on a task, by its mean p before training: strong, intermediate or weak (section 3)."""
    return "strong" if mean_p >= STRONG_FROM else "weak" if mean_p < WEAK_BELOW else "intermediate"


def hardly_ends(truncated_rate: float | None) -> str | None:
    """What to say beside a score where most answers do not end by themselves; None where they do."""
    if truncated_rate is None or not truncated_rate > HARDLY_ENDS:
        return None
    return (
        f"{truncated_rate:.0%} of its answers do not end by themselves within max_new_tokens, so its score says more "
        "of ends than of knowledge: see eos, stop and max_new_tokens"
    )
