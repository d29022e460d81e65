"""A program put together from the pieces of code in an answer: what is asked for and what that needs.

Statements are told apart by the names that they bind and read (jobs/statements.py). Left out are examples of use, the
answer's own tests, its output, what reads input, and drafts: code that is not needed by the last definition.
"""

from __future__ import annotations

import ast
import builtins
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from jobs.statements import Statement

_BUILTINS = frozenset(dir(builtins))
_TEST_RUNNERS = frozenset({"doctest", "pytest", "unittest"})
_ASKS_A_USER = frozenset({"input", "raw_input"})


@dataclass(frozen=True)
class Piece:
    """code: the whole of it, if it parses; else None, and its statements stood among prose"""

    statements: tuple[Statement, ...]
    code: str | None


def all_of(pieces: Sequence[Piece]) -> str | None:
    """All code of an answer to tests that name nothing."""
    kept = [statement for piece in pieces for statement in piece.statements if not _has_no_effect(statement)]
    return _joined(kept) if kept else None


def assembled(pieces: Sequence[Piece], asked: frozenset[str], context: Piece | None, stubs: bool = True) -> str | None:
    """The last definitions of what is asked and all that they need; None where nothing of it is defined.

    A later piece may mend a helper; then its definition counts, as if the pieces were run one after the other.

    context: the prompt's own code, from which imports and helpers are taken that no piece has
    stubs: whether a definition without a body (pass, ...) counts where there is no other
    """
    homes = {home for name in asked if (home := _home_of(name, pieces, stubs)) is not None}
    if not homes:
        return None
    rest = [(number, piece) for number, piece in enumerate(pieces) if number not in homes]
    elsewhere = {name for _, piece in rest for s in piece.statements if is_definition(s) for name in s.binds}
    parts = [_Home(pieces[home], asked, elsewhere) for home in sorted(homes)]
    needed = {name for part in parts for name in part.needed} - asked
    mended = [
        statement
        for number, piece in rest
        for statement in piece.statements
        if number > max(homes) and is_definition(statement) and statement.binds & needed & _bound(parts)
    ]
    main = [statement for part in parts for statement in part.kept] + mended
    others = [piece for _, piece in rest]
    helpers = _helpers(main, [context, *others] if context else others, asked)
    only = parts[0].piece
    is_whole = len(parts) == 1 and len(main) == len(only.statements) and not mended and not helpers
    return only.code if is_whole and only.code is not None else _joined([*helpers, *main])


def _bound(parts: Iterable[_Home]) -> set[str]:
    return {name for part in parts for name in part.binders}


def _home_of(name: str, pieces: Sequence[Piece], stubs: bool) -> int | None:
    """The number of the last piece that defines `name`; a stub, an import or half a definition as a last resort."""
    found = [
        ((s.defines(name), not _is_stub(s, name) and (stubs or s.node is not None), not s.is_cut), number)
        for number, piece in enumerate(pieces)
        for s in piece.statements
        if name in s.binds
    ]
    (_, has_body, _), number = max(found, default=((False, False, False), None))
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

    def __init__(self, piece: Piece, asked: frozenset[str], elsewhere: set[str]) -> None:
        """elsewhere: what other pieces define"""
        self.piece, self.asked, self.elsewhere = piece, asked, elsewhere
        self.binders = _by_name(piece.statements, lambda statement: statement.binds)
        self.needed = self._needed()
        self.users = self._users()
        self.called = {name for s in piece.statements if isinstance(s.node, ast.Expr) for name in s.reads} - self.users
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
        """What is asked, and functions of the answer that call it, or wait for input, and that it does not need."""
        readers = _by_name(self.piece.statements, lambda s: s.reads if is_definition(s) else frozenset())
        reads_input = {name for s in self.piece.statements if is_definition(s) and _reads_stdin(s) for name in s.binds}
        users = set(self.asked) | (reads_input - self.needed)
        open_ = [*users, *_ASKS_A_USER]
        while open_:
            for statement in readers.get(open_.pop(), ()):
                new = statement.binds - users - self.needed
                users |= new
                open_ += new
        return users

    def _is_left_out(self, statement: Statement) -> bool:
        if any(statement.defines(name) for name in self.asked):
            return False
        among_prose = self.piece.code is None
        if _is_import(statement) and self._is_defined(statement.binds):
            return True
        if statement.node is None or _is_import(statement) or is_definition(statement):
            return among_prose and not self._is_of_use(statement)
        if _has_no_effect(statement) or _asks_a_user(statement) or statement.reads & self.spoilt:
            return True
        return self._is_usage(statement) or (among_prose and not self._sets_up(statement))

    def _is_usage(self, statement: Statement) -> bool:
        """Whether it calls what is asked, prints or reads a file, and does nothing that the definitions need."""
        if statement.binds & self.needed:
            return False
        touches = statement.reads & (self.needed - self.asked - _BUILTINS)
        shows = "print" in statement.reads or ("open" in statement.reads and bool(statement.binds))
        return bool(statement.reads & self.users) or (shows and not touches)

    def _sets_up(self, statement: Statement) -> bool:
        """Whether the definitions need it, or it is a call into an imported module: sys.setrecursionlimit(10000)."""
        if statement.binds & self.needed or statement.reads & (self.needed - self.asked - _BUILTINS):
            return True
        names = [name for name in statement.reads if name not in _BUILTINS]
        binders = [self.binders.get(name, []) for name in names]
        calls = isinstance(statement.node, ast.Expr) and bool(names)
        return calls and all(found and all(map(_is_import, found)) for found in binders)

    def _is_defined(self, imported: frozenset[str]) -> bool:
        """Whether the answer itself defines what a statement imports, as from a file of that name."""
        own = {name for name in imported & self.asked for s in self.binders[name] if s.defines(name)}
        return bool(own) or (bool(imported) and imported <= self.elsewhere)

    def _is_of_use(self, statement: Statement) -> bool:
        """Among prose only what is needed counts: 'Note: b' is no code."""
        if isinstance(statement.node, ast.ImportFrom) and (
            statement.node.module == "__future__" or not statement.binds
        ):
            return True
        return bool(statement.binds & (self.needed | self.called))


