"""Rows of local files: every encoding, packing and layout is read, or refused in one line with file and row."""

import codecs
import csv
import gzip
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.row_files import file_rows
from jobs.task_error import TaskError
from jobs.task_spec import TaskSpec
from jobs.tasks import TaskData, load_task
from sweeper.plan import resolved
from sweeper.spec import SpecError

ROWS = [{"prompt": f"Größe {i}?", "response": f"{i} m – 🙂"} for i in range(20)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
PACKED = gzip.compress(LINES.encode(), mtime=0)  # the same bytes in every process


def table(separator: str) -> str:
    rows = [["prompt", "response"], *([row["prompt"], row["response"]] for row in ROWS)]
    return "".join(separator.join(f'"{cell}"' for cell in row) + "\r\n" for row in rows)


def read(path: Path | str, **fields: Any) -> TaskData:
    return load_task(TaskSpec.model_validate({"path": str(path)} | fields))


def rows_of(path: Path) -> list[Any]:
    return [row for _, row in file_rows(str(path))]


def refused(path: Path | str, **fields: Any) -> str:
    with pytest.raises(TaskError) as caught:
        read(path, **fields)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"), (b"", "utf-8"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", [".jsonl", ".ndjson", ".json", ".csv", ".tsv"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_byte_order_mark_says_the_encoding_and_gzip_is_unpacked(
    tmp_path: Path, mark: bytes, encoding: str, kind: str, packed: bool
) -> None:
    text = {".json": json.dumps(ROWS, ensure_ascii=False, indent=1), ".csv": table(","), ".tsv": table("\t")}
    content = mark + text.get(kind, LINES).encode(encoding)
    file = tmp_path / f"d{kind}{'.gz' if packed else ''}"
    file.write_bytes(gzip.compress(content) if packed else content)
    assert rows_of(file) == ROWS


def test_gzip_is_known_by_its_first_bytes_whatever_the_name(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(gzip.compress(LINES.encode()))
    (tmp_path / "e.jsonl.gz").write_text(LINES)
    assert rows_of(tmp_path / "d.jsonl") == rows_of(tmp_path / "e.jsonl.gz") == ROWS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.jsonl", LINES.encode("latin-1", "replace"), "d.jsonl:1: byte 0xf6 (number 15 of the row) is not UTF-8"),
        ("d.csv", table(",").encode("latin-1", "replace"), "d.csv:2: byte 0xf6 (number 4 of the row) is not UTF-8"),
        ("d.json", json.dumps(ROWS, ensure_ascii=False).encode("cp1252", "replace"), "d.json:1: byte 0xf6"),
        ("d.jsonl", LINES.encode("utf-16-le"), "d.jsonl:1: byte 0xf6"),
        ("d.jsonl", '{"prompt": "q", "response": "a"}\n'.encode("utf-16-le"), "looks like UTF-16 without a byte-order"),
        ("d.jsonl", codecs.BOM_UTF16_LE + b"{\0}", "d.jsonl: is not the text that its byte-order mark announces"),
        ("d.jsonl", b"[" * 100_000, "d.jsonl:1: not JSON that can be read (it is nested too deeply)"),
        ("d.json", b'{"a":' * 100_000, "d.json: not JSON that can be read (it is nested too deeply)"),
        ("d.jsonl", b'{"prompt": ' + b"9" * 5000 + b"}", "d.jsonl:1: not JSON that can be read (Exceeds the limit"),
        ("d.jsonl", b'{"prompt": "a", "prompt": "b"}', "d.jsonl:1: not JSON that can be read (key 'prompt' is written"),
        ("d.jsonl", b'[{"prompt": "a"}]', "one object of fields a row, got list; a file that holds one list ends with"),
        ("d.jsonl", b'{"prompt":\n"a"}', "d.jsonl:1: not JSON (Expecting value); one object a line"),
        ("d.json", b'{"prompt": "a"', "d.json:1: not JSON (Expecting ',' delimiter)"),
        ("d.json", b'"text"', "d.json: a list of rows or a mapping from ids to rows, got str"),
        ("d.json", b'{"data": [{"prompt": "a"}]}', "d.json:1: one object of fields a row, got list"),
        ("d.jsonl.gz", PACKED[:-20], "d.jsonl.gz: cannot be read (Compressed file ended"),
        ("d.jsonl.gz", PACKED[:30] + b"\0" * 60, "d.jsonl.gz: cannot be read (Error -3"),
        ("d.jsonl", b"\x28\xb5\x2f\xfd1234", "d.jsonl: is packed by Zstandard; unpack it, or pack it by gzip"),
        ("d.csv", b"PK\x03\x04", "d.csv: is packed by zip"),
        ("d.csv", b"prompt,response\nq,a,b\n", "d.csv:2: not as many values as the header has names"),
        ("d.csv", b"prompt,response\nq\n", "d.csv:2: not as many values as the header has names"),
        ("d.csv", b"prompt,response,prompt\nq,a,b\n", "d.csv:1: the header names 'prompt' twice"),
        ("d.csv", b"prompt;response\nq;a\n", "one column, 'prompt;response'; separate columns by commas"),
        ("d.tsv", b"prompt,response\nq,a\n", "one column, 'prompt,response'; separate columns by tabs"),
        ("d.csv", b'prompt,response\nq,"a\nq,b\n', "d.csv:3: its quotes do not match (unexpected end of data)"),
        ("d.csv", b'prompt,response\nq,"a"b\n', "d.csv:2: its quotes do not match"),
        ("d.csv", b"q1,a1\nq2,a2\n", "d.csv:2: no text in field 'prompt'; this row has a1, q1"),
        ("d.csv", b"prompt,response\nq,\n", "d.csv:2: no text in field 'response': it is empty"),
        ("d.parquet", b"PAR1 nonsense", "d.parquet: not a readable parquet file"),
        ("d.jsonl", b"", "0 training and 0 held-out examples; both need some"),
        ("d.csv", b"", "0 training and 0 held-out examples; both need some"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_line_with_file_and_row(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert message in refused(tmp_path / name)


def test_giant_fields_blank_lines_and_an_index_column_are_read(tmp_path: Path) -> None:
    giant = "x" * 300_000
    with (tmp_path / "d.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["", "prompt", "response"], ["0", "q", giant], [], ["1", 'two\r\nlines "quoted"', "a"]]
        )
    assert [(row["prompt"], len(row["response"])) for row in rows_of(tmp_path / "d.csv")] == [
        ("q", 300_000), ('two\r\nlines "quoted"', 1),
    ]  # fmt: skip
    (tmp_path / "d.jsonl").write_text("\n" + LINES.replace("\n", "\r\n\n"), newline="")
    assert rows_of(tmp_path / "d.jsonl") == ROWS


def test_json_that_is_lines_is_read_as_lines(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(LINES)
    assert [where.rpartition(":")[2] for where, _ in file_rows(str(tmp_path / "d.json"))] == [
        str(i) for i in range(1, 21)
    ]
    assert rows_of(tmp_path / "d.json") == ROWS


def test_values_of_a_parquet_that_are_no_text(tmp_path: Path) -> None:
    import datetime

    import pyarrow.parquet

    for value, reason in (
        (b"a", "is binary, not text"), (None, "is null"), (datetime.datetime(2026, 1, 1), "is a datetime, not text"),
        ([1], "is a list"), (float("nan"), "is NaN"), (True, "is true, which has no spelling of its own"),
    ):  # fmt: skip
        rows = pyarrow.Table.from_pylist([{"prompt": "q", "response": value}] * 5)
        pyarrow.parquet.write_table(rows, tmp_path / "d.parquet")
        assert f"d.parquet:1: no text in field 'response': it {reason}" in refused(tmp_path / "d.parquet")


class TestShards:
    def shards(self, folder: Path, suffix: str = ".jsonl", count: int = 4) -> Path:
        folder.mkdir(exist_ok=True)
        for n in range(count):
            part = ROWS[n * 5 : n * 5 + 5]
            (folder / f"part-{n}{suffix}").write_text("".join(json.dumps(row) + "\n" for row in part))
        return folder

    def key(self, path: str, root: Path) -> Any:
        from tests.unit.test_settings import trial

        asked = trial().model_copy(update={"task": TaskSpec(path=path)})
        return resolved(asked, root).task.fingerprint

    def test_a_folder_and_a_pattern_are_all_their_files_in_order(self, tmp_path: Path) -> None:
        folder = self.shards(tmp_path / "data.v2")
        (folder / "README.md").write_text("about")
        (folder / ".part-9.jsonl").write_text("hidden")
        assert rows_of(folder) == ROWS
        assert [row for _, row in file_rows(str(folder / "part-[12].jsonl"))] == ROWS[5:15]
        assert [row for _, row in file_rows(str(tmp_path / "**" / "*.jsonl"))] == ROWS
        (folder / "part-2.jsonl").write_text('{"prompt": "q"}\n')
        assert "part-2.jsonl:1: no text in field 'response'" in refused(f"{folder}/")

    def test_contents_and_order_decide_the_key_and_names_do_not(self, tmp_path: Path) -> None:
        self.shards(tmp_path / "a")
        self.shards(tmp_path / "b")
        for n in range(4):
            (tmp_path / "b" / f"part-{n}.jsonl").rename(tmp_path / "b" / f"shard-{n}.jsonl")
        assert self.key("a/", tmp_path) == self.key("b/*.jsonl", tmp_path) == self.key("a/*", tmp_path)
        (tmp_path / "b" / "shard-0.jsonl").rename(tmp_path / "b" / "shard-9.jsonl")
        assert self.key("a/", tmp_path) != self.key("b/", tmp_path)

    def test_training_and_held_out_files_exchanged_are_another_task(self, tmp_path: Path) -> None:
        from tests.unit.test_settings import trial

        for name, rows in (("a", ROWS[:9]), ("b", ROWS[9:])):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        tasks = [TaskSpec(path=f"{one}.jsonl", heldout_path=f"{two}.jsonl") for one, two in ("ab", "ba")]
        found = [resolved(trial().model_copy(update={"task": task}), tmp_path).task.identity() for task in tasks]
        assert found[0] != found[1]

    @pytest.mark.parametrize(
        ("names", "path", "message"),
        [
            (["a.jsonl", "b.csv"], "", "holds files of several formats (.csv, .jsonl); name one, e.g. *.csv"),
            (["train-0.jsonl", "test-0.jsonl"], "", "holds files of several splits (test, train); name one of them"),
            (["a.txt"], "", "no data files in"),
            ([], "", "no data files in"),
            (["a.jsonl"], "*.csv", "no data files in"),
        ],
    )
    def test_what_is_no_set_of_shards(self, tmp_path: Path, names: list[str], path: str, message: str) -> None:
        (tmp_path / "d").mkdir()
        for name in names:
            (tmp_path / "d" / name).write_text(LINES)
        with pytest.raises((TaskError, SpecError)) as caught:
            self.key(f"d/{path}", tmp_path)
        assert message in str(caught.value)
        assert message in refused(f"{tmp_path}/d/{path}")

    def test_a_pipe_is_no_file(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "d.jsonl")
        assert "is neither a file nor a folder" in refused(tmp_path / "d.jsonl")

    def test_a_file_that_may_not_be_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "d.jsonl").write_text(LINES)

        def denied(*_: Any, **__: Any) -> None:
            raise PermissionError(13, "Permission denied", str(tmp_path / "d.jsonl"))

        monkeypatch.setattr(Path, "open", denied)
        assert "d.jsonl: cannot be read (Permission denied)" in refused(tmp_path / "d.jsonl")
        with pytest.raises(SpecError, match=r"d.jsonl cannot be read \(Permission denied\)"):
            self.key("d.jsonl", tmp_path)


TEXT = st.text(max_size=12) | st.sampled_from(["{", "\ud83d", "\0", "é", '"', "\r", "﻿"])
FIELDS = ("role", "content", "from", "value", "tool_calls", "function", "name", "arguments", "type", "text")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT | st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=12,
)
TURNS = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "system", "human", "nobody"]), "content": VALUES},
    optional=dict.fromkeys(("tool_calls", "function_call", "reasoning_content", "weight", "name"), VALUES),
)
NAMES = st.sampled_from(
    ["prompt", "response", "messages", "conversations", "instruction", "input", "output", "completion", "tools", "text"]
)


