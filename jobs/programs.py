"""The program in an answer: what an evaluator runs against a problem's tests.

An answer holds more than its program: prose, drafts, examples of use, their output, its own tests, half a function
where it was cut off. The program is the last definition of each name that the tests ask for, with all that it needs.
What is left out never decides a verdict: that is the tests' alone. docs/scores.md has the rules in words.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from jobs.answer_text import next_questions
from jobs.assembly import Piece, all_of, assembled, is_definition
from jobs.fences import OTHER_LANGUAGES, Stretch, stretches
from jobs.sandbox import tests_of
from jobs.statements import (
    Statement,
    TooDeepError,
    broken,
    is_text,
    may_be_cut,
    parsed,
    scope_names,
    statements_in_prose,
    statements_of,
    without_beginnings,
)

_BUILTINS = frozenset(dir(builtins))
_NO_BREAK = re.compile(r"^[ \t]*\xa0[ \t\xa0]*", re.MULTILINE)  # indentation as some web pages have it
_END_MARK = re.compile(r"^(?:\[DONE\]|\[/PYTHON\]|</?s>)$", re.MULTILINE)  # of prompts for base models


def program_of(text: str, entry: Mapping[str, Any]) -> str | None:
    """The program in `text`, an answer to the problem `entry`; None where there is no code at all.

    entry: entry_point names what is asked for, else the names that its tests take from elsewhere; where its prompt
    begins the definition (HumanEval), an answer may go on from there
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\ufeff", "").lstrip("\n")
    text = _NO_BREAK.sub(lambda blanks: blanks[0].replace("\xa0", " "), text)
    if not is_text(text):
        return text
    asked = asked_names(entry)
    prompt = _prompt_of(entry, asked)
    parts = stretches(text)
    fenced = [part for part in parts if part.language is not None and part.language not in OTHER_LANGUAGES]
    bare = [part for part in parts if part.language is None]
    if not asked:
        return all_of([_piece(part) for part in fenced] or [_piece(part) for part in bare])
    if not prompt and not any(name in text for name in asked):
        return _unusable(fenced, bare)
    for program in _candidates(text, prompt, fenced, bare, asked):
        if program is not None:
            return program
    if not fenced and prompt and text[:1].isspace() and text.strip():
        return prompt + text
    return _unusable(fenced, bare)


def _unusable(fenced: Sequence[Stretch], bare: Sequence[Stretch]) -> str | None:
    """Code that defines nothing of what is asked: a wrong answer, but not none."""
    if fenced:
        return fenced[-1].text
    found = "\n".join(part.text for part in bare)
    return found if any(is_definition(s) for part in bare for s in _piece(part).statements) else None


def _candidates(
    text: str, prompt: str, fenced: Sequence[Stretch], bare: Sequence[Stretch], asked: frozenset[str]
) -> Iterator[str | None]:
    """Where the program may stand, most likely first."""
    context = _piece_of(prompt, cut_off=True, is_bare=True) if prompt else None
    if prompt and text[:1].isspace():
        yield _completed(prompt, text, asked)
    if fenced:
        yield assembled([_piece(part) for part in fenced], asked, context)
    yield assembled(_bare_pieces(bare, asked), asked, context)
    typed = _without_console("\n".join(part.text for part in fenced or bare))
    yield assembled([_piece_of(typed, cut_off=True, is_bare=True)], asked, context)
    if prompt:
        for body in [*(part.text for part in reversed(fenced)), text]:
            yield _completed(prompt, body, asked)
    yield assembled(_inline(text, asked), asked, context)
    if re.search(rf"\b(?:def|class) +(?:{'|'.join(map(re.escape, asked))})\b", text):
        yield text if not fenced else None


def asked_names(entry: Mapping[str, Any]) -> frozenset[str]:
    """The names that a problem's tests use and do not define."""
    if entry.get("entry_point"):
        return frozenset({str(entry["entry_point"])})
    return _free_names(tests_of(entry))


@lru_cache(maxsize=64)
def _free_names(code: str) -> frozenset[str]:
    names = scope_names(code)
    return frozenset() if names is None else names[1] - names[0] - _BUILTINS


def _prompt_of(entry: Mapping[str, Any], asked: frozenset[str]) -> str:
    """The problem's prompt where it begins the definition that is asked for, else ''."""
    prompt = str(entry.get("prompt") or "").replace("\r\n", "\n")
    return prompt if any(_begins(name, prompt) for name in asked) else ""


def _begins(name: str, code: str) -> bool:
    return re.search(rf"^[ \t]*(?:async[ \t]+)?def[ \t]+{re.escape(name)}[ \t]*\(", code, re.MULTILINE) is not None


def _first_definition(name: str, code: str) -> int:
    """Where a line first defines `name`; the end of the code where none does."""
    found = re.search(rf"^[ \t]*(?:(?:async )?def {re.escape(name)} ?\(|{re.escape(name)} ?=)", code, re.MULTILINE)
    return len(code) if found is None else found.start()


def _piece(part: Stretch) -> Piece:
    return _piece_of(part.text, cut_off=not part.closed, is_bare=part.language is None)


