"""Scores."""

from __future__ import annotations

from typing import Literal

from jobs.strict import Strict


class ScoreSpec(Strict):
    kind: Literal["exact", "math", "choice", "generator", "similarity", "code"] = "exact"
    marker: str | None = None


def final_answer(text: str, marker: str | None) -> str:
    """What is compared: the text, or what follows the last marker; white space folded, commas in numbers dropped."""
    if marker is not None:
        _, found, text = text.rpartition(marker)
        if not found:
            return ""
    answer = " ".join(text.split())
    bare = answer.replace(",", "")
    return bare if bare.lstrip("-+$").replace(".", "", 1).isdigit() else answer
