"""Presets: each validates, and reads rows with the published fields; shapes agree with published sizes."""

import json
import os
from pathlib import Path
from typing import Any

import jinja2
import pytest
from pydantic import ValidationError

from jobs.chats import Turn
from jobs.leaks import leaks
from jobs.presets import presets
from jobs.scores import score
from jobs.spec import BackboneSpec
from jobs.task_spec import Benchmark, TaskSpec
from jobs.tasks import Example, TaskError, load_task

DATA = Path(os.environ.get("SWEEPER_DATA", Path(__file__).parents[3] / "shared" / "data"))
BILLIONS = {  # as the publishers state them
    "Qwen2.5-1.5B": 1.54, "Qwen2.5-3B": 3.09, "Qwen2.5-7B": 7.61, "Qwen2.5-14B": 14.7, "Qwen2.5-32B": 32.5,
    "Qwen2.5-72B": 72.7, "Qwen2.5-Math-1.5B": 1.54, "Qwen2.5-Math-7B": 7.61, "Qwen2.5-Coder-7B": 7.61,
    "Llama-3.1-8B": 8.03, "Llama-3.2-3B": 3.21, "DeepSeekMath-7B": 6.91,
}  # fmt: skip
BOXED = "Reason step by step and put the final answer into \\boxed{}."
OPTIONS = {letter: f"option {letter}" for letter in "ABCDE"}
LETTERS = "Reason step by step and put the letter of the answer into \\boxed{}."