def _helpers(main: Iterable[Statement], pieces: Sequence[Piece], asked: frozenset[str]) -> list[Statement]:
    """The statements of other pieces that `main` needs, each name from the last piece that binds it.

    With a name come the statements that change what it stands for: 'memo = {}' brings 'memo[0] = 1'.
    """
    main = list(main)
    usable = [[s for s in piece.statements if _may_help(s, asked)] for piece in pieces]
    binders = [_by_name(statements, lambda s: s.binds) for statements in usable]
    changers = [_by_name(statements, lambda s: () if s.binds else s.reads) for statements in usable]
    done = {name for statement in main for name in statement.binds} | asked
    open_ = sorted({name for statement in main for name in statement.reads} - done)
    taken: set[int] = set()
    while open_:
        name = open_.pop()
        home = next((n for n in reversed(range(len(pieces))) if name in binders[n]), None)
        if name in done or home is None:
            continue
        done.add(name)
        if name in _BUILTINS and not all(map(is_definition, binders[home][name])):
            continue  # 'list = [1, 2]' in an example of use
        for statement in (*binders[home][name], *changers[home].get(name, ())):
            if id(statement) not in taken:
                taken.add(id(statement))
                open_ += sorted(statement.reads - done)
    return [s for statements in usable for s in statements if id(s) in taken or _brings_all(s)]


def _brings_all(statement: Statement) -> bool:
    """'from math import *', of Python's own modules: nobody can say which names are needed."""
    node = statement.node
    return isinstance(node, ast.ImportFrom) and not statement.binds and node.module in sys.stdlib_module_names


def _may_help(statement: Statement, asked: frozenset[str]) -> bool:
    if statement.binds & asked or _has_no_effect(statement) or _asks_a_user(statement):
        return False
    return _is_import(statement) or is_definition(statement) or not statement.reads & (asked | {"print"})


def _by_name(
    statements: Iterable[Statement], names: Callable[[Statement], Collection[str]]
) -> dict[str, list[Statement]]:
    found: dict[str, list[Statement]] = defaultdict(list)
    for statement in statements:
        for name in names(statement):
            found[name].append(statement)
    return dict(found)


def _changes(statement: Statement, asked: frozenset[str]) -> bool:
    """Whether it may change the value of a name that it reads: 'memo[0] = 1', 'table.sort()'."""
    if statement.binds or statement.node is None or statement.reads & (asked | {"print"}):
        return False
    return not (is_definition(statement) or _has_no_effect(statement) or _asks_a_user(statement))


def is_definition(statement: Statement) -> bool:
    return isinstance(statement.node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)


def _is_import(statement: Statement) -> bool:
    return isinstance(statement.node, ast.Import | ast.ImportFrom)


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
    if node is None or _is_import(statement) or is_definition(statement):
        return False
    if statement.reads & _ASKS_A_USER:
        return True
    return _reads_stdin(statement) or (isinstance(node, ast.Expr) and bool(statement.reads & _TEST_RUNNERS))


def _reads_stdin(statement: Statement) -> bool:
    below = ast.walk(statement.node) if statement.node is not None else ()
    return any(isinstance(node, ast.Attribute) and node.attr == "stdin" for node in below)


def _joined(statements: Iterable[Statement]) -> str:
    """A program of these statements; imports from __future__ have to come first."""
    first: list[str] = []
    rest: list[str] = []
    for statement in statements:
        is_future = isinstance(statement.node, ast.ImportFrom) and statement.node.module == "__future__"
        (first if is_future else rest).append(statement.text)
    return "\n\n".join([*first, *rest]) + "\n"
