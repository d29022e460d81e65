"""The DeepSpeed engine against plain PyTorch: ZeRO 0 to 3, 1 and 2 workers, accumulation, resume, reuse."""

import copy
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.utils import clip_grad_norm_

from jobs.backbone import add_adapters, load_backbone, load_tokenizer
from jobs.data import Batch, collate, global_batches, tokenise
from jobs.engine import learning_rate
from jobs.hf import import_transformers
from jobs.objectives import OBJECTIVES
from jobs.pretrain import char_tokenizer
from jobs.spec import BackboneSpec, TrialSpec
from jobs.tasks import load_task

WORKER = Path(__file__).parent / "plain_worker.py"
STEPS = 8
# fp32 sums in another order, through AdamW: a hundredth of one update (lr 1e-3); on a GPU, beside a CPU, a twentieth
TOLERANCE = 5e-5 if torch.cuda.is_available() else 1e-5


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


def run(folder: Path, root: Path, workers: int, jobs: list[dict[str, Any]], *options: str) -> None:
    """All jobs one after another in the same `workers` processes."""
    finish(start(folder, root, workers, jobs, *options))


def start(folder: Path, root: Path, workers: int, jobs: list[dict[str, Any]], *options: str) -> list[Any]:
    if 0 < torch.cuda.device_count() < workers:
        pytest.skip(f"NCCL wants a GPU a worker: {workers}")
    folder.mkdir(exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps({"root": str(root), "jobs": jobs}))
    command = [sys.executable, str(WORKER), str(folder / "jobs.json")]
    return [
        subprocess.Popen(
            [*command, str(rank), str(workers), str(folder / "rendezvous"), *options], stderr=subprocess.PIPE, text=True
        )
        for rank in range(workers)
    ]


def finish(started: list[Any]) -> None:
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


def token_p(model: Any, batch: Batch) -> torch.Tensor:
    target = batch.labels[:, 1:]
    logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits[:, :-1]
    return logits.softmax(2).gather(2, target.clamp(min=0)[..., None])[..., 0][target >= 0]


