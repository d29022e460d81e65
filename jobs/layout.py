"""An example as text: the prompt as generation has it, what is trained behind it, and earlier turns that are trained.

The prompt is always the template's own for the turns before the answer, so what is trained stands behind the very ids
that generation is given. Of what the template writes for the answer, everything up to the end of the turn is trained.
Where a template does not continue its own prompt, or does not write the response as it is, the response's own text is
trained behind the prompt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.chats import Turn
from jobs.ending import BY_SETTING, Ending, added_tokens
from jobs.rendering import Given, check_template, render
from jobs.sources import NO_TEMPLATE, TaskError
from jobs.tasks import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REASONING = ("reasoning_content", "reasoning", "thinking")  # fields of a turn that hold its reasoning
UNWRITTEN = "the chat template writes no reasoning, so it is left out of {} turns"


@dataclass(frozen=True)
class Layout:
    """prompt, target: texts; ended: whether the target has its end already.

    earlier: (start, end) in the prompt's characters of earlier turns that are trained
    notes:   what a reader should know; {} stands for how many examples it holds of
    """

    prompt: str
    target: str
    ended: bool = False
    earlier: tuple[tuple[int, int], ...] = ()
    notes: tuple[str, ...] = ()


class Layouts:
    """Lays out examples for one tokenizer and its ending."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ending: Ending) -> None:
        self.tokenizer, self.ending = tokenizer, ending
        self._checked: set[tuple[bool, str, str]] = set()  # tools or none, kwargs, date
        self.after: set[str] = set()  # words that the templates write right before an answer's content

    def __call__(self, example: Example) -> Layout:
        """Raises TaskError, with the row or the beginning of the prompt where a chat is at fault."""
        if self.tokenizer.chat_template is None:
            if example.messages:
                raise TaskError(NO_TEMPLATE)
            return Layout(example.prompt, example.response)
        try:
            return self._chat(example)
        except TaskError as error:
            place = example.where or f"'{_beginning(example)}'"
            raise TaskError(f"{place}: {error}") from None

    def _chat(self, example: Example) -> Layout:
        turns = example.messages or (Turn("user", example.prompt),)
        reply = example.reply or Turn("assistant", example.response)
        given = Given(example.tools, example.template_kwargs, example.date)
        kind = (bool(given.tools), given.kwargs, given.date)
        if kind not in self._checked:
            check_template(self.tokenizer, given)
            self._checked.add(kind)
            self.after |= _words_before(self.tokenizer, given)

        def written(some: tuple[Turn, ...], prompt: bool) -> str:
            return render(self.tokenizer, some, given, prompt)

        prompt = written(turns, True)
        target, notes = self._turn(written, prompt, turns, reply)
        earlier = self._earlier(written, prompt, turns) if example.train_on == "all" else ()
        if target is None:
            return Layout(prompt, example.response, False, earlier, notes)
        body = self.ending.without(target)
        if self.ending.source == BY_SETTING:
            return Layout(prompt, body, False, earlier, notes)
        return Layout(prompt, target, body != target, earlier, notes)

    def _turn(
        self, written: Callable[..., str], prompt: str, turns: tuple[Turn, ...], reply: Turn
    ) -> tuple[str | None, tuple[str, ...]]:
        """What the template writes behind the prompt for an assistant turn, up to the end of the turn; and notes.

        None where the response's own text stands for it. Raises TaskError where only the template could write the turn.
        """
        try:
            whole = written((*turns, reply), False)
        except TaskError:
            if _more(reply):
                raise
            return None, ()
        rest = whole[len(prompt) :] if whole.startswith(prompt) else None
        if rest is None or _squashed(reply.content) not in _squashed(rest):
            if _more(reply).keys() - set(REASONING):
                raise TaskError(
                    "the chat template does not continue its own prompt with this turn, so its tool calls cannot be "
                    "trained; give the backbone a chat_template that does"
                )
            return None, (UNWRITTEN,) if _more(reply) else ()
        reasoning = next((str(value) for name, value in _more(reply).items() if name in REASONING), "")
        notes = () if _squashed(reasoning) in _squashed(rest) else (UNWRITTEN,)
        found = self.ending.behind.search(rest)
        if found is not None:
            return rest[: found.end(1)], notes
        blanks = reply.content[len(reply.content.rstrip()) :]
        bare = rest.rstrip()  # the template's own blanks belong to what follows
        return (bare + blanks if rest.startswith(bare + blanks) else bare), notes

    def _earlier(
        self, written: Callable[..., str], prompt: str, turns: tuple[Turn, ...]
    ) -> tuple[tuple[int, int], ...]:
        """Where the earlier assistant turns stand in the prompt, each with its end.

        Raises TaskError where the template writes an earlier turn otherwise than it writes the last one.
        """
        spans = []
        for place, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            if place == 0:
                raise TaskError("the first turn is the assistant's, which answers nothing; set train_on: last")
            before = written(turns[:place], True)
            target, _ = self._turn(written, before, turns[:place], turn)
            body = None if target is None else self.ending.without(target)
            if body is None or not prompt.startswith(before + body):
                raise TaskError(
                    "the chat template writes earlier assistant turns otherwise than the last one (it may drop their "
                    "reasoning), so training them would train what is never generated; set train_on: last"
                )
            start, end = len(before), len(before + body)
            spans.append((start, end + self._end_at(prompt[end:], body != target)))
        return tuple(spans)

    def _end_at(self, text: str, ended: bool) -> int:
        """How many characters at the beginning of `text` end a turn; ended: whether it has an end where it is last.

        Some templates end a turn in the middle with another token than the last one (gpt-oss: <|end|>, <|return|>).
        """
        words = [*self.ending.words, *(added_tokens(self.tokenizer) if ended else ())]
        found = re.match(rf"\s*(?:{'|'.join(map(re.escape, sorted(words, key=len, reverse=True)))})", text)
        return 0 if found is None else found.end()


def _more(turn: Turn) -> dict[str, Any]:
    """What a turn has besides its text and is to be generated."""
    more = json.loads(turn.more) if turn.more else {}
    return {name: value for name, value in more.items() if value and name in (*REASONING, "tool_calls")}


def _words_before(tokenizer: PreTrainedTokenizerBase, given: Given) -> set[str]:
    """What the template writes last before an answer's content: `</think>` of an empty or a filled reasoning."""
    asked, said, reasoning = "first-question", "given-answer", "some-reasoning"
    found = set()
    for more, mark in (({}, ""), ({REASONING[0]: reasoning}, reasoning)):
        turns = (Turn("user", asked), Turn.of("assistant", said, more))
        try:
            prompt, whole = render(tokenizer, turns[:1], given, True), render(tokenizer, turns, given, False)
        except TaskError:
            continue
        start = len(prompt) if whole.startswith(prompt) else len(whole)
        lead = whole[start : max(whole.rfind(said), start)]
        if mark in lead:
            found |= set(lead.rpartition(mark)[2].split()[-1:] if mark else lead.split()[-1:])
    return found


def _squashed(text: str) -> str:
    return "".join(text.split())


def _beginning(example: Example) -> str:
    return " ".join(example.prompt.split())[:40]