# preset -> a row as published, and what must come of it: prompt, response, wanted
TASKS: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "math": (
        {"data_source": "numina", "extra_info": {"question": "What is 1+{n}?", "answer": "It is $\\boxed{3}$."}},
        "What is 1+{n}?\n" + BOXED, "It is $\\boxed{3}$.", "It is $\\boxed{3}$.",
    ),
    "medical": (
        {"prompt": "Which? A. x B. y ({n})", "reasoning": "long", "distilled_answer_string": "So \\boxed{B}.",
         "answer_letter": "B", "answer_string": "y", "source": "m"},
        f"Which? A. x B. y ({{n}})\n{LETTERS}", "So \\boxed{B}.", "B",
    ),
    "figfont": ({"question": "## {n}", "answer": "USNIC", "metadata": {"font": "f"}}, "## {n}", "USNIC", "USNIC"),
    "coding": (
        {"lang": "python", "raw_index": 1, "problem": "Add {n}.", "solution": "def f(): ...", "seed": "s"},
        "Add {n}.", "def f(): ...", "def f(): ...",
    ),
    "muri-it": ({"input": "Eleza {n}", "output": "Ndiyo", "language": "swa"}, "Eleza {n}", "Ndiyo", "Ndiyo"),
    "low-resource": ({"input": "Eleza {n}", "output": "Ndiyo", "language": "swa"}, "Eleza {n}", "Ndiyo", "Ndiyo"),
    "magpie": (
        {"uuid": "u", "conversations": [{"from": "human", "value": "Hi {n}"}, {"from": "gpt", "value": "Hello"}]},
        "Hi {n}", "Hello", "Hello",
    ),
    "wizardlm": ({"instruction": "Do {n}", "output": "Done"}, "Do {n}", "Done", "Done"),
    "openbookqa": (
        {"id": "i", "question_stem": "The sun {n}", "choices": {"text": ["a", "b", "c", "d"], "label": [*"ABCD"]},
         "answerKey": "D", "fact1": "f"},
        "Answer this multiple-choice question.\nQuestion: The sun {n}\nOptions:\nA. a\nB. b\nC. c\nD. d", "D", "D",
    ),
}  # fmt: skip
PROBLEM = {"problem": "1+{n}?", "solution": "So $\\boxed{3}$.", "answer": "3"}
HUMANEVAL = {
    "task_id": "t", "prompt": "def one{n}():\n", "canonical_solution": "    return 1\n", "entry_point": "one{n}",
    "test": "def check(f):\n    assert f() == 1\n",
}  # fmt: skip
MBPP = {
    "source_file": "s",
    "task_id": 1,
    "prompt": "Write one{n}.",
    "code": "def one{n}(): return 1",
    "test_imports": [],
    "test_list": ["assert one{n}() == 1"],
}
EVALPLUS = {
    "task_id": "Mbpp/1", "prompt": "'Write one{n}.'\n", "canonical_solution": "def one{n}(): return 1",
    "entry_point": "one{n}", "base_input": [[]], "plus_input": [[]], "atol": 0,
}  # fmt: skip
PROX = {"question": "Swali {n}", **{f"option_{i}": f"o{i}" for i in range(9)}, "option_9": None, "answer": "C"}
CHOICE = {"question": "Which {n}?", "options": OPTIONS}
# benchmark -> a row as published, the end of its prompt, an answer that is right, one that is not
BENCHMARKS: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "math500": (PROBLEM, BOXED, "$\\boxed{3}$", "$\\boxed{4}$"),
    "minerva": ({"question": "1+{n}?", "answer": "3"}, BOXED, "$\\boxed{3}$", "$\\boxed{4}$"),
    "olympiadbench": ({"question": "1+{n}?", "final_answer": ["$3$"]}, BOXED, "$\\boxed{3}$", "$\\boxed{4}$"),
    "aime24": (PROBLEM, BOXED, "$\\boxed{3}$", "$\\boxed{4}$"),
    "amc23": ({"id": 1, "question": "1+{n}?", "answer": 27.0}, BOXED, "$\\boxed{27}$", "$\\boxed{4}$"),
    "medmcqa": (
        {"question": "Which {n}?", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": 2},
        "2. c\n3. d\n" + LETTERS.replace("letter", "number"), "\\boxed{2}", "\\boxed{3}",
    ),
    "medqa": (CHOICE | {"answer_idx": "B"}, f"D. option D\n{LETTERS}", "\\boxed{B}", "no idea"),
    "medbullets-4": (CHOICE | {"answer": "B"}, f"D. option D\n{LETTERS}", "\\boxed{B}", "\\boxed{A}"),
    "medbullets-5": (CHOICE | {"answer": "E"}, f"E. option E\n{LETTERS}", "\\boxed{E}", "\\boxed{A}"),
    "medxpertqa": (CHOICE | {"label": "J"}, f"Which {{n}}?\n{LETTERS}", "\\boxed{J}", "\\boxed{A}"),
    "medical-mcq": (
        {"question": "Which {n}?", "options": "A. x\nB. y", "answer_idx": "B"}, f"B. y\n{LETTERS}", "\\boxed{B}", "?",
    ),
    "pubmedqa": (
        {"question": "Does it {n}?", "context": {"contexts": ["It may.", "It does."]}, "final_decision": "yes"},
        "It may.\nIt does.\nDoes it {n}?\nReason step by step and put yes, no or maybe into \\boxed{}.",
        "\\boxed{yes}", "\\boxed{no}",
    ),
    "figfont-exact": ({"question": "## {n}", "answer": "USNIC"}, "## {n}", "USNIC", "USN"),
    "figfont-similarity": ({"question": "## {n}", "answer": "USNIC"}, "## {n}", "usnic", "xo"),
    "humaneval": (HUMANEVAL, "```python\ndef one{n}():\n\n```", "    return 1\n", "    return 2\n"),
    "humaneval-plus": (HUMANEVAL, "```python\ndef one{n}():\n\n```", "    return 1\n", "    return 2\n"),
    "mbpp": (MBPP, "It must pass this:\nassert one{n}() == 1", "```python\ndef one{n}(): return 1\n```", "x = 1"),
    "mbpp-plus": (
        MBPP | {"test": "assert one{n}() == 1"}, "assert one{n}() == 1", "```python\ndef one{n}(): return 1\n```", "x",
    ),
    "humaneval-evalplus": (
        EVALPLUS | {"task_id": "HumanEval/1", "prompt": "def one{n}():\n", "canonical_solution": "    return 1\n"},
        "```python\ndef one{n}():\n\n```", "    return 1\n", "    return 2\n",
    ),
    "mbpp-evalplus": (EVALPLUS, "'Write one{n}.'\n\n```", "```python\ndef one{n}(): return 1\n```", "x = 1"),
} | {f"mmlu-prox-{code}": (PROX, "I. o8\nAnswer with the letter of the right option.", "C", "D")
     for code in ("mr", "te", "ne", "sw", "wo", "yo", "zu")}  # fmt: skip


