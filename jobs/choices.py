"""Which option a text chooses, or that it chooses none. Never a guess: what hedges, asks or denies is no choice.

Statements count by their place: the last one is the answer, so a change of mind is followed. A base model that goes on
with a question of its own is not: what it says there answers another question.

Every pattern is bounded or anchored and white space is folded first, so that time is linear in the text.

The words that make a statement are English; a task in another language brings its own `cues` (and `denials`, the words
that take one back), which count beside the English ones.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from jobs.answer_text import MOST_QUESTIONS, next_questions

# emphasis, quotation marks (not the apostrophe in a word), LaTeX and brackets around a letter
_NOISE = re.compile(r"[*_`\"“”$(\[{（【「『《]|(?<!\w)['’]|['’](?!\w)|\\(?:text|mathbf|mathrm|textbf|bf|rm)\b")
# what makes the words after it a statement; the option follows
_HEAD = (
    r"(?:\bboxed"
    r"|\b(?:answer|ans\b\.?|my guess|(?:correct|right|best|final|my) (?:option|choice|letter|one))"
    r"(?: to (?:this|the) question)?"
    r"(?: is| are| was|['’]s"
    r"| (?:would|should|must|has to|can only|seems to|appears to|turns out to)(?: (?:therefore|thus|then))? be)?"
    r"(?: (?:therefore|thus|clearly|definitely|simply|indeed|most likely|likely|probably))?"
    r"|^(?:option|choice)(?= ?[:=])"
    r"|\bi(?:['’]d| would|['’]ll| will)? (?:say|answer|guess)"
    r"|\b(?:choose|chose|pick|picked|select|selected|go with|going with"
    r"|(?:chang|switch)(?:e|ed|ing)?(?: it| my answer)? to))"
    r"(?: ?[:：=\->–—]){0,3}[ \n]?(?:the )?(?:option |choice |letter |answer )?"
)
# a conclusion, and a change of mind; the sentence has to end with the option
_CONCLUSION = (
    r"(?:\b(?:therefore|thus|hence|so|consequently|in conclusion|conclusion|to conclude|finally)"
    r"[,:]?(?: (?:it|this|that)(?:['’]s| is| must be)| we (?:get|have))?"
    r"|\b(?:wait|actually|correction|sorry|apologies|i meant?|make that|scratch that|on second thought|rather|oops{no})"
    r"[,:.!… –—-]{{0,4}}(?:(?:{no_}wait|actually|sorry|make that|rather|i meant?"
    r"|(?:it|that)(?:['’]s| is| should be| must be))[,:.! ]{{1,3}}){{0,3}}"
    r"|(?:^|(?<=\s))(?:=>|⇒|∴)"
    r"|\bnot (?:option |choice )?{one}\)?,? (?:but|(?:it|that)(?:['’]s| is))(?: rather)?"
    r"|\b(?:isn['’]t|is not) (?:option |choice )?{one}\)?[,;.]? (?:but|(?:it|that)(?:['’]s| is)))"
    r" ?(?:the )?(?:option |choice |letter |answer )?"
)
# weaker words, which count where there is no statement, all name one option and nothing in the sentence doubts it
_REFERENCE = (
    r"\b(?:(?:it|this|that)(?:['’]s| is| must be)(?: (?:option|choice|answer))?"
    r"|leaves?(?: us with)?(?: only)?(?: option| choice)?"
    r"|(?:corresponds? to|matches|points? to|leads? (?:us )?to|is|be) (?:option|choice|answer)) "
)
_DOUBT = re.compile(
    r"\b(?:if|whether|not|never|cannot|\w+n['’]t|wrong|incorrect|false|except|neither|nor|could|might|may|maybe|perhaps"
    r"|possibly|mistake|distractor|rules? out|eliminated?|tempting|unlikely|suppose|say|unlike|instead of)\b",
    re.IGNORECASE,
)
# an answer that is taken back, with none in its place
_WITHDRAWN = re.compile(
    r"\b(?:wait|no|actually|hmm|hm|oops|sorry)\b[,:.!… –—-]{0,4}(?:(?:wait|no|actually)[,.! ]{1,3})?"
    r"(?:(?:that|this|it|i)(?:['’]s|['’]m| is| was| am) (?:wrong|incorrect|mistaken|a mistake|not (?:right|correct|it))"
    r"|(?:that|this|it) (?:isn|wasn)['’]t (?:right|correct|it))\b",
    re.IGNORECASE,
)
_CALLED_RIGHT = (
    r"\)? is (?:the )?(?:only )?(?:(?:correct|right|best) one|(?:correct|right|best)? ?(?:answer|option|choice))\b"
)
_OPTION_CALLED_RIGHT = r"\)? is (?:correct|right)\b"
# right before a statement it takes it back: "the wrong answer is A", "if the answer is A", "I don't think I choose A"
_UNDONE = re.compile(
    r"\b(?:if|whether|suppose|assum(?:e|ing)|unless|not|never|cannot|\w+n['’]t|wrong|incorrect)"
    r"(?: (?:think|believe|say))?(?: that)?(?: the| my| an?| I)?(?: (?:correct|right|best|final))? ?$",
    re.IGNORECASE,
)


class _Patterns(NamedTuple):
    statements: tuple[re.Pattern[str], ...]
    references: tuple[re.Pattern[str], ...]  # weaker statements
    alone: re.Pattern[str]  # a line that is nothing but an option
    opening: re.Pattern[str]  # an option that a text begins with
    item: re.Pattern[str]  # an option as the mark of a list's item
    named: re.Pattern[str]  # any mention of an option
    denied: re.Pattern[str] | None  # what takes a statement back, before it or after it


class _Found(NamedTuple):
    """option: None where the text names several at once, or takes its answer back"""

    option: str | None


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
    text = _plain(text)
    questions = list(next_questions(text))
    for question in questions[:MOST_QUESTIONS]:
        before = text[: question.start()].strip()
        if before and (found := _found(options, before, cues, denials)) is not None:
            return found.option
        if before and _rambles(questions, question):
            return None  # what comes later answers other questions
    found = _found(options, text, cues, denials)
    return None if found is None else found.option


def _rambles(questions: Sequence[re.Match[str]], first: re.Match[str]) -> bool:
    """Whether a text without an answer asks again and again: the mark of its first question stands there twice."""
    marked = [question for question in questions if not question["number"] and not question["token"]]
    words = [re.sub(r"[\d\s]", "", question[0]).casefold() for question in marked]
    return bool(marked) and marked[0] is first and words.count(words[0]) > 1


def _found(options: str, text: str, cues: tuple[str, ...], denials: tuple[str, ...]) -> _Found | None:
    """What `text` says; None where it says nothing. Letters count as capitals first, since 'a' is an article."""
    for lower in (False, True):
        if not lower or all(len(word) == 1 and word.isalpha() for word in options_of(options)):
            found = _said(options, text, _patterns(options, cues, denials, lower))
            if found is not None:
                return found
    return None


def _said(options: str, text: str, find: _Patterns) -> _Found | None:
    known = {word.casefold(): word for word in options_of(options)}
    stated = [
        found
        for pattern in find.statements
        for found in pattern.finditer(text)
        if not _undone(text, found, find.denied)
    ]
    if stated:
        last = max(stated, key=lambda found: found.start("option"))
        return _Found(None if _is_taken_back(text, last, find) else known[last["option"].casefold()])
    lines = {known[found["option"].casefold()] for found in find.alone.finditer(text)}
    if lines:
        return _Found(lines.pop() if len(lines) == 1 else None)
    first = find.opening.match(text)
    items = {found["option"].casefold() for found in find.item.finditer(text)}
    if first is not None and len(items) < 2:
        return _Found(None if _is_taken_back(text, first, find) else known[first["option"].casefold()])
    named = {
        known[found["option"].casefold()]
        for pattern in find.references
        for found in pattern.finditer(text)
        if not _undone(text, found, find.denied) and not _DOUBT.search(_sentence_before(text, found))
    }
    return _Found(named.pop() if len(named) == 1 else None) if named else None


def _is_taken_back(text: str, found: re.Match[str], find: _Patterns) -> bool:
    """Whether a second option stands beside it, or a withdrawal follows before any other option is mentioned."""
    after = found.end("option")
    back = None if found["hedge"] else _WITHDRAWN.search(text, after)
    return bool(found["hedge"]) or (back is not None and find.named.search(text, after, back.start()) is None)


def _sentence_before(text: str, found: re.Match[str]) -> str:
    before = text[max(0, found.start() - 200) : found.start()]
    return re.split(r"[.!?\n]", before)[-1]


def _plain(text: str) -> str:
    """`text` without emphasis and opening brackets; one blank or line feed for any run of white space."""
    text = unicodedata.normalize("NFC", text)  # an accent may be a character of its own
    text = re.sub(r"(?<=[a-z])_(?=[a-z])", " ", text)  # <final_answer>
    text = _NOISE.sub("", re.sub(r"\\f?boxed\s?\{", "\nboxed ", text))
    text = re.sub(r"[\]}）】」』》]", ")", text)
    return re.sub(r"[ \n]*\n[ \n]*", "\n", re.sub(r"[^\S\n]+", " ", text)).strip()


def _undone(text: str, found: re.Match[str], denied: re.Pattern[str] | None) -> bool:
    before = text[max(0, found.start() - 60) : found.start()]
    if denied is not None and (denied.search(before + "\0") or denied.search("\0" + text[found.end("option") :][:60])):
        return True
    return _UNDONE.search(before) is not None


@lru_cache(maxsize=64)
def _patterns(options: str, cues: tuple[str, ...], denials: tuple[str, ...], lower: bool) -> _Patterns:
    """lower: small letters; they count before a bracket and, but for a and i, where a sentence ends"""
    words = options_of(options)
    letters = all(len(word) == 1 for word in words)
    one = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    one = f"(?:{one})" if letters else f"(?i:{one})"  # letters as capitals only: 'a' is an article
    # A and I are words too, and so are yes and no: prose that goes on after them makes them part of a sentence
    prose = r"(?! (?!(?:because|since|as|given|due|based|but|so)\b)[^\W\d_])"
    prose = rf"(?:(?<![AI]){'' if letters else prose}|(?<=[AI]){prose})"
    end = rf"(?![\w’']|[-.]\w| ?\)?\?){prose}"
    over = r"(?= ?\)?(?:[.!;。]+(?!\w)| ?$|,? (?:because|since|as|given)\b| is (?:correct|right)\b| ?[(<]))"
    if lower:
        one = one.lower()
        end = rf"(?:(?=\))(?! ?\)?\?)|(?<![ai])(?!\w){over})"
    small = r"(?:(?<![ai])|(?=\)))" if lower else ""
    also = rf" ?\)?(?:,? (?:or|and|nor|vs\.?) |,? ?[/&] ?|, ?(?={one}\)?(?:[,.\n)]|$| and | or )))"
    hedge = rf"(?P<hedge>{also}(?:the )?(?:option |choice |answer )?{one}(?!\w))"
    option = rf"(?P<option>{one})"
    no = ("", "") if not letters else ("|no", "no|")  # where 'no' is no option itself
    conclusion = _CONCLUSION.format(no=no[0], no_=no[1], one=one)
    mark = r"\)" if lower else r"[).:]"
    taken_back = "|".join(_literal(word) for word in denials)
    return _Patterns(
        (
            re.compile(rf"(?i:{_HEAD}){option}{end}{hedge}?", re.MULTILINE),
            re.compile(rf"(?i:{conclusion})(?<!\w){option}(?!\w)(?:{hedge}|{over}{small})", re.MULTILINE),
            re.compile(rf"(?<!\w){option}(?P<hedge>)(?i:{_CALLED_RIGHT})"),
            re.compile(rf"\b(?i:option|choice) {option}(?P<hedge>)(?i:{_OPTION_CALLED_RIGHT})"),
            re.compile(rf"\b(?i:but|however),? {option}(?P<hedge>)(?i:{_OPTION_CALLED_RIGHT})"),
            *(() if lower else (_of_cue(cue, one, letters) for cue in cues)),
        ),
        (re.compile(rf"(?i:{_REFERENCE})(?<!\w){option}(?!\w){over}{small}", re.MULTILINE),),
        re.compile(rf"^(?:(?i:option|choice) )?{option}(?!\w){small} ?[).:,!。।]{{0,3}}$", re.MULTILINE),
        re.compile(
            rf"(?:(?i:option|choice) )?{option}(?:{hedge}|{end}(?:{mark}|,(?<![AI],)|,? (?:because|since|as)\b))"
        ),
        re.compile(rf"(?<!\S){option}{mark}(?!\S)"),
        re.compile(rf"(?<!\w){one}(?!\w)"),
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
