"""transformers, imported the way every process here wants it: quick and without its progress bars."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType

from jobs.deepspeed_import import import_deepspeed, instead


@cache
def import_transformers() -> ModuleType:
    """For models: transformers imports DeepSpeed on the first that it makes, so ours, the lean way, must come first."""
    import_deepspeed()
    transformers = import_tokenizers()
    optimisers = ModuleType("scipy.optimize")
    optimisers.linear_sum_assignment = None  # type: ignore[attr-defined]
    with instead(optimisers.__name__, optimisers):
        importlib.import_module("transformers.modeling_utils")
    return transformers


@cache
def import_tokenizers() -> ModuleType:
    """For tokenizers and configurations, which need neither DeepSpeed nor a model's modules."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return transformers


@contextmanager
def same_draws() -> Iterator[None]:
    """For the block, the same random numbers each time; the generators are left as they were."""
    import torch

    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        torch.manual_seed(0)
        yield
