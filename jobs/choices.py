"""Which option a text chooses, or that it chooses none. Never a guess: what hedges, asks or denies is no choice.

Every pattern is bounded or anchored and white space is folded first, so that time is linear in the text.

The words that make a statement are English; a task in another language brings its own `cues` (and `denials`, the words
that take one back), which count beside the English ones.
"""

from __future__ import annotations

import re
import string
import unicodedata
from functools import lru_cache
from typing import NamedTuple

# emphasis, quotation marks (not the apostrophe in a word), LaTeX and brackets around a letter
_NOISE = re.compile(r"[*_`\"“”$(\[{（【「『《]|(?<!\w)['’]|['’](?!\w)|\\(?:text|mathbf|mathrm|textbf|bf|rm)\b")
# what makes the words after it a statement; the option follows
_HEAD = (
    r"(?:\bboxed"
    r"|\b(?:answer|(?:correct|right|best|final|my) (?:option|choice|letter|one))"
    r"(?: to (?:this|the) question)?(?: is| are| was| would be| should be| must be)?"
    r"(?: (?:therefore|thus|clearly|definitely|simply|most likely|likely|probably))?"
    r"|^(?:option|choice)(?= ?[:=])"
    r"|\b(?:choose|chose|pick|picked|select|selected|go with|going with))"
    r"(?: ?[:：=\->]){0,3}[ \n]?(?:option |choice |letter |answer )?"
)
_CALLED_RIGHT = r"\)? is (?:the )?(?:only )?(?:correct|right|best)? ?(?:answer|option|choice)\b"
_OPTION_CALLED_RIGHT = r"\)? is (?:correct|right)\b"
# right before a statement it takes it back: "the wrong answer is A", "if the answer is A", "I don't think I choose A"
_UNDONE = re.compile(
    r"\b(?:if|whether|suppose|assum(?:e|ing)|unless|not|never|cannot|\w+n['’]t|wrong|incorrect)"
    r"(?: (?:think|believe|say))?(?: that)?(?: the| my| an?| I)?(?: (?:correct|right|best|final))? ?$",
    re.IGNORECASE,
)


class _Patterns(NamedTuple):
    statements: tuple[re.Pattern[str], ...]
    alone: re.Pattern[str]  # a line that is nothing but an option
    opening: re.Pattern[str]  # an option that a text begins with
    item: re.Pattern[str]  # an option as the mark of a list's item
    denied: re.Pattern[str] | None  # what takes a statement back, before it or after it


@lru_cache(maxsize=64)
def options_of(options: str) -> tuple[str, ...]:
    """'A-D' -> A, B, C, D; 'yes|no' -> yes, no."""
    if re.fullmatch(r"[A-Z]-[A-Z]", options):
        return tuple(string.ascii_uppercase[ord(options[0]) - 65 : ord(options[2]) - 64])
    return tuple(word.strip() for word in options.split("|") if word.strip())


def chosen(options: str, text: str, cues: tuple[str, ...] = (), denials: tuple[str, ...] = ()) -> str | None:
    """The option that `text` states last; without any statement, one that stands alone on a line or opens the text.

    cues: what a statement begins with in the text's language ('Jibu ni'), or has around it ('{} ni jibu')
    denials: words that take a statement back where they stand right before it or right after its option
    None: no choice. So is "B or C", and a list of the options.
    """
    known = {word.casefold(): word for word in options_of(options)}
    text, find = _plain(text), _patterns(options, cues, denials)
    stated = [
        found
        for pattern in find.statements
        for found in pattern.finditer(text)
        if not _undone(text, found, find.denied)
    ]
    if stated:
        last = max(stated, key=lambda found: found.start("option"))
        return None if last["hedge"] else known[last["option"].casefold()]
    lines = {known[found["option"].casefold()] for found in find.alone.finditer(text)}
    if lines:
        return lines.pop() if len(lines) == 1 else None
    first = find.opening.match(text)
    items = {found["option"].casefold() for found in find.item.finditer(text)}
    return None if first is None or first["hedge"] or len(items) > 1 else known[first["option"].casefold()]


def _plain(text: str) -> str:
    """`text` without emphasis and opening brackets; one blank or line feed for any run of white space."""
    text = unicodedata.normalize("NFC", text)  # an accent may be a character of its own
    text = _NOISE.sub("", re.sub(r"\\f?boxed\s?\{", "\nboxed ", text))
    text = re.sub(r"[\]}）】」』》]", ")", text)
    return re.sub(r"[ \n]*\n[ \n]*", "\n", re.sub(r"[^\S\n]+", " ", text)).strip()


