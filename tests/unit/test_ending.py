"""What ends an answer, for the kinds of chat models there are: trained, generated to, and taken off data alike."""

import json
from pathlib import Path

import pytest

from jobs.answers import Reading
from jobs.backbone import BackboneError, check_backbone, load_ending, source_files
from jobs.chats import Turn
from jobs.corpus import corpus
from jobs.data import Encoder
from jobs.ending import ending_of
from jobs.ending_files import ending_in_files
from jobs.files import fingerprint
from jobs.hf import import_transformers
from jobs.sources import TaskError
from jobs.spec import BackboneSpec, EvalSpec, TrialSpec
from jobs.task_spec import TaskSpec
from jobs.tasks import Example
from sweeper.inputs import check_inputs, prepare
from sweeper.tracking import _end_tags
from tests.chat_models import CHAT_MODELS, CHATML, byte_level, metaspace

CHAT = Example("q3", "a4", (Turn("user", "q1"), Turn("assistant", "a2"), Turn("user", "q3")), train_on="all")


def encoder(name: str) -> Encoder:
    tokenizer = CHAT_MODELS[name].tokenizer()
    return Encoder(tokenizer, ending_of(tokenizer, CHAT_MODELS[name].declares(tokenizer)))


@pytest.mark.parametrize("name", CHAT_MODELS)
def test_a_turn_ends_as_the_template_ends_it(name: str) -> None:
    """The end is trained once, stops generation, and is no part of the answer that is read."""
    made = encoder(name)
    assert made.ending.text == CHAT_MODELS[name].ends
    (row,) = made.encode([Example("and now?", "the answer is four")])
    target = made.tokenizer.decode(row.ids[row.prompt_length :])
    assert target.endswith(made.ending.text)
    assert target.count(made.ending.text) == 1
    prompt = made.tokenizer.apply_chat_template(
        [{"role": "user", "content": "and now?"}], tokenize=False, add_generation_prompt=True
    )
    assert made.tokenizer.decode(row.ids[: row.prompt_length]) == prompt
    reading = Reading(made.tokenizer, made.ending.stops, made.ending.strings, frozenset(made.kept), tuple(made.after))
    answer = reading.answer([*row.ids[row.prompt_length :], *made.tokenizer("and more")["input_ids"]])
    assert reading.content(answer.text).strip() == "the answer is four"
    assert answer.ended
    assert not reading.answer(row.ids[row.prompt_length : -len(made.ending.trained)]).ended


@pytest.mark.parametrize("name", CHAT_MODELS)
def test_all_that_its_files_declare_stops_an_answer(name: str) -> None:
    made, model = encoder(name), CHAT_MODELS[name]
    assert {*model.declares(made.tokenizer), made.tokenizer.eos_token_id} <= set(made.ending.stops)


@pytest.mark.parametrize("name", sorted(CHAT_MODELS.keys() - {"qwen3"}))
def test_every_turn_of_the_assistant_is_trained_and_nothing_else(name: str) -> None:
    """Token by token: the trained ones read as the assistant's turns with what ends them."""
    made = encoder(name)
    (row,) = made.encode([CHAT])
    trained = [made.tokenizer.decode(row.ids[start:end]) for start, end in row.spans]
    between = {"gpt-oss": "<|end|>", "endless": ""}.get(name, made.ending.text)
    assert [text.replace("<|channel|>final<|message|>", "").strip() for text in trained] == [
        text.replace("\n### End", f"{chr(10)}### End") for text in (
            f"a2{' ' if name == 'llama2' else chr(10) if name == 'text' else ''}{between}",
            f"a4{' ' if name == 'llama2' else chr(10) if name == 'text' else ''}{made.ending.text}",
        )
    ]  # fmt: skip
    others = [i for i in range(len(row.ids)) if not any(start <= i < end for start, end in row.spans)]
    left = made.tokenizer.decode([row.ids[i] for i in others])
    assert "a2" not in left
    assert "a4" not in left
    (last,) = made.encode([Example(CHAT.prompt, CHAT.response, CHAT.messages)])
    assert (last.ids, last.prompt_length) == (row.ids, row.prompt_length)
    assert len(last.spans) == 1


