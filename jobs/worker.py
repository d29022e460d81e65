"""A lane: one Ray Train worker group that stays up and runs trials one after another, or groups of them.

Imports, process group and tokenised data stay; model, engine and random state are new for every trial, so a
trial in a lane equals the same trial in a fresh process. An error in a trial ends the lane: ranks may hang
in a collective, so the whole group is replaced rather than mended. The rank that raised it tells the board first.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tempfile
import threading
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train import CheckpointUploadMode

from jobs.checkpoint_writer import Parts
from jobs.clock import Clock
from jobs.course import Row, Save
from jobs.engine import device, on_any_rank
from jobs.evaluate import Problem
from jobs.failure import Failure
from jobs.memory import Floor
from jobs.meter import Meter, meter
from jobs.process_group import set_device
from jobs.record import KEEP_CHECKPOINTS, RowWriter, TrialFolder
from jobs.spec import TrialSpec
from jobs.together import Member, train_together
from jobs.train import train
from jobs.zero import micro_batch_size


def serve(config: dict[str, Any]) -> None:
    """Ray Train's training function.

    config: board (actor handle, see sweeper/board.py), lane (its name), root (storage), cpus and gpus (per worker).
    """
    words = _Words()
    threading.Thread(target=words.listen, args=(config["board"], config["lane"]), daemon=True).start()
    torch.set_num_threads(max(1, int(config["cpus"])))
    set_device()
    board, rank = config["board"], dist.get_rank()
    try:
        _serve(config, words, rank)
    except (Exception, SystemExit) as error:  # a trial that failed; a plug-in's exit() is no end of a lane
        ray.get(board.raised.remote(config["lane"], Failure.of(error, rank).record()))
        if isinstance(error, SystemExit):
            raise RuntimeError(f"a trial called exit({error.code})") from error
        raise


def _serve(config: dict[str, Any], words: _Words, rank: int) -> None:
    """One trial after another, or groups of them, until the board has none left."""
    board, root = config["board"], Path(config["root"])
    floor, gauge = Floor(), meter(_cards_here())
    for index in itertools.count():
        jobs = ray.get(board.next_jobs.remote(config["lane"], index))
        if jobs is None:
            return
        gauge.begin(config["gpus"] or 1.0, jobs[0]["outside"])  # what has no GPU shares none
        runs = [_Run(board, root, job, rank, words, gauge, config["gpus"]) for job in jobs]
        if len(runs) == 1:
            runs[0].run()
        else:
            train_together([run.member() for run in runs], root)
        if on_any_rank(floor.left()):
            return  # the lane is opened anew while trials are left


class _Words:
    """What the driver tells this lane while it trains: which trials to break off, or to exit at once."""

    def __init__(self) -> None:
        self.interrupted: set[str] = set()

    def listen(self, board: Any, lane: str) -> None:
        for number in itertools.count():
            key = ray.get(board.next_word.remote(lane, number))
            if key is None:
                os._exit(1)  # a sweep ended at once does not wait for a step, which may be minutes away
            self.interrupted.add(key)


class _Run:
    """One trial in this worker: where its rows and checkpoints go. Only rank 0 writes rows and speaks."""

    def __init__(
        self, board: Any, root: Path, job: dict[str, Any], rank: int, words: _Words, gauge: Meter, gpus: float
    ) -> None:
        self.board, self.root, self.rank, self.words, self.gauge, self.gpus = board, root, rank, words, gauge, gpus
        self.key: str = job["key"]
        self.wait: bool = job["wait"]  # a scheduler wants to judge every evaluation before the trial goes on
        self.hold_at: int | None = job["hold_at"]  # the step at which a race compares
        self.trial = TrialSpec.model_validate_json(job["spec"])
        self.folder = TrialFolder(root / "trials" / self.key)
        self.last: Row = {}
        self.broken_off = self.held = False
        self.writing: tuple[int, Parts] | None = None  # the checkpoint on its way to the disk, and its step
        self.clock = Clock()
        if rank == 0:
            self.folder.create(self.trial)
            self.writer = RowWriter(self.folder)
            self.clock = Clock(self.folder.seconds(), partial(board.now.remote, self.key))
        self.resume_from = self._newest_checkpoint()
        self.model_dir = self.folder.path / "model" if self.trial.train.keep_model else None
        self.facts: dict[str, Any] = {}

    def run(self) -> None:
        complete = train(
            self.trial, self.root, self.report, self.resume_from, self.model_dir, self.facts, self.keep_answers,
            self.clock,
        )  # fmt: skip
        self.end(complete)

    def member(self) -> Member:
        """Of a group, which trains it to its end."""
        return Member(
            self.trial, self.report, self.end, self.resume_from, self.model_dir, self.keep_answers, self.facts,
            self.clock,
        )  # fmt: skip

    def end(self, complete: bool) -> None:
        """Its last word, if it is over for good."""
        self._settle()
        memory = self._memory()
        if self.rank != 0:
            return
        if not complete:
            self.folder.write_seconds(self.clock.read())
        if "heldout/nll" in self.last:  # else it has not answered anything yet, which may take the most
            ray.get(self.board.measured.remote(self.key, _of_one_worker(memory)))
        if self.broken_off and not ray.get(self.board.gave_back.remote(self.key)):
            return  # its checkpoint is there; it goes on in another lane, or when the sweep is resumed
        if self.held:
            ray.get(self.board.say.remote(self.key, {"kind": "held", "row": self.last}))
            return
        diverged = self.facts.pop("diverged", None)
        status = "finished" if complete else "stopped" if diverged is None else "diverged"
        resumed = int(self.resume_from.name.removeprefix("step-")) if self.resume_from else None
        by: dict[str, Any] = {"by": "hand" if self.broken_off else "scheduler"} if status == "stopped" else {}
        if diverged is not None:
            finite = self.folder.last_step()
            text = f"{diverged.what} at step {diverged.step}; the last finite row is that of step {finite}"
            by = {"error": text, "last_finite_step": finite}
        self.folder.finish(
            status,
            step=self.last["step"] if diverged is None else diverged.step,
            workers=dist.get_world_size(),
            resumed_from=resumed,
            micro_batch_size=micro_batch_size(self.trial),
            evaluated_at_once=self.trial.evaluated_at_once,
            memory=memory,
            **self.clock.read(),
            **by,
            **self.facts,
        )
        if complete or diverged is not None:
            self.folder.drop_checkpoints()
        ray.get(self.board.say.remote(self.key, {"kind": status, "row": self.last, "error": by.get("error", "")}))

    def _memory(self) -> dict[str, Any]:
        """What each worker took at its peak, and what it had; by rank."""
        mine = self.gauge.read()
        of_all = [mine] * dist.get_world_size()
        if dist.get_world_size() > 1:
            dist.all_gather_object(of_all, mine)
        return {"gpus": self.gpus} | {name: [one[name] for one in of_all] for name in mine}

    def report(self, row: Row, save: Save | None, due: bool) -> bool:
        """jobs.train's report: record, checkpoint, and whether to go on, the same answer on every rank."""
        judged = "heldout/nll" in row
        if self.rank == 0:
            self.writer.write(row)
            self.last = self.last | row
        self._settle(wait=False)
        # after its row: whoever resumes from a checkpoint does not come past that row again
        if due and save is not None:
            self._checkpoint(int(row["step"]), save)
        go_on, break_off = True, False
        if self.rank == 0:
            if judged:
                go_on = ray.get(self.board.ask.remote(self.key, {"kind": "row", "row": row}, self.wait))
            break_off = go_on and save is not None and self.key in self.words.interrupted
        go_on, break_off = _from_first_rank(go_on, break_off)
        if save is None:
            return go_on
        self.broken_off = break_off
        self.held = go_on and not break_off and self.hold_at is not None and row["step"] >= self.hold_at
        if go_on and not break_off and not self.held:
            return True
        if not due:
            self._checkpoint(int(row["step"]), save)
        self._settle()
        return False

    def keep_answers(self, name: str, problems: list[Problem]) -> None:
        """The newest answers to each set of problems, so that a score can be looked into."""
        if self.rank == 0:
            self.folder.write_answers(name, [vars(p) | {"scores": [vars(s) for s in p.scores]} for p in problems])

    def _checkpoint(self, step: int, save: Save) -> None:
        """Begin one; the one before it must be whole by then."""
        self._settle()
        target = self.folder.checkpoint_dir(step)
        if self.rank == 0:
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
        dist.barrier()
        self.writing = (step, save(target))

    def _settle(self, wait: bool = True) -> None:
        """Mark the checkpoint on its way as complete, if all ranks have written it; with `wait`, once they have."""
        if self.writing is None:
            return
        step, parts = self.writing
        if not wait and on_any_rank(not parts.written()):
            return
        parts.wait()
        dist.barrier()
        self.writing = None
        if self.rank == 0:
            self.folder.complete_checkpoint(step, KEEP_CHECKPOINTS)
            self.folder.write_seconds(self.clock.read())
        self._tell_ray_train(step, self.folder.checkpoint_dir(step))

    def _tell_ray_train(self, step: int, target: Path) -> None:
        """The shards belong to the trial's folder, not to the lane's run; Ray Train gets a pointer to them.

        ASYNC: a report in step with the controller's poll would hold training up for most of a second.
        """
        pointer = None
        if self.rank == 0:
            folder = Path(tempfile.mkdtemp(prefix="pointer-"))  # Ray Train removes it when it is uploaded
            (folder / "pointer.json").write_text(json.dumps({"trial": self.key, "step": step, "path": str(target)}))
            pointer = ray.train.Checkpoint.from_directory(folder)
        ray.train.report({"trial": self.key, "step": step}, pointer, checkpoint_upload_mode=CheckpointUploadMode.ASYNC)

    def _newest_checkpoint(self) -> Path | None:
        """Chosen by rank 0 for all."""
        found: list[str | None] = [None]
        if self.rank == 0 and (complete := self.folder.checkpoints()):
            found[0] = str(complete[-1])
        dist.broadcast_object_list(found, 0)
        return Path(found[0]) if found[0] else None


def _of_one_worker(memory: dict[str, Any]) -> dict[str, int]:
    """The largest need and the smallest card."""
    most = {name: max(memory[name]) for name in ("peak_bytes", "outside_bytes")}
    return most | {"total_bytes": min(memory["total_bytes"])}


def _cards_here() -> float:
    """GPUs of this node, as Ray counts them."""
    here = ray.get_runtime_context().get_node_id()
    return float(next((n["Resources"].get("GPU", 0.0) for n in ray.nodes() if n["NodeID"] == here), 0.0))


def _from_first_rank(*flags: bool) -> list[bool]:
    """Rank 0's flags on every rank."""
    if dist.get_world_size() == 1:
        return list(flags)
    shared = torch.tensor(flags, dtype=torch.int32, device=device())
    dist.broadcast(shared, 0)
    return [bool(flag) for flag in shared.tolist()]
