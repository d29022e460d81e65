"""Markdown fences in an answer: what is inside them, by language, and the text between them.

Models do not write Markdown by the book. A fence may stand in a list, in a quotation or behind words on the same line,
may be closed at the end of a line of code or never, and a new one may open before the last is closed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from jobs.statements import StringsOver

# what a line may begin with before its fence: quotation marks and the mark of a list's item
_LEAD = r"(?P<lead>[ \t>]{0,40}(?:(?:[-*+•]|\d{1,3}[.)])[ \t]{1,4})?)"
_FENCE = re.compile(_LEAD + r"(?P<fence>`{3,}|~{3,})[ \t]*(?P<info>[^`]*)$")
_BEHIND_WORDS = re.compile(r"(?P<words>[^`]+)(?P<fence>`{3,})[ \t]*(?P<info>[^`]*)$")
_ONE_LINE = re.compile(r"(?P<before>[^`]*)(?P<fence>`{3,})(?P<code>[^`]+)`{3,}(?P<after>[^`]*)$")
_CLOSED_BY_CODE = re.compile(r"(?P<code>[^`]+)`{3,}$")
_LANGUAGE = re.compile(r"[{.\s]*([\w+#-]*)")
_CODE_BEHIND_FENCE = re.compile(
    r"(?:(?:python3?|py)[ \t]+)?(?=(?:async def|def|class|import|from|@\w+) ?)", re.IGNORECASE
)
_PYTHON_TAG = re.compile(r"[ \t]*(?:python\d?|py\d?)[ \t]+", re.IGNORECASE)

# what a fence may be labelled with that is not Python; any other label is taken for a mistake
OTHER_LANGUAGES = frozenset(
    """
    bash bat c c# c++ cfg clojure cmd console cpp cs csharp css csv dart diff dockerfile elixir erlang f# fortran go
    golang graphql haskell html http ini java javascript js json jsx julia kotlin latex lua makefile markdown math
    matlab md mermaid mysql objective-c output perl php postgresql powershell ps1 r rb ruby rs rust scala sh shell
    shell-session sql swift tex toml traceback ts tsx typescript vb xml yaml yml zig zsh
    """.split()  # noqa: SIM905
)


@dataclass
class Stretch:
    """Lines of an answer that belong together.

    language: of a fence's info string, lower case, '' without one; None outside of fences
    closed: whether the fence was closed; an answer that was cut off leaves one open
    """

    language: str | None
    lines: list[str] = field(default_factory=list)
    closed: bool = False

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


@dataclass
class _Open:
    """A fence that is not closed yet; in_string: whether its code so far ends inside a string over several lines."""

    fence: str
    lead: str
    strings: StringsOver = field(default_factory=StringsOver)
    in_string: bool = False

    def content(self, line: str) -> str:
        """`line` without the quotation marks and the indentation of its fence."""
        if ">" in self.lead:
            line = re.sub(r"^[ \t]{0,3}(?:>[ ]?)*", "", line)
        width = len(self.lead.rsplit(">", 1)[-1])
        blank = len(line) - len(line.lstrip(" \t"))
        return line[min(width, blank) :]

    def is_deeper(self, lead: str) -> bool:
        """Whether a fence with this lead is part of the code: by four columns, as in a docstring."""
        own, its = (len(one.rsplit(">", 1)[-1].expandtabs(4)) for one in (self.lead, lead))
        return its >= own + 4


def stretches(text: str) -> list[Stretch]:
    """The answer in order: text, fence, text, ... Only lines that mark a fence are missing."""
    found, open_ = [Stretch(None)], None
    for line in text.split("\n"):
        open_ = _outside(found, line) if open_ is None else _inside(found, line, open_)
    return [stretch for stretch in found if stretch.text.strip()]


def _outside(found: list[Stretch], line: str) -> _Open | None:
    if "```" not in line and "~~~" not in line:
        found[-1].lines.append(line)
        return None
    if (one := _ONE_LINE.match(line)) is not None:
        found[-1].lines.append(one["before"])
        found += [Stretch("", [_PYTHON_TAG.sub("", one["code"], count=1)], closed=True), Stretch(None, [one["after"]])]
        return None
    if (mark := _FENCE.match(line)) is not None:
        return _opened(found, mark["fence"], mark["lead"], mark["info"])
    behind = _BEHIND_WORDS.match(line)
    if behind is not None and _opens(behind["words"].rstrip(), behind["info"].rstrip()):
        found[-1].lines.append(behind["words"].rstrip())
        return _opened(found, behind["fence"], "", behind["info"])
    found[-1].lines.append(line)
    return None


def _opens(words: str, info: str) -> bool:
    """Whether a fence behind words opens a block: a language or code follows it, or the words end with a colon."""
    is_language = re.fullmatch(r"[\w+#.{}-]+", info) is not None
    return is_language or _CODE_BEHIND_FENCE.match(info) is not None or (words.endswith(":") and not info)


def _opened(found: list[Stretch], fence: str, lead: str, info: str) -> _Open:
    code = _CODE_BEHIND_FENCE.match(info)
    if code is not None:  # the first line of code stands where the language should
        found.append(Stretch("python", [info[code.end() :]]))
    else:
        language = _LANGUAGE.match(info)
        found.append(Stretch(language[1].lower() if language else ""))
    return _Open(fence, re.sub(r"[^ \t>]", " ", lead))


def _inside(found: list[Stretch], line: str, open_: _Open) -> _Open | None:
    mark = _FENCE.match(line) if "```" in line or "~~~" in line else None
    info = mark["info"].strip() if mark else ""
    is_code = mark is None or open_.is_deeper(mark["lead"]) or mark["fence"][0] != open_.fence[0]
    if is_code or (open_.in_string and not info):
        closed = _CLOSED_BY_CODE.match(line.rstrip()) if open_.fence[0] == "`" and not mark else None
        line = open_.content(closed["code"] if closed else line)
        open_.in_string = open_.strings.after(line)
        found[-1].lines.append(line)
        if closed:
            _close(found, "")
        return None if closed else open_
    assert mark is not None
    if re.fullmatch(r"[\w+#.{}-]+(?:[ \t]+\w+=\S*)*", info):  # a language: the last fence was never closed
        return _opened(found, mark["fence"], mark["lead"], info)
    if len(mark["fence"]) < len(open_.fence):
        found[-1].lines.append(open_.content(line))
        return open_
    _close(found, info)
    return None


def _close(found: list[Stretch], after: str) -> None:
    found[-1].closed = True
    found.append(Stretch(None, [after]))
