"""Top-level statements of Python code, also of code with prose around it: what each binds and what it reads.

Code is parsed, never run. Every line is parsed a bounded number of times, so time is linear in the text.
"""

from __future__ import annotations

import ast
import re
import symtable
import textwrap
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain, pairwise

MOST_LINES = 40  # of a bracket or a string over several lines, where the code as a whole does not parse
MOST_IN_VAIN = 100  # beginnings of statements that never end, after which no more is looked for
MOST_DEPTH = 3  # of indented text below indented prose
MOST_TRIES = 30  # to find where a statement that was cut off still parses
_UNREADABLE = re.compile("[\0\ud800-\udfff]")
_TOKEN = re.compile(r"'''|\"\"\"|'(?:\\.|[^'\\\n])*'|\"(?:\\.|[^\"\\\n])*\"|#[^\n]*|[()\[\]{}]")
_HEADER = re.compile(r"^(?:async[ \t]+)?(?:def[ \t]+(\w+)[ \t]*\(|class[ \t]+(\w+)[ \t]*[(:])", re.MULTILINE)
_CLAUSE = re.compile(r"(?:else|elif|except|finally)\b")
_STARTS_CODE = re.compile(
    r"@|(?:async|class|def|del|for|from|if|import|match|print|return|try|while|with)\b"
    r"|[\w.]+ ?\(|[\w.,\[\] ]+[-+*/|&%^]?=(?!=)"
)


class TooDeepError(Exception):
    """Code that is nested too deeply for Python's parser."""


def is_text(code: str) -> bool:
    """Whether Python reads it at all: no NUL, no half of a surrogate pair."""
    return _UNREADABLE.search(code) is None


@dataclass(frozen=True)
class Statement:
    """binds and reads: names of the module's scope; node: None where the statement does not parse.

    is_cut: whether the answer ended inside it, and only its beginning is here
    """

    text: str
    binds: frozenset[str]
    reads: frozenset[str]
    node: ast.stmt | None
    is_cut: bool = False

    def defines(self, name: str) -> bool:
        """Whether it binds `name` to something of its own; an import brings what another module defines."""
        return name in self.binds and not isinstance(self.node, ast.Import | ast.ImportFrom)


def parsed(code: str) -> ast.Module | None:
    """None where the code is not Python. Raises TooDeepError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(code)
    except (MemoryError, RecursionError) as error:
        raise TooDeepError from error
    except SyntaxError as error:
        if "too many nested" in str(error):
            raise TooDeepError from error
        return None
    except ValueError:  # an integer with more digits than Python reads
        return None


def statements_of(code: str, module: ast.Module) -> list[Statement]:
    """The statements of code that parses, in order."""
    lines = code.split("\n")
    spans = [(_first_line(node), node.end_lineno or node.lineno) for node in module.body]
    shared = {line for (_, end), (line, _) in pairwise(spans) if line <= end}
    found = []
    for node, (first, last) in zip(module.body, spans, strict=True):
        text = "\n".join(lines[first - 1 : last])
        if first in shared or last in shared:  # a; b
            text = ast.get_source_segment("\n".join(lines[node.lineno - 1 : last]), _moved(node)) or text
        found.append(_statement(text, node))
    return found


def _first_line(node: ast.stmt) -> int:
    decorators = getattr(node, "decorator_list", [])
    return min([node.lineno, *(one.lineno for one in decorators)])


def _moved(node: ast.stmt) -> ast.stmt:
    """A stand-in for `node` with the same columns, on the first line."""
    copy = ast.Pass()
    copy.lineno, copy.col_offset = 1, node.col_offset
    copy.end_lineno, copy.end_col_offset = (node.end_lineno or node.lineno) - node.lineno + 1, node.end_col_offset
    return copy


def _statement(text: str, node: ast.stmt) -> Statement:
    names = scope_names(text)
    if names is None:
        return broken(text)
    return Statement(text, *names, node)


def broken(text: str) -> Statement:
    """A statement that is kept as it is although it does not parse: it defines what its first words say."""
    return Statement(text, frozenset(a or b for a, b in _HEADER.findall(text)), frozenset(), None)


def scope_names(code: str) -> tuple[frozenset[str], frozenset[str]] | None:
    """The names of the module's scope that `code` binds, and that it reads; None where it is not Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            top = symtable.symtable(code, "answer", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    binds = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported()}
    reads = {s.get_name() for s in top.get_symbols() if s.is_referenced()}
    inner = list(top.get_children())
    while inner:
        table = inner.pop()
        reads |= {s.get_name() for s in table.get_symbols() if s.is_global()}
        inner += table.get_children()
    return frozenset(binds), frozenset(reads)


