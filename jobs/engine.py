"""The DeepSpeed engine of one trial, built and torn down so that its process can serve the next."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from jobs.checkpoint_writer import CheckpointWriter, Parts
from jobs.deepspeed_import import import_deepspeed
from jobs.network import backend_here
from jobs.spec import TrainSpec, TrialSpec
from jobs.zero import clips_here, deepspeed_config, zero_stage

TAG = "ds"  # DeepSpeed's name for a checkpoint inside its directory


def learning_rate(train: TrainSpec, step: int, num_steps: int) -> float:
    """The rate of optimiser step `step` (from 0): linear warm-up, then the schedule down to 0."""
    warmup = math.ceil(train.warmup_ratio * num_steps)
    if step < warmup:
        return train.lr * (step + 1) / warmup
    if train.schedule == "constant":
        return train.lr
    done = (step - warmup) / max(1, num_steps - warmup)
    return train.lr * (1 - done if train.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done)))


def ensure_process_group() -> None:
    """Ray Train has made the process group; a plain process makes one of its own, without a port."""
    import_deepspeed()
    if not dist.is_initialized():
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(store=store, rank=0, world_size=1, **backend_here())
    os.environ.setdefault("RANK", str(dist.get_rank()))
    os.environ.setdefault("LOCAL_RANK", "0")
    os.environ.setdefault("WORLD_SIZE", str(dist.get_world_size()))
    os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", str(dist.get_world_size())))


@contextmanager
def engine_for(trial: TrialSpec, model: nn.Module) -> Iterator[Any]:
    """A deepspeed engine around `model`; leaving the block frees its buffers and hooks."""
    ensure_process_group()
    deepspeed = import_deepspeed()
    train = trial.train
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=train.lr,
        betas=train.betas,
        weight_decay=train.weight_decay,
        fused=True,  # one pass over the parameters instead of eight
    )
    deepspeed.init_distributed(dist_backend=dist.get_backend())
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=deepspeed_config(trial))
    # one worker: nothing to reduce, and the reduction would copy every gradient twice
    engine.enable_backward_allreduce = zero_stage(trial) > 0 or dist.get_world_size() > 1
    engine.checkpoint_engine = CheckpointWriter(engine.checkpoint_engine)
    try:
        yield engine
    finally:
        engine.checkpoint_engine.close()
        engine.destroy()


@contextmanager
def repeatable(wanted: bool) -> Iterator[None]:
    """For the block, kernels that give the same bits each time; torch raises RuntimeError for an operation without one.

    On a GPU attention's backward (cuDNN's, flash, memory-efficient) otherwise adds up in any order. On a CPU nothing
    that is used here does.
    """
    if not wanted:
        yield
        return
    more: Any = torch.utils.deterministic
    before, filled = torch.are_deterministic_algorithms_enabled(), more.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    more.fill_uninitialized_memory = False  # nothing here reads what it has not written
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        more.fill_uninitialized_memory = filled


def clip(engine: Any, trial: TrialSpec) -> torch.Tensor | None:
    """Clip the step's gradients where DeepSpeed does not; returns their norm before, or None where it does."""
    if not clips_here(trial):
        return None
    # the optimiser's own lists: walking the modules took as long as clipping
    trained = [p for group in engine.optimizer.param_groups for p in group["params"]]
    return nn.utils.clip_grad_norm_(trained, trial.train.clip)


def finite_weights(engine: Any) -> bool:
    """Whether this rank's trained parameters are; under ZeRO-3 its shards of them."""
    trained = [p for p in engine.module.backbone.parameters() if p.requires_grad]
    own = [shard for shard in (getattr(p, "ds_tensor", p).detach() for p in trained) if shard.numel()]
    return bool(torch.isfinite(nn.utils.get_total_norm(own, norm_type=math.inf))) if own else True


def on_any_rank(flag: bool) -> bool:
    """Whether it is so on one of the ranks: the same answer on all. A collective."""
    if dist.get_world_size() == 1:
        return flag
    shared = torch.tensor(flag, dtype=torch.int32, device=device())
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return bool(shared.item())


def set_learning_rate(engine: Any, rate: float) -> None:
    for group in engine.optimizer.param_groups:
        group["lr"] = rate


def device() -> torch.device:
    """Where this process trains."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def save(engine: Any, state: dict[str, Any], folder: Path) -> Parts:
    """Every rank writes its own shards into `folder`, with `state` beside them; a frozen reference stays out of it.

    They are as they are now, whatever is trained until they are written.
    """
    engine.save_checkpoint(str(folder), tag=TAG, client_state=state, exclude_frozen_parameters=True)
    parts: Parts = engine.checkpoint_engine.take()
    return parts


def load(engine: Any, folder: Path) -> dict[str, Any]:
    """Restore model and optimiser; returns what was saved beside them."""
    path, state = engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=False)
    if path is None:
        raise FileNotFoundError(f"no DeepSpeed checkpoint in {folder}")
    return dict(state)


def full_state_dict(engine: Any) -> dict[str, torch.Tensor]:
    """Whole trained parameters by name, on the CPU of rank 0 (empty elsewhere); under ZeRO-3 gathered one at a time."""
    deepspeed = import_deepspeed()
    wanted = dist.get_rank() == 0
    state = {}
    for name, parameter in engine.module.backbone.named_parameters(remove_duplicate=False):
        if not parameter.requires_grad:
            continue  # frozen beside adapters
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            if wanted:
                state[name] = parameter.detach().cpu().clone()
    return state