def survives(content: bytes, name: str, **fields: Any) -> None:
    """Read, or refused in one line: nothing else may come of any bytes."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, name)
        file.write_bytes(content)
        try:
            data = load_task(TaskSpec.model_validate({"path": str(file), "heldout_path": str(file)} | fields))
        except TaskError as error:
            said, texts = str(error), []
        else:
            said = ""
            texts = [text for example in data.train for text in (example.prompt, example.response, example.tools)]
            texts += [json.dumps(turn.message(), ensure_ascii=False) for e in data.train for turn in e.messages]
        assert "\n" not in said
        assert all(text.encode() is not None for text in texts)  # no half surrogate pair


READINGS = st.sampled_from(
    [
        {}, {"format": "alpaca"}, {"format": "openai"}, {"format": "sharegpt"}, {"format": "prompt-completion"},
        {"messages": "messages", "train_on": "all"}, {"template": "{prompt[0]} {input:letter}", "response": "output"},
        {"prompt": "{prompt:lines}", "response": "{response:no|yes}", "invalid": "drop"},
    ]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(st.dictionaries(NAMES, VALUES | st.lists(TURNS, max_size=4), max_size=4), max_size=3), READINGS)
def test_no_rows_are_a_traceback(rows: list[Any], fields: dict[str, Any]) -> None:
    survives("".join(json.dumps(row) + "\n" for row in rows).encode(), "d.jsonl", **fields)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60) | TEXT.map(lambda text: text.encode(errors="surrogatepass")), st.data())
def test_no_bytes_are_a_traceback(content: bytes, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["d.jsonl", "d.json", "d.csv", "d.tsv", "d.csv.gz", "d.parquet"]))
    start = data.draw(st.sampled_from([b"", b"prompt,response\n", b'{"prompt": "', b"\x1f\x8b", b"PAR1", b"\xff\xfe"]))
    survives(start + content, name)