def statements_in_prose(text: str, may_end_early: bool, is_bare: bool, depth: int = 0) -> list[Statement]:
    """The statements of text that is not Python as a whole. A line that is none belongs to the prose and is left out.

    A definition that does not parse is kept: it is what the answer says. Two kinds are cut to what parses: the last
    one of an answer that may end early, and, in text without fences (is_bare), one that runs into indented prose.
    """
    chunks, found = _chunks(text), []
    inside_a_line = not text.endswith("\n")
    for number, chunk in enumerate(chunks):
        is_last = may_end_early and number == len(chunks) - 1
        line = _leading_prose(chunk)
        if line is not None and depth < MOST_DEPTH:
            rest = textwrap.dedent(chunk[len(line) :])  # indented code below a line of prose
            found += statements_in_prose(rest, is_last, is_bare, depth + 1)
            continue
        is_cut = is_last and (inside_a_line or _is_unfinished(chunk))
        beginnings = chain([chunk], _cuts(chunk, is_cut, is_bare))
        parts = ((code, module) for code in beginnings if (module := parsed(code)) is not None)
        code, module = next(parts, (chunk, None))
        if module is not None:
            cut = is_cut and code != chunk
            found += [replace(one, is_cut=cut) for one in statements_of(code, module)]
        elif (header := _HEADER.search(chunk)) and ":" in chunk[header.end() - 1 :] and not is_cut:
            found.append(broken(chunk))
    return without_beginnings(found)


def without_beginnings(found: list[Statement]) -> list[Statement]:
    """Without what was cut off, where it would replace a whole definition."""
    whole = {name for one in found if not one.is_cut for name in one.binds}
    return [one for one in found if not (one.is_cut and one.binds <= whole)]


def may_be_cut(statement: Statement) -> bool:
    """Whether the last statement of an answer that ended inside a line looks unfinished: a function without return."""
    node = statement.node
    returns = ast.Return | ast.Yield | ast.YieldFrom
    return isinstance(node, ast.FunctionDef) and not any(isinstance(below, returns) for below in ast.walk(node))


def _is_unfinished(chunk: str) -> bool:
    """Whether more lines could make it right: what it lacks is its end."""
    try:
        ast.parse(chunk)
    except SyntaxError as error:
        return any(
            words in str(error) for words in ("never closed", "unterminated triple", "expected an indented block")
        )
    return False


def _leading_prose(chunk: str) -> str | None:
    """The first line, where it is prose and indented lines follow."""
    line, _, rest = chunk.partition("\n")
    return line if rest.strip() and not _STARTS_CODE.match(line) else None


def _cuts(chunk: str, at_lines: bool, at_blank_lines: bool) -> Iterable[str]:
    """Beginnings of a statement, longest first: with up to MOST_TRIES of its lines left out, or of its paragraphs."""
    lines = chunk.split("\n")
    if not _STARTS_CODE.match(chunk) or len(lines) < 2:
        return
    if at_lines:
        for end in range(len(lines) - 1, max(0, len(lines) - 1 - MOST_TRIES), -1):
            yield "\n".join(lines[:end])
    if at_blank_lines:
        ends = [number for number, line in enumerate(lines) if number and not line.strip()]
        for end in ends[: -MOST_TRIES - 1 : -1]:
            yield "\n".join(lines[:end])


def _chunks(text: str) -> list[str]:
    """`text` cut where a top-level statement, or a line of prose, begins."""
    lines, chunks, start, in_vain = text.split("\n"), [], 0, 0
    while start < len(lines):
        first = _next_start(lines, start + 1)
        end: int | None = first
        if in_vain < MOST_IN_VAIN and _STARTS_CODE.match(lines[start]):
            end = _end_of(lines, start, first)
            in_vain += end is None
        chunks.append("\n".join(lines[start : end or first]).rstrip())
        start = end or first
    return [chunk for chunk in chunks if chunk]


def _end_of(lines: list[str], start: int, end: int) -> int | None:
    """Where the statement is over that begins at `start` and goes on until `end` at least; None where it never is."""
    place, at, decorated = _Place(), start, False
    while True:
        for line in lines[at:end]:
            if line.strip():
                decorated = line.startswith("@") or (decorated and line.startswith("#"))
            place.move(line)
        if not place.is_open and not decorated:
            return end
        if end >= len(lines) or end - start > MOST_LINES:
            return None
        at, end = end, _next_start(lines, end + 1)


def _next_start(lines: list[str], at: int) -> int:
    """The next line that is not indented, blank, a comment or a clause of the statement before it."""
    while at < len(lines) and (not lines[at].strip() or lines[at][0] in " \t#" or _CLAUSE.match(lines[at])):
        at += 1
    return at


class _Place:
    """A place in code between two lines: inside brackets, inside a string of several lines, after a backslash."""

    def __init__(self) -> None:
        self.depth, self.quotes, self.backslash = 0, "", False

    @property
    def is_open(self) -> bool:
        return self.depth > 0 or self.quotes != "" or self.backslash

    def move(self, line: str) -> None:
        """Go past `line`."""
        at, self.backslash = 0, line.endswith("\\")
        while True:
            if self.quotes:
                at = line.find(self.quotes, at) + 3
                if at < 3:
                    return
                self.quotes = ""
            token = _TOKEN.search(line, at)
            if token is None:
                return
            at = token.end()
            if token[0] in ("'''", '"""'):
                self.quotes = token[0]
            elif token[0] in "([{":
                self.depth += 1
            elif token[0] in ")]}":
                self.depth = max(0, self.depth - 1)


class StringsOver:
    """Whether the lines of code so far end inside a string over several lines."""

    def __init__(self) -> None:
        self._place = _Place()

    def after(self, line: str) -> bool:
        self._place.move(line)
        return self._place.quotes != ""