def test_a_template_that_rewrites_earlier_turns_is_refused_for_all_of_them() -> None:
    with pytest.raises(TaskError, match="writes earlier assistant turns otherwise than the last one .* train_on: last"):
        encoder("qwen3").encode([CHAT])
    first = Example("q", "a", (Turn("assistant", "hello"), Turn("user", "q")), train_on="all")
    with pytest.raises(TaskError, match="the first turn is the assistant's, which answers nothing"):
        encoder("chatml").encode([first])


@pytest.mark.parametrize("name", ["chatml", "phi", "text", "endless"])
def test_responses_that_bring_their_end_along_have_it_once(name: str) -> None:
    made = encoder(name)
    (bare,) = made.encode([Example("q", "four")])
    assert not made.notes
    for end in (made.ending.text, f"{made.ending.text}\n", f" {made.tokenizer.eos_token}", made.ending.text * 2):
        made.notes.clear()
        example = Example("q", f"four{end}", reference=f"four{end}")
        assert made.encode([example])[0].ids == bare.ids, end
        (clean,) = made.cleaned([example])
        assert (clean.response, clean.wanted) == ("four", "four")
        assert sum(made.notes.values()) == 2  # said by both
    with pytest.raises(TaskError, match="its response is nothing but"):
        made.encode([Example("q", made.ending.text)])


def test_an_end_in_the_middle_of_a_response_is_told() -> None:
    made = encoder("chatml")
    made.encode([Example("q", "four<|im_end|>five")])
    (note,) = made.notes
    assert note.startswith("{} responses hold the end of an answer in their middle")


def test_a_setting_wins_over_the_files_and_names_a_token() -> None:
    tokenizer = CHAT_MODELS["chatml"].tokenizer()
    given = ending_of(tokenizer, (), ("<eos>", "<|im_end|>"))
    assert (given.text, len(given.stops), given.source) == ("<eos>", 2, "backbone.eos")
    for ending in (given, ending_of(tokenizer, (), ("<eos>",))):
        (row,) = Encoder(tokenizer, ending).encode([Example("q", "four")])
        assert tokenizer.decode(row.ids[row.prompt_length :]) == "four<eos>"
    with pytest.raises(
        TaskError, match=r"'<end>' is not a token of the tokenizer; its added tokens: <eos>, <\|im_start"
    ):
        ending_of(tokenizer, (), ("<end>",))


def saved(folder: Path, name: str, **config: object) -> BackboneSpec:
    model = CHAT_MODELS[name]
    tokenizer, hf = model.tokenizer(), import_transformers()
    tokenizer.save_pretrained(folder)
    declared = model.declares(tokenizer)
    hf.LlamaConfig(vocab_size=len(tokenizer), **config).save_pretrained(folder)
    hf.GenerationConfig(eos_token_id=declared).save_pretrained(folder)
    return BackboneSpec(path=str(folder))


def test_the_end_is_read_from_a_directory_and_wrong_settings_name_the_backbone(tmp_path: Path) -> None:
    backbone = saved(tmp_path, "gemma")
    found = load_ending(backbone, tmp_path)
    assert (found.text, found.source, len(found.stops)) == ("<end_of_turn>", "the chat template", 2)
    other = backbone.model_copy(update={"eos": ("<eos>",)})
    assert load_ending(other, tmp_path).text == "<eos>"
    assert other.identity() != backbone.identity()
    with pytest.raises(BackboneError, match=f"backbone '{backbone.name}': eos: '<nothing>' is not a token"):
        check_backbone(backbone.model_copy(update={"eos": ("<nothing>",)}), tmp_path)


