"""The neutral metrics: names, directions and meaning. Every trial logs the same ones, whatever it minimises.

Objectives differ in scale by orders of magnitude, so nothing may compare trials by their own loss:
schedulers and reports accept only what stands here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Yardstick:
    name: str
    meaning: str
    higher_is_better: bool = True


YARDSTICKS: dict[str, Yardstick] = {
    y.name: y
    for y in (
        Yardstick("task/accuracy_sampled", "share of right answers, sampled at T = 1, mean over k draws a prompt"),
        Yardstick("task/accuracy_greedy", "share of right answers, greedy"),
        Yardstick("heldout/nll", "mean -log p of held-out target tokens, nats", higher_is_better=False),
        Yardstick("heldout/mean_p", "mean p of held-out target tokens"),
        Yardstick("heldout/token_accuracy", "share of held-out target tokens that are the model's first choice"),
    )
}
PRIMARY = "task/accuracy_sampled"

# Not a yardstick: how well the backbone predicts the training set before training (Eq. 5), the continuum's x axis.
CAPABILITY = "trainset/mean_p"
