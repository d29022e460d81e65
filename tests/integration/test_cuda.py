"""Sweeps on a real GPU: shares by measured memory, groups, running out of memory, and workers that were given none.

Left out where there is no GPU. tests/unit/test_fused.py, test_engine.py and test_together.py run on one as they are.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.hf import import_transformers
from jobs.meter import host_bytes
from jobs.pretrain import char_tokenizer
from sweeper.store import Store

from .conftest import sweeper, write_spec

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
GIB = 1 << 30
SHAPE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8, "num_attention_heads": 16,
         "num_key_value_heads": 16, "max_position_embeddings": 4096}  # fmt: skip


def llama(folder: Path) -> dict[str, Any]:
    """A model directory of random weights, 0.14 B parameters, with the built-in tokenizer."""
    hf, tokenizer = import_transformers(), char_tokenizer()
    torch.manual_seed(0)
    hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=len(tokenizer), **SHAPE)).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"path": str(folder)}


def digits(file: Path, length: int, rows: int) -> dict[str, Any]:
    """Examples of `length` characters each."""
    text = "".join(str(i * i * 7 % 10) for i in range(length + rows))
    pairs = [{"prompt": text[i : i + 8], "response": text[i + 8 : i + length]} for i in range(rows)]
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return {"path": str(file), "heldout_examples": 8}


def results(store: Store, sweep: str) -> list[dict[str, Any]]:
    """Of the trials that train, in the order of the plan."""
    found = [(t, store.trial(t["key"]).result() or {}) for t in store.plan(sweep)["trials"]]
    assert all(result["status"] == "finished" for _, result in found)
    return [result for trial, result in found if trial["objective"] is not None]


def test_a_worker_that_was_given_no_gpu_trains_on_the_cpu_and_the_sweep_says_so(storage: Path, tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    done = sweeper("run", spec, storage=storage)
    assert done.returncode == 0, done.stderr
    assert "no trial asks for" in done.stdout
    assert {tuple(result["memory"]["total_bytes"]) for result in results(Store(storage), "small")} == {(host_bytes(),)}


def test_the_first_trial_measures_and_the_others_share_the_card(storage: Path, tmp_path: Path) -> None:
    grid = {"backbone": [llama(tmp_path / "llama")], "task": [digits(tmp_path / "rows.jsonl", 128, 64)],
            "objective": ["nll", "one-minus-p", "adaptive"], "seed": [1, 2]}  # fmt: skip
    spec = write_spec(
        tmp_path, grid=grid, concurrency=None, execution={"gpus_per_worker": "auto"},
        train={"lr": 1e-4, "batch_size": 8, "steps": 10, "max_length": 128, "precision": "bf16"},
    )  # fmt: skip
    done = sweeper("run", spec, "--data-root", tmp_path, storage=storage)
    assert done.returncode == 0, done.stderr
    found = results(Store(storage), "small")
    shares = sorted(result["memory"]["gpus"] for result in found)
    assert shares[-1] == 1  # of each kind the first
    assert shares[0] == 0.25
    for result in found:
        memory = result["memory"]
        assert 0 < memory["peak_bytes"][0] < memory["gpus"] * memory["total_bytes"][0]
        assert memory["total_bytes"][0] == torch.cuda.mem_get_info()[1]


def test_what_does_not_fit_on_the_card_is_cut_until_it_does(storage: Path, tmp_path: Path) -> None:
    """One step of 512 sequences of 2048 tokens at once would keep several hundred GiB."""
    grid = {"backbone": [llama(tmp_path / "llama")], "task": [digits(tmp_path / "rows.jsonl", 2048, 520)],
            "objective": ["nll"], "seed": [1]}  # fmt: skip
    spec = write_spec(
        tmp_path, grid=grid, execution={"gpus_per_worker": 1},
        train={"lr": 1e-4, "batch_size": 512, "steps": 1, "max_length": 2048, "precision": "bf16"},
        evaluation={"samples": 1, "max_new_tokens": 4, "batch_size": 8},
    )  # fmt: skip
    done = sweeper("run", spec, "--data-root", tmp_path, storage=storage)
    assert done.returncode == 0, done.stderr
    assert "out of memory; from now on a worker takes 256 sequences at once" in done.stdout
    (result,) = results(Store(storage), "small")
    assert 1 < result["micro_batch_size"] < 512
    peak, total = result["memory"]["peak_bytes"][0], result["memory"]["total_bytes"][0]
    assert total / 4 < peak < total  # half as many would have been too few


def test_adapters_that_train_together_come_to_what_they_come_to_alone(storage: Path, tmp_path: Path) -> None:
    backbone = llama(tmp_path / "llama") | {"lora": {"rank": 8}}
    grid = {"backbone": [backbone], "task": [digits(tmp_path / "rows.jsonl", 128, 64)],
            "objective": ["nll", "one-minus-p", {"name": "power", "alpha": 0.5}, "adaptive"], "seed": [1]}  # fmt: skip
    train = {"lr": 1e-4, "batch_size": 8, "steps": 10, "max_length": 128, "precision": "bf16"}
    last = {}
    for together, root, count in (("auto", storage, 4), ("off", tmp_path / "apart", 1)):
        root.mkdir(exist_ok=True)
        spec = write_spec(
            tmp_path, grid=grid, together=together, train=train, execution={"gpus_per_worker": 1, "memory_gb": 60}
        )
        done = sweeper("run", spec, "--data-root", tmp_path, storage=root)
        assert done.returncode == 0, done.stderr
        store = Store(root)
        assert [result.get("together", 1) for result in results(store, "small")] == [count] * 4
        trials = [t for t in store.plan("small")["trials"] if t["objective"] is not None]
        last[together] = [store.trial(t["key"]).rows()[-1]["heldout/nll"] for t in trials]
    assert last["auto"] == pytest.approx(last["off"], rel=0.02)  # bf16 has three digits
