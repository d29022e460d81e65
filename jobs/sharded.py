"""A backbone that no worker ever holds whole: sharded over all of them while it is loaded (ZeRO 3).

transformers shards what it loads as long as a HfDeepSpeedConfig is alive: each module's weights are made, partitioned
and freed one after another, then rank 0 reads the files, mapped into memory, and hands them round one by one.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from jobs.backbone import load_backbone
from jobs.deepspeed_import import import_deepspeed
from jobs.memory import large_blocks_apart
from jobs.spec import TrialSpec
from jobs.weights_check import check_names
from jobs.zero import loading_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_sharded(trial: TrialSpec, root: Path, precision: str) -> PreTrainedModel:
    """As load_backbone: each worker's shard of it, where the worker computes. A collective. Raises BackboneError."""
    check_names(trial.backbone, root)
    with _sharding(loading_config(trial, precision)), large_blocks_apart():
        return load_backbone(trial.backbone, root, trial.execution, precision)


@contextmanager
def measurable(trial: TrialSpec, root: Path) -> Iterator[PreTrainedModel]:
    """The untrained backbone in fp32, sharded, inside an engine that gathers layer by layer; freed after the block.

    A collective, and so is every forward pass: all ranks take equally many.
    """
    config = loading_config(trial, "fp32")
    engine: Any
    engine, *_ = import_deepspeed().initialize(model=load_sharded(trial, root, "fp32"), config=config)
    try:
        yield engine.module
    finally:
        engine.destroy()
        del engine
        gc.collect()  # hooks and modules point at each other
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def load_reference(trial: TrialSpec, root: Path) -> PreTrainedModel:
    """The frozen backbone that some objectives read, sharded: a shard cannot be copied, so it is loaded once more."""
    return load_sharded(trial, root, trial.train.precision).eval().requires_grad_(False)


@contextmanager
def _sharding(config: dict[str, Any]) -> Iterator[None]:
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    alive = HfDeepSpeedConfig(config)  # transformers keeps a weak reference to it
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del alive
