"""What evaluation shares with training: whole prompts, and runs of 13 words of prompts and responses.

Thirteen words is the usual unit of decontamination (GPT-3, arXiv 2005.14165, appendix C). Texts are compared without
case, punctuation and spacing; one of fewer words is compared as a whole. A response alone is not: many tasks have short
ones ("B", "12") that say nothing, and long ones share a run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from jobs.tasks import Example

WORDS = 13
SHOWN = 5  # pairs that are named
# a run's hash is the sum of its words' times these; modulo 2^64, odd, drawn once
_FACTORS = np.random.default_rng(13).integers(0, 2**63, WORDS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_BITS = 24  # of a hash, that tell most runs of training texts apart from all of evaluation's at once


def leaks(train: Sequence[Example], measured: Sequence[Example]) -> dict[str, Any]:
    """exact: evaluation examples whose prompt is a training prompt; ngram: those that share a run of 13 words with one.

    pairs: the first few, as [training example, evaluation example]; measured: how many were looked at
    """
    wanted: dict[int, list[int]] = {}  # hash of a run -> evaluation examples that have it
    maybe = np.zeros(1 << _BITS, dtype=bool)
    for number, example in enumerate(measured):
        runs = _runs(example)
        maybe[runs >> np.uint64(64 - _BITS)] = True
        for run in runs.tolist():
            wanted.setdefault(run, []).append(number)
    prompts: dict[str, list[int]] = {}
    for number, example in enumerate(measured):
        prompts.setdefault(_folded(example.prompt), []).append(number)
    exact: dict[int, int] = {}
    shared: dict[int, int] = {}
    for number, example in enumerate(train):
        for hit in prompts.get(_folded(example.prompt), ()):
            exact.setdefault(hit, number)
        runs = _runs(example)
        for run in runs[maybe[runs >> np.uint64(64 - _BITS)]].tolist():
            for hit in wanted.get(run, ()):
                shared.setdefault(hit, number)
    pairs = sorted({(theirs, mine) for mine, theirs in (exact | shared).items()}, key=lambda pair: pair[1])
    return {
        "measured": len(measured), "exact": len(exact), "ngram": len(shared.keys() | exact.keys()),
        "pairs": [list(pair) for pair in pairs[:SHOWN]],
    }  # fmt: skip


def _folded(text: str) -> str:
    return " ".join(re.findall(r"\w+|[^\w\s]", text.casefold()))


def _runs(example: Example) -> np.ndarray:
    """Hashes of all runs of words, uint64; of a text of fewer words one hash of the whole."""
    texts = [text for _, text in example.messages] or [example.prompt]
    texts += [example.response] if example.wanted == example.response else [example.response, example.wanted]
    words = re.findall(r"\w+", " ".join(texts).casefold())
    ids = np.fromiter(map(hash, words), dtype=np.int64, count=len(words)).view(np.uint64)
    if len(ids) < WORDS:
        ids = np.append(ids, np.uint64(1))  # so that a text is no beginning of another
        return (ids * _FACTORS[: len(ids)]).sum(keepdims=True)
    runs = np.zeros(len(ids) - WORDS + 1, dtype=np.uint64)
    for k, factor in enumerate(_FACTORS):
        runs += ids[k : k + len(runs)] * factor
    return runs