def _undone(text: str, found: re.Match[str], denied: re.Pattern[str] | None) -> bool:
    before = text[max(0, found.start() - 60) : found.start()]
    if denied is not None and (denied.search(before + "\0") or denied.search("\0" + text[found.end("option") :][:60])):
        return True
    return _UNDONE.search(before) is not None


@lru_cache(maxsize=64)
def _patterns(options: str, cues: tuple[str, ...], denials: tuple[str, ...]) -> _Patterns:
    words = options_of(options)
    letters = all(len(word) == 1 for word in words)
    one = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    one = f"(?:{one})" if letters else f"(?i:{one})"  # letters as capitals only: 'a' is an article
    # A and I are words too, and so are yes and no: prose that goes on after them makes them part of a sentence
    prose = r"(?! (?!(?:because|since|as|given|due|based|but|so)\b)[^\W\d_])"
    prose = rf"(?:(?<![AI]){'' if letters else prose}|(?<=[AI]){prose})"
    end = rf"(?![\w’']|[-.]\w| ?\)?\?){prose}"
    also = rf" ?\)?(?:,? (?:or|and|nor|vs\.?) |,? ?[/&] ?|, ?(?={one}\)?(?:[,.\n)]|$| and | or )))"
    hedge = rf"(?P<hedge>{also}(?:the )?(?:option |choice |answer )?{one}(?!\w))?"
    option = rf"(?P<option>{one})"
    flags = re.MULTILINE
    taken_back = "|".join(_literal(word) for word in denials)
    return _Patterns(
        (
            re.compile(rf"(?i:{_HEAD}){option}{end}{hedge}", flags),
            re.compile(rf"(?<!\w){option}(?P<hedge>)(?i:{_CALLED_RIGHT})"),
            re.compile(rf"\b(?i:option|choice) {option}(?P<hedge>)(?i:{_OPTION_CALLED_RIGHT})"),
            *(_of_cue(cue, one, letters) for cue in cues),
        ),
        re.compile(rf"^(?:(?i:option|choice) )?{option}(?!\w) ?[).:,!。।]{{0,3}}$", flags),
        re.compile(rf"(?:(?i:option|choice) )?{option}{end}{hedge}(?:[).:]|,(?<![AI],)|,? (?:because|since|as)\b)"),
        re.compile(rf"(?<!\S){option}[).:](?!\S)"),
        re.compile(rf"(?i:(?:{taken_back})[ ,]?\0|\0\)? ?(?:{taken_back}))") if denials else None,
    )


def _of_cue(cue: str, one: str, letters: bool) -> re.Pattern[str]:
    """A statement in another language: '{}' is where the option stands, else it follows the cue.

    What follows a letter may be of another script without a blank (Bです). A single word between two options makes a
    hedge: whatever it is, both are named.
    """
    before, _, after = cue.partition("{}")
    no_more = r"(?![A-Za-z0-9_À-ɏ’'])" if letters else r"(?!\w)"
    end = rf"{no_more}(?![-.][A-Za-z0-9]| ?\)?[?？؟])"
    hedge = rf"(?P<hedge>\)?(?: ?[,、/&] ?| ?[^\s\d.:;!?,।。()、]{{1,12}} ?){one}{no_more})?"
    lead = rf"{_literal(before)}(?: ?[:：=\->,]){{0,3}}[ \n]?" if before.strip() else r"(?<![A-Za-z0-9_À-ɏ])"
    tail = rf"\)? ?{_literal(after)}" if after.strip() else hedge
    named = "" if "(?P<hedge>" in tail else "(?P<hedge>)"
    return re.compile(rf"(?i:{lead})(?P<option>{one}){end}{named}{tail}", re.MULTILINE)


def _literal(words: str) -> str:
    """A cue as a pattern: whole words, but in scripts that write no blanks between them."""
    plain = unicodedata.normalize("NFC", " ".join(words.split()))
    spaced = [
        not unicodedata.name(c, "").startswith(("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR"))
        for c in (plain[0], plain[-1])
    ]
    start = r"(?<!\w)" if spaced[0] and plain[0].isalnum() else ""
    ends_a_word = plain[-1].isalnum() or unicodedata.category(plain[-1]).startswith("M")  # M: a vowel's sign
    stop = r"(?!\w)" if spaced[1] and ends_a_word else ""
    return start + re.escape(plain) + stop
