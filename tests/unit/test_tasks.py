"""Examples: deterministic, split without overlap, noise as asked, rows refused by place."""

import json
from pathlib import Path

import pytest

from jobs.chats import Turn
from jobs.scores import final_answer
from jobs.sources import TaskError
from jobs.task_spec import TaskSpec
from jobs.tasks import Example, builtin_split, load_task


@pytest.mark.parametrize("name", ["addition", "reversal", "cipher"])
def test_builtin_heldout_prompts_are_never_trained_on(name: str) -> None:
    train, heldout = builtin_split(name)
    assert not {e.prompt for e in train} & {e.prompt for e in heldout}
    assert all(len(e.response) == 3 for e in train + heldout)


def test_builtin_answers_are_right() -> None:
    answers = {e.prompt: e.response for name in ("addition", "reversal", "cipher") for e in builtin_split(name)[0]}
    answers |= {e.prompt: e.response for name in ("addition", "reversal", "cipher") for e in builtin_split(name)[1]}
    assert answers["38+45="] == "380"  # 083 reversed
    assert answers["99+99="] == "891"
    assert answers["r417="] == "714"
    assert answers["cabj="] == "dcg"  # a+3, b+1, j+7 around the ten letters


def test_noise_swaps_exactly_the_asked_share_and_only_in_training() -> None:
    clean = load_task(TaskSpec(builtin="addition"))
    noisy = load_task(TaskSpec(builtin="addition", noise=0.3))
    wrong = sum(a != b for a, b in zip(clean.train, noisy.train, strict=True))
    assert wrong == noisy.noisy == round(0.3 * len(clean.train))
    assert clean.heldout == noisy.heldout


def test_data_depend_on_data_seed_alone() -> None:
    assert load_task(TaskSpec(builtin="cipher")) == load_task(TaskSpec(builtin="cipher", name="other"))
    assert load_task(TaskSpec(builtin="cipher")) != load_task(TaskSpec(builtin="cipher", data_seed=1))


def write(path: Path, rows: list[object]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_jsonl_without_heldout_file_holds_out_prompts(tmp_path: Path) -> None:
    rows = [{"q": f"q{i // 2}", "a": str(i)} for i in range(40)]  # every prompt twice
    data = load_task(TaskSpec(path=write(tmp_path / "d.jsonl", rows), prompt="q", response="a"))
    assert not {e.prompt for e in data.train} & {e.prompt for e in data.heldout}
    assert len(data.train) + len(data.heldout) == 40


def test_chat_messages_keep_the_turns_before_the_response(tmp_path: Path) -> None:
    chat = [{"role": r, "content": c} for r, c in (("system", "s"), ("user", "u"), ("assistant", "a"))]
    path = write(tmp_path / "d.jsonl", [{"m": chat}])
    data = load_task(TaskSpec(path=path, heldout_path=path, messages="m"))
    assert data.train == [Example("u", "a", (Turn("system", "s"), Turn("user", "u")))]


def test_parquet_reads_like_jsonl(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"prompt": f"p{i}", "response": "r"} for i in range(30)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    write(tmp_path / "d.jsonl", rows)
    a, b = (load_task(TaskSpec(path=str(tmp_path / f"d.{kind}"))) for kind in ("parquet", "jsonl"))
    assert a == b


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "p"}', r"d.jsonl:1: no text in field 'response'; this row has prompt"),
        ('{"prompt": "p", "response": ""}', "no text in field 'response'"),
        ("{prompt", r"d.jsonl:1: not JSON .*; one object a line"),
        ("[1]", "one object of fields a row, got list"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "d.jsonl").write_text(line + "\n")
    with pytest.raises(TaskError, match=message):
        load_task(TaskSpec(path=str(tmp_path / "d.jsonl")))


def test_a_corrupt_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "d.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(TaskError, match="not a readable parquet file"):
        load_task(TaskSpec(path=str(tmp_path / "d.parquet")))


def test_one_row_cannot_be_split(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", [{"prompt": "p", "response": "r"}])
    with pytest.raises(TaskError, match="1 training and 0 held-out examples; both need some"):
        load_task(TaskSpec(path=path))


@pytest.mark.parametrize(
    ("text", "marker", "answer"),
    [
        ("so 1,200\n#### 1,200", "####", "1200"),
        ("#### 3 no #### 4", "####", "4"),
        ("no marker: 7", "####", ""),
        ("  a   b ", None, "a b"),
        ("Paris, France", None, "Paris, France"),
    ],
)
def test_final_answer(text: str, marker: str | None, answer: str) -> None:
    assert final_answer(text, marker) == answer
