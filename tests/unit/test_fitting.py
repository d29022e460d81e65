"""Running out of memory: half as many sequences at once, for all trials of a kind, and never another mathematics."""

from pathlib import Path

import pytest

from jobs.spec import TrialSpec
from jobs.zero import micro_batch_size
from sweeper.fitting import fewer_answers, fitting, smaller

from .test_settings import trial


def other(spec: TrialSpec, **update: object) -> TrialSpec:
    return TrialSpec.model_validate(spec.model_dump() | update)


def test_half_as_many_at_once_until_one_and_the_key_stays(tmp_path: Path) -> None:
    spec = trial(workers=2, batch_size=24)
    sizes = [micro_batch_size(spec)]
    while (less := smaller(spec, tmp_path)) is not None:
        assert less.key == spec.key
        assert less.train.batch_size == spec.train.batch_size
        spec = less
        sizes.append(micro_batch_size(spec))
    assert sizes == [12, 6, 3, 1]


def test_it_is_remembered_for_its_kind_and_for_no_other(tmp_path: Path) -> None:
    spec = trial(batch_size=8)
    assert fitting(spec, tmp_path) == spec
    smaller(spec, tmp_path)
    same_kind = [other(spec, seed=5), other(spec, objective={"name": "one-minus-p"})]
    assert [micro_batch_size(fitting(one, tmp_path)) for one in same_kind] == [4, 4]
    unlike = [trial(batch_size=8, max_length=64), trial(batch_size=8, precision="bf16"), trial(workers=2, batch_size=8)]
    assert [fitting(one, tmp_path) for one in unlike] == unlike
    already = trial(batch_size=8, micro_batch_size=2)
    assert fitting(already, tmp_path) == already


def test_two_that_fail_together_halve_once(tmp_path: Path) -> None:
    spec = trial(batch_size=8)
    both = [smaller(one, tmp_path) for one in (spec, other(spec, seed=2))]
    assert [micro_batch_size(one) for one in both if one] == [4, 4]


@pytest.mark.parametrize(
    "changed",
    [{"objective": {"name": "nll", "gate": {"side": "top", "at": 0.2}, "normalisation": "kept"}}, {"objective": None}],
)
def test_what_halving_would_change_is_not_halved(tmp_path: Path, changed: dict[str, object]) -> None:
    assert smaller(other(trial(batch_size=8), **changed), tmp_path) is None


def test_evaluation_is_halved_apart_from_training_for_its_own_task_and_the_key_stays(tmp_path: Path) -> None:
    spec = other(trial(batch_size=8), evaluation={"batch_size": 12})
    less = fewer_answers(spec, tmp_path)
    assert less is not None
    assert (less.evaluated_at_once, micro_batch_size(less), less.key) == (6, 8, spec.key)
    assert less.evaluation == spec.evaluation
    same = [other(spec, seed=5), other(spec, objective={"name": "one-minus-p"}), other(spec, objective=None)]
    assert [fitting(one, tmp_path).evaluated_at_once for one in same] == [6, 6, 6]
    unlike = [other(spec, task={"builtin": "cipher"}), other(spec, evaluation={"batch_size": 12, "samples": 1})]
    assert [fitting(one, tmp_path) for one in unlike] == unlike
    assert fewer_answers(other(spec, seed=2), tmp_path) == other(less, seed=2)  # two that fail together halve once
    trained = smaller(less, tmp_path)
    assert trained is not None
    assert fitting(spec, tmp_path) == trained  # both are known
    sizes = []
    while (less := fewer_answers(less, tmp_path)) is not None:
        sizes.append(less.evaluated_at_once)
    assert sizes == [3, 1]
    assert fewer_answers(other(spec, evaluation={"engine": "vllm"}), tmp_path) is None


def test_what_is_remembered_is_found_under_the_names_of_before(tmp_path: Path) -> None:
    """A field that came later may not make a storage forget."""
    smaller(trial(batch_size=8), tmp_path)
    assert [file.name for file in (tmp_path / "micro_batches").iterdir()] == ["f1157329da812b91.json"]
