"""Rows of local files: which files a path names, how each is decoded, and where a row stands.

A problem of one row is handed on in its place, so that a task may leave it out; a problem of the file is raised. Both
are TaskErrors of one line that name the file and the row.
"""

from __future__ import annotations

import codecs
import csv
import glob
import gzip
import io
import json
import os
import re
import sys
import zlib
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import IO, Any

from jobs.task_error import NotAtHand, TaskError
from jobs.task_spec import FILE_KINDS, kind_of_file

Row = dict[str, Any] | TaskError
Numbered = Generator[tuple[int, Any]]  # where a row stands in its file, and what stands there

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16: it begins alike
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_GZIP = b"\x1f\x8b"
_PACKED = ((b"\x28\xb5\x2f\xfd", "Zstandard"), (b"PK\x03\x04", "zip"), (b"\xfd7zXZ", "xz"), (b"BZh", "bzip2"))
_SPLIT = re.compile(r"(?:^|[-_.])(train|test|validation|valid|val|dev|eval)(?:[-_.]|$)", re.IGNORECASE)


def data_files(path: str) -> list[Path]:
    """The files that a path names: itself, or those of a folder or a pattern, by name. Raises TaskError."""
    place = Path(path)
    if place.is_file():
        return [place]
    if place.is_dir():
        found = [file for file in sorted(place.iterdir()) if file.is_file() and not file.name.startswith((".", "_"))]
        found = [file for file in found if kind_of_file(file.name)]
        splits = sorted({match[1].lower() for file in found if (match := _SPLIT.search(file.name))})
        if len(splits) > 1:
            raise TaskError(
                f"{place} holds files of several splits ({', '.join(splits)}); name one of them by a pattern, "
                f"e.g. {place}/{splits[-1]}*, and another as heldout_path"
            )
    elif glob.has_magic(path):
        found = [Path(file) for file in sorted(glob.glob(path, recursive=True)) if os.path.isfile(file)]
        found = [file for file in found if kind_of_file(file.name)]
    elif place.exists():
        raise TaskError(f"{place} is neither a file nor a folder")
    else:
        raise NotAtHand(f"no file {place}; relative paths start at --data-root")
    if not found:
        missing = NotAtHand if glob.has_magic(path) else TaskError
        raise missing(f"no data files in {path}; they end with {', '.join(FILE_KINDS)}, or .gz after it")
    kinds = sorted({str(kind_of_file(file.name)) for file in found})
    if len(kinds) > 1:
        raise TaskError(f"{path} holds files of several formats ({', '.join(kinds)}); name one, e.g. *{kinds[0]}")
    return found


def file_rows(path: str) -> Generator[tuple[str, Row]]:
    """Each row with where it stands, of all files that `path` names. Raises TaskError."""
    for file in data_files(path):
        try:
            with closing(_rows(file)) as rows:
                yield from rows
        except (OSError, EOFError, zlib.error) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise TaskError(f"{file}: cannot be read ({reason})") from None
        except UnicodeError as error:
            raise TaskError(f"{file}: is not the text that its byte-order mark announces ({error})") from None


def first_row(path: str) -> dict[str, Any]:
    """The first row that can be read; empty where none can."""
    try:
        return next((row for _, row in file_rows(path) if isinstance(row, dict)), {})
    except TaskError:
        return {}


def _rows(file: Path) -> Generator[tuple[str, Row]]:
    for number, row in _READERS[kind_of_file(file.name) or ".jsonl"](file):
        where = f"{file}:{number}"
        if isinstance(row, dict | TaskError):
            yield where, row
        else:
            hint = "; a file that holds one list ends with .json" if isinstance(row, list) and number == 1 else ""
            yield where, TaskError(f"{where}: one object of fields a row, got {type(row).__name__}{hint}")


def _opened(file: Path) -> IO[bytes]:
    """Its bytes, unpacked where they are gzip's, whatever the name says."""
    stream = file.open("rb")
    start = stream.read(6)
    stream.seek(0)
    if start.startswith(_GZIP):
        stream.close()
        return io.BufferedReader(gzip.open(file))
    for magic, name in _PACKED:
        if start.startswith(magic):
            stream.close()
            raise TaskError(f"{file}: is packed by {name}; unpack it, or pack it by gzip")
    return stream


