"""A corpus: tokenised once, resumed after a kill, mapped and cut as each trial wants it; what leaks into evaluation."""

import json
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import jobs.corpus
from jobs.backbone import BackboneError, load_tokenizer
from jobs.chats import Turn
from jobs.corpus import Reader, corpus, corpus_dir, corpus_for, tokeniser_digest
from jobs.data import Encoder, tokenise
from jobs.files import fingerprint, locked
from jobs.hf import import_transformers
from jobs.leaks import leaks
from jobs.pretrain import char_tokenizer
from jobs.sources import TaskError
from jobs.spec import BackboneSpec, TrialSpec
from jobs.task_spec import TaskSpec
from jobs.tasks import Example, TaskData, load_task
from jobs.train import prepared_for
from sweeper.inputs import check_inputs, prepare

from .test_backbone import gguf

TASK = TaskSpec(builtin="addition", noise=0.3, train_examples=500, heldout_examples=40)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many examples each call of Encoder.encode has got."""
    real: Any = Encoder.encode
    calls: list[int] = []

    def encode(self: Encoder, examples: list[Example]) -> Any:
        calls.append(len(examples))
        return real(self, examples)

    monkeypatch.setattr(Encoder, "encode", encode)
    return calls


def test_a_corpus_holds_what_tokenising_gives(tmp_path: Path) -> None:
    tokenizer = char_tokenizer()
    made, data = corpus(tokenizer, TASK, tmp_path), load_task(TASK)
    for kind, examples in (("train", data.train), ("heldout", data.heldout)):
        rows, plain = made.rows(kind, 64), tokenise(tokenizer, examples)
        assert list(rows) == plain
        assert rows[3:5] == plain[3:5]
        assert rows[-1] == plain[-1]
    assert made.heldout() == data.heldout
    assert made.facts["noisy"] == 150
    assert made.facts["train"]["examples"] == 500


def weights(folder: Path, kind: str, **fields: Any) -> None:
    """A tiny model's, with its config.json."""
    hf = import_transformers()
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "vocab_size": len(char_tokenizer())}
    sizes |= {"intermediate_size": 8, "num_attention_heads": 1} if kind == "llama" else {"state_size": 2}
    hf.AutoModelForCausalLM.from_config(hf.AutoConfig.for_model(kind, **sizes, **fields)).save_pretrained(folder)


def test_it_is_made_once_and_found_again_whatever_a_trials_max_length(tmp_path: Path) -> None:
    first = corpus(char_tokenizer(), TASK, tmp_path)
    again = corpus(char_tokenizer(), TASK.model_copy(update={"name": "other"}), tmp_path)
    assert again == first
    assert first.facts["runs"] == 1
    cleaner = TASK.model_copy(update={"noise": 0.1})
    assert corpus_dir(tokeniser_digest(char_tokenizer()), cleaner, tmp_path) != first.folder
    other = char_tokenizer()
    other.chat_template = "{{ messages }}"
    assert corpus_dir(tokeniser_digest(other), TASK, tmp_path) != first.folder


def test_a_tokenizer_is_loaded_only_where_its_files_or_the_task_are_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []

    def load(backbone: BackboneSpec, root: Path) -> Any:
        loaded.append(backbone.name)
        return load_tokenizer(backbone, root)

    monkeypatch.setattr(jobs.corpus, "load_tokenizer", load)
    for name in ("one", "same", "other"):
        tokenizer = char_tokenizer()
        if name == "other":
            tokenizer.add_special_tokens({"additional_special_tokens": ["<more>"]})
        tokenizer.save_pretrained(tmp_path / name)
        (tmp_path / name / "model.safetensors").write_bytes(name.encode())

    def made(name: str, task: TaskSpec = TASK, **more: str) -> Path:
        return corpus_for(BackboneSpec(path=str(tmp_path / name), **more), task, tmp_path).folder

    first = made("one")
    assert first == corpus(char_tokenizer(), TASK, tmp_path).folder
    assert made("one") == made("same") == first
    assert loaded == ["one"]
    assert made("other") != first
    assert made("one", chat_template="{{ messages[0].content }}=") != first
    assert made("one", TASK.model_copy(update={"noise": 0.1})) != first
    assert loaded == ["one", "other", "one", "one"]


