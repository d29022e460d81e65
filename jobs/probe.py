"""The probe: what a backbone knows of a task before training, measured once per backbone and task and kept.

probes/<digest>/probe.json      mean p (Eq. 5), quantiles, histogram, entropy, means by position: `Probe.facts`
                log_odds.npy    of every target token probed, ascending: any quantile can be had from it
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

from jobs.data import Encoded
from jobs.evaluate import TargetRows, target_rows
from jobs.files import make_dir
from jobs.spec import TrialSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    Loaded = AbstractContextManager[PreTrainedModel]

QUANTILES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # the paper's twelve (section 5.1)
KNOWN_P = 0.55  # the paper's Table 6 counts the tokens above it
BINS = 20  # of p, equally wide
POSITIONS = 64  # of the response, told apart


@dataclass(frozen=True)
class Probe:
    """mean_p: token-weighted mean of p (Eq. 5); median_nll: median over sequences of their mean -log p, nats.

    entropy: mean before a target token, nats; known: share of tokens with p above 0.55 (Table 6); eos_p: mean p of the
    ends of responses alone; position_p, position_count: mean p and tokens at each place of the response, ends apart
    """

    mean_p: float
    median_nll: float
    log_odds: np.ndarray
    entropy: float
    known: float
    eos_p: float
    position_p: list[float]
    position_count: list[int]

    def quantile(self, share: float) -> float:
        """The log-odds below or at which `share` of the tokens lie: a token's own value, never between two.

        So the quantile of p, of log p and of the log-odds are the same token.
        """
        n = len(self.log_odds)
        return float(self.log_odds[min(n - 1, max(0, int(np.ceil(share * n)) - 1))])

    @property
    def histogram(self) -> list[int]:
        """Tokens in each of 20 equal bins of p."""
        return [int(n) for n in np.histogram(_p(self.log_odds), BINS, (0.0, 1.0))[0]]

    def row(self) -> dict[str, float]:
        """For the record: mean p and a few quantiles of p."""
        p = {f"trainset/p_q{round(100 * q):02d}": float(_p(self.quantile(q))) for q in QUANTILES}
        return {
            "trainset/mean_p": self.mean_p, "trainset/median_nll": self.median_nll, "trainset/entropy": self.entropy,
            "trainset/known": self.known, "trainset/eos_p": self.eos_p, **p,
        }  # fmt: skip

    def facts(self) -> dict[str, Any]:
        """All but the tokens themselves."""
        places = {"position_p": self.position_p, "position_count": self.position_count}
        return self.row() | {"tokens": len(self.log_odds), "histogram": self.histogram} | places


def probe_dir(trial: TrialSpec, root: Path) -> Path:
    """Named by what decides it: backbone, task, cut and number of examples."""
    what = [
        VERSION, trial.backbone.bare().identity(), trial.task.identity(),
        trial.train.max_length, trial.train.overlong, trial.evaluation.probe_examples,
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
    return root / "probes" / digest


VERSION = 2  # of what is measured


def probe(
    trial: TrialSpec, root: Path, load: Callable[[], Loaded], rows: Sequence[Encoded], pad: int, ends: Collection[int]
) -> Probe:
    """The kept probe of this trial's backbone and task, measured now where there is none.

    ends: ids that may end a response
    load: gives the backbone as it was loaded, for the time of a block; called only where it has to be measured
    A collective: every rank calls it.
    """
    folder = probe_dir(trial, root)
    there = [folder.is_dir()]
    dist.broadcast_object_list(there, 0)  # one answer for all, while another trial may be writing it
    if not there[0]:
        some = rows[: trial.evaluation.probe_examples]
        with load() as model:
            measured = _measure(model, some, pad, ends, trial.evaluated_at_once)
        if dist.get_rank() == 0:
            make_dir(folder, lambda partial: _write(partial, measured))
        dist.barrier()
    return read_probe(folder)


def read_probe(folder: Path) -> Probe:
    facts = json.loads((folder / "probe.json").read_text())
    return Probe(
        facts["trainset/mean_p"], facts["trainset/median_nll"], np.load(folder / "log_odds.npy"),
        facts["trainset/entropy"], facts["trainset/known"], facts["trainset/eos_p"],
        facts["position_p"], facts["position_count"],
    )  # fmt: skip


def _measure(
    model: PreTrainedModel, rows: Sequence[Encoded], pad: int, ends: Collection[int], batch_size: int
) -> Probe:
    mine = list(target_rows(model, rows, pad, ends, batch_size))
    every: list[list[TargetRows] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(every, mine)
    batches = sorted((batch for part in every for batch in part or ()), key=lambda batch: batch.number)
    means = []
    for batch in batches:
        logp = -torch.nn.functional.softplus(-batch.log_odds.double())
        means += [-float(logp[batch.row == i].mean()) for i in range(int(batch.row.max()) + 1)]
    odds = torch.cat([batch.log_odds for batch in batches]).float().numpy()
    p, entropy = _p(odds), torch.cat([batch.entropy for batch in batches]).double().numpy()
    position, eos_at = (torch.cat([getattr(b, name) for b in batches]).numpy() for name in ("position", "eos"))
    inside = ~eos_at & (position < POSITIONS)
    count = np.bincount(position[inside], minlength=1)
    place_p = np.bincount(position[inside], weights=p[inside], minlength=1) / np.maximum(count, 1)
    return Probe(
        float(p.mean()), float(np.median(means)), np.sort(odds), float(entropy.mean()), float((p > KNOWN_P).mean()),
        float(p[eos_at].mean()) if eos_at.any() else 0.0, [float(x) for x in place_p], [int(n) for n in count],
    )  # fmt: skip


def _p(log_odds: Any) -> Any:
    """p of log-odds, in double precision."""
    return 1 / (1 + np.exp(-np.asarray(log_odds, dtype=np.float64)))


def _write(folder: Path, probe: Probe) -> None:
    (folder / "probe.json").write_text(json.dumps(probe.facts(), indent=1))
    np.save(folder / "log_odds.npy", probe.log_odds)
