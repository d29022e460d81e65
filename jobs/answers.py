"""What is read of an answer, whatever the kind of score: not what the model thought before it."""

from __future__ import annotations

import re

# of models that reason before they answer; an answer that is cut off inside its reasoning has none
_TAGS = r"(?:think|thinking|thought|reasoning|scratchpad)"
_THINKING = re.compile(rf"<{_TAGS}>.*?(?:</{_TAGS}>|\Z)|\[THINK\].*?(?:\[/THINK\]|\Z)", re.DOTALL | re.IGNORECASE)
_END_OF_THINKING = re.compile(rf"</{_TAGS}>|\[/THINK\]", re.IGNORECASE)


def without_thinking(text: str) -> str:
    """`text` without <think>...</think>; the prompt may have opened the tag, and the answer may end inside it."""
    text = _THINKING.sub("", text)
    ends = [end.end() for end in _END_OF_THINKING.finditer(text)]
    return text[ends[-1] :] if ends else text
