"""Examples token by token, for people: what is prompt, what is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.data import Encoded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Token:
    """place: in the example, from 0; text: of this token alone, with its blanks"""

    place: int
    id: int
    text: str
    trained: bool


def rows_of(row: Encoded, tokenizer: PreTrainedTokenizerBase) -> list[Token]:
    trained = {place for start, end in row.spans for place in range(start, end)}
    return [Token(place, number, _text(tokenizer, number), place in trained) for place, number in enumerate(row.ids)]


def text_of(tokens: Sequence[Token]) -> str:
    """A line a token: a mark where it is trained, its place, its id, its text."""
    return "\n".join(
        f"{'>' if token.trained else ' '} {token.place:5d} {token.id:7d}  {token.text!r}" for token in tokens
    )


def _text(tokenizer: PreTrainedTokenizerBase, number: int) -> str:
    """As in the vocabulary, where decoding alone would drop a blank or half a character."""
    text = str(tokenizer.decode([number], skip_special_tokens=False, clean_up_tokenization_spaces=False))
    piece = str(tokenizer.convert_ids_to_tokens(number))
    return piece.replace("▁", " ") if "\ufffd" in text or piece.startswith("▁") else text