def _lines(file: Path) -> Generator[tuple[int, str | TaskError]]:
    """Decoded lines, with their ends; UTF-8, or what a byte-order mark says."""
    with _opened(file) as stream:
        start: bytes = stream.peek(4)[:4]  # type: ignore[attr-defined]
        mark, encoding = next((m for m in _BYTE_ORDER_MARKS if start.startswith(m[0])), (b"", "utf-8"))
        stream.read(len(mark))
        if encoding != "utf-8":
            with io.TextIOWrapper(stream, encoding, newline="\n") as text:
                yield from enumerate(text, 1)
            return
        for number, line in enumerate(stream, 1):
            try:
                yield number, line.decode("utf-8")
            except UnicodeDecodeError as error:
                yield (
                    number,
                    TaskError(
                        f"{file}:{number}: byte 0x{line[error.start]:02x} (number {error.start + 1} of the row) is not "
                        "UTF-8; the file may be Latin-1 or Windows-1252: save it as UTF-8"
                    ),
                )


def _text_lines(file: Path) -> Generator[str]:
    """Lines of a file that is decoded whole or not at all."""
    with closing(_lines(file)) as lines:
        for _, line in lines:
            if isinstance(line, TaskError):
                raise line
            yield line


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, whose keys must differ: of two values neither is the right one."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key '{next(name for name in names if names.count(name) > 1)}' is written twice")
    return found


def _parsed(text: str, where: str, more: str = "") -> Any:
    """JSON, or a TaskError in its place."""
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        return TaskError(f"{where}: not JSON that can be read (it is nested too deeply)")
    except json.JSONDecodeError as error:
        if "\0" in text[:100]:
            more = "; it looks like UTF-16 without a byte-order mark: save it as UTF-8"
        return TaskError(f"{where}: not JSON ({error.msg}){more}")
    except ValueError as error:  # a key twice, a number of thousands of digits
        return TaskError(f"{where}: not JSON that can be read ({str(error).split(':')[0].split(';')[0]})")


def _json_lines(file: Path) -> Numbered:
    for number, line in _lines(file):
        if isinstance(line, TaskError):
            yield number, line
        elif line.strip():
            yield number, _parsed(line, f"{file}:{number}", "; one object a line")


def _json(file: Path) -> Numbered:
    """A list of rows, or a mapping from ids to rows; or lines, which many call .json, too."""
    text = "".join(_text_lines(file))
    first = text.lstrip().partition("\n")[0]
    try:
        whole = json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and isinstance(_parsed(first, ""), dict):
            yield from _json_lines(file)
            return
        raise TaskError(f"{file}:{error.lineno}: not JSON ({error.msg})") from None
    except (ValueError, RecursionError):
        raise _parsed(text, str(file)) from None
    if not isinstance(whole, list | dict):
        raise TaskError(f"{file}: a list of rows or a mapping from ids to rows, got {type(whole).__name__}")
    yield from enumerate(whole.values() if isinstance(whole, dict) else whole, 1)


def _parquet(file: Path) -> Numbered:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            number = 0
            for batch in table.iter_batches(batch_size=4096):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise TaskError(f"{file}: not a readable parquet file ({reason})") from None


def _table(file: Path, separator: str) -> Numbered:
    """Rows of a file with a header; quoted as spreadsheets and pandas do it."""
    csv.field_size_limit(sys.maxsize)  # 128 KiB otherwise
    with closing(_text_lines(file)) as lines:
        reader = csv.DictReader(lines, delimiter=separator, strict=True)
        try:
            _check_header(file, list(reader.fieldnames or []), separator)
            for row in reader:
                if None in row or None in row.values():
                    reason = "not as many values as the header has names"
                    yield reader.line_num, TaskError(f"{file}:{reader.line_num}: {reason}")
                else:
                    yield reader.line_num, row
        except csv.Error as error:
            line = reader.reader.line_num  # its own counts whole rows alone
            raise TaskError(
                f"{file}:{line}: its quotes do not match ({error}); a quote inside of quotes is written twice"
            ) from None


def _check_header(file: Path, header: list[str], separator: str) -> None:
    """Raises TaskError for names that stand twice, and for columns that another sign separates."""
    twice = [name for name in header if name and header.count(name) > 1]
    if twice:
        raise TaskError(f"{file}:1: the header names '{twice[0]}' twice")
    if len(header) == 1 and any(sign in header[0] for sign in ";\t,|"):
        sign = {",": "commas", "\t": "tabs"}[separator]
        raise TaskError(f"{file}:1: the header has one column, '{header[0][:60]}'; separate columns by {sign}")


_READERS: dict[str, Callable[[Path], Numbered]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": lambda file: _table(file, ","),
    ".tsv": lambda file: _table(file, "\t"),
    ".parquet": _parquet,
}
