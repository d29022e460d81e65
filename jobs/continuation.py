"""Text behind a prompt <-> ids: one rule for training, measuring and generation.

A tokenizer that marks words with a leading blank (SentencePiece, Metaspace) adds one to a text that is tokenised alone,
and drops one from ids that are decoded alone. Behind a prompt both are wrong: an answer "4" would become " 4", and the
four blanks before a line of code three. So texts and ids are always those that stand behind something.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.sources import TaskError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANCHORS = "0a1xA=.,-"  # one of them is a token of its own in any vocabulary of text
LINE = "\n"


class Continuation:
    """Encodes and decodes what stands behind other text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        anchor = next((c for c in ANCHORS if c in vocabulary), None)
        self._before = [] if anchor is None else [int(vocabulary[anchor])]
        self._cut = len(self._decoded(self._before))
        self._adds_blank = anchor is not None and self.decode(self._ids([anchor])[0]) == f" {anchor}"

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without special tokens around it. Raises TaskError for a text that has none."""
        if not self._adds_blank:
            return self._ids(texts)
        behind, line = self._ids([LINE + text for text in texts]), self._ids([LINE])[0]
        alone = self._ids(texts)
        return [
            ids[len(line) :] if ids[: len(line)] == line else other for ids, other in zip(behind, alone, strict=True)
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """The text, special tokens included."""
        return self._decoded([*self._before, *ids])[self._cut :]

    def _decoded(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return plain_ids(self.tokenizer, texts)


def plain_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text, without special tokens around it. Raises TaskError for a text that has none."""
    if not texts:
        return []
    try:
        return [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
    except Exception as error:
        if type(error) is not Exception:  # the tokenizers package has no class of its own for "no such token"
            raise
        text, sign = _culprit(tokenizer, texts)
        raise TaskError(
            f"the backbone's tokenizer has no token for {sign!r} in '{text[:60]}'; choose a backbone for such text"
        ) from None


def _culprit(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> tuple[str, str]:
    """The first text that cannot be tokenised, and the first character in it that cannot."""

    def fails(text: str) -> bool:
        try:
            tokenizer(text, add_special_tokens=False)
        except Exception:  # as above
            return True
        return False

    text = next((text for text in texts if fails(text)), "")
    return text, next((sign for sign in text if fails(sign)), text)