def _piece_of(text: str, cut_off: bool, is_bare: bool) -> Piece:
    try:
        for code in dict.fromkeys((text, _dedented(text))):
            if (module := parsed(code)) is not None:
                return _piece_that_parses(code, statements_of(code, module), cut_off and not text.endswith("\n"))
        return Piece(tuple(statements_in_prose(code, cut_off, is_bare)), None)
    except TooDeepError:
        return Piece((broken(text),), None)


def _piece_that_parses(code: str, found: list[Statement], ends_inside_a_line: bool) -> Piece:
    """ends_inside_a_line: the answer may have been cut off in the last statement, although it parses"""
    if not ends_inside_a_line or not found or not may_be_cut(found[-1]):
        return Piece(tuple(found), code)
    kept = without_beginnings([*found[:-1], replace(found[-1], is_cut=True)])
    return Piece(tuple(kept), code if len(kept) == len(found) else "\n".join(one.text for one in kept))


def _bare_pieces(bare: Sequence[Stretch], asked: frozenset[str]) -> list[Piece]:
    """Text outside of fences; what follows the answer there, such as another problem, is cut off."""
    pieces = []
    for part in bare:
        text = part.text
        ends = _ends(text)
        starts = [_first_definition(name, text) for name in asked]
        end = next((end for end in ends if any(start < end for start in starts)), len(text))
        pieces.append(_piece_of(text[:end], cut_off=True, is_bare=True))
    return pieces


def _ends(text: str) -> list[int]:
    """Where an answer to one problem may be over: at a mark of its end, or where another problem begins."""
    found = [question for question in next_questions(text) if not question["number"]]
    questions = [q.start() for q in found if not q["token"] or text[q.start() - 1 : q.start()] == "\n"]
    return sorted([*questions, *(mark.start() for mark in _END_MARK.finditer(text))])


def _dedented(code: str) -> str:
    """`code` without the indentation of its first line, where a line has as much."""
    lines = code.split("\n")
    first = next((line for line in lines if line.strip()), "")
    width = len(first) - len(first.lstrip(" \t"))
    return "\n".join(line[min(width, len(line) - len(line.lstrip(" \t"))) :] for line in lines)


def _without_console(code: str) -> str:
    """What was typed into a Python console (>>> and ...), without what it printed."""
    typed = [re.match(r"[ \t]*(?:>>>|\.\.\.)(?: (.*))?$", line) for line in code.split("\n")]
    return "\n".join(line[1] or "" for line in typed if line is not None)


def _inline(text: str, asked: frozenset[str]) -> list[Piece]:
    """Definitions that begin in the middle of a line of prose: 'Use `def f(x): return x`.'"""
    pieces = []
    for name in asked:
        begins = re.search(rf"\b(?:async +)?def +{re.escape(name)} *\(|\b{re.escape(name)} *= *lambda\b", text)
        if begins is not None:
            line, _, rest = text[begins.start() :].partition("\n")
            pieces.append(_piece_of(f"{line.partition('`')[0]}\n{rest}", cut_off=True, is_bare=True))
    return pieces


def _completed(prompt: str, answer: str, asked: frozenset[str]) -> str | None:
    """The prompt's definition with `answer` as the rest of it; None where that is no definition.

    It ends where a base model begins anew: at a fence, or where it defines the same name again.
    """
    body = re.split(r"^[ \t]*(?:`{3}|~{3})", answer, maxsplit=1, flags=re.MULTILINE)[0]
    again = "|".join(map(re.escape, asked))
    body = re.split(rf"^(?:async +)?def +(?:{again}) *\(", body, maxsplit=1, flags=re.MULTILINE)[0]
    body = body[: min(_ends(body), default=len(body))]
    if not body.strip() or any(_begins(name, _dedented(body)) for name in asked):
        return None
    for whole in _continuations(prompt, body):
        program = assembled([_piece_of(whole, cut_off=True, is_bare=True)], asked, None, stubs=False)
        if program is not None:
            return program
    return None


def _continuations(prompt: str, body: str) -> Iterator[str]:
    """`prompt` and `body` joined: as they are, with the first line's indentation mended, with all lines indented.

    The first blanks of a completion are easily lost: a tokenizer may strip them, and chat models leave them out.
    """
    last = next((line for line in reversed(prompt.split("\n")) if line.strip()), "")
    indent = last[: len(last) - len(last.lstrip(" \t"))] or "    "
    starts = prompt if prompt.endswith("\n") else f"{prompt}\n"
    if body.lstrip("\n")[:1].isspace() or starts != prompt:
        yield from dict.fromkeys((prompt + body, starts + body))
    if _is_a_body(body):
        yield starts + "\n".join(indent + line if line.strip() else line for line in body.split("\n"))
    first, _, rest = body.lstrip(" \t\n").partition("\n")
    if not rest.strip() or rest.lstrip("\n")[:1].isspace():
        yield f"{starts}{indent}{first}\n{rest}"


def _is_a_body(code: str) -> bool:
    """Whether it is the inside of a function, without its indentation: statements, and a return among them."""
    try:
        module = parsed(code)
    except TooDeepError:
        return False
    return module is not None and any(isinstance(node, ast.Return) for top in module.body for node in _own_nodes(top))


def _own_nodes(top: ast.AST) -> Iterator[ast.AST]:
    """`top` and the nodes below it that are not in a function or class of their own."""
    below = [top]
    while below:
        node = below.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            below += ast.iter_child_nodes(node)
