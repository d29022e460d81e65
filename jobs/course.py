"""One trial from step to step: what its loop knows between two of them, and what it says of itself.

Who computes the steps is left open: one engine for itself (jobs/train.py), or several trials in one forward pass
(jobs/together.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from jobs import engine as ds
from jobs.answers import Reading
from jobs.capability import Capability
from jobs.checkpoint_writer import Parts
from jobs.clock import EVALUATE, TRAIN, Clock
from jobs.corpus import Rows
from jobs.data import Encoded, global_batches
from jobs.evaluate import Problem, answer_problems, answering, task_yardsticks, token_yardsticks
from jobs.objectives import State
from jobs.spec import TrialSpec
from jobs.tasks import Example

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Row = dict[str, float]
Save = Callable[[Path], Parts]
Report = Callable[[Row, Save | None, bool], bool]
KeepAnswers = Callable[[str, list[Problem]], None]


@dataclass(frozen=True)
class Prepared:
    """A task as token ids, ready for a backbone. `problems`: what is answered and scored, prompts and examples."""

    train: Rows
    heldout: Rows
    problems: dict[str, tuple[list[list[int]], list[Example]]]
    facts: dict[str, Any]

    @property
    def ends(self) -> frozenset[int]:
        """Ids that may end a response."""
        answers = self.facts["answers"]
        return frozenset([*answers["stops"], answers["trained"][-1]])


@dataclass(frozen=True)
class Divergence:
    """what: in words, which number was no longer finite; step: of the row at which that was noticed."""

    what: str
    step: int


class Course:
    """Begin a step, have it computed, end it; over when none are left, `report` has said so, or it has diverged.

    diverged: what became NaN or infinite, the same on every rank. Looked for at each row: a check at each step would
    wait for the GPU.
    """

    def __init__(
        self,
        trial: TrialSpec,
        engine: Any,
        capability: Capability | None,
        tokenizer: PreTrainedTokenizerBase,
        prepared: Prepared,
        report: Report,
        keep_answers: KeepAnswers | None,
        resume_from: Path | None,
        clock: Clock,
    ) -> None:
        self.trial, self.engine, self.capability, self.clock = trial, engine, capability, clock
        self.tokenizer, self.prepared, self.report, self.keep_answers = tokenizer, prepared, report, keep_answers
        self.pad = int(tokenizer.pad_token_id)
        rows, spec = prepared.train, trial.train
        self.num_steps = spec.num_steps(len(rows))
        self.batches = global_batches(len(rows), trial.seed, spec.batch_size, self.num_steps)
        self.step = 0
        if resume_from is not None:
            saved = ds.load(engine, resume_from)
            self.step = int(saved["step"]) + 1
            if capability is not None:
                capability.load(saved["capability"])
        self.window = _Window(engine.device)
        self.diverged: Divergence | None = None

    @property
    def left(self) -> bool:
        return self.step < self.num_steps

    def begin(self) -> tuple[list[Encoded], State | None]:
        """The step's examples, and what its objective may read of the model; rate and random draws are set."""
        # one seed a step and rank: a resumed trial draws what an uninterrupted one draws
        _seed_torch(hash((self.trial.seed, self.step, dist.get_rank())) & 0x7FFFFFFF)
        self.rate = ds.learning_rate(self.trial.train, self.step, self.num_steps)
        ds.set_learning_rate(self.engine, self.rate)
        state = None if self.capability is None else self.capability.state(self.step / self.num_steps)
        return [self.prepared.train[i] for i in self.batches[self.step]], state

    def end(self, sums: torch.Tensor, sequence_nll: torch.Tensor, norm: torch.Tensor | None) -> bool:
        """Record, evaluate, checkpoint as they are due. Whether to go on; nothing is asked after the last step.

        A row that is not finite is neither recorded nor evaluated, and no checkpoint is written of it.
        """
        trial, spec = self.trial, self.trial.train
        self.window.add(sums)
        if self.capability is not None:
            self.capability.update(sums, sequence_nll)
        step, self.step = self.step, self.step + 1
        done, last = self.step, not self.left
        evaluate = last or (trial.evaluation.every is not None and done % trial.evaluation.every == 0)
        row: Row = {}
        if done % spec.log_every == 0 or evaluate:
            row = {"step": done, "train/lr": self.rate} | self.window.row()
            if (norm := self.engine.get_global_grad_norm() if norm is None else norm) is not None:
                row["train/grad_norm"] = float(norm)
            if self._has_diverged(row, weights=True):
                return False
        if evaluate:
            few = None if last else trial.evaluation.every_problems
            model = self.engine.module.backbone
            self.clock.enter(EVALUATE)
            row |= yardsticks(model, self.tokenizer, self.prepared, trial, self.keep_answers, few)
            self.clock.enter(TRAIN)
            if self._has_diverged(row):
                return False
        due = done % spec.checkpoint_every == 0 and not last
        beside = {"step": step} | ({"capability": self.capability.as_dict()} if self.capability else {})
        save = None if last else partial(ds.save, self.engine, beside)
        return not row or self.report(row, save, due) or last

    def _has_diverged(self, row: Row, weights: bool = False) -> bool:
        """Whether a number of the row, or with `weights` a trained weight, is NaN or infinite. A collective."""
        wrong = not_finite(row)
        if weights and not ds.finite_weights(self.engine):
            wrong.append("a weight is NaN or infinite")
        if ds.on_any_rank(bool(wrong)):
            self.diverged = Divergence(wrong[0] if wrong else "a number of another rank is NaN or infinite", self.step)
        return self.diverged is not None