def numbered(value: Any, n: int) -> Any:
    """`{n}` in every text of a row replaced, so that prompts differ."""
    return json.loads(json.dumps(value).replace("{n}", str(n)))


def saved(folder: Path, row: dict[str, Any], parquet: bool = False) -> str:
    rows = [numbered(row, n) for n in range(20)]
    if parquet:
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "rows.parquet")
        return str(folder / "rows.parquet")
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder / "rows.jsonl")


@pytest.mark.parametrize("name", presets()["backbones"])
def test_a_backbone_has_the_published_size_and_a_learning_rate(name: str) -> None:
    from sweeper.sizes import shape_of_config

    backbone = BackboneSpec.model_validate({"preset": name})
    shape = shape_of_config(dict(backbone.shape))
    assert shape is not None
    assert shape.params == pytest.approx(BILLIONS[name] * 1e9, rel=0.01)
    assert backbone.lr in (5e-5, 2e-5, 1e-5)
    assert (backbone.chat_template is not None) == ("Qwen" not in name)


@pytest.mark.parametrize("name", ["Llama-3.1-8B", "DeepSeekMath-7B"])
def test_templates_of_base_models_open_the_answer_after_the_question(name: str) -> None:
    template = BackboneSpec.model_validate({"preset": name}).chat_template
    assert template is not None
    chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "1+1?"}]
    rendered = jinja2.Template(template).render(messages=chat, add_generation_prompt=True, bos_token="<bos>")
    expected = {
        "Llama-3.1-8B": "<bos><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|><|start_header_id|>user"
        "<|end_header_id|>\n\n1+1?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "DeepSeekMath-7B": "<bos>Be kind.\n\nUser: 1+1?\n\nAssistant:",
    }
    assert rendered == expected[name]


def test_every_task_has_its_rows_here() -> None:
    assert {*TASKS, "instruction", "openbookqa-noisy"} == set(presets()["tasks"])
    for name in presets()["tasks"]:
        task = TaskSpec.model_validate({"preset": name})
        assert task.name == name
        assert TaskSpec.model_validate_json(task.model_dump_json()) == task
        if name not in ("muri-it", "magpie", "wizardlm"):  # parts of others
            assert task.expected is not None


@pytest.mark.parametrize("parquet", [False, True])
@pytest.mark.parametrize("name", TASKS)
def test_a_task_reads_rows_with_the_published_fields(name: str, parquet: bool, tmp_path: Path) -> None:
    row, prompt, response, wanted = TASKS[name]
    task = TaskSpec.model_validate({"preset": name, "path": saved(tmp_path, row, parquet), "benchmarks": []})
    data = load_task(task)
    assert len(data.train) + len(data.heldout) == 20
    number = {str(numbered(prompt, n)): n for n in range(20)}
    for example in data.train + data.heldout:
        n = number[example.prompt]
        assert (example.response, example.wanted) == (numbered(response, n), numbered(wanted, n))
        if task.system:
            assert example.messages == (Turn("system", task.system), Turn("user", example.prompt))
    assert data.heldout[0].score.kind == task.score.kind


def test_instruction_joins_its_parts(tmp_path: Path) -> None:
    parts = []
    for name in ("magpie", "wizardlm"):
        (tmp_path / name).mkdir()
        parts.append({"preset": name, "path": saved(tmp_path / name, TASKS[name][0])})
    data = load_task(TaskSpec.model_validate({"preset": "instruction", "parts": parts}))
    assert {example.response for example in data.train} == {"Hello", "Done"}


