"""Generated ids -> an answer: where it ends, and which text of it is scored."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from jobs.continuation import Continuation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Answer:
    """tokens: its length, the end not counted; ended: by itself, not by the limit."""

    text: str
    tokens: int
    ended: bool


@dataclass(frozen=True)
class Reading:
    """How answers are read, the same for every objective and for the backbone before training.

    stops:   ids that end an answer
    strings: texts that end one
    kept:    special tokens that responses of the task are made of; all other special tokens are left out of texts
    after:   what the template writes between a turn's reasoning (or its empty place) and its content: the content is
             what is scored
    """

    tokenizer: PreTrainedTokenizerBase
    stops: tuple[int, ...]
    strings: tuple[str, ...] = ()
    kept: frozenset[int] = frozenset()
    after: tuple[str, ...] = ()

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, facts: dict[str, Any], strings: Sequence[str] = ()) -> Reading:
        """facts: of a corpus (its 'answers'); strings: evaluation.stop"""
        every = tuple(dict.fromkeys([*facts["strings"], *strings]))
        return cls(tokenizer, tuple(facts["stops"]), every, frozenset(facts["kept"]), tuple(facts["after"]))

    @cached_property
    def continuation(self) -> Continuation:
        return Continuation(self.tokenizer)

    @cached_property
    def left_out(self) -> frozenset[int]:
        """Special tokens that are no text."""
        return special_ids(self.tokenizer) - self.kept

    def text(self, ids: Sequence[int]) -> str:
        return self.continuation.decode([i for i in ids if i not in self.left_out])

    def answer(self, ids: Sequence[int]) -> Answer:
        """Of all ids that were generated, with whatever stands behind the end."""
        length = next((place for place, number in enumerate(ids) if number in self.stops), len(ids))
        said, ended = list(ids[:length]), length < len(ids)
        text = self.text(said)
        cut = self.string_at(text)
        if cut is not None:
            # the fewest tokens whose text reaches the cut
            count = bisect_left(range(len(said)), cut, key=lambda n: len(self.text(said[:n])))
            return Answer(text[:cut], count, True)
        return Answer(text, length, ended)

    def string_at(self, text: str) -> int | None:
        """Where the first of the texts that end an answer begins; None where there is none."""
        return min((text.index(string) for string in self.strings if string in text), default=None)

    def content(self, text: str) -> str:
        """The part of an answer, or of a reference, that is scored."""
        ends = [text.rindex(mark) + len(mark) for mark in self.after if mark in text]
        return text[max(ends) :].lstrip("\n") if ends else text


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids of tokens that are marked as special."""
    marked = [int(i) for i, token in tokenizer.added_tokens_decoder.items() if token.special]
    return frozenset([*marked, *(int(i) for i in tokenizer.all_special_ids)])
