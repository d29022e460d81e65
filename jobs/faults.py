"""What transformers raises for files that make no model, and an exception in one line."""

from __future__ import annotations


def faults(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """What transformers raises for a config.json or files that make no model, and `more`."""
    from huggingface_hub.errors import StrictDataclassError

    return (
        ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError, TypeError, ValueError,
        StrictDataclassError, *more,
    )  # fmt: skip


def said(error: Exception) -> str:
    """An exception in one line: the first sentence of its message, with its type where the message is a mere name."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    text = " ".join(lines[:2]) if lines and lines[0].endswith(":") else next(iter(lines), "")
    return text if " " in text else f"{type(error).__name__}: {text}".rstrip(": ")
