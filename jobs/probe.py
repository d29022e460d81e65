"""The probe: what a backbone knows of a task before training, measured once per backbone and task and kept.

probes/<digest>/probe.json      mean p (Eq. 5), median -log p of a sequence, quantiles of p
                log_odds.npy    of every target token probed, ascending: any quantile can be had from it
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist

from jobs.data import Encoded
from jobs.evaluate import target_rows
from jobs.files import make_dir
from jobs.spec import TrialSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)


@dataclass(frozen=True)
class Probe:
    """mean_p: token-weighted mean of p (Eq. 5); median_nll: median over sequences of their mean -log p, nats."""

    mean_p: float
    median_nll: float
    log_odds: np.ndarray

    def quantile(self, share: float) -> float:
        """The log-odds below or at which `share` of the tokens lie: a token's own value, never between two.

        So the quantile of p, of log p and of the log-odds are the same token.
        """
        n = len(self.log_odds)
        return float(self.log_odds[min(n - 1, max(0, int(np.ceil(share * n)) - 1))])

    def row(self) -> dict[str, float]:
        """For the record: mean p and a few quantiles of p."""
        p = {f"trainset/p_q{round(100 * q):02d}": float(1 / (1 + np.exp(-self.quantile(q)))) for q in QUANTILES}
        return {"trainset/mean_p": self.mean_p, "trainset/median_nll": self.median_nll} | p


def probe_dir(trial: TrialSpec, root: Path) -> Path:
    """Named by what decides it: backbone, task, cut and number of examples."""
    what = [
        trial.backbone.bare().identity(), trial.task.identity(),
        trial.train.max_length, trial.evaluation.probe_examples,
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
    return root / "probes" / digest


def probe(trial: TrialSpec, root: Path, model: PreTrainedModel, rows: Sequence[Encoded], pad: int) -> Probe:
    """The kept probe of this trial's backbone and task, measured now where there is none.

    A collective: every rank calls it, with the backbone as it was loaded.
    """
    folder = probe_dir(trial, root)
    there = [folder.is_dir()]
    dist.broadcast_object_list(there, 0)  # one answer for all, while another trial may be writing it
    if not there[0]:
        measured = _measure(model, rows[: trial.evaluation.probe_examples], pad, trial.evaluation.batch_size)
        if dist.get_rank() == 0:
            make_dir(folder, lambda partial: _write(partial, measured))
        dist.barrier()
    return read_probe(folder)


def read_probe(folder: Path) -> Probe:
    facts = json.loads((folder / "probe.json").read_text())
    return Probe(facts["mean_p"], facts["median_nll"], np.load(folder / "log_odds.npy"))


def _measure(model: PreTrainedModel, rows: Sequence[Encoded], pad: int, batch_size: int) -> Probe:
    mine: list[tuple[int, list[float], list[float]]] = []
    for number, log_odds, row in target_rows(model, rows, pad, batch_size):
        logp = -torch.nn.functional.softplus(-log_odds.double())
        means = [-float(logp[row == i].mean()) for i in range(int(row.max()) + 1)]
        mine.append((number, log_odds.tolist(), means))
    every: list[list[tuple[int, list[float], list[float]]] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(every, mine)
    batches = {number: (odds, means) for part in every for number, odds, means in part or ()}
    odds = np.sort(np.concatenate([np.asarray(batches[n][0], dtype=np.float32) for n in sorted(batches)]))
    p = 1 / (1 + np.exp(-odds.astype(np.float64)))
    return Probe(float(p.mean()), float(np.median(np.concatenate([batches[n][1] for n in sorted(batches)]))), odds)


def _write(folder: Path, probe: Probe) -> None:
    facts = {"mean_p": probe.mean_p, "median_nll": probe.median_nll, "tokens": len(probe.log_odds)} | probe.row()
    (folder / "probe.json").write_text(json.dumps(facts, indent=1))
    np.save(folder / "log_odds.npy", probe.log_odds)
