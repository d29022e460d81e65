"""Where examples come from: files, the hub's loader, generators, templates, references, mixtures, benchmarks."""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from jobs.chats import Turn
from jobs.presets import with_preset
from jobs.sources import TaskError
from jobs.spec import BackboneSpec
from jobs.task_spec import TaskSpec
from jobs.tasks import load_task

ROWS = [
    {"question": f"What is {i}?", "options": ["x", f"o{i}"], "letter": "AB"[i % 2], "note": {"why": f"since {i}"}}
    for i in range(30)
]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_the_same_rows_from_every_format(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    flat = [{"prompt": f"p{i}", "response": f"r{i}"} for i in range(20)]
    jsonl(tmp_path / "d.jsonl", flat)
    (tmp_path / "d.json").write_text(json.dumps({f"id{i}": row for i, row in enumerate(flat)}))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(flat), tmp_path / "d.parquet")
    with (tmp_path / "d.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "response"])
        writer.writeheader()
        writer.writerows(flat)
    found = [load_task(TaskSpec(path=str(tmp_path / f"d.{kind}"))) for kind in ("jsonl", "json", "parquet", "csv")]
    assert all(data == found[0] for data in found)


def test_templates_references_and_a_system_turn(tmp_path: Path) -> None:
    task = TaskSpec.model_validate(
        {
            "path": jsonl(tmp_path / "d.jsonl", ROWS),
            "template": "{question}\nA. {options[0]}\nB. {options[1]}",
            "response_template": "{note[why]}\n\nAnswer: {letter}",
            "reference": "letter",
            "system": "Be brief.",
            "score": {"kind": "choice", "options": "A-B"},
        }
    )
    example = next(e for e in load_task(task).train if "What is 7?" in e.prompt)
    assert example.prompt == "What is 7?\nA. x\nB. o7"
    assert example.response == "since 7\n\nAnswer: B"
    assert example.wanted == "B"
    assert example.messages == (Turn("system", "Be brief."), Turn("user", example.prompt))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{nothing}", r"d.jsonl:1: the template asks for 'nothing'; this row has letter, note, options, question"),
        ("{options[9]}", r"the template asks for list index out of range"),
        ("{note.why}", r"write note\[why\] for what lies inside a field"),
        ("{question.__class__}", r"write question\[__class__\]"),
    ],
)
def test_a_template_that_does_not_fit_is_named(tmp_path: Path, template: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        load_task(TaskSpec(path=jsonl(tmp_path / "d.jsonl", ROWS), template=template, response="letter"))


def test_chats_as_the_hub_writes_them(tmp_path: Path) -> None:
    rows = [
        {"conversations": [{"from": "human", "value": f"q{i}"}, {"from": "gpt", "value": f"a{i}"}]} for i in range(20)
    ]
    data = load_task(TaskSpec(path=jsonl(tmp_path / "d.jsonl", rows), messages="conversations"))
    assert {(e.messages, e.response) for e in data.train} <= {((Turn("user", f"q{i}"),), f"a{i}") for i in range(20)}


def test_a_data_set_of_the_hub_goes_through_its_own_loader(tmp_path: Path) -> None:
    """A folder laid out as a data set repository is what the hub's loader reads, splits and all."""
    for split, rows in (("train", ROWS[:20]), ("test", ROWS[20:])):
        jsonl(tmp_path / f"{split}.jsonl", rows)
    fields = {"prompt": "question", "response": "letter"}
    data = load_task(TaskSpec.model_validate({"hub": str(tmp_path), "heldout_split": "test", "name": "h", **fields}))
    assert (len(data.train), len(data.heldout)) == (20, 10)
    with pytest.raises(TaskError, match=r"cannot get split 'dev' of data set .*name one that it has"):
        load_task(TaskSpec.model_validate({"hub": str(tmp_path), "split": "dev", **fields}))


def test_without_a_network_the_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(TaskError, match="data set no/where is not in the cache and HF_HUB_OFFLINE is set") as error:
        load_task(TaskSpec(hub="no/where"))
    assert "\n" not in str(error.value)


def test_a_generators_items_are_the_same_whatever_the_size_and_held_out_ones_come_after() -> None:
    pytest.importorskip("reasoning_gym")
    word = {"name": "figlet_font", "seed": 42, "settings": {"min_word_len": 2, "max_word_len": 5}}
    small, large = (
        load_task(TaskSpec.model_validate({"generator": word | {"size": n, "heldout_size": 10}})) for n in (10, 20)
    )
    assert {e.prompt for e in small.train} | {e.prompt for e in small.heldout} == {e.prompt for e in large.train}
    assert all(e.entry is None for e in large.train)
    assert all(e.entry is not None and e.entry["generator"] == "figlet_font" for e in large.heldout)
    with pytest.raises(TaskError, match="no generator 'figlet_fonts'; did you mean 'figlet_font'"):
        load_task(TaskSpec.model_validate({"generator": {"name": "figlet_fonts"}}))
    with pytest.raises(TaskError, match="its settings do not fit"):
        load_task(TaskSpec.model_validate({"generator": {"name": "figlet_font", "settings": {"colour": 1}}}))


def test_a_generators_items_are_rows_like_others() -> None:
    """A system turn and a template together, and fields by name."""
    pytest.importorskip("reasoning_gym")
    fields = {"generator": {"name": "chain_sum", "size": 8, "heldout_size": 4}, "system": "Be brief."}
    plain = load_task(TaskSpec.model_validate(fields))
    named = load_task(TaskSpec.model_validate(fields | {"prompt": "question", "response": "answer"}))
    assert named == plain
    asked = load_task(
        TaskSpec.model_validate(
            fields | {"template": "{question} Think.", "response_template": "It is {answer}.", "reference": "answer"}
        )
    )
    for bare, made in zip(plain.train + plain.heldout, asked.train + asked.heldout, strict=True):
        assert bare.messages == (Turn("system", "Be brief."), Turn("user", bare.prompt))
        assert made.messages == (Turn("system", "Be brief."), Turn("user", f"{bare.prompt} Think."))
        assert (made.response, made.wanted) == (f"It is {bare.response}.", bare.response)
    assert all(e.entry is not None and e.entry["generator"] == "chain_sum" for e in asked.heldout)
    with pytest.raises(TaskError, match=r"chain_sum\[0\]: no text in field 'solution'; this row has answer, metadata"):
        load_task(TaskSpec.model_validate(fields | {"response": "solution"}))


def test_a_generator_whose_items_have_no_answer_says_so() -> None:
    pytest.importorskip("reasoning_gym")
    with pytest.raises(TaskError, match=r"graph_color\[0\]: no text in field 'answer'"):
        load_task(TaskSpec.model_validate({"generator": {"name": "graph_color", "size": 2, "heldout_size": 2}}))


def test_a_mixture_has_the_sizes_of_its_parts_and_noise_of_its_own() -> None:
    parts = [{"builtin": "addition", "train_examples": 300}, {"builtin": "cipher", "train_examples": 100}]
    task = TaskSpec.model_validate({"parts": parts, "noise": 0.1, "heldout_examples": 50})
    data = load_task(task)
    assert Counter(e.prompt[0].isdigit() for e in data.train) == {True: 300, False: 100}
    assert data.noisy == 40
    assert len(data.heldout) == 50
    assert task.name == "addition+cipher-noise0.1"


def test_benchmarks_have_fields_and_scores_of_their_own(tmp_path: Path) -> None:
    problems = [{"problem": f"{i}+1", "answer": i + 1} for i in range(12)]
    task = TaskSpec.model_validate(
        {
            "builtin": "addition",
            "benchmarks": [
                {"name": "sums", "path": jsonl(tmp_path / "p.jsonl", problems), "prompt": "problem",
                 "reference": "answer", "score": {"kind": "math"}, "examples": 5},
                {"builtin": "cipher"},
            ],
        }
    )  # fmt: skip
    found = load_task(task).benchmarks
    assert {name: len(examples) for name, examples in found.items()} == {"sums": 5, "cipher": 100}
    assert all(e.score.kind == "math" and int(e.wanted) == int(e.prompt[:-2]) + 1 for e in found["sums"])
    assert TaskSpec.model_validate_json(task.model_dump_json()) == task
    plain = TaskSpec(builtin="addition")
    assert task.identity() != plain.identity()
    with pytest.raises(ValidationError, match="two are called the same"):
        TaskSpec.model_validate({"builtin": "addition", "benchmarks": [{"builtin": "cipher"}, {"builtin": "cipher"}]})


def test_what_stands_beside_a_preset_wins_and_a_source_of_ones_own_replaces_its() -> None:
    fields = {"preset": "Qwen2.5-1.5B", "lr": 1e-6}
    assert with_preset("backbones", fields)["lr"] == 1e-6
    mine = BackboneSpec.model_validate({"preset": "Qwen2.5-1.5B", "path": "/models/q"})
    assert (mine.hub, mine.path, mine.name) == (None, "/models/q", "Qwen2.5-1.5B")
    with pytest.raises(ValidationError, match="no backbone preset 'Qwen2.5-1.5'; did you mean 'Qwen2.5-1.5B'"):
        BackboneSpec.model_validate({"preset": "Qwen2.5-1.5"})


def test_keys_of_before_are_the_keys_of_now() -> None:
    """What came later is in a key only where it is used, so that finished trials are found again."""
    assert TaskSpec(builtin="addition", noise=0.3).identity() == {
        "builtin": "addition", "noise": 0.3, "train_examples": None, "heldout_examples": 256, "data_seed": 0,
    }  # fmt: skip
    assert TaskSpec(path="d.jsonl", answer_marker="####", fingerprint="f").identity() == {
        "builtin": None, "prompt": "prompt", "response": "response", "messages": None, "answer_marker": "####",
        "noise": 0.0, "train_examples": None, "heldout_examples": 256, "data_seed": 0, "files": "f",
    }  # fmt: skip