def reference(spec: TrialSpec, root: Path) -> dict[str, torch.Tensor]:
    """The same trial as a few dozen lines of plain PyTorch: one process, whole batches, textbook formulas, AdamW."""
    assert spec.objective is not None
    name, gate = spec.objective.name, spec.objective.gate
    model, tokenizer = load_backbone(spec.backbone, root), load_tokenizer(spec.backbone, root)
    torch.manual_seed(spec.seed)
    add_adapters(model, spec.backbone)
    frozen = copy.deepcopy(model)
    data = tokenise(tokenizer, load_task(spec.task).train)
    with torch.no_grad():
        alpha = token_p(model, collate(data[: spec.evaluation.probe_examples], 0)).mean()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, betas=spec.train.betas, weight_decay=spec.train.weight_decay)
    for step, index in enumerate(global_batches(len(data), spec.seed, spec.train.batch_size, STEPS)):
        batch = collate([data[i] for i in index], 0)
        p = token_p(model, batch)
        value = {"nll": -p.log(), "adaptive": (1 - p**alpha) / alpha, "asft": -p.detach() * p.log()}.get(name, 1 - p)
        if name == "asft":
            chosen = batch.labels[:, 1:] >= 0
            logq = model(input_ids=batch.ids, attention_mask=batch.mask).logits[:, :-1][chosen].log_softmax(1)
            with torch.no_grad():
                ref = frozen(input_ids=batch.ids, attention_mask=batch.mask).logits[:, :-1][chosen].log_softmax(1)
            value = value + 0.05 * (ref.exp() * (ref - logq)).sum(1)
        alpha = 0.9 * alpha + 0.1 * p.detach().mean()
        kept = torch.ones_like(p) if gate is None else (p.detach() >= gate.at).float()
        loss = (value * kept).sum() / len(p)
        if spec.objective.normalisation == "kept":  # the authors' code: each micro-batch by its own kept tokens
            tokens = [row.num_targets for row in (data[i] for i in index)]
            cuts = [sum(tokens[i : i + 4]) for i in range(0, len(tokens), 4)]
            parts = zip((value * kept).split(cuts), kept.split(cuts), strict=True)
            loss = torch.stack([v.sum() / k.sum() for v, k in parts]).mean()
        if spec.train.reduction == "authors":  # summed over a rank's micro-batches, averaged over ranks
            tokens = [row.num_targets for row in (data[i] for i in index)]
            cuts = [sum(tokens[i : i + 4]) for i in range(0, len(tokens), 4)]
            parts = zip((value * kept).split(cuts), kept.split(cuts), strict=True)
            loss = torch.stack([v.sum() / k.sum() for v, k in parts]).sum() / spec.execution.workers
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(model.parameters(), spec.train.clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(spec.train, step, STEPS)
        optimizer.step()
    return {name: p.detach() for name, p in model.named_parameters()}


def changed(spec: TrialSpec, part: str, **fields: Any) -> TrialSpec:
    return TrialSpec.model_validate({**spec.model_dump(), part: getattr(spec, part).model_dump() | fields})


def adapters(out: Path) -> dict[str, torch.Tensor]:
    """By the names that peft writes."""
    return load_file(out / "model" / "adapter_model.safetensors")


@pytest.mark.parametrize("workers", [1, 2])
def test_adapters_reach_the_reference_and_nothing_else_moves(backbones: Path, tmp_path: Path, workers: int) -> None:
    lora = {"rank": 4, "alpha": 8.0}
    stages = range(4) if workers == 2 else (0, 3)
    specs = {stage: changed(trial(stage, workers, {"name": "nll"}), "backbone", lora=lora) for stage in stages}
    jobs = [job(spec, tmp_path / f"lora-{stage}") for stage, spec in specs.items()]
    for stage in (0, 3):
        jobs.append(job(specs[stage], tmp_path / f"half-{stage}", stop_at=4))
        half = str(tmp_path / f"half-{stage}" / "checkpoint")
        jobs.append(job(specs[stage], tmp_path / f"resumed-{stage}", resume=half))
    run(tmp_path / "run", backbones, workers, jobs)
    expected = {n: p for n, p in reference(specs[0], backbones).items() if "lora" in n}
    assert max(p.abs().max() for n, p in expected.items() if "lora_B" in n) > 1e-3  # it did learn; B starts at 0
    for stage in specs:
        found = adapters(tmp_path / f"lora-{stage}")
        renamed = {n.replace(".default", ""): p for n, p in expected.items()}
        assert furthest({n.removeprefix("base_model.model."): p for n, p in found.items()}, renamed) < TOLERANCE, stage
    for stage in (0, 3):
        assert furthest(adapters(tmp_path / f"lora-{stage}"), adapters(tmp_path / f"resumed-{stage}")) == 0.0, stage


def test_checkpointing_offload_and_the_authors_reduction_reach_the_reference(backbones: Path, tmp_path: Path) -> None:
    """Two workers; only the authors' reduction changes the mathematics: with a gate it divides by the tokens kept."""
    plain = trial(0, 2, {"name": "nll"})
    gated = trial(0, 2, {"name": "nll", "gate": {"side": "top", "at": 0.1}})
    ways = {
        "checkpointing": changed(plain, "execution", gradient_checkpointing=True, attention="eager"),
        "optimizer-1": changed(trial(1, 2, {"name": "nll"}), "execution", offload="optimizer"),
        "optimizer-2": changed(trial(2, 2, {"name": "nll"}), "execution", offload="optimizer"),
        "parameters-3": changed(trial(3, 2, {"name": "nll"}), "execution", offload="parameters"),
        "eager": changed(plain, "backbone", attention="eager"),
        "authors": changed(plain, "train", reduction="authors", clip=0.05),
        "authors-gated": changed(gated, "train", reduction="authors", clip=0.05),
        "authors-gated-3": changed(gated, "train", reduction="authors", clip=0.05, zero_stage=3),
        "gated": changed(gated, "train", clip=0.05),
    }
    run(tmp_path / "run", backbones, 2, [job(spec, tmp_path / name) for name, spec in ways.items()])
    for name, spec in ways.items():
        assert furthest(weights(tmp_path / name), reference(spec, backbones)) < TOLERANCE, name
    # what is divided by and what is summed both show
    for one, other in (("authors-gated", "authors"), ("authors-gated", "gated")):
        assert furthest(weights(tmp_path / one), weights(tmp_path / other)) > 100 * TOLERANCE, (one, other)


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


@pytest.mark.parametrize("workers", [1, 2])
def test_objectives_with_state_reference_and_kept_tokens_reach_the_reference(
    backbones: Path, tmp_path: Path, workers: int
) -> None:
    """adaptive's alpha is global over ranks and micro-batches; no checkpoint has ASFT's frozen copy."""
    gated = {"name": "nll", "normalisation": "kept", "gate": {"side": "top", "at": 0.1}}
    wanted = {"adaptive": {"name": "adaptive"}, "asft": {"name": "asft"}, "kept": gated}
    cases = [(name, stage) for name in wanted for stage in ((0, 3) if name != "adaptive" else (0, 1, 2, 3))]
    jobs = [job(trial(stage, workers, wanted[name]), tmp_path / f"{name}-{stage}") for name, stage in cases]
    for name, stage in (("adaptive", 1), ("asft", 3)):
        spec, half = trial(stage, workers, wanted[name]), tmp_path / f"half-{name}"
        jobs.append(job(spec, half, stop_at=4))
        jobs.append(job(spec, tmp_path / f"resumed-{name}", resume=str(half / "checkpoint")))
    run(tmp_path / "run", backbones, workers, jobs)
    expected = {name: reference(trial(0, workers, objective), backbones) for name, objective in wanted.items()}
    for name, stage in cases:
        assert furthest(weights(tmp_path / f"{name}-{stage}"), expected[name]) < TOLERANCE, (name, stage)
    for name, stage in (("adaptive", 1), ("asft", 3)):
        assert furthest(weights(tmp_path / f"{name}-{stage}"), weights(tmp_path / f"resumed-{name}")) == 0.0, name
    alphas = [row["objective/alpha"] for row in rows(tmp_path / "adaptive-0")]
    assert 0 < alphas[0] < 1
    assert alphas[0] != alphas[-1]


def test_every_objective_of_the_table_trains_the_same_in_zero_0_and_3(backbones: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"power": {"alpha": -0.5}, "profit": {"threshold": 0.1}}
    for_all = {"gate": {"side": "top", "quantile": 0.2}}
    objectives = {name: {"name": name} | given.get(name, {}) for name in OBJECTIVES} | {
        "quantile": {"name": "eaft"} | for_all
    }
    jobs = [
        job(changed(trial(stage, 2, objective), "train", batch_size=8, steps=4), tmp_path / f"{name}-{stage}")
        for name, objective in objectives.items()
        for stage in (0, 3)
    ]
    run(tmp_path / "run", backbones, 2, jobs)
    for name in objectives:
        assert furthest(weights(tmp_path / f"{name}-0"), weights(tmp_path / f"{name}-3")) < TOLERANCE, name


@pytest.mark.parametrize("tied", [True, False])
def test_tied_and_untied_heads_with_a_bias_of_the_body_reach_the_reference(
    backbones: Path, tmp_path: Path, tied: bool
) -> None:
    """A Qwen2 of random weights, as a model directory; tied embeddings get the head's gradient and their own."""
    hf = import_transformers()
    torch.manual_seed(0)
    config = hf.Qwen2Config(
        vocab_size=60, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=tied, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    folder = tmp_path / "model"
    hf.Qwen2ForCausalLM(config).save_pretrained(folder)
    char_tokenizer().save_pretrained(folder)
    specs = {
        stage: trial(stage, 2, {"name": "nll"}).model_copy(
            update={"backbone": BackboneSpec(path=str(folder), fingerprint=str(tied))}
        )
        for stage in (0, 1, 2, 3)
    }
    run(tmp_path / "run", backbones, 2, [job(spec, tmp_path / str(stage)) for stage, spec in specs.items()])
    expected = reference(specs[0], backbones)
    for stage in specs:
        got = weights(tmp_path / str(stage))
        assert {name for name in expected if name not in got} <= {"lm_head.weight"}
        assert furthest({n: got[n] for n in expected if n in got}, {n: expected[n] for n in expected if n in got}) < (
            TOLERANCE
        ), stage


@pytest.mark.parametrize("workers", [1, 2])
def test_a_used_process_reproduces_fresh_ones_bit_for_bit(backbones: Path, tmp_path: Path, workers: int) -> None:
    """Every objective, ZeRO 0 to 3, with and without LoRA, fp32 and bf16, packed and not, with deterministic kernels
    and not, two backbones, in shuffled order; one predecessor has failed half-way.
    """
    given: dict[str, Any] = {"power": {"alpha": -0.5}, "profit": {"threshold": 0.1}}
    specs = {}
    for number, name in enumerate(list(OBJECTIVES)[::workers]):
        spec = changed(trial(number % 4, workers, {"name": name} | given.get(name, {})), "train", batch_size=8, steps=4)
        if number % 3 == 1:
            spec = changed(spec, "backbone", lora={"rank": 2})
        if number % 5 == 2:
            spec = changed(spec, "train", precision="bf16")
        if number % 5 == 3:
            spec = changed(spec, "execution", packing=True)
        if number % 7 == 4:
            spec = changed(spec, "backbone", pretrain_steps=0)
        if number % 4 == 2:
            spec = changed(spec, "execution", deterministic=True)
        specs[name] = spec
    names = random.Random(workers).sample(sorted(specs), len(specs))
    failing = job(specs["nll"], tmp_path / "failed", raise_at=4)
    used = [job(specs[name], tmp_path / "used" / name) for name in names]
    used.insert(len(names) // 2, failing)
    assert len(used) > 10
    lane = start(tmp_path / "a", backbones, workers, used)
    run(tmp_path / "b", backbones, workers, [job(specs[n], tmp_path / "fresh" / n) for n in sorted(specs)], "--fresh")
    finish(lane)
    assert not (tmp_path / "failed" / "rows.json").exists()
    for name in names:
        one, other = tmp_path / "used" / name, tmp_path / "fresh" / name
        assert rows(one) == rows(other), name
        assert (one / "random.json").read_text() == (other / "random.json").read_text(), name
        files = sorted(p.name for p in (one / "model").glob("*.safetensors"))
        assert files, name
        for file in files:
            assert (one / "model" / file).read_bytes() == (other / "model" / file).read_bytes(), name


def test_deterministic_kernels_are_asked_for_in_steps_alone_and_change_nothing_here(
    backbones: Path, tmp_path: Path
) -> None:
    spec = trial(1, 1, {"name": "adaptive"})
    wanted = changed(spec, "execution", deterministic=True)
    assert wanted.key == spec.key
    run(tmp_path / "run", backbones, 1, [job(spec, tmp_path / "as-ever"), job(wanted, tmp_path / "deterministic")])
    in_steps = [json.loads((tmp_path / out / "deterministic.json").read_text()) for out in ("as-ever", "deterministic")]
    assert in_steps == [{"in a step": False, "after it": False}, {"in a step": True, "after it": False}]
    if not torch.cuda.is_available():  # there attention's backward is another one
        assert furthest(weights(tmp_path / "as-ever"), weights(tmp_path / "deterministic")) == 0.0


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


def test_packed_rows_reach_the_parameters_of_padded_ones(backbones: Path, tmp_path: Path) -> None:
    """Examples of many lengths, so that rows do hold several; the record says that none saw another."""
    file = tmp_path / "sums.jsonl"
    examples = [(f"{a}+{b}=", str(a + b)[::-1] * (1 + (a * b) % 5)) for a in range(10, 22) for b in range(30, 42)]
    file.write_text("".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in examples))
    cases = [("nll", 0), ("nll", 3), ("adaptive-sequence", 1)]
    jobs = []
    for name, stage in cases:
        for packing in (False, True):
            spec = trial(stage, 2, {"name": name}).model_dump()
            spec |= {"task": {"path": str(file)}, "execution": {"workers": 2, "packing": packing}}
            jobs.append(job(TrialSpec.model_validate(spec), tmp_path / f"{name}-{stage}-{packing}"))
    assert len({TrialSpec.model_validate(j["trial"]).key for j in jobs}) == 2  # neither stage nor packing is part of it
    run(tmp_path / "run", backbones, 2, jobs)
    for name, stage in cases:
        padded, packed = (tmp_path / f"{name}-{stage}-{packing}" for packing in (False, True))
        assert furthest(weights(padded), weights(packed)) < TOLERANCE, (name, stage)
        assert rows(padded)[-1] == pytest.approx(rows(packed)[-1], rel=1e-3, abs=1e-5), (name, stage)
        assert max(json.loads((packed / "facts.json").read_text())["packing_check"].values()) < 1e-5