def test_a_killed_tokenisation_goes_on_after_its_last_whole_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs.corpus, "PART", 100)
    seen: list[int] = []

    def killed(done: int, total: int) -> None:
        seen.append(done)
        if done == 300:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        corpus(char_tokenizer(), TASK, tmp_path, killed)
    tokenised = counted(monkeypatch)
    made = corpus(char_tokenizer(), TASK, tmp_path)
    assert tokenised == [100, 100, 40]  # two parts of five, and the held-out examples
    assert made.facts["runs"] == 2
    assert list(made.rows("train", 64)) == tokenise(char_tokenizer(), load_task(TASK).train)
    left = {p.name for p in (tmp_path / "tokens").iterdir()}
    assert left == {made.folder.name, f".{made.folder.name}.lock"}


def test_of_several_that_want_it_at_once_one_makes_it(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: corpus(char_tokenizer(), TASK, tmp_path), range(4)))
    assert made == [made[0]] * 4
    assert made[0].facts["runs"] == 1


def test_a_process_that_keeps_the_lock_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.corpus, "WAIT_S", 0.3)
    folder = corpus_dir(tokeniser_digest(char_tokenizer()), TASK, tmp_path)
    holder = f"process {os.getpid()} on {socket.gethostname()}"
    with (
        locked(folder.with_name(f".{folder.name}.lock"), 0),
        pytest.raises(TimeoutError, match=rf"held for 0 s \({holder}\)"),
    ):
        corpus(char_tokenizer(), TASK, tmp_path)


def test_twelve_trials_tokenise_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver, then each trial as in a process of its own; what they say in their records is one corpus."""
    backbone = tmp_path / "model"
    char_tokenizer().save_pretrained(backbone)
    weights(backbone, "llama")
    fields = {
        "backbone": {"path": str(backbone), "fingerprint": "f"}, "task": TASK.model_dump(), "evaluation": {},
        "train": {"lr": 1e-3, "steps": 10},
    }  # fmt: skip
    trials = [
        TrialSpec.model_validate(fields | {"objective": {"name": name}, "seed": seed, "execution": execution})
        for name in ("nll", "one-minus-p", "adaptive", "asft")
        for seed, execution in enumerate(({}, {"workers": 2}, {"packing": True}))
    ]
    calls = counted(monkeypatch)
    prepare(trials, tmp_path)
    records = []
    for trial in trials:
        prepared_for.cache_clear()
        records.append(
            prepared_for(
                trial.backbone.bare(), trial.task, trial.train.max_length, trial.train.overlong, tmp_path
            ).facts
        )
    assert len({trial.key for trial in trials}) == 12
    assert calls == [500, 40]
    assert records == [records[0]] * 12
    assert records[0]["runs"] == 1


def test_a_task_is_read_once_and_not_again_by_a_run_that_finds_its_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tokenisers; then the same sweep again, and one more tokeniser, which needs the examples but no check."""
    real, read = jobs.corpus.load_task, []

    def counted(task: TaskSpec) -> TaskData:
        read.append(task.name)
        return real(task)

    monkeypatch.setattr(jobs.corpus, "load_task", counted)

    def trials(*names: str) -> list[TrialSpec]:
        for name in names:
            tokenizer = char_tokenizer()
            tokenizer.chat_template = "{{ messages[0].content }}" + "=" * len(name)
            tokenizer.save_pretrained(tmp_path / name)
            weights(tmp_path / name, "llama")
        fields = {"evaluation": {}, "train": {"lr": 1e-3, "steps": 10}, "seed": 0, "objective": {"name": "nll"}}
        return [
            TrialSpec.model_validate(fields | {"backbone": {"path": str(tmp_path / name)}, "task": TASK.model_dump()})
            for name in names
        ]

    def run(*names: str) -> list[str]:
        read.clear()
        prepare(trials(*names), tmp_path, check_inputs(trials(*names), tmp_path))
        return list(read)

    assert run("a", "bb") == ["addition-noise0.3"]
    assert run("a", "bb") == []
    assert run("a", "bb", "ccc") == ["addition-noise0.3"]
    other = [trial.model_copy(update={"task": TASK.model_copy(update={"data_seed": 1})}) for trial in trials("a")]
    read.clear()
    check_inputs(other, tmp_path)
    assert len(read) == 1  # other examples: the mark of the first does not stand for them


