"""The program in an answer: what an evaluator runs against a problem's tests.

An answer holds more than its program: prose, drafts, examples of use, their output, its own tests, half a function
where it was cut off. The program is the last definition of each name that the tests ask for, with all that it needs.
What is left out never decides a verdict: that is the tests' alone. docs/scores.md has the rules in words.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jobs.answers import next_questions
from jobs.fences import OTHER_LANGUAGES, Stretch, stretches
from jobs.sandbox import tests_of
from jobs.statements import Statement, TooDeepError, broken, parsed, scope_names, statements_in_prose, statements_of

_BUILTINS = frozenset(dir(builtins))
_TEST_RUNNERS = frozenset({"doctest", "pytest", "unittest"})
_ASKS_A_USER = frozenset({"input", "raw_input"})
_END_MARK = re.compile(r"^(?:\[DONE\]|\[/PYTHON\]|</?s>)$", re.MULTILINE)  # of prompts for base models


@dataclass(frozen=True)
class _Piece:
    """code: the whole of it, if it parses; else None, and its statements stood among prose"""

    statements: tuple[Statement, ...]
    code: str | None


def program_of(text: str, entry: Mapping[str, Any]) -> str | None:
    """The program in `text`, an answer to the problem `entry`; None where there is no code at all.

    entry: entry_point names what is asked for, else the names that its tests take from elsewhere; where its prompt
    begins the definition (HumanEval), an answer may go on from there
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\ufeff", "").lstrip("\n")
    asked = asked_names(entry)
    prompt = _prompt_of(entry, asked)
    parts = stretches(text)
    fenced = [part for part in parts if part.language is not None and part.language not in OTHER_LANGUAGES]
    bare = [part for part in parts if part.language is None]
    if not asked:
        return _all_of([_piece(part) for part in fenced] or [_piece(part) for part in bare])
    for program in _candidates(text, prompt, fenced, bare, asked):
        if program is not None:
            return program
    if fenced:
        return fenced[-1].text
    if prompt and text[:1].isspace() and text.strip():
        return prompt + text
    return text if any(map(_is_definition, (s for part in bare for s in _piece(part).statements))) else None


def _candidates(
    text: str, prompt: str, fenced: Sequence[Stretch], bare: Sequence[Stretch], asked: frozenset[str]
) -> Iterator[str | None]:
    """Where the program may stand, most likely first."""
    context = _piece_of(prompt, cut_off=True, is_bare=True) if prompt else None
    if prompt and text[:1].isspace():
        yield _completed(prompt, text, asked)
    if fenced:
        yield _assembled([_piece(part) for part in fenced], asked, context)
    yield _assembled(_bare_pieces(bare, asked), asked, context)
    typed = _without_console("\n".join(part.text for part in fenced or bare))
    yield _assembled([_piece_of(typed, cut_off=True, is_bare=True)], asked, context)
    if prompt:
        for body in [*(part.text for part in reversed(fenced)), text]:
            yield _completed(prompt, body, asked)
    yield _assembled(_inline(text, asked), asked, context)
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


def _piece(part: Stretch) -> _Piece:
    return _piece_of(part.text, cut_off=not part.closed, is_bare=part.language is None)


def _piece_of(text: str, cut_off: bool, is_bare: bool) -> _Piece:
    try:
        for code in dict.fromkeys((text, _dedented(text))):
            if (module := parsed(code)) is not None:
                return _Piece(tuple(statements_of(code, module)), code)
        return _Piece(tuple(statements_in_prose(code, cut_off, is_bare)), None)
    except TooDeepError:
        return _Piece((broken(text),), None)


def _bare_pieces(bare: Sequence[Stretch], asked: frozenset[str]) -> list[_Piece]:
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
    questions = [question.start() for question in next_questions(text) if not question["number"]]
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


def _inline(text: str, asked: frozenset[str]) -> list[_Piece]:
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
        program = _assembled([_piece_of(whole, cut_off=True, is_bare=True)], asked, None, stubs=False)
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
    yield prompt + body
    yield starts + body
    if _is_a_body(body):
        yield starts + "\n".join(indent + line if line.strip() else line for line in body.split("\n"))
    yield starts + indent + body.lstrip(" \t\n")


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


def _all_of(pieces: Sequence[_Piece]) -> str | None:
    """All code of an answer to tests that name nothing."""
    kept = [statement for piece in pieces for statement in piece.statements if not _has_no_effect(statement)]
    return _joined(kept) if kept else None


