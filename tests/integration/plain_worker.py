"""Trials in plain processes, without Ray: python plain_worker.py JOBS.json RANK WORLD RENDEZVOUS [--fresh].

JOBS.json: {"root": storage, "jobs": [{"trial": TrialSpec, "out": folder, "stop_at": step, "raise_at": step,
"resume": folder}, ...]}; the jobs run one after another in the same process, as in a lane, or with --fresh each in a
process that has imported everything and run nothing. Each writes rows.json, facts.json, random.json (the state of the
random generators after it) and model/ into its folder.
"""

import hashlib
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # the first optimiser step would import it
import torch.distributed as dist

from jobs.course import Save
from jobs.hf import import_transformers
from jobs.memory import settle
from jobs.network import backend_here
from jobs.record import Row
from jobs.spec import TrialSpec
from jobs.train import train


class Raised(Exception):
    """What a trial has failed with."""


def run(job: dict[str, Any], root: Path) -> None:
    out, stop_at = Path(job["out"]), job.get("stop_at")
    rows: list[Row] = []

    def report(row: Row, save: Save | None, due: bool) -> bool:
        rows.append(row)
        if row["step"] == job.get("raise_at"):
            raise Raised
        if stop_at is not None and due:
            assert save is not None
            save(out / "checkpoint").wait()
            return False
        return True

    seen: dict[str, bool] = {}
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda module, *_: (
            seen.update({"in a step": torch.are_deterministic_algorithms_enabled()}) if module.training else None
        )
    )
    resume = Path(job["resume"]) if "resume" in job else None
    facts: dict[str, Any] = {}
    try:
        train(TrialSpec.model_validate(job["trial"]), root, report, resume, None if stop_at else out / "model", facts)
    finally:
        hook.remove()
    seen["after it"] = torch.are_deterministic_algorithms_enabled()
    if dist.get_rank() == 0:
        (out / "deterministic.json").write_text(json.dumps(seen))
        (out / "rows.json").write_text(json.dumps(rows))
        (out / "facts.json").write_text(json.dumps(facts))

        (out / "random.json").write_text(json.dumps(random_state()))


def random_state() -> list[str]:
    """Digests of what every generator would draw next."""
    states = [torch.get_rng_state().numpy().tobytes(), repr(random.getstate()), repr(np.random.get_state())]
    if torch.cuda.is_available():
        states.append(torch.cuda.get_rng_state().numpy().tobytes())
    return [hashlib.sha256(s if isinstance(s, bytes) else s.encode()).hexdigest() for s in states]


def join(rank: int, world: int, rendezvous: str) -> None:
    if torch.cuda.is_available():
        torch.cuda.set_device(rank)
    dist.init_process_group(init_method=f"file://{rendezvous}", rank=rank, world_size=world, **backend_here())


def serve(jobs: list[dict[str, Any]], root: Path) -> None:
    for job in jobs:
        Path(job["out"]).mkdir(parents=True, exist_ok=True)
        dist.barrier()
        try:
            run(job, root)
        except Raised:
            continue
        finally:
            settle()


def main() -> None:
    path, rank, world, rendezvous, *fresh = sys.argv[1:]
    torch.set_num_threads(1)
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # looking for a GPU otherwise takes it from a forked child
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    todo = json.loads(Path(path).read_text())
    root = Path(todo["root"])
    if not fresh:
        join(int(rank), int(world), rendezvous)
        serve(todo["jobs"], root)
        return
    import_transformers().LlamaForCausalLM  # noqa: B018 its import, once
    for number, job in enumerate(todo["jobs"]):
        if (child := os.fork()) == 0:
            join(int(rank), int(world), f"{rendezvous}-{number}")
            serve([job], root)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            sys.exit(f"job {number} failed")


main()
