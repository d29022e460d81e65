"""transformers, imported the way every process here wants it: quick and without its progress bars."""

from __future__ import annotations

from types import ModuleType

from jobs.deepspeed_import import import_deepspeed


def import_transformers() -> ModuleType:
    """For models: transformers imports DeepSpeed on the first that it makes, so ours, the lean way, must come first."""
    import_deepspeed()
    return import_tokenizers()


def import_tokenizers() -> ModuleType:
    """For tokenizers alone, which need neither DeepSpeed nor torch."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return transformers
