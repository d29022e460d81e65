"""transformers, imported the way every process here wants it: quick and without its progress bars."""

from __future__ import annotations

from types import ModuleType

from jobs.deepspeed_import import import_deepspeed


def import_transformers() -> ModuleType:
    """transformers imports DeepSpeed on the first model that it makes: ours, the lean way, must come first."""
    import_deepspeed()
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return transformers
