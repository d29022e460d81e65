"""Loads a model directory in one of two workers and says what it took: loading_worker.py DIR WAY RANK RENDEZVOUS.

WAY: fp32 or bf16. Prints bytes as JSON: tensors (of the weights that this worker holds),
peak and stays (memory of its own, over what it had before).
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist

from jobs.engine import ensure_process_group
from jobs.hf import import_transformers
from jobs.memory import settle
from jobs.sharded import load_sharded
from jobs.spec import TrialSpec


def own() -> int:
    """Bytes that belong to this process alone."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return 1024 * int(line.split()[1])


def main() -> None:
    folder, way, rank, meet = sys.argv[1:]
    torch.set_num_threads(1)
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=int(rank), world_size=2)
    ensure_process_group()
    import_transformers().LlamaForCausalLM  # noqa: B018 its import, once
    trial = TrialSpec.model_validate(
        {
            "backbone": {"path": folder}, "task": {"builtin": "addition"}, "objective": {"name": "nll"}, "seed": 0,
            "train": {"lr": 1e-3, "steps": 1, "batch_size": 2, "zero_stage": 3}, "evaluation": {},
            "execution": {"workers": 2},
        }
    )  # fmt: skip
    before = own()
    seen = [0]

    def watch() -> None:
        while True:
            seen[0] = max(seen[0], own() - before)
            time.sleep(0.002)

    threading.Thread(target=watch, daemon=True).start()
    model = load_sharded(trial, Path(), way)
    held = [getattr(parameter, "ds_tensor", parameter) for parameter in model.parameters()]
    peak = seen[0]
    settle()
    print(json.dumps({"tensors": sum(p.nbytes for p in held), "peak": peak, "stays": own() - before}))
    dist.barrier()


main()