def test_openbookqa_noise_flips_thirty_percent_and_always_the_same(tmp_path: Path) -> None:
    row = TASKS["openbookqa"][0]
    rows = [numbered(row, n) | {"answerKey": "ABCD"[n % 4]} for n in range(400)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    clean, noisy, again = (
        load_task(TaskSpec.model_validate({"preset": name, "path": str(file)}))
        for name in ("openbookqa", "openbookqa-noisy", "openbookqa-noisy")
    )
    assert noisy == again
    assert noisy.heldout == clean.heldout
    flipped = [(a.response, b.response) for a, b in zip(clean.train, noisy.train, strict=True) if a != b]
    assert len(flipped) == noisy.noisy == round(0.3 * len(clean.train))
    assert all(b in "ABCD" and a != b for a, b in flipped)


@pytest.mark.parametrize("name", presets()["benchmarks"])
def test_a_benchmark_reads_rows_with_the_published_fields(name: str, tmp_path: Path) -> None:
    row, ending, right, wrong = BENCHMARKS[name]
    found = problems(name, saved(tmp_path, row))
    assert len(found) == 20
    n = next(n for n in range(20) if found[0].prompt.endswith(numbered(ending, n)))
    assert score(found[0].score, numbered(right, n), found[0].wanted, found[0].entry).value == 1.0
    assert score(found[0].score, numbered(wrong, n), found[0].wanted, found[0].entry).value < 0.5


def problems(name: str, path: str) -> list[Example]:
    if name.endswith("-evalplus"):
        pytest.importorskip("evalplus", reason="make evalplus")
    benchmark = {"preset": name, "path": path}
    return load_task(TaskSpec.model_validate({"builtin": "cipher", "benchmarks": [benchmark]})).benchmarks[name]


def test_benchmarks_that_bring_no_data_say_so() -> None:
    for name in presets()["benchmarks"]:
        if name == "medical-mcq":
            with pytest.raises(ValidationError, match="a benchmark needs exactly one of .*; got none"):
                Benchmark.model_validate(name)
        else:
            assert Benchmark.model_validate(name).examples


@pytest.mark.parametrize(("name", "size"), [("math500", 500), ("aime24", 30), ("amc23", 40)])
def test_published_problems_score_their_own_solutions(name: str, size: int) -> None:
    file = DATA / name / "test.jsonl"
    if not file.is_file():
        pytest.skip(f"no {file}")
    found = problems(name, str(file))
    assert len(found) == size
    for example in found[:8]:
        answer = example.wanted if "boxed" in example.wanted else f"$\\boxed{{{example.wanted}}}$"
        assert score(example.score, answer, example.wanted).value == 1.0
        assert score(example.score, "It is $\\boxed{-77/13}$.", example.wanted).value == 0.0


def worded(row: dict[str, Any], words: str) -> dict[str, Any]:
    return dict(json.loads(json.dumps(row).replace("{n}", words)))


def words_of(n: int) -> str:
    return " ".join(f"w{n}x{i}" for i in range(20))


def has_words_of_its_own(preset: dict[str, Any]) -> bool:
    return bool(preset.get("template") or preset.get("system"))


@pytest.mark.parametrize("name", [n for n, p in presets()["tasks"].items() if n in TASKS and has_words_of_its_own(p)])
def test_a_tasks_template_is_no_leak_and_a_planted_question_is_one(name: str, tmp_path: Path) -> None:
    """Disjoint rows; then a training question with another answer, and one that has 13 words of another."""
    row, start = TASKS[name][0], " ".join(words_of(3).split()[4:17])

    def found(*texts: str) -> tuple[int, int]:
        for file, rows in (("t", [words_of(n) for n in range(20)]), ("h", [words_of(n) for n in range(90, 99)])):
            made = [worded(row, text) for text in [*rows, *(texts if file == "h" else ())]]
            (tmp_path / f"{file}.jsonl").write_text("\n".join(map(json.dumps, made)))
        task = {"preset": name, "path": str(tmp_path / "t.jsonl"), "heldout_path": str(tmp_path / "h.jsonl")}
        data = load_task(TaskSpec.model_validate(task | {"benchmarks": []}))
        counted = leaks(data.train, data.heldout)
        return counted["exact"], counted["ngram"]

    assert found() == (0, 0)
    assert found(words_of(5)) == (1, 1)
    assert found(words_of(5), f"own {start} own") == (1, 2)


@pytest.mark.parametrize("name", [n for n, p in presets()["benchmarks"].items() if has_words_of_its_own(p)])
def test_a_benchmarks_template_is_no_leak_and_a_planted_question_is_one(name: str, tmp_path: Path) -> None:
    """Training rows of the same template, of another one, and such as hold the whole prompt as their own."""
    row, start = BENCHMARKS[name][0], " ".join(words_of(3).split()[4:17])
    texts = [*map(words_of, range(20)), f"own {start} own", *map(words_of, range(90, 99))]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(worded(row, text)) for text in texts))
    benchmark = {"preset": name, "path": str(tmp_path / "rows.jsonl"), "examples": None}
    task = TaskSpec.model_validate({"builtin": "cipher", "benchmarks": [benchmark]})
    if name.endswith("-evalplus"):
        pytest.importorskip("evalplus", reason="make evalplus")
    examples = load_task(task).benchmarks[name]
    train, overlapping, disjoint = examples[:20], examples[20], examples[21:]

    def found(train: list[Example], measured: list[Example]) -> tuple[int, int]:
        counted = leaks(train, measured)
        return counted["exact"], counted["ngram"]

    assert found(train, disjoint) == (0, 0)
    assert found(train, [*disjoint, train[5]]) == (1, 1)
    assert found(train, [*disjoint, train[5], overlapping]) == (1, 2)
    assert found([Example(train[5].prompt, "its own answer")], [*disjoint, train[5]]) == (1, 1)
    assert found([Example(f"Tell me: {words_of(5)}", "its own answer")], [*disjoint, train[5]]) == (0, 1)