def test_a_number_that_a_config_names_by_default_is_no_end(tmp_path: Path) -> None:
    """LlamaConfig says 2 where nobody says anything: in this vocabulary that is a sign of the alphabet."""
    tokenizer = byte_level()
    tokenizer.save_pretrained(tmp_path)
    import_transformers().LlamaConfig(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    assert load_ending(BackboneSpec(path=str(tmp_path)), tmp_path).stops == (tokenizer.eos_token_id,)


def test_special_tokens_that_are_answers_stay_and_others_go() -> None:
    tokenizer = byte_level("<yes>", "<no>", "<junk>")
    made = Encoder(tokenizer)
    rows = made.encode([Example("q", "<yes>"), Example("q", "a <no> b")])
    reading = Reading(tokenizer, made.ending.stops, (), frozenset(made.kept))
    junk = tokenizer.get_vocab()["<junk>"]
    texts = [reading.answer([junk, *row.ids[row.prompt_length :]]).text for row in rows]
    assert texts == ["<yes>", "a <no> b"]


@pytest.mark.parametrize("appends", [False, True])
@pytest.mark.parametrize("response", ["4", "    a b\n    c", " x", "\n\ndef", "é 7 ", "x , y ."])
def test_text_behind_a_prompt_comes_back_as_it_is(response: str, appends: bool) -> None:
    """With blanks at its beginning, by a tokenizer that adds and drops one there, and that may append EOS."""
    for tokenizer in (metaspace(appends_eos=appends), byte_level()):
        made = Encoder(tokenizer)
        (row,) = made.encode([Example("def x:", response)])
        prompt = row.ids[: row.prompt_length]
        assert tokenizer.eos_token_id not in prompt
        assert row.ids.count(tokenizer.eos_token_id) == 1
        assert tokenizer.bos_token_id is None or prompt[0] == tokenizer.bos_token_id
        assert Reading(tokenizer, made.ending.stops).answer(row.ids[row.prompt_length :]).text == response
        whole = tokenizer.decode(row.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert whole.removeprefix(" ") == f"def x:{response}"
        assert not made.notes


def test_a_prompt_that_begins_with_bos_has_it_once() -> None:
    tokenizer = metaspace()
    made = Encoder(tokenizer)
    one, other = made.encode([Example("a b", "4"), Example("<s>a b", "4")])
    assert one.ids.count(tokenizer.bos_token_id) == other.ids.count(tokenizer.bos_token_id) == 1
    assert next(iter(made.notes)).startswith("{} prompts begin with the token")


def test_what_a_tokenizer_cannot_write_is_told() -> None:
    from tokenizers import normalizers

    tokenizer = byte_level()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    made = Encoder(tokenizer)
    made.encode([Example("q", "Yes"), Example("q", "no")])
    assert list(made.notes.items()) == [
        ("{} responses come back otherwise from the tokenizer, so that no answer can equal them (the first: 'Yes')", 1)
    ]


def test_stop_texts_cut_an_answer_and_count_as_its_end() -> None:
    tokenizer = byte_level()
    reading = Reading(tokenizer, (int(tokenizer.eos_token_id),), ("\nQ:", "\n\n"))
    said = tokenizer(" four\nQ: and now?")["input_ids"]
    answer = reading.answer(said)
    assert (answer.text, answer.ended) == (" four", True)
    assert answer.tokens == len(tokenizer(" four")["input_ids"])
    assert reading.answer(tokenizer(" four")["input_ids"]).ended is False
    assert EvalSpec(stop="\nQ:").stop == ("\nQ:",)  # type: ignore[arg-type]
    assert "stop" not in EvalSpec().identity()
    assert EvalSpec(stop=("\nQ:",)).identity() == EvalSpec().identity() | {"stop": ["\nQ:"]}
    with pytest.raises(ValueError, match="got an empty one, which would end every answer at once"):
        EvalSpec(stop=("",))


def test_keys_of_built_in_backbones_are_as_they_were_and_others_are_new() -> None:
    own = BackboneSpec(builtin="char-llama", pretrain_steps=0)
    assert "answers" not in own.identity()
    assert own.model_copy(update={"chat_template": CHATML}).identity()["answers"] == 2
    assert BackboneSpec(path="m").identity()["answers"] == 2


@pytest.mark.parametrize("name", CHAT_MODELS)
@pytest.mark.parametrize("where", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_plan_says_the_same_from_the_small_files_alone(name: str, where: str, tmp_path: Path) -> None:
    backbone = saved(tmp_path, name)
    if where == "tokenizer_config.json":  # as older models have it
        template = tmp_path / "chat_template.jinja"
        file = tmp_path / where
        added = {str(i): {"content": str(t)} for i, t in CHAT_MODELS[name].tokenizer().added_tokens_decoder.items()}
        config = json.loads(file.read_text()) | {"chat_template": template.read_text(), "added_tokens_decoder": added}
        file.write_text(json.dumps(config))
        template.unlink()
    assert ending_in_files(tmp_path, None, ()) == load_ending(backbone, tmp_path).sentence()
    given = backbone.model_copy(update={"eos": ("<eos>",)})
    assert ending_in_files(tmp_path, None, given.eos) == load_ending(given, tmp_path).sentence()


def test_mlflow_has_a_warning_where_answers_hardly_end() -> None:
    result = {"corpus": {"answers": {"sentence": "an answer ends with <end>"}}}
    tags = _end_tags(result, [{"task/truncated_rate": 0.9}, {"step": 3}])
    assert tags["answers.end"] == "an answer ends with <end>"
    assert tags["answers.warning"].startswith("90% of its answers do not end by themselves")
    assert _end_tags(result, [{"task/truncated_rate": 0.4}]) == {"answers.end": "an answer ends with <end>"}
    assert _end_tags({}, []) == {}


def with_weights(folder: Path) -> None:
    """Of a tiny model with the embeddings that its tokenizer needs."""
    hf = import_transformers()
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8, "num_attention_heads": 1}
    rows = len(hf.AutoTokenizer.from_pretrained(folder))
    hf.AutoModelForCausalLM.from_config(hf.LlamaConfig(vocab_size=rows, **sizes)).save_pretrained(folder)


def test_a_changed_template_file_changes_the_key(tmp_path: Path) -> None:
    """transformers keeps the template in a file of its own."""
    saved(tmp_path, "gemma")
    with_weights(tmp_path)
    before = fingerprint(source_files(BackboneSpec(path=str(tmp_path))))
    template = tmp_path / "chat_template.jinja"
    template.write_text(template.read_text().replace("<end_of_turn>", "<eos>"))
    assert fingerprint(source_files(BackboneSpec(path=str(tmp_path)))) != before


def test_an_end_that_the_model_has_no_embedding_for_is_refused(tmp_path: Path) -> None:
    """As of a tokenizer with chat tokens that were added after the model was trained."""
    backbone = saved(tmp_path, "gemma")
    check_backbone(backbone, tmp_path)
    hf, tokenizer = import_transformers(), CHAT_MODELS["gemma"].tokenizer()
    end = tokenizer.get_vocab()["<end_of_turn>"]
    hf.LlamaConfig(vocab_size=end).save_pretrained(tmp_path)
    with pytest.raises(
        BackboneError, match=rf"<end_of_turn> \(the chat template\), which is token {end}, and .* has {end}"
    ):
        check_backbone(backbone, tmp_path)


def test_a_template_that_ends_prompts_like_answers_is_told() -> None:
    tokenizer = CHAT_MODELS["phi"].tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}{{ eos_token }}"
    made = Encoder(tokenizer)
    made.encode([Example("q", "a")])
    assert list(made.notes) == ["{} prompts end with the end of an answer, behind which a model has nothing to say"]


def test_a_run_says_what_it_found_in_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backbone = saved(tmp_path / "m", "chatml")
    with_weights(tmp_path / "m")
    (tmp_path / "d.jsonl").write_text(
        "".join(json.dumps({"prompt": f"q{i}", "response": f"a{i}<|im_end|>"}) + "\n" for i in range(20))
    )
    fields = {
        "backbone": {"path": backbone.path, "name": "m"}, "task": {"path": str(tmp_path / "d.jsonl")}, "seed": 0,
        "objective": None, "train": {"lr": 1e-3, "steps": 1}, "evaluation": {},
    }  # fmt: skip
    trial = TrialSpec.model_validate(fields)
    prepare([trial], tmp_path, check_inputs([trial], tmp_path))
    said = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line.startswith("note:")]
    assert said == ["note: d for m: 20 responses end with the end of an answer already, which is written once"]


def test_a_corpus_tells_how_its_answers_are_read(tmp_path: Path) -> None:
    """Labels that are special tokens, in training examples or only in a benchmark."""
    tokenizer = byte_level("<yes>", "<no>", "<maybe>", "<junk>")
    for name, labels in (("train", ("<yes>", "<no>")), ("asked", ("<maybe>",))):
        rows = [{"prompt": f"{name} {i}", "response": labels[i % len(labels)]} for i in range(20)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = TaskSpec.model_validate(
        {"path": str(tmp_path / "train.jsonl"), "benchmarks": [{"path": str(tmp_path / "asked.jsonl")}]}
    )
    made = corpus(tokenizer, task, tmp_path)
    reading = Reading.of(tokenizer, made.facts["answers"], ("\n",))
    ids = tokenizer.get_vocab()
    said = [ids["<junk>"], ids["<maybe>"], ids["<yes>"], *tokenizer("\n<no>")["input_ids"]]
    assert reading.answer(said).text == "<maybe><yes>"
    assert reading.strings == ("\n",)
