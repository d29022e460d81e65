"""What evaluation shares with training: whole questions, and runs of 13 words of questions and responses.

Thirteen words is the usual unit of decontamination (GPT-3, arXiv 2005.14165, appendix C). Compared are the rows' own
words: those of a template and of system turns are the same in every row and say nothing. Runs are compared without
case, punctuation and spacing; a text of fewer words as a whole, with its punctuation, which may be all that it has
("3+4", drawn letters). A response alone is not: many tasks have short ones ("B", "12") that say nothing, and long ones
share a run.
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
_WORD = re.compile(r"[^\W_]+")  # not the underscores of drawn letters and blanks to fill
_BITS = 24  # of a hash, that tell most runs of training texts apart from all of evaluation's at once


def leaks(train: Sequence[Example], measured: Sequence[Example]) -> dict[str, Any]:
    """exact: evaluation examples that ask a training question; ngram: those and the ones that share a run of 13 words.

    pairs: the first few, as [training example, evaluation example]; measured: how many were looked at
    """
    wanted: dict[int, list[int]] = {}  # hash of a run -> evaluation examples that have it
    maybe = np.zeros(1 << _BITS, dtype=bool)
    for number, example in enumerate(measured):
        runs = _runs(example)
        maybe[runs >> np.uint64(64 - _BITS)] = True
        for run in runs.tolist():
            wanted.setdefault(run, []).append(number)
    questions: dict[str, list[int]] = {}
    for number, example in enumerate(measured):
        for question in _questions(example):
            questions.setdefault(question, []).append(number)
    exact: dict[int, int] = {}
    shared: dict[int, int] = {}
    for number, example in enumerate(train):
        for question in _questions(example):
            for hit in questions.get(question, ()):
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
    """Runs of marks stay whole: in drawn letters the gaps between them are what is said."""
    return " ".join(re.findall(r"\w+|[^\w\s]+", text.casefold()))


def _asked(example: Example) -> str:
    """All turns but the system's, without the words of a template."""
    last = example.prompt if example.asked is None else example.asked
    return " ".join([*(turn.content for turn in example.messages[:-1] if turn.role != "system"), last])


def _questions(example: Example) -> set[str]:
    """The question, and the whole prompt, which rows of another file may hold as their own."""
    asked = _asked(example)
    return {_folded(asked)} if example.asked is None else {_folded(asked), _folded(example.prompt)} - {""}


def _runs(example: Example) -> np.ndarray:
    """Hashes of all runs of words, uint64; of a text of fewer words one hash of the whole."""
    texts = [_asked(example)]
    if example.told is not None:
        texts.append(example.told)
    else:
        texts += dict.fromkeys([example.response, example.wanted])
    text = " ".join(texts)
    words = _WORD.findall(text.casefold())
    if len(words) < WORDS:  # the 1: no text is the beginning of another
        return np.array([hash((_folded(text), 1))], dtype=np.int64).view(np.uint64)
    ids = np.fromiter(map(hash, words), dtype=np.int64, count=len(words)).view(np.uint64)
    runs = np.zeros(len(ids) - WORDS + 1, dtype=np.uint64)
    for k, factor in enumerate(_FACTORS):
        runs += ids[k : k + len(runs)] * factor
    return runs
