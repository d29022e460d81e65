"""Trials trained together against the same trials alone: parameters, rows, checkpoints both ways, one stopped."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from jobs.course import Row, Save
from jobs.spec import TrialSpec
from jobs.together import Member, train_together
from jobs.train import train
from sweeper.store import Store

from .conftest import ROOT, sweeper, write_spec

TOUCHY = """
from pathlib import Path

import torch
from jobs.objectives import Objective

calls, seen = [], Path(__file__).with_name("touched")
LIMIT = 3 if seen.exists() else 18  # in the group after step 15; then, alone, at once

def loss(t):
    if t.logp.dtype == torch.float32:
        calls.append(1)
        if len(calls) > LIMIT:
            seen.touch()
            raise ArithmeticError("touched")
    return -t.logp

TOUCHY = Objective("touchy", loss, "-log p", "a test")
"""
# fp32 sums in another order, through AdamW: a hundredth of one update (lr 1e-3), a twentieth on a GPU, where the order
# depends on a batch's shape, too
TOLERANCE = 5e-5 if torch.cuda.is_available() else 1e-5
GROUP: list[tuple[dict[str, Any], int]] = [
    ({"name": "nll"}, 3),
    ({"name": "one-minus-p"}, 4),
    ({"name": "power", "alpha": 0.5}, 3),
    ({"name": "power", "alpha": 2.0}, 5),
    ({"name": "nll", "gate": {"side": "top", "quantile": 0.2}}, 3),
    ({"name": "adaptive"}, 6),
    ({"name": "asft"}, 3),
]


def trial(objective: dict[str, Any], seed: int, **train_settings: Any) -> TrialSpec:
    return TrialSpec.model_validate(
        {
            "backbone": {"builtin": "char-llama", "pretrain_steps": 60, "lora": {"rank": 4, "alpha": 8.0}},
            "task": {"builtin": "addition", "noise": 0.3, "heldout_examples": 40},
            "objective": objective,
            "seed": seed,
            "train": {
                "lr": 1e-3, "batch_size": 24, "micro_batch_size": 8, "steps": 8, "max_length": 32, "log_every": 2,
                "checkpoint_every": 4,
            } | train_settings,
            "evaluation": {"samples": 2, "max_new_tokens": 4, "batch_size": 40},
        }
    )  # fmt: skip


class Kept:
    """What one trial reports; stops after the step `until`, and keeps a checkpoint of the step `save_at`."""

    def __init__(self, folder: Path, until: int | None = None, save_at: int | None = None) -> None:
        self.rows: list[Row] = []
        self.folder, self.until, self.save_at = folder, until, save_at
        self.complete: bool | None = None

    def report(self, row: Row, save: Save | None, due: bool) -> bool:
        self.rows.append({k: v for k, v in row.items() if "per_s" not in k})
        if row["step"] == self.save_at:
            assert save is not None
            save(self.folder / "checkpoint").wait()
        return row["step"] != self.until

    def end(self, complete: bool) -> None:
        self.complete = complete

    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "model" / "adapter_model.safetensors")


def alone(spec: TrialSpec, root: Path, folder: Path, resume: Path | None = None, **kept: Any) -> Kept:
    mine = Kept(folder, **kept)
    train(spec, root, mine.report, resume, folder / "model")
    return mine


def together(specs: Sequence[TrialSpec], root: Path, kept: Sequence[Kept], resume: dict[int, Path]) -> list[Member]:
    members = [
        Member(spec, mine.report, mine.end, resume.get(i), mine.folder / "model")
        for i, (spec, mine) in enumerate(zip(specs, kept, strict=True))
    ]
    train_together(members, root)
    return members


def assert_equal(one: Kept, other: Kept, tolerance: float = TOLERANCE, rel: float = 1e-4) -> None:
    """tolerance: of the difference's norm to the weights'; one element may be off by ten times that.

    Adam divides a gradient by its own size: an element whose gradient is rounding moves by up to lr in either way, and
    which one that is depends on the processor.
    """
    ours, theirs = one.weights(), other.weights()
    assert ours.keys() == theirs.keys()
    whole = torch.cat([theirs[n].float().flatten() for n in theirs])
    apart = torch.cat([ours[n].float().flatten() for n in theirs]) - whole
    assert apart.norm() < tolerance * whole.norm()
    assert apart.abs().max() < 10 * tolerance
    assert max(p.abs().max().item() for n, p in theirs.items() if "lora_B" in n) > 1e-3  # it did learn; B starts at 0
    assert len(one.rows) == len(other.rows)
    for mine, yours in zip(one.rows, other.rows, strict=True):
        losses = [name for name in yours if name.partition("/")[0] in ("train", "objective", "heldout")]
        assert mine.keys() == yours.keys()
        assert {n: mine[n] for n in losses} == pytest.approx({n: yours[n] for n in losses}, rel=rel, abs=1e-6)


def test_a_group_reaches_what_each_trial_reaches_alone_also_resumed_both_ways(backbones: Path, tmp_path: Path) -> None:
    """Seven objectives, four seeds; one is stopped in the middle and then goes on alone, one that was alone joins."""
    torch.set_num_threads(1)
    specs = [trial(objective, seed) for objective, seed in GROUP]
    solo = [alone(spec, backbones, tmp_path / f"alone-{i}") for i, spec in enumerate(specs)]
    half = alone(specs[5], backbones, tmp_path / "half", until=4, save_at=4)
    kept = [Kept(tmp_path / f"together-{i}") for i in range(len(specs))]
    kept[1] = Kept(tmp_path / "together-1", until=4, save_at=4)
    members = together(specs, backbones, kept, {5: half.folder / "checkpoint"})
    assert [one.complete for one in kept] == [i != 1 for i in range(len(specs))]
    assert not (tmp_path / "together-1" / "model").exists()
    kept[5].rows[:0] = half.rows
    for i, (mine, yours) in enumerate(zip(kept, solo, strict=True)):
        if i != 1:
            assert_equal(mine, yours)
    assert [row["step"] for row in kept[1].rows] == [2, 4]
    rest = alone(specs[1], backbones, tmp_path / "rest", resume=tmp_path / "together-1" / "checkpoint")
    rest.rows[:0] = kept[1].rows
    assert_equal(rest, solo[1])
    times = [sum(member.clock.read().values()) for member in members]
    assert all(member.clock.read()["setup_s"] > 0 for member in members)
    assert all(0 < spent < member.facts["wall_s"] for spent, member in zip(times, members, strict=True))
    assert sum(times) == pytest.approx(max(member.facts["wall_s"] for member in members), rel=0.1)  # each second once
    assert {member.facts["together"] for member in members} == {len(specs)}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_group_in_bf16_and_with_checkpointing_reaches_it_within_rounding(
    backbones: Path, tmp_path: Path, checkpointing: bool
) -> None:
    """ZeRO 1 holds in bf16: its engine takes the gradients as it takes its own. bf16 rounds to three digits."""
    torch.set_num_threads(1)
    specs = [trial(objective, seed, precision="bf16" if not checkpointing else "fp32") for objective, seed in GROUP[:3]]
    if checkpointing:
        more = {"gradient_checkpointing": True}
        specs = [s.model_copy(update={"execution": s.execution.model_copy(update=more)}) for s in specs]
    solo = [alone(spec, backbones, tmp_path / f"alone-{i}") for i, spec in enumerate(specs)]
    kept = [Kept(tmp_path / f"together-{i}") for i in range(3)]
    together(specs, backbones, kept, {})
    for mine, yours in zip(kept, solo, strict=True):
        if checkpointing:
            assert_equal(mine, yours)
        else:
            assert_equal(mine, yours, tolerance=1e-2, rel=0.02)


def numbers(store: Store, key: str) -> list[dict[str, float]]:
    """Rows without the clock and without what was drawn."""
    return [
        {k: v for k, v in row.items() if k.partition("/")[0] in ("step", "train", "objective", "heldout")
         and "per_s" not in k}
        for row in store.trial(key).rows()
    ]  # fmt: skip


def test_a_sweep_in_groups_of_three_comes_to_what_it_comes_to_one_by_one(storage: Path, tmp_path: Path) -> None:
    """Five trials: a group of three and one of two. One raises in its worker: it fails, the others go on alone."""
    (tmp_path / "touchy.py").write_text(TOUCHY)
    info = tmp_path / "touchy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: touchy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[objective_continuum.objectives]\ntouchy = touchy:TOUCHY\n")
    env = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    objectives = ["nll", {"name": "nll", "gate": {"side": "top", "quantile": 0.2}}, "one-minus-p", "adaptive"]
    grid = {
        "backbone": [{"builtin": "char-llama", "pretrain_steps": 60, "lora": {"rank": 4}}],
        "task": [{"builtin": "addition", "noise": 0.3, "heldout_examples": 32}],
        "seed": [1],
    }  # fmt: skip
    evaluation = {"samples": 1, "max_new_tokens": 4, "batch_size": 32, "every": 10}
    train = {"lr": 1e-3, "batch_size": 32, "steps": 30, "max_length": 32, "checkpoint_every": 10, "log_every": 5}
    found: dict[Any, Store] = {}
    for word in ("off", 3):
        root = tmp_path / f"storage-{word}"
        shutil.copytree(storage, root, symlinks=True)
        more = [] if word == "off" else ["touchy"]
        of_this = grid | {"objective": [*objectives, *more]}
        spec = write_spec(tmp_path, name=f"t{word}", grid=of_this, evaluation=evaluation, train=train, together=word)
        done = sweeper("run", spec, storage=root, env=env)
        assert done.returncode == len(more), done.stderr
        found[word] = Store(root)
    keys = {path.parent.name for path in (tmp_path / "storage-3" / "trials").glob("*/result.json")}
    results = {key: found[3].trial(key).result() or {} for key in keys}
    (bad,) = (key for key in keys if "touchy" in key)
    assert "touched" in results[bad]["error"]
    assert keys - {bad} == {path.name for path in (tmp_path / "storage-off" / "trials").iterdir()}
    for key in keys - {bad}:
        assert results[key]["status"] == "finished"
        if "backbone" not in key:
            pairs = zip(numbers(found[3], key), numbers(found["off"], key), strict=True)
            assert all(mine == pytest.approx(yours, rel=1e-3, abs=1e-5) for mine, yours in pairs), key
    assert [r.get("together") for k, r in results.items() if "touchy" not in k and "backbone" not in k].count(3) == 3
    partner = next(
        key for key in keys if "adaptive" in key
    )  # of the group that failed, whose checkpoint of step 10 was whole at step 15
    assert "trained together; each goes on alone" in found[3].trial(partner).failures()[0]["error"]
    assert results[partner]["resumed_from"] == 10
