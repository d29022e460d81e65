"""What ends an answer: derived once from a backbone's chat template, generation config and tokenizer.

A chat model often ends its turns with another token than `tokenizer.eos_token` (Gemma's <end_of_turn>, Phi's <|end|>),
and some only with the start of the next turn (GLM's <|user|>). The same end is trained as the last target, stops
generation, and is left out of the answer that is scored.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from jobs.chats import Turn
from jobs.continuation import Continuation
from jobs.rendering import Given, render
from jobs.sources import TaskError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from jobs.rendering import WritesChats

T = TypeVar("T")
NO_END = "the tokenizer has no EOS token: a model trained without one never learns to stop"
BY_SETTING, BY_TEMPLATE, BY_EOS = "backbone.eos", "the chat template", "the tokenizer's eos_token"
BY_CONFIG = "generation_config.json"
_ASKED, _SAID, _ASKED_NEXT = "first-question", "given-answer", "second-question"


@dataclass(frozen=True)
class Ending:
    """What ends an answer.

    trained: ids that every target ends with; usually one
    stops:   ids that end an answer while it is generated
    strings: texts that do, where the template ends a turn with a text that is no token
    words:   texts that a turn ends with in data and templates: the end itself, the texts of `stops`, the template's end
    text:    the trained end as text; source: where it comes from; stop_words: texts of all that stops generation
    """

    trained: tuple[int, ...]
    stops: tuple[int, ...]
    strings: tuple[str, ...]
    words: tuple[str, ...]
    text: str
    source: str
    stop_words: tuple[str, ...]

    @property
    def ids(self) -> frozenset[int]:
        """Ids that a target may end with."""
        return frozenset((*self.stops, self.trained[-1]))

    @cached_property
    def behind(self) -> re.Pattern[str]:
        """Matches the ends, and the white space around them, that a text stops with."""
        words = "|".join(re.escape(word) for word in self.words)
        return re.compile(rf"(\s*(?:{words}))(?:\s|{words})*\Z")

    def without(self, text: str) -> str:
        """The text without the ends that it stops with."""
        return self.behind.sub("", text) if any(word in text for word in self.words) else text

    def sentence(self) -> str:
        return sentence(self.text, self.source, self.stop_words)


def sentence(text: str, source: str, stop_words: Sequence[str]) -> str:
    """For people: `text` is the trained end, `stop_words` are all that stop generation."""
    more = [word for word in dict.fromkeys(stop_words) if word != text]
    also = f"; generation also stops at {', '.join(more)}" if more else ""
    return f"an answer ends with {_shown(text)} ({source}){also}"


def _shown(text: str) -> str:
    return text if text and text == text.strip() else repr(text)


def ending_of(tokenizer: PreTrainedTokenizerBase, declared: Sequence[int] = (), given: Sequence[str] = ()) -> Ending:
    """declared: eos_token_id of the generation config and the model's config; given: tokens that a setting names.

    Raises TaskError where nothing ends an answer, or a given end is no token.
    """
    if given:
        return _given(tokenizer, given)
    eos = tokenizer.eos_token_id
    # only tokens that are no pieces of words: a config's default may be the number of a digit in this vocabulary
    made = {one: token_text(tokenizer, one) for one in declared}
    own = set(added_tokens(tokenizer))
    stops = list(dict.fromkeys([*([] if eos is None else [int(eos)]), *(one for one in made if made[one] in own)]))
    words = [text for text in (token_text(tokenizer, one) for one in stops) if text]
    found = end_of_turn(tokenizer, words) if tokenizer.chat_template is not None else None
    if found is not None:
        trained = tuple(Continuation(tokenizer).encode([found])[0])
        text = found.strip()
        every = _first(text, words)
        if token_text(tokenizer, trained[-1]) == text:
            return Ending(trained, _first(trained[-1], stops), (), every, text, BY_TEMPLATE, every)
        return Ending(trained, tuple(stops), (text,), every, text, BY_TEMPLATE, every)
    if not stops:
        raise TaskError(NO_END)
    source = BY_CONFIG if eos is None else BY_EOS
    return Ending((stops[0],), tuple(stops), (), tuple(words), token_text(tokenizer, stops[0]), source, tuple(words))


def _given(tokenizer: PreTrainedTokenizerBase, given: Sequence[str]) -> Ending:
    vocabulary = tokenizer.get_vocab()
    for token in given:
        if token not in vocabulary:
            known = ", ".join(added_tokens(tokenizer)[:8])
            raise TaskError(f"eos: '{token}' is not a token of the tokenizer; its added tokens: {known or 'none'}")
    ids = tuple(int(vocabulary[token]) for token in given)
    written = end_of_turn(tokenizer, given) if tokenizer.chat_template is not None else None
    words = tuple(dict.fromkeys([*given, *([written.strip()] if written else [])]))
    return Ending((ids[0],), ids, (), words, given[0], BY_SETTING, tuple(given))


def _first(one: T, others: Sequence[T]) -> tuple[T, ...]:
    return tuple(dict.fromkeys([one, *others]))


def token_text(tokenizer: PreTrainedTokenizerBase, number: int) -> str:
    """A token as text; empty for an id beyond the vocabulary."""
    if not 0 <= number < len(tokenizer):
        return ""
    return str(tokenizer.decode([number], skip_special_tokens=False, clean_up_tokenization_spaces=False))


def added_tokens(tokenizer: WritesChats) -> list[str]:
    """Texts of the tokens that are no pieces of words, without white space such as Gemma's newlines."""
    texts = [str(token) for token in tokenizer.added_tokens_decoder.values()]
    return [text for text in dict.fromkeys([*texts, *tokenizer.all_special_tokens]) if text.strip()]


def end_of_turn(tokenizer: WritesChats, declared: Sequence[str]) -> str | None:
    """What the template writes from the end of an answer up to the end of its turn; None where it writes nothing."""
    given = Given(date="2000-01-01")
    user, said, after = Turn("user", _ASKED), Turn("assistant", _SAID), Turn("user", _ASKED_NEXT)
    try:
        alone, followed = (render(tokenizer, turns, given, False) for turns in ((user, said), (user, said, after)))
    except TaskError:
        return None  # a template of its own kind: examples show whether it can be used
    if _SAID not in alone:
        return None
    behind = alone[alone.rindex(_SAID) + len(_SAID) :]
    added = added_tokens(tokenizer)
    if (found := _up_to(behind, declared) or _up_to(behind, added)) is not None:
        return found
    between = followed[followed.rfind(_SAID) + len(_SAID) :]
    if behind.strip():  # a text is an end where it stands behind every turn
        return behind.rstrip() if between.startswith(behind.rstrip()) else None
    # nothing: a model that ends a turn with the start of the next one declares that token (GLM)
    starts = [word for word in declared if between.lstrip().startswith(word)]
    return max(starts, key=len, default=None)


def _up_to(text: str, words: Sequence[str]) -> str | None:
    """The text up to the end of the first of the words in it."""
    places = [(text.index(word), -len(word)) for word in words if word in text]
    if not places:
        return None
    start, length = min(places)
    return text[: start - length]


def facts_of(ending: Ending) -> dict[str, object]:
    """For the record."""
    return {
        "end": ending.text, "source": ending.source, "sentence": ending.sentence(), "trained": list(ending.trained),
        "stops": list(ending.stops), "strings": list(ending.strings),
    }  # fmt: skip