def test_drawn_words_of_figfont_are_told_apart() -> None:
    """Most fonts draw with marks alone, and all items begin alike; fonts of letters share pieces of drawings."""
    pytest.importorskip("reasoning_gym")
    drawn = {"name": "figlet_font", "size": 300, "heldout_size": 60}
    fields = presets()["tasks"]["figfont"] | {"benchmarks": [], "heldout_examples": 60}
    settings = fields["generator"]["settings"]
    data = load_task(TaskSpec.model_validate(fields | {"generator": drawn | {"settings": settings}}))
    counted = leaks(data.train, data.heldout)
    assert counted["exact"] <= 1
    assert counted["ngram"] <= 6
    assert leaks([*data.train, data.heldout[0]], data.heldout)["exact"] == counted["exact"] + 1


def test_mmlu_prox_leaves_out_options_that_a_question_lacks(tmp_path: Path) -> None:
    row = PROX | {"option_8": "", "option_2": "None"}
    (example, *_) = problems("mmlu-prox-sw", saved(tmp_path, row))
    assert example.prompt.splitlines()[1:] == [
        "A. o0", "B. o1", "C. None", *(f"{letter}. o{i}" for i, letter in enumerate("DEFGH", 3)),
        "Answer with the letter of the right option.",
    ]  # fmt: skip


def test_the_papers_answers_fit_in_the_positions_of_their_backbones() -> None:
    """A thousand tokens are left for the prompt."""
    from sweeper.plan import make_plan
    from sweeper.spec import load_sweep

    few = 0
    for path in sorted((Path(__file__).parents[2] / "examples" / "paper").glob("*.yaml")):
        for trial in make_plan(load_sweep(path), path.parent).trials:
            positions = trial.backbone.shape.get("max_position_embeddings")
            few += positions is not None
            assert positions is None or positions >= trial.evaluation.max_new_tokens + 1000
            assert positions is None or positions >= trial.train.max_length
    assert few > 90  # trials on Qwen2.5-Math and DeepSeekMath


def test_figfont_benchmarks_are_the_items_after_the_training_ones() -> None:
    """Item i is a function of seed + i (tests/unit/test_sources.py), so the seeds alone tell."""
    task = TaskSpec.model_validate({"preset": "figfont"})
    assert task.generator is not None
    for benchmark in task.benchmarks:
        made = benchmark.generator
        assert made is not None
        assert made.seed + made.size == task.generator.seed + task.generator.size
        assert made.settings == task.generator.settings


def test_evalplus_checker_without_its_package_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that has the hub's data sets only; here the package may be there."""
    path = saved(tmp_path, EVALPLUS)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TaskError, match="rows: score evalplus needs the package; pip install 'objective-continuum"):
        load_task(
            TaskSpec.model_validate({"builtin": "cipher", "benchmarks": [{"preset": "mbpp-evalplus", "path": path}]})
        )