def test_a_task_that_cannot_be_used_is_told_every_time(tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text('{"prompt": "p"}\n')
    for _ in range(2):
        with pytest.raises(TaskError, match="no text in field 'response'"):
            Reader(tmp_path).check(TaskSpec(path=str(file), fingerprint="f"))


def test_longer_examples_are_cut_dropped_or_refused_and_counted(tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    examples = [("12+34=", "640"), ("r1=", "1")] * 20
    rows = [{"prompt": f"{p}", "response": r * (1 + i % 2)} for i, (p, r) in enumerate(examples)]
    file.write_text("\n".join(map(json.dumps, rows)))
    task = TaskSpec(path=str(file), heldout_path=str(file))
    made = corpus(char_tokenizer(), task, tmp_path)
    with pytest.warns(UserWarning, match="20 of 40 examples are cut to 8 tokens"):
        cut = made.rows("train", 8)
    assert (len(cut), cut.cut, cut.dropped) == (40, 20, 0)
    assert max(len(row.ids) for row in cut) == 8
    dropped = made.rows("train", 8, "drop")
    assert (len(dropped), dropped.cut, dropped.dropped) == (20, 0, 20)
    assert all(row.ids[-1] == char_tokenizer().eos_token_id for row in dropped)
    with pytest.raises(TaskError, match="20 of 40 train examples have more than train.max_length 8 .* longest has 10"):
        made.rows("train", 8, "refuse")
    with pytest.raises(TaskError, match="its prompt alone has 6 tokens, train.max_length is 6"):
        made.rows("train", 6)
    with pytest.raises(TaskError, match="every train example has more than train.max_length 2"):
        made.rows("train", 2, "drop")


def test_dropping_leaves_heldout_examples_out_too_and_asks_their_prompts_whole(tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text("".join(json.dumps({"prompt": p, "response": "1"}) + "\n" for p in ("12+34=", "r1=", "r2=")))
    made = corpus(char_tokenizer(), TaskSpec(path=str(file), heldout_path=str(file)), tmp_path)
    assert (len(made.heldout_rows(6, "drop")), made.heldout_rows(6, "drop").dropped) == (2, 1)
    with pytest.warns(UserWarning, match="1 of 3 examples are cut to 7 tokens"):
        assert made.heldout_rows(7, "refuse").cut == 1
    prompts, examples = made.heldout_problems()
    assert [char_tokenizer().decode(ids) for ids in prompts] == [e.prompt for e in examples] == ["12+34=", "r1=", "r2="]


def asking(tmp_path: Path, positions: int | None, **evaluation: int) -> list[TrialSpec]:
    """A trial with a benchmark of 7 tokens on a backbone of so many positions, which a word costs a token each."""
    folder = tmp_path / f"model-{positions}"
    char_tokenizer().save_pretrained(folder)
    if positions is None:
        weights(folder, "mamba")
    else:
        weights(folder, "llama", max_position_embeddings=positions)
    (tmp_path / "b.jsonl").write_text('{"prompt": "1+2=", "response": "3"}\n{"prompt": "12+345=", "response": "357"}\n')
    fields = {"train": {"lr": 1e-3, "steps": 10, "max_length": 16}, "seed": 0, "objective": {"name": "nll"}}
    task = TASK.model_dump() | {"benchmarks": [{"name": "sums", "path": str(tmp_path / "b.jsonl")}]}
    backbone = {"path": str(folder), "name": "few", "fingerprint": str(positions)}
    return [TrialSpec.model_validate(fields | {"backbone": backbone, "task": task, "evaluation": evaluation})]


def test_a_prompt_and_its_answer_fit_in_the_backbones_positions(tmp_path: Path) -> None:
    for positions in (32, None):  # no limit: a model without attention
        prepare(asking(tmp_path, positions, max_new_tokens=25), tmp_path)
    with pytest.raises(TaskError) as error:
        prepare(asking(tmp_path, 32, max_new_tokens=26), tmp_path)
    assert str(error.value) == (
        "task 'addition-noise0.3', benchmark 'sums': the longest prompt has 7 tokens, with evaluation.max_new_tokens "
        "26 that is more than the 32 positions of backbone 'few'; lower max_new_tokens to 25, or leave its longest "
        "problems out"
    )
    (trial,) = asking(tmp_path, 32, max_new_tokens=27)
    plain = trial.model_copy(update={"task": TASK})  # asks its held-out examples, of 6 tokens
    with pytest.raises(TaskError, match="held-out examples: the longest prompt has 6 tokens, .* to 26, or"):
        prepare([plain], tmp_path)


def test_a_gguf_is_checked_again_once_it_is_unpacked(tmp_path: Path) -> None:
    (trial,) = asking(tmp_path, 32, max_new_tokens=4)
    packed = gguf(tmp_path / "m.gguf", eos_token_id=2)  # 64 positions, by its header
    backbone = packed.model_copy(update={"fingerprint": "f", "name": "packed"})
    longer = trial.train.model_copy(update={"max_length": 33})
    trial = trial.model_copy(update={"backbone": backbone, "train": longer, "task": TASK})
    check_inputs([trial], tmp_path)
    (tmp_path / "backbones").mkdir()
    (tmp_path / "model-32").rename(tmp_path / "backbones" / "gguf-f")
    for checked in (prepare, check_inputs):
        with pytest.raises(BackboneError, match=r"'packed': train.max_length 33 is more than its 32 positions"):
            checked([trial], tmp_path)


def test_a_changed_byte_of_a_benchmark_changes_its_hash_whatever_the_tokeniser(tmp_path: Path) -> None:
    file, other = tmp_path / "b.jsonl", char_tokenizer()
    other.chat_template = "{{ messages[0].content }}="
    hashes = []
    for answer in ("3", "3", "4"):
        file.write_text(f'{{"prompt": "1+2=", "response": "{answer}"}}\n')
        benchmark = {"name": "sums", "path": str(file), "fingerprint": answer}
        task = TaskSpec.model_validate(TASK.model_dump() | {"benchmarks": [benchmark]})
        facts = corpus(other if hashes else char_tokenizer(), task, tmp_path).facts["problems"]
        assert {name: one["examples"] for name, one in facts.items()} == {"sums": 1}
        hashes.append(facts["sums"]["sha256"])
    assert hashes[0] == hashes[1] != hashes[2]
    assert set(corpus(other, TASK, tmp_path).facts["problems"]) == {"heldout"}


def test_a_corpus_of_an_earlier_version_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(jobs.corpus, "VERSION", 1)
        old = corpus(char_tokenizer(), TASK, tmp_path)
    (old.folder / "facts.json").write_text('{"leaks": {"exact": 40, "ngram": 40}}')
    assert corpus(char_tokenizer(), TASK, tmp_path).facts["leaks"]["ngram"] == 0


@pytest.mark.parametrize("kind", ["train", "heldout"])
def test_a_changed_character_is_another_corpus_with_another_hash(kind: str, tmp_path: Path) -> None:
    """Of training or held-out examples: the hash of the kind that changed is another, the other one's stays."""
    files = {name: tmp_path / f"{name}.jsonl" for name in ("train", "heldout")}
    for file in files.values():
        file.write_text("".join(json.dumps({"prompt": f"1{n}+20=", "response": f"3{n}0"}) + "\n" for n in range(8)))

    def made() -> tuple[Path, dict[str, str]]:
        task = TaskSpec(path=str(files["train"]), heldout_path=str(files["heldout"]))
        hashed = task.model_copy(update={"fingerprint": fingerprint([files["train"], files["heldout"]])})
        found = corpus(char_tokenizer(), hashed, tmp_path)
        return found.folder, {name: found.facts[name]["sha256"] for name in files}

    (before, old), (again, same) = made(), made()
    assert (before, old) == (again, same)
    files[kind].write_text(files[kind].read_text().replace("370", "371"))
    after, new = made()
    assert after != before
    assert {name for name in files if new[name] != old[name]} == {kind}


WORDS = [f"w{i}" for i in range(40)]


def text(start: int, count: int) -> str:
    return " ".join(WORDS[start : start + count])


def test_planted_leaks_are_found_and_nothing_else() -> None:
    train = [
        Example("What is up?", "a"), Example(text(0, 20), "b"), Example("unrelated words here", "c"),
    ]  # fmt: skip
    measured = [
        Example("what is  UP", "other answer"),  # the same prompt, other case and spacing: exact but for the mark
        Example("What is up?", "x"),
        Example("before " + text(5, 13) + " after", "y"),
        Example("before " + text(5, 12) + " after", "z"),
        Example("something of its own", "c"),
    ]
    found = leaks(train, measured)
    assert (found["measured"], found["exact"], found["ngram"]) == (5, 1, 2)
    assert found["pairs"] == [[0, 1], [1, 2]]
    assert leaks([], measured)["ngram"] == 0


def test_a_response_and_earlier_turns_of_a_chat_leak_too() -> None:
    """Of training the response is what leaks, also where answers are scored by a reference of their own."""
    solved = Example("some question", text(0, 20), reference="B")
    turns = (Turn("user", text(20, 15)), Turn("assistant", "yes"), Turn("user", "and now?"))
    chat = Example("and now?", "x", messages=turns)
    measured = [
        Example("other question", text(3, 14), reference="C"), Example(text(20, 15), "y"), Example("and then?", "B"),
    ]  # fmt: skip
    found = leaks([solved, chat], measured)
    assert (found["exact"], found["ngram"], found["pairs"]) == (0, 2, [[0, 0], [1, 1]])


def test_of_a_chat_all_turns_are_the_question_but_the_systems() -> None:
    same = Turn("system", text(0, 20))

    def chat(*said: str) -> Example:
        turns = tuple(Turn(role, word) for role, word in zip(("user", "assistant", "user"), said, strict=False))
        return Example(said[-1], "r" + said[0], messages=(same, *turns))

    train = [chat("What is it?", "A tree.", "Why?"), chat("Who?")]
    measured = [chat("Where is it?", "Here.", "Why?"), chat("who?"), chat("When?"), Example("Who?", "x")]
    assert (leaks(train, measured)["exact"], leaks(train, measured)["ngram"]) == (2, 2)
    assert leaks(train, measured)["pairs"] == [[1, 1], [1, 3]]


@given(st.lists(st.sampled_from(WORDS), min_size=13, max_size=30), st.integers(0, 17))
def test_any_run_of_thirteen_words_is_found(words: list[str], start: int) -> None:
    start = min(start, len(words) - 13)
    piece = " ".join(words[start : start + 13]).upper()
    assert leaks([Example(" ".join(words), "r")], [Example(f"x, {piece}!", "q")])["ngram"] == 1
