"""The number that a text gives as its answer, by value: 1,234.50 = 1234.5, $18 = 18.00, 3/4 = 0.75.

Units and percent signs are not compared: 18 % is read as 18.
"""

from __future__ import annotations

import re
from collections import deque
from fractions import Fraction
from itertools import islice

from jobs.answer_text import MOST_QUESTIONS, next_questions

MOST_DIGITS = 400  # of a number; what is longer is none
MOST_EXPONENT = 99

_LATEX = (
    (re.compile(r"\\[dt]?frac ?\{([^{}]{1,40})\} ?\{([^{}]{1,40})\}"), r"\1/\2"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\[,!;: ]"), ""),
    (re.compile(r"\\times|\\cdot"), "×"),
    (re.compile(r"\\(?:text|mathrm|textbf|mathbf) ?\{|[*_`$€£¥]|\\(?=[$%])"), ""),
    (re.compile("[\u2212\u2010\u2011\u2012\uff0d]"), "-"),
)
_NUMBER = re.compile(
    r"(?<![\w.^])(?<!\^\{)(?P<sign>(?<![\w)\]])[-+])?"
    r"(?:(?P<whole>\d{1,9}) (?=\d{1,9}/\d))?"
    r"(?P<digits>\d{1,3}(?:[,\u00a0\u202f\u2009]\d{3})+(?!,?\d)|(?P<unclear>\d+(?:,\d+)+)|\d+)?(?P<decimals>\.\d+)?(?<=\d)"
    r"(?:[eE](?P<exponent>[-+]?\d{1,3})(?!\w)"
    r"|(?: ?/ ?(?P<below>\d+)(?![\d./]))"
    r"|(?: ?[×x*] ?10\^?\{?(?P<power>[-+]?\d{1,3})\}?))?"
    r"(?P<raised> ?\^(?! ?\{?\\circ))?"
)
_STATED = re.compile(r"\b(?:final |correct )?answer\b[^.!?\n]{0,60}?(?:\bis\b|\bbe\b|[:=：])|####", re.IGNORECASE)
_SEVERAL = re.compile(r"[^\w.,;=]{0,4}(?:or|and|to|–|-)[^\w.,;=]{0,4}\d")  # '3 or 4', '3 to 4'
_SENTENCE_END = re.compile(r"[.!?](?!\d)|\n")
_BOX = re.compile(r"\\f?boxed ?\{")


def number_of(text: str, marker: str | None) -> Fraction | None:
    """The number that `text` gives as its answer; None where there is none, or several at once ('3 or 4').

    With a marker: the first one after its last occurrence. Without: the one in the last box, after the last 'answer
    is', or else the last number of the text. What follows a question that the model makes up is not looked at.
    """
    if marker is not None:
        _, found, after = text.rpartition(marker)
        return _stated(_plain(after)) if found else None
    for question in islice(next_questions(text), MOST_QUESTIONS):
        before = text[: question.start()]
        if not question["number"] and _NUMBER.search(_plain(before)):
            return _answer(before)
    return _answer(text)


def _answer(text: str) -> Fraction | None:
    boxes = list(_BOX.finditer(text))
    if boxes and _NUMBER.search(boxed := _plain(_inside(text, boxes[-1].end()))):
        return _last(boxed)
    plain = _plain(text)
    for cue in reversed(list(_STATED.finditer(plain))):
        rest = plain[cue.end() : cue.end() + MOST_DIGITS].lstrip("\n ")
        end = _SENTENCE_END.search(rest)
        sentence = rest[: end.start()] if end else rest
        if _NUMBER.search(sentence):
            return _stated(sentence)
    return _last(plain)


def written(value: Fraction) -> str:
    """A number as a person writes it: 18, 0.75, 1/3."""
    if value.denominator == 1:
        return str(value.numerator)
    places = next((places for places in range(1, 20) if 10**places % value.denominator == 0), None)
    if places is None:
        return f"{value.numerator}/{value.denominator}"
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"


def _plain(text: str) -> str:
    """`text` without LaTeX, emphasis and currency signs."""
    for pattern, by in _LATEX:
        text = pattern.sub(by, text)
    return text


def _inside(text: str, start: int) -> str:
    """What stands in the braces that open before `start`; nothing where they are not closed."""
    depth = 1
    for at in range(start, min(len(text), start + 2 * MOST_DIGITS)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[start:at]
    return ""


def _stated(text: str) -> Fraction | None:
    """The first number; of an equation what it comes to: '5 + 13 = 18'."""
    line = text.strip().partition("\n")[0]
    found = _NUMBER.search(line.rpartition("=")[2]) or _NUMBER.search(text)
    if found is None or _SEVERAL.match(found.string, found.end()):
        return None
    return _value(found)


def _last(text: str) -> Fraction | None:
    found = deque(_NUMBER.finditer(text), maxlen=1)
    if not found or re.search(r"\w[-–]$", text[max(0, found[0].start() - 2) : found[0].start()]):  # '5-6 hours'
        return None
    return _value(found[0])


def _value(found: re.Match[str]) -> Fraction | None:
    digits = re.sub(r"\D", "", found["digits"] or "0")
    power = int(found["exponent"] or found["power"] or 0)
    if (
        found["unclear"] or found["raised"] or abs(power) > MOST_EXPONENT
    ):  # '3,5' is 3.5 in some languages, and two numbers in others
        return None
    if len(digits) + len(found["decimals"] or "") + len(found["below"] or "") > MOST_DIGITS:
        return None
    value = Fraction(digits + (found["decimals"] or ""))
    if found["below"]:
        if not int(found["below"]):
            return None
        value = Fraction(int(found["whole"] or 0)) + value / int(found["below"])
    value *= Fraction(10) ** power
    return -value if found["sign"] == "-" else value
