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
from dataclasses import dataclass

MOST_LINES = 40  # of a bracket or a string over several lines, where the code as a whole does not parse
MOST_DEPTH = 3  # of indented text below indented prose
MOST_TRIES = 30  # to find where a statement that was cut off still parses
_UNREADABLE = re.compile("[\0\ud800-\udfff]")
_TOKEN = re.compile(r"'''|\"\"\"|'(?:\\.|[^'\\\n])*'|\"(?:\\.|[^\"\\\n])*\"|#[^\n]*|[()\[\]{}]|\\\n?\Z")
_HEADER = re.compile(r"^(?:async[ \t]+)?(?:def[ \t]+(\w+)[ \t]*\(|class[ \t]+(\w+)[ \t]*[(:])", re.MULTILINE)
_CLAUSE = re.compile(r"(?:else|elif|except|finally)\b")
_STARTS_CODE = re.compile(
    r"@|(?:async|class|def|del|for|from|if|import|match|print|return|try|while|with)\b|[\w.]+ ?\(|[\w.,\[\] ]+[-+*/|&%^]?=(?!=)"
)


class TooDeepError(Exception):
    """Code that Python's parser gives up on: nested too deeply, or not text at all."""


@dataclass(frozen=True)
class Statement:
    """binds and reads: names of the module's scope; node: None where the statement does not parse."""

    text: str
    binds: frozenset[str]
    reads: frozenset[str]
    node: ast.stmt | None

    def defines(self, name: str) -> bool:
        """Whether it binds `name` to something of its own; an import brings what another module defines."""
        return name in self.binds and not isinstance(self.node, ast.Import | ast.ImportFrom)


def parsed(code: str) -> ast.Module | None:
    """None where the code is not Python. Raises TooDeepError."""
    if _UNREADABLE.search(code):
        raise TooDeepError
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
    shared = {line for (_, end), (line, _) in zip(spans, spans[1:], strict=False) if line <= end}
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
        if (line := _leading_prose(chunk)) is not None and depth < MOST_DEPTH:
            rest = textwrap.dedent(chunk[len(line) :])  # indented code below a line of prose
            found += statements_in_prose(rest, may_end_early and number == len(chunks) - 1, is_bare, depth + 1)
            continue
        module, is_cut = parsed(chunk), False
        if module is None:
            is_cut = may_end_early and number == len(chunks) - 1 and (inside_a_line or _is_unfinished(chunk))
            ends = _cuts(chunk, is_cut, is_bare)
            chunk, module = next(((cut, tree) for cut in ends if (tree := parsed(cut)) is not None), (chunk, None))
        if module is not None:
            found += statements_of(chunk, module)
        elif _HEADER.search(chunk) and not is_cut:
            found.append(broken(chunk))
    return found


def _is_unfinished(chunk: str) -> bool:
    """Whether more lines could make it right: what it lacks is its end."""
    try:
        ast.parse(chunk)
    except SyntaxError as error:
        return any(words in str(error) for words in ("never closed", "unterminated triple", "expected an indented block"))
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
    lines, chunks, start = text.split("\n"), [], 0
    while start < len(lines):
        end = _next_start(lines, start + 1)
        while end < len(lines) and end - start < MOST_LINES and _goes_on(lines, start, end):
            end = _next_start(lines, end + 1)
        if _is_open("\n".join(lines[start:end])):  # never closed: this line alone is no code
            end = _next_start(lines, start + 1)
        chunks.append("\n".join(lines[start:end]).rstrip())
        start = end
    return [chunk for chunk in chunks if chunk]


def _next_start(lines: list[str], at: int) -> int:
    """The next line that is not indented, blank, a comment or a clause of the statement before it."""
    while at < len(lines) and (not lines[at].strip() or lines[at][0] in " \t#" or _CLAUSE.match(lines[at])):
        at += 1
    return at


def _goes_on(lines: list[str], start: int, end: int) -> bool:
    """Whether the statement that begins at `start` is not over before line `end`."""
    if not _STARTS_CODE.match(lines[start]):
        return False
    chunk = [line for line in lines[start:end] if line.strip()]
    only_decorators = chunk[-1].startswith("@") and all(line[0] in "@#" for line in chunk)
    return only_decorators or _is_open("\n".join(lines[start:end]))


def string_after(line: str, quotes: str) -> str:
    """The triple quotes of the string that `line` ends in, '' where it ends in none; `quotes`: those it begins in."""
    at = 0
    while True:
        if quotes:
            at = line.find(quotes, at) + 3
            if at < 3:
                return quotes
            quotes = ""
        token = _TOKEN.search(line, at)
        if token is None:
            return ""
        at = token.end()
        quotes = token[0] if token[0] in ("'''", '"""') else ""


def _is_open(code: str) -> bool:
    """Whether `code` ends inside brackets or a string of several lines, or with a backslash."""
    depth, at = 0, 0
    while (token := _TOKEN.search(code, at)) is not None:
        at = token.end()
        if token[0] in ("'''", '"""'):
            at = code.find(token[0], at) + 3
            if at < 3:
                return True
        elif token[0] in "([{":
            depth += 1
        elif token[0] in ")]}":
            depth = max(0, depth - 1)
        elif token[0].startswith("\\"):
            return True
    return depth > 0
