"""Importing DeepSpeed without what a trial never uses. Seen on deepspeed 0.19.8, ray 2.60.0, torch 2.13.0.

All that is patched in a dependency is patched here, for the time of the import:
- deepspeed.autotuning imports mlflow where it is installed (1.3 s): hidden meanwhile;
- losses of transformers' object detectors import scipy.optimize (0.45 s): an empty one meanwhile (jobs/hf.py);
- the Muon optimiser decorates with torch.compile at import, which loads inductor (1.2 s): a no-op meanwhile;
- on the CPU every process compiles a C++ shared-memory all-reduce for inference, 34 s: never built.
`tests/integration/test_deepspeed_import.py` notices when one of them no longer applies.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


@contextmanager
def instead(name: str, module: ModuleType | None) -> Iterator[None]:
    """Another module of this name for the block, or none at all; one that is imported already stays."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = module  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.modules.pop(name)


def import_deepspeed() -> ModuleType:
    """The deepspeed module, imported lean on first use."""
    if "deepspeed" in sys.modules and "deepspeed.comm.torch" in sys.modules:
        return sys.modules["deepspeed"]
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    compile_ = torch.compile

    def not_compiled(function: Any = None, **_: Any) -> Any:
        return function if callable(function) else lambda f: f

    torch.compile = not_compiled  # type: ignore[assignment]
    try:
        with instead("mlflow", None):
            deepspeed = importlib.import_module("deepspeed")
            importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
            importlib.import_module("deepspeed.comm.torch")
    finally:
        torch.compile = compile_
    # `import deepspeed.comm.torch as x` would give PyTorch
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
    return deepspeed
