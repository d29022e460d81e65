"""Where an answer begins and ends in a text: after the model's reasoning, and before a question that it makes up."""

from __future__ import annotations

import re
from collections.abc import Iterator

MOST_QUESTIONS = 6  # of a rambling text before each of which an answer is looked for

# of models that reason before they answer; an answer that is cut off inside its reasoning has none
_TAGS = r"(?:think|thinking|thought|reasoning|scratchpad)"
_THINKING = re.compile(rf"<{_TAGS}>.*?(?:</{_TAGS}>|\Z)|\[THINK\].*?(?:\[/THINK\]|\Z)", re.DOTALL | re.IGNORECASE)
_END_OF_THINKING = re.compile(rf"</{_TAGS}>|\[/THINK\]", re.IGNORECASE)


def without_thinking(text: str) -> str:
    """`text` without <think>...</think>; the prompt may have opened the tag, and the answer may end inside it."""
    text = _THINKING.sub("", text)
    ends = [end.end() for end in _END_OF_THINKING.finditer(text)]
    return text[ends[-1] :] if ends else text


# where a base model goes on with another question; a number or a chat's token begins one only after an answer
_NEXT_QUESTION = re.compile(
    r"^(?:(?:Question|Problem|Human|User|Instruction|Passage|Context|Exercise|Q)(?: ?\d{1,4})? ?[:.)]"
    r"|#{2,} ?(?:Instruction|Question|Problem|Task|Input|User)\b"
    r"|The following (?:are|is)(?: an?)? multiple[- ]choice questions?\b"
    r"|(?P<number>\d{1,4}[.)] [^\n]{5,400}\?$))"
    r"|(?<=[.!?] )Q:"
    r"|(?P<token><\|[^|\n]{1,40}\|>|</s>|<eos>|<end_of_turn>)",
    re.MULTILINE | re.IGNORECASE,
)


def next_questions(text: str) -> Iterator[re.Match[str]]:
    """Where questions begin. Groups: `number`, by a number alone; `token`, where a chat's turn begins or ends."""
    return _NEXT_QUESTION.finditer(text)