def _assembled(
    pieces: Sequence[_Piece], asked: frozenset[str], context: _Piece | None, stubs: bool = True
) -> str | None:
    """The last definitions of what is asked and all that they need; None where nothing of it is defined.

    context: the prompt's own code, from which imports and helpers are taken that no piece has
    stubs: whether a definition without a body (pass, ...) counts where there is no other
    """
    homes = {home for name in asked if (home := _home_of(name, pieces, stubs)) is not None}
    if not homes:
        return None
    elsewhere = {name for n, piece in enumerate(pieces) if n not in homes for s in piece.statements for name in s.binds
                 if _is_definition(s)}
    main = [kept for home in sorted(homes) for kept in _Home(pieces[home], asked, elsewhere).kept]
    if len(homes) == 1 and (code := pieces[min(homes)].code) is not None:
        whole = len(main) == len(pieces[min(homes)].statements)
    else:
        whole, code = False, ""
    others = [piece for number, piece in enumerate(pieces) if number not in homes]
    helpers = _helpers(main, [context, *others] if context else others, asked)
    return code if whole and not helpers else _joined([*helpers, *main])


def _home_of(name: str, pieces: Sequence[_Piece], stubs: bool) -> int | None:
    """The number of the last piece that defines `name`; a stub or an import only where there is nothing else."""
    found = [
        ((s.defines(name), not _is_stub(s, name) and (stubs or s.node is not None)), number)
        for number, piece in enumerate(pieces)
        for s in piece.statements
        if name in s.binds
    ]
    (_, has_body), number = max(found, default=((False, False), None))
    return number if has_body or stubs else None


def _is_stub(statement: Statement, name: str) -> bool:
    node = statement.node
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name != name:
        return False
    return all(_does_nothing(line) for line in node.body)


def _does_nothing(line: ast.stmt) -> bool:
    if isinstance(line, ast.Raise):
        return "NotImplemented" in ast.dump(line)
    return isinstance(line, ast.Pass) or (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))


class _Home:
    """The statements of a piece that defines what is asked, without those that only use it."""

    def __init__(self, piece: _Piece, asked: frozenset[str], elsewhere: set[str]) -> None:
        """elsewhere: what other pieces define"""
        self.piece, self.asked, self.elsewhere = piece, asked, elsewhere
        self.binders = _by_name(piece.statements, lambda statement: statement.binds)
        self.needed = self._needed()
        self.users = self._users()
        self.spoilt: set[str] = set()  # names that only statements bind that were left out

    @property
    def kept(self) -> list[Statement]:
        kept: list[Statement] = []
        for statement in self.piece.statements:
            if not self._is_left_out(statement):
                kept.append(statement)
                self.spoilt -= statement.binds
            else:
                self.spoilt |= statement.binds
        return kept

    def _needed(self) -> set[str]:
        """The names that the definitions need, with the definitions' own, and what fills in these names' values."""
        found, open_ = set(self.asked), list(self.asked)
        changers = _by_name(self.piece.statements, lambda s: s.reads - self.asked if _changes(s, self.asked) else ())
        while open_:
            name = open_.pop()
            for statement in (*self.binders.get(name, ()), *changers.get(name, ())):
                new = statement.reads - found
                found |= new
                open_ += new
        return found

    def _users(self) -> set[str]:
        """What is asked, and functions of the answer that call it and that it does not need: main, test_it."""
        readers = _by_name(self.piece.statements, lambda s: s.reads if _is_definition(s) else frozenset())
        found, open_ = set(self.asked), list(self.asked)
        while open_:
            for statement in readers.get(open_.pop(), ()):
                new = statement.binds - found - self.needed
                found |= new
                open_ += new
        return found

    def _is_left_out(self, statement: Statement) -> bool:
        if any(statement.defines(name) for name in self.asked):
            return False
        if isinstance(statement.node, ast.Import | ast.ImportFrom):
            return self._is_defined(statement.binds) or (self.piece.code is None and not self._is_of_use(statement))
        if statement.node is None or _is_definition(statement):
            return self.piece.code is None and not self._is_of_use(statement)
        if _has_no_effect(statement) or _asks_a_user(statement) or statement.reads & self.spoilt:
            return True
        if statement.binds & self.needed:
            return False
        if statement.reads & self.users:
            return True
        touches = statement.reads & (self.needed - self.asked - _BUILTINS)
        if self.piece.code is None:
            imports = all(isinstance(b.node, ast.Import) for name in statement.reads for b in self.binders.get(name, ()))
            return not touches and not (isinstance(statement.node, ast.Expr) and imports and self._is_bound(statement))
        return "print" in statement.reads and not touches

    def _is_defined(self, imported: frozenset[str]) -> bool:
        """Whether the answer itself defines what a statement imports, as from a file of that name."""
        own = {name for name in imported & self.asked for s in self.binders[name] if s.defines(name)}
        return bool(own) or imported <= self.elsewhere

    def _is_of_use(self, statement: Statement) -> bool:
        """Among prose only what is needed counts: 'Note: b' is no code."""
        if isinstance(statement.node, ast.ImportFrom) and statement.node.module == "__future__":
            return True
        used = self.needed | {name for s in self.piece.statements if isinstance(s.node, ast.Expr) for name in s.reads}
        return bool(statement.binds & used)

    def _is_bound(self, statement: Statement) -> bool:
        return bool(statement.reads) and all(name in self.binders or name in _BUILTINS for name in statement.reads)


