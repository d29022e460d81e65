"""What evaluation shares with training: whole examples, and runs of 13 words.

Thirteen words is the usual unit of decontamination (GPT-3, arXiv 2005.14165, appendix C). Texts are compared without
case, punctuation and spacing; one of fewer words is compared as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from jobs.tasks import Example

WORDS = 13
SHOWN = 5  # pairs that are named


def leaks(train: Sequence[Example], measured: Sequence[Example]) -> dict[str, Any]:
    """exact: evaluation examples whose prompt is a training prompt; ngram: those that share a run of 13 words with one.

    pairs: the first few, as [training example, evaluation example]; measured: how many were looked at
    """
    held = [_words(example) for example in measured]
    wanted: dict[int, list[int]] = {}  # hash of a run -> evaluation examples that have it
    for number, words in enumerate(held):
        for run in _runs(words):
            wanted.setdefault(run, []).append(number)
    prompts: dict[str, list[int]] = {}
    for number, example in enumerate(measured):
        prompts.setdefault(_folded(example.prompt), []).append(number)
    exact: dict[int, int] = {}
    shared: dict[int, int] = {}
    for number, example in enumerate(train):
        for hit in prompts.get(_folded(example.prompt), ()):
            exact.setdefault(hit, number)
        for run in _runs(_words(example)):
            for hit in wanted.get(run, ()):
                shared.setdefault(hit, number)
    pairs = sorted({(theirs, mine) for mine, theirs in (exact | shared).items()}, key=lambda pair: pair[1])
    return {
        "measured": len(measured), "exact": len(exact), "ngram": len(shared.keys() | exact.keys()),
        "pairs": [list(pair) for pair in pairs[:SHOWN]],
    }  # fmt: skip


def _folded(text: str) -> str:
    return " ".join(re.findall(r"\w+|[^\w\s]", text.casefold()))


def _words(example: Example) -> list[str]:
    return re.findall(r"\w+", f"{example.prompt} {example.wanted}".casefold())


def _runs(words: list[str]) -> Iterator[int]:
    if len(words) < WORDS:
        yield hash(tuple(words))
    for i in range(len(words) - WORDS + 1):
        yield hash(tuple(words[i : i + WORDS]))