def not_finite(row: Row) -> list[str]:
    """In words, what a model has computed that is NaN or infinite."""
    ours = ("objective/", "train/", "heldout/", "trainset/")
    return [f"{name} is {value}" for name, value in row.items() if name.startswith(ours) and not math.isfinite(value)]


def _seed_torch(seed: int) -> None:
    """What torch.manual_seed does to the generators that are used, without the stack traces that it keeps: 3 ms."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed(seed)


def yardsticks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prepared: Prepared,
    trial: TrialSpec,
    keep: KeepAnswers | None,
    few: int | None = None,
) -> Row:
    """few: only the first so many held-out examples, and problems of each set.

    Where the held-out NLL is not finite nothing is answered: there is no distribution to draw from.
    """
    evaluation, pad = trial.evaluation, int(tokenizer.pad_token_id)
    reading = Reading.of(tokenizer, prepared.facts["answers"], evaluation.stop)
    heldout = prepared.heldout if few is None else prepared.heldout[:few]
    row = token_yardsticks(model, heldout, pad, trial.evaluated_at_once, "heldout")
    if not_finite(row):
        return row
    answered = {}
    with answering(model, reading, trial) as answer:
        for stream, (name, (prompts, examples)) in enumerate(prepared.problems.items()):
            answered[name] = answer_problems(answer, prompts[:few], examples[:few], evaluation, reading, 1.0, stream)
            if keep is not None:
                keep(name, answered[name])
        row |= task_yardsticks(answered)
        for number, temperature in enumerate(evaluation.base_temperatures if trial.objective is None else (), 1):
            sharp = {
                name: answer_problems(
                    answer, prompts, examples, evaluation, reading, temperature, 1000 * number + stream
                )
                for stream, (name, (prompts, examples)) in enumerate(prepared.problems.items())
            }
            row[f"task/accuracy_at_t{temperature:g}"] = task_yardsticks(sharp)["task/accuracy_sampled"]
    cut = {
        f"data/{kind}_{what}": getattr(rows, what)
        for kind, rows in (("train", prepared.train), ("heldout", prepared.heldout))
        for what in ("cut", "dropped")
    }
    invalid = prepared.facts.get("invalid", {"rows": 0})["rows"]
    return row | cut | {"data/train_noisy": prepared.facts["noisy"], "data/invalid": invalid}


class _Window:
    """Sums since the last record, kept on the device so that steps need no host sync."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(7, dtype=torch.float64, device=device)
        self.since = time.perf_counter()

    def add(self, parts: torch.Tensor) -> None:
        self.sums += parts

    def row(self) -> Row:
        """The objective's own loss under its own prefix; the rest means the same for every objective."""
        if dist.get_world_size() > 1:
            dist.all_reduce(self.sums)
        total, kept, p, nll, count, alpha, first = self.sums.tolist()
        now = time.perf_counter()
        row = {
            "objective/loss": total / count,
            "train/kept": kept / count,
            "objective/alpha": alpha / count,
            "train/mean_p": p / count,
            "train/token_accuracy": first / count,
            "train/nll": nll / count,
            "train/target_tokens_per_s": count / (now - self.since),
        }
        self.sums.zero_()
        self.since = now
        return row