def _helpers(main: Iterable[Statement], pieces: Sequence[_Piece], asked: frozenset[str]) -> list[Statement]:
    """The statements of other pieces that `main` needs, each name from the last piece that binds it.

    With a name come the statements that change what it stands for: 'memo = {}' brings 'memo[0] = 1'.
    """
    main = list(main)
    usable = [[s for s in piece.statements if _may_help(s, asked)] for piece in pieces]
    binders = [_by_name(statements, lambda s: s.binds) for statements in usable]
    bound = {name for statement in main for name in statement.binds} | asked
    open_ = sorted({name for statement in main for name in statement.reads} - bound)
    taken: dict[tuple[int, int], Statement] = {}
    while open_:
        name = open_.pop()
        home = next((n for n in reversed(range(len(pieces))) if name in binders[n]), None)
        if name in bound or home is None:
            continue
        if name in _BUILTINS and not all(_is_definition(s) for s in binders[home][name]):
            continue  # 'list = [1, 2]' in an example of use
        bound.add(name)
        for number, statement in enumerate(usable[home]):
            if name in statement.binds or (not statement.binds and name in statement.reads):
                if (home, number) not in taken:
                    taken[home, number] = statement
                    open_ += sorted(statement.reads - bound)
    return [taken[place] for place in sorted(taken)]


def _may_help(statement: Statement, asked: frozenset[str]) -> bool:
    if statement.binds & asked or _has_no_effect(statement) or _asks_a_user(statement):
        return False
    is_import = isinstance(statement.node, ast.Import | ast.ImportFrom)
    return is_import or _is_definition(statement) or not statement.reads & (asked | {"print"})


def _by_name(statements: Iterable[Statement], names: Any) -> dict[str, list[Statement]]:
    found = defaultdict(list)
    for statement in statements:
        for name in names(statement):
            found[name].append(statement)
    return dict(found)


def _changes(statement: Statement, asked: frozenset[str]) -> bool:
    """Whether it may change the value of a name that it reads: 'memo[0] = 1', 'table.sort()'."""
    if statement.binds or statement.node is None or statement.reads & (asked | {"print"}):
        return False
    return not (_is_definition(statement) or _has_no_effect(statement) or _asks_a_user(statement))


def _is_definition(statement: Statement) -> bool:
    return isinstance(statement.node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)


def _has_no_effect(statement: Statement) -> bool:
    """What shows or checks something and changes nothing: output, notes, asserts, what runs as a script only."""
    node = statement.node
    if isinstance(node, ast.Assert) or (isinstance(node, ast.AnnAssign) and node.value is None):
        return True
    if isinstance(node, ast.If) and "__name__" in statement.reads:
        return True
    acts = ast.Call | ast.Await | ast.NamedExpr | ast.Yield | ast.YieldFrom
    return isinstance(node, ast.Expr) and not any(isinstance(below, acts) for below in ast.walk(node))


def _asks_a_user(statement: Statement) -> bool:
    """Whether it waits for input, or runs tests of its own, when it is executed (not when it is called later)."""
    node = statement.node
    if node is None or isinstance(node, ast.Import | ast.ImportFrom) or _is_definition(statement):
        return False
    if statement.reads & _ASKS_A_USER:
        return True
    attributes = {below.attr for below in ast.walk(node) if isinstance(below, ast.Attribute)}
    return "stdin" in attributes or (isinstance(node, ast.Expr) and bool(statement.reads & _TEST_RUNNERS))


def _joined(statements: Iterable[Statement]) -> str:
    """A program of these statements; imports from __future__ have to come first."""
    first, rest = [], []
    for statement in statements:
        is_future = isinstance(statement.node, ast.ImportFrom) and statement.node.module == "__future__"
        (first if is_future else rest).append(statement.text)
    return "\n\n".join([*first, *rest]) + "\n"
