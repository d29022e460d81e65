"""A backbone sharded while it is loaded against one that every worker holds whole: two workers, gloo, ZeRO 3."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.hf import import_transformers
from jobs.pretrain import builtin_dir, char_tokenizer
from jobs.spec import TrialSpec
from tests.integration.test_engine import TOLERANCE, adapters, changed, furthest, job, rows, run, trial, weights


def untrained(stage: int, workers: int = 2) -> TrialSpec:
    return trial(stage, workers, {"name": "nll"}, "bf16").model_copy(update={"objective": None, "seed": 0})


def test_a_sharded_backbone_measures_what_a_whole_one_measures(backbones: Path, tmp_path: Path) -> None:
    """Mean p, quantiles, held-out yardsticks and sampled answers; in fp32, although it is trained in bf16."""
    offloaded = changed(untrained(3, 1), "execution", offload="parameters")
    roots = {}
    for name, spec in {"whole": untrained(1), "sharded": untrained(3), "offloaded": offloaded}.items():
        root = roots[name] = tmp_path / f"root-{name}"  # each measures its own probe
        link = builtin_dir(root, "char-llama", 60)
        link.parent.mkdir(parents=True)
        link.symlink_to(builtin_dir(backbones, "char-llama", 60))
        run(tmp_path / f"run-{name}", root, spec.execution.workers, [job(spec, tmp_path / name)])
    whole = rows(tmp_path / "whole")[-1]
    for name in ("sharded", "offloaded"):
        assert rows(tmp_path / name)[-1] == pytest.approx(whole, rel=1e-5, abs=1e-7), name
        assert len(list((roots[name] / "probes").iterdir())) == 1


def test_full_lora_reference_and_bf16_train_alike_sharded_and_whole(backbones: Path, tmp_path: Path) -> None:
    """And resume bit for bit, with gradient checkpointing."""
    ways: dict[str, dict[str, Any]] = {
        "lora": {"backbone": {"lora": {"rank": 4}}, "execution": {"gradient_checkpointing": True}},
        "reference": {"execution": {"gradient_checkpointing": True}},
        "bf16": {"train": {"precision": "bf16"}},
        "bf16-reference-lora": {"train": {"precision": "bf16"}, "backbone": {"lora": {"rank": 4}}},
    }
    jobs, resumed = [], ("reference", "bf16-reference-lora")
    for name, parts in ways.items():
        for stage in (1, 3):
            spec = trial(stage, 2, {"name": "asft" if "reference" in name else "nll"})
            for part, fields in parts.items():
                spec = changed(spec, part, **fields)
            jobs.append(job(spec, tmp_path / f"{name}-{stage}"))
        if name not in resumed:
            continue
        half = tmp_path / f"half-{name}"
        jobs += [job(spec, half, stop_at=4), job(spec, tmp_path / f"resumed-{name}", resume=str(half / "checkpoint"))]
    run(tmp_path / "run", backbones, 2, jobs)
    for name in ways:
        of = adapters if "lora" in name else weights
        whole, sharded = of(tmp_path / f"{name}-1"), of(tmp_path / f"{name}-3")
        assert furthest(whole, sharded) < (1e-2 if "bf16" in name else TOLERANCE), name
        assert name not in resumed or furthest(sharded, of(tmp_path / f"resumed-{name}")) == 0.0, name
        assert json.loads((tmp_path / f"{name}-3" / "facts.json").read_text())["objective_check"]["digest"]


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="this system does not say what a process holds")
def test_neither_of_two_workers_ever_holds_much_more_than_its_half(tmp_path: Path) -> None:
    """Memory of their own (mapped files are the system's) at its peak, and of what stays; files in bf16."""
    hf = import_transformers()
    config = hf.LlamaConfig(
        vocab_size=4000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=6, num_attention_heads=16,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = hf.LlamaForCausalLM(config).bfloat16()
    size = sum(p.numel() for p in model.parameters())
    model.save_pretrained(tmp_path / "model", max_shard_size="50MB")
    char_tokenizer().save_pretrained(tmp_path / "model")
    found: dict[str, list[dict[str, int]]] = {}
    for way in ("fp32", "bf16"):
        command = [sys.executable, str(Path(__file__).parent / "loading_worker.py"), str(tmp_path / "model"), way]
        workers = [
            subprocess.Popen([*command, str(rank), str(tmp_path / f"meet-{way}")], stdout=subprocess.PIPE, text=True)
            for rank in range(2)
        ]
        found[way] = [json.loads(worker.communicate(timeout=600)[0].splitlines()[-1]) for worker in workers]
    for rank in range(2):
        for way, word in (("fp32", 4), ("bf16", 2)):
            one = found[way][rank]
            assert one["tensors"] == pytest.approx(word * size / 2, rel=0.02), way
            assert one["stays"] < 0.6 * word * size, way
            assert one["peak"] < 0.75 * word * size, way
