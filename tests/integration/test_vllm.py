"""Answers by vLLM inside a sweep, beside the same sweep with transformers' own. docs/scores.md: how to have a vLLM."""

import importlib.util
from typing import Any

import pytest

from jobs.pretrain import RECIPE, pretrain
from sweeper.store import Store

from .conftest import sweeper, write_spec

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed")

PROBLEMS, STEPS = 96, 30
LORA = {"rank": 4, "targets": ["q_proj", "v_proj"]}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    """The same trials with either engine: a backbone that adds now and then, two objectives, all weights and LoRA,
    three evaluations each; so vLLM's engine is made once and given other weights again and again."""
    root = tmp_path_factory.mktemp("backbone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPE, "heads", 2)  # of 32: the built-in backbone's, of 16, are none of vLLM's
        (folder,) = pretrain(root, "wide-heads", [600])
    found = {}
    for engine in ("transformers", "vllm"):
        storage = tmp_path_factory.mktemp(engine)
        spec = write_spec(
            storage,
            grid={
                "backbone": [{"path": str(folder), "lora": [None, LORA]}],
                "task": [{"builtin": "addition", "heldout_examples": PROBLEMS}],
                "objective": ["nll", "one-minus-p"],
                "seed": [1],
            },
            train={"lr": 3e-4, "batch_size": 32, "steps": STEPS, "max_length": 32},
            evaluation={"samples": 8, "max_new_tokens": 5, "batch_size": 32, "every": STEPS // 3, "engine": engine},
        )
        done = sweeper("run", spec, storage=storage, env={"VLLM_CPU_KVCACHE_SPACE": "1"})
        assert done.returncode == 0, done.stderr + done.stdout
        found[engine] = Store(storage)
    return found


def trials_of(store: Store) -> dict[str, str]:
    """What a trial is, whichever engine answers -> its key."""
    return {f"{t.backbone.name} {t.objective_label}": key for key, t in store.trials("small").items()}


def evaluations(store: Store, key: str) -> list[dict[str, Any]]:
    return [row for row in store.trial(key).rows() if "task/accuracy_greedy" in row]


def test_it_trains_the_same_and_scores_the_same_within_rounding_and_chance(swept: dict[str, Store]) -> None:
    ours, theirs = swept["transformers"], swept["vllm"]
    assert trials_of(ours).keys() == trials_of(theirs).keys()
    accuracies = set()
    for name, key in trials_of(ours).items():
        other = trials_of(theirs)[name]
        assert key != other  # its draws are others, so the trial is another
        pairs = list(zip(evaluations(ours, key), evaluations(theirs, other), strict=True))
        assert len(pairs) == (1 if name.endswith("backbone") else 3)
        for one, two in pairs:
            where = (name, one["step"], one, two)
            assert one["heldout/nll"] == two["heldout/nll"], where  # the same weights
            assert two["task/accuracy_greedy"] == pytest.approx(one["task/accuracy_greedy"], abs=1.01 / PROBLEMS), where
            # two sets of draws: their intervals of 95 % overlap
            assert two["task/accuracy_sampled_low"] <= one["task/accuracy_sampled_high"], where
            assert one["task/accuracy_sampled_low"] <= two["task/accuracy_sampled_high"], where
            assert two["task/answer_tokens"] == pytest.approx(one["task/answer_tokens"], abs=0.15), where
            accuracies.add(one["task/accuracy_greedy"])
    assert len(accuracies) > 3  # it was not one model that answered all along
    assert max(accuracies) > 0.1


def test_greedy_answers_are_the_same_texts_but_where_rounding_decides(swept: dict[str, Store]) -> None:
    ours, theirs = swept["transformers"], swept["vllm"]
    same = asked = 0
    for name, key in trials_of(ours).items():
        one, two = ours.trial(key).answers("heldout"), theirs.trial(trials_of(theirs)[name]).answers("heldout")
        assert len(one) == len(two) == PROBLEMS
        same += sum(
            a["texts"][0] == b["texts"][0] and a["ended"][0] == b["ended"][0] for a, b in zip(one, two, strict=True)
        )
        asked += PROBLEMS
    assert same >= 0.99 * asked, f"{same} of {asked}"
