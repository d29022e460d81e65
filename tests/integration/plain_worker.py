"""Trials in plain processes, without Ray: python plain_worker.py JOBS.json RANK WORLD RENDEZVOUS.

JOBS.json: {"root": storage, "jobs": [{"trial": TrialSpec, "out": folder, "stop_at": step, "resume": folder}, ...]}; the
jobs run one after another in the same process, as in a lane. Each writes rows.json, facts.json and model/ into its
folder.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from jobs.record import Row
from jobs.spec import TrialSpec
from jobs.train import Save, train


def run(job: dict[str, str], root: Path) -> None:
    out, stop_at = Path(job["out"]), job.get("stop_at")
    rows: list[Row] = []

    def report(row: Row, save: Save | None, due: bool) -> bool:
        rows.append(row)
        if stop_at is not None and due:
            assert save is not None
            save(out / "checkpoint")
            return False
        return True

    resume = Path(job["resume"]) if "resume" in job else None
    facts: dict[str, Any] = {}
    train(TrialSpec.model_validate(job["trial"]), root, report, resume, None if stop_at else out / "model", facts)
    if dist.get_rank() == 0:
        (out / "rows.json").write_text(json.dumps(rows))
        (out / "facts.json").write_text(json.dumps(facts))


def main() -> None:
    jobs, rank, world, rendezvous = sys.argv[1:]
    torch.set_num_threads(1)
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=int(rank), world_size=int(world))
    todo = json.loads(Path(jobs).read_text())
    for job in todo["jobs"]:
        Path(job["out"]).mkdir(parents=True, exist_ok=True)
        dist.barrier()
        run(job, Path(todo["root"]))


main()
