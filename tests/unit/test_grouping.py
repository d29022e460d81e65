"""Who trains together with whom: what differs in objective and seed alone, as many as fit."""

from pathlib import Path
from typing import Any

import pytest

from jobs.spec import TrialSpec
from sweeper.grouping import group_bytes, groups_facts, in_order, kin_of, most_together, regrouped, why_alone
from sweeper.plan import make_plan
from sweeper.spec import SpecError, parse_sweep

ROOT = Path(__file__).parents[2]
SMALL = """
name: small
together: {together}
grid:
  backbone: [{{builtin: char-llama, pretrain_steps: 60, lora: {{rank: 4}}}}]
  task: [{{builtin: addition}}]
  objective: [nll, one-minus-p, {{name: power, alpha: [2, 10]}}]
  seed: [1, 2]
train: {{lr: 1e-3, steps: 4, batch_size: 8}}
"""


def trial(objective: str = "nll", seed: int = 0, lora: dict[str, Any] | None = None, **parts: Any) -> TrialSpec:
    backbone = {"builtin": "char-llama", "pretrain_steps": 0, "lora": {"rank": 4} if lora is None else lora or None}
    given = {"backbone": backbone, "task": {"builtin": "addition"}, "objective": {"name": objective}, "seed": seed,
             "train": {"lr": 1e-3, "steps": 10, "batch_size": 8}, "evaluation": {}, "execution": {}}  # fmt: skip
    return TrialSpec.model_validate({k: v | parts.get(k, {}) if isinstance(v, dict) else v for k, v in given.items()})


def kin(*trials: TrialSpec, together: Any = 8, lanes: int = 1) -> list[int]:
    found = kin_of({str(i): one for i, one in enumerate(trials)}, together, lanes, ROOT)
    return [found[str(i)].most if str(i) in found else 1 for i in range(len(trials))]


def test_what_differs_in_objective_and_seed_alone_joins() -> None:
    assert kin(trial(), trial("one-minus-p"), trial(seed=1)) == [3, 3, 3]
    assert kin(trial(), trial(seed=1), trial(train={"lr": 1e-2}), together=2) == [2, 2, 1]
    assert kin(trial(), trial(seed=1), together="off") == [1, 1]


@pytest.mark.parametrize(
    "parts",
    [
        {"lora": {}},
        {"lora": {"dropout": 0.1}},
        {"execution": {"workers": 2}},
        {"execution": {"packing": True}},
        {"execution": {"offload": "optimizer"}},
        {"train": {"zero_stage": 3}},
        {"evaluation": {"engine": "vllm"}},
    ],
    ids=str,
)
def test_what_cannot_join_says_why(parts: dict[str, Any]) -> None:
    assert why_alone(trial()) is None
    assert why_alone(trial(**parts))
    assert kin(trial(**parts), trial(seed=1, **parts)) == [1, 1]


def test_auto_joins_on_a_gpu_as_many_as_fit_and_leaves_every_lane_its_share() -> None:
    gpu = {"gpus_per_worker": 1, "memory_gb": 80}
    many = [trial(seed=seed, execution=gpu) for seed in range(12)]
    assert kin(*many, together="auto") == [8] * 12
    assert kin(*many, together="auto", lanes=4) == [3] * 12
    assert kin(*many, together="auto", lanes=12) == [1] * 12
    assert kin(*(trial(seed=seed) for seed in range(12)), together="auto") == [1] * 12  # it does not pay on a CPU
    assert kin(*(trial(seed=s, execution={"gpus_per_worker": 1}) for s in range(2)), together="auto") == [1, 1]


def test_a_number_holds_as_far_as_memory_does() -> None:
    big = trial(evaluation={"batch_size": 1, "samples": 1}, train={"batch_size": 512})
    three = (group_bytes(big, ROOT, 3) or 0) / 2**30
    tight = big.model_copy(update={"execution": big.execution.model_copy(update={"memory_gb": three * 1.001})})
    assert most_together(big, 8, 1, 8, ROOT) == 8
    assert most_together(tight, 8, 1, 8, ROOT) == 3


def test_a_group_holds_the_weights_once() -> None:
    big = trial(evaluation={"batch_size": 1, "samples": 1}, train={"batch_size": 512})
    one, two, four = (group_bytes(big, ROOT, n) or 0 for n in (1, 2, 4))
    assert one < two < four < 4 * one
    assert four - two == pytest.approx(2 * (two - one), rel=0.01)


def test_after_running_out_of_memory_groups_are_of_these_trials_alone() -> None:
    again = regrouped({"a": trial(), "b": trial(seed=1)}, 1)
    assert again == {"a": None, "b": None}
    smaller = regrouped({"a": trial(), "b": trial(seed=1)}, 2)
    assert smaller["a"] == smaller["b"] != kin_of({"a": trial(), "b": trial(seed=1)}, 2, 1, ROOT)["a"]


def test_those_that_join_stand_side_by_side() -> None:
    found = kin_of({"a": trial(), "c": trial(seed=1)}, 2, 1, ROOT)
    assert in_order(["z", "a", "b", "c"], found) == ["z", "a", "c", "b"]


def test_plan_says_who_joins_and_keys_do_not_change() -> None:
    plans = {word: make_plan(parse_sweep(SMALL.format(together=word), "s"), ROOT) for word in ("auto", "off", "3")}
    assert len({tuple(trial.key for trial in plan.trials) for plan in plans.values()}) == 1
    assert plans["off"].spec.settings.together == "off"
    (group,) = groups_facts(plans["3"].trials, 3, ROOT)
    assert (group["trials"], group["most"], group["why"]) == (8, 3, None)
    assert group["alone_bytes"] <= group["memory_bytes"] < 3 * group["alone_bytes"]
    assert groups_facts(plans["auto"].trials, "auto", ROOT) == []
    with pytest.raises(SpecError, match="together"):
        parse_sweep(SMALL.format(together="1"), "s")
