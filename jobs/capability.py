"""What a trial knows of its own model while it trains: the state that adaptive objectives read.

Global over ranks and micro-batches, taken at the end of a step and in force from the next one, so it does not depend
on how a batch is cut up and costs no second forward pass. It stays on the device; a checkpoint carries it.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from jobs.objectives import State
from jobs.probe import Probe

SMOOTHING = 0.9  # weight of the past in mean p; see docs/log.md


class Capability:
    """mean_p starts at the probe's and follows the steps' by exponential smoothing; median_nll is the last step's."""

    def __init__(self, probe: Probe, device: torch.device) -> None:
        self.probe_p = torch.tensor(probe.mean_p, device=device)
        self.mean_p = self.probe_p.clone()
        self.median_nll = torch.tensor(probe.median_nll, device=device)

    def state(self, progress: float) -> State:
        # filled, not copied: a copy to a GPU would wait for the last step
        return State(self.mean_p, self.median_nll, self.probe_p, torch.full((), progress, device=self.mean_p.device))

    def update(self, sums: Tensor, sequence_nll: Tensor) -> None:
        """A step's sums and sequences of this rank (jobs.model.Measured); a collective."""
        world = dist.get_world_size()
        if world > 1:
            sums = sums.clone()
            dist.all_reduce(sums)
            every = [torch.empty_like(sequence_nll) for _ in range(world)]
            dist.all_gather(every, sequence_nll)  # equally many on every rank: a step is cut evenly
            sequence_nll = torch.cat(every)
        mean = (sums[2] / sums[4].clamp_min(1)).float()
        self.mean_p = SMOOTHING * self.mean_p + (1 - SMOOTHING) * mean
        self.median_nll = sequence_nll.float().median()

    def as_dict(self) -> dict[str, float]:
        """For a checkpoint; floats of fp32 tensors, so they come back bit for bit."""
        return {"mean_p": float(self.mean_p), "median_nll": float(self.median_nll)}

    def load(self, saved: dict[str, float]) -> None:
        self.mean_p = torch.tensor(saved["mean_p"], device=self.probe_p.device)
        self.median_nll = torch.tensor(saved["median_nll"], device=self.probe_p.device)
