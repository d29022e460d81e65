"""The DeepSpeed engine against plain PyTorch: ZeRO 0 to 3, 1 and 2 workers, accumulation, resume, reuse."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.utils import clip_grad_norm_

from jobs.backbone import load_backbone, load_tokenizer
from jobs.data import collate, encode, global_batches
from jobs.engine import learning_rate
from jobs.spec import TrialSpec
from jobs.tasks import load_task

WORKER = Path(__file__).parent / "plain_worker.py"
STEPS = 8
TOLERANCE = 1e-5  # fp32 sums in another order, through AdamW: a hundredth of one update (lr 1e-3)


def trial(stage: int, workers: int, objective: dict[str, Any], precision: str = "fp32") -> TrialSpec:
    return TrialSpec.model_validate(
        {
            "backbone": {"builtin": "char-llama", "pretrain_steps": 60},
            "task": {"builtin": "addition", "noise": 0.3, "heldout_examples": 40},
            "objective": objective,
            "seed": 3,
            "train": {
                "lr": 1e-3, "batch_size": 24, "micro_batch_size": 4, "steps": STEPS, "max_length": 32, "log_every": 4,
                "zero_stage": stage, "precision": precision, "checkpoint_every": 4,
            },
            "evaluation": {"samples": 2, "max_new_tokens": 4, "batch_size": 16},
            "execution": {"workers": workers},
        }
    )  # fmt: skip


def run(folder: Path, root: Path, workers: int, jobs: list[dict[str, Any]]) -> None:
    """All jobs one after another in the same `workers` processes."""
    folder.mkdir(exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps({"root": str(root), "jobs": jobs}))
    command = [sys.executable, str(WORKER), str(folder / "jobs.json")]
    started = [
        subprocess.Popen(
            [*command, str(rank), str(workers), str(folder / "rendezvous")], stderr=subprocess.PIPE, text=True
        )
        for rank in range(workers)
    ]
    for process in started:
        _, errors = process.communicate(timeout=400)
        assert process.returncode == 0, errors[-3000:]


def job(spec: TrialSpec, out: Path, **more: Any) -> dict[str, Any]:
    return {"trial": spec.model_dump(mode="json"), "out": str(out), **more}


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors")


def rows(out: Path) -> list[dict[str, float]]:
    """Recorded rows without the clock."""
    return [{k: v for k, v in row.items() if "per_s" not in k} for row in json.loads((out / "rows.json").read_text())]


def furthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name].float() - b[name].float()).abs().max().item() for name in a)


def reference(spec: TrialSpec, root: Path) -> dict[str, torch.Tensor]:
    """The same trial as a dozen lines of plain PyTorch: one process, whole batches, log_softmax, AdamW."""
    assert spec.objective is not None
    model, tokenizer = load_backbone(spec.backbone, root), load_tokenizer(spec.backbone, root)
    data, _ = encode(tokenizer, load_task(spec.task).train, spec.train.max_length)
    optimizer = torch.optim.AdamW(model.parameters(), betas=spec.train.betas, weight_decay=spec.train.weight_decay)
    for step, index in enumerate(global_batches(len(data), spec.seed, spec.train.batch_size, STEPS)):
        batch = collate([data[i] for i in index], 0)
        target = batch.labels[:, 1:]
        logp = model(input_ids=batch.ids, attention_mask=batch.mask).logits[:, :-1].log_softmax(2)
        logp = logp.gather(2, target.clamp(min=0)[..., None])[..., 0][target >= 0]
        p = logp.exp()
        value = -logp if spec.objective.name == "nll" else 1 - p
        if spec.objective.gate is not None:
            value = value * (p.detach() >= spec.objective.gate.at)
        optimizer.zero_grad()
        (value.sum() / len(logp)).backward()
        clip_grad_norm_(model.parameters(), spec.train.clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(spec.train, step, STEPS)
        optimizer.step()
    return {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("workers", [1, 2])
def test_every_zero_stage_reaches_the_reference_parameters(backbones: Path, tmp_path: Path, workers: int) -> None:
    """And in one process after another trial (a lane), and after a resume, bit for bit what a single run gives."""
    gated = {"name": "nll", "gate": {"side": "top", "at": 0.1}}
    jobs = [
        job(trial(stage, workers, objective), tmp_path / f"{name}-{stage}")
        for name, objective in (("nll", {"name": "nll"}), ("gated", gated), ("power", {"name": "power", "alpha": 1}))
        for stage in (0, 1, 2, 3)
    ]
    for stage in (0, 1, 2, 3):
        spec = trial(stage, workers, {"name": "nll"})
        jobs.append(job(spec, tmp_path / f"half-{stage}", stop_at=4))
        jobs.append(job(spec, tmp_path / f"resumed-{stage}", resume=str(tmp_path / f"half-{stage}" / "checkpoint")))
    jobs.append(job(trial(1, workers, {"name": "nll"}), tmp_path / "again-1"))
    run(tmp_path / "run", backbones, workers, jobs)

    for name, objective in (("nll", {"name": "nll"}), ("gated", gated), ("power", {"name": "power", "alpha": 1})):
        expected = reference(trial(0, 1, objective), backbones)
        untrained = load_backbone(trial(0, 1, objective).backbone, backbones)
        start = {n: p.detach() for n, p in untrained.named_parameters()}
        assert furthest(expected, start) > 1e-3  # it did learn
        for stage in (0, 1, 2, 3):
            assert furthest(weights(tmp_path / f"{name}-{stage}"), expected) < TOLERANCE, (name, stage)
    for stage in (0, 1, 2, 3):
        whole, resumed = tmp_path / f"nll-{stage}", tmp_path / f"resumed-{stage}"
        assert furthest(weights(whole), weights(resumed)) == 0.0, stage
        assert rows(whole)[-1]["heldout/nll"] == rows(resumed)[-1]["heldout/nll"]
        assert rows(whole)[-1]["task/accuracy_sampled"] == rows(resumed)[-1]["task/accuracy_sampled"]
    assert furthest(weights(tmp_path / "nll-1"), weights(tmp_path / "again-1")) == 0.0
    assert rows(tmp_path / "nll-1") == rows(tmp_path / "again-1")


def test_a_fresh_process_reproduces_a_used_one_bit_for_bit(backbones: Path, tmp_path: Path) -> None:
    spec = trial(1, 1, {"name": "one-minus-p"})
    run(tmp_path / "a", backbones, 1, [job(trial(2, 1, {"name": "nll"}), tmp_path / "x"), job(spec, tmp_path / "used")])
    run(tmp_path / "b", backbones, 1, [job(spec, tmp_path / "fresh")])
    assert furthest(weights(tmp_path / "used"), weights(tmp_path / "fresh")) == 0.0
    assert rows(tmp_path / "used") == rows(tmp_path / "fresh")


def test_two_workers_measure_what_one_measures(backbones: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        spec = trial(1, workers, {"name": "nll"})
        run(tmp_path / f"run{workers}", backbones, workers, [job(spec, tmp_path / str(workers))])
    one, two = rows(tmp_path / "1")[-1], rows(tmp_path / "2")[-1]
    assert one == pytest.approx(two, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("workers", [1, 2])
def test_bf16_trains_in_every_zero_stage(backbones: Path, tmp_path: Path, workers: int) -> None:
    """bf16 parameters round to 3 digits, so the stages agree with each other and with fp32 only that far."""
    jobs = [job(trial(s, workers, {"name": "nll"}, "bf16"), tmp_path / f"bf16-{s}") for s in (0, 1, 2, 3)]
    run(tmp_path / "run", backbones, workers, [*jobs, job(trial(1, workers, {"name": "nll"}), tmp_path / "fp32")])
    exact = rows(tmp_path / "fp32")[-1]
    for stage in (0, 1, 2, 3):
        row = rows(tmp_path / f"bf16-{stage}")[-1]
        assert row["heldout/nll"] == pytest.approx(exact["heldout/nll"], rel=0.02), stage
        assert furthest(weights(tmp_path / f"bf16-{stage}"), weights(tmp_path / "fp32")) < 1e-2


def test_pretraining_is_deterministic_and_a_longer_run_passes_through_the_shorter(
    backbones: Path, tmp_path: Path
) -> None:
    from jobs.pretrain import builtin_dir, pretrain

    pretrain(tmp_path, "char-llama", [60, 70])
    one, two = (load_file(builtin_dir(r, "char-llama", 60) / "model.safetensors") for r in (backbones, tmp_path))
    assert furthest(one, two) == 0.0


def test_a_model_directory_trains_like_the_backbone_that_it_holds(backbones: Path, tmp_path: Path) -> None:
    from jobs.pretrain import builtin_dir

    spec = trial(1, 1, {"name": "nll"})
    folder = {"path": str(builtin_dir(backbones, "char-llama", 60))}
    moved = TrialSpec.model_validate(spec.model_dump() | {"backbone": folder})
    run(tmp_path / "run", backbones, 1, [job(spec, tmp_path / "builtin"), job(moved, tmp_path / "path")])
    assert rows(tmp_path / "builtin") == rows(tmp_path / "path")
    assert furthest(weights(tmp_path / "builtin"), weights(tmp_path / "path")) == 0.0
