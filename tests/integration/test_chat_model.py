"""A chat model whose turns end with another token than its tokenizer's EOS, scored as its own `generate` has it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.data import IGNORED, Encoder, collate, example_order
from jobs.ending import ending_of
from jobs.hf import import_transformers
from jobs.pretrain import char_tokenizer
from jobs.task_spec import TaskSpec
from jobs.tasks import builtin_split, load_task
from sweeper.store import Store

from .conftest import sweeper, write_spec

ASKED, LONGEST = 100, 8
TEMPLATE = (
    "{% for m in messages %}{{ '<model>' if m.role == 'assistant' else '<user>' }}{{ m.content }}<end_of_turn>"
    "{% endfor %}{% if add_generation_prompt %}<model>{% endif %}"
)


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained until it reverses about 8 of 10 held-out numbers; its generation config names both ends, as Gemma's."""
    folder, hf = tmp_path_factory.mktemp("chat") / "turns", import_transformers()
    tokenizer = char_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<user>", "<model>", "<end_of_turn>"]})
    tokenizer.chat_template = TEMPLATE
    ends = [int(tokenizer.eos_token_id), int(tokenizer.convert_tokens_to_ids("<end_of_turn>"))]
    torch.manual_seed(0)
    model = hf.LlamaForCausalLM(
        hf.LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=256, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=64, pad_token_id=0, bos_token_id=None, eos_token_id=ends[0],
        )
    )  # fmt: skip
    model.generation_config = hf.GenerationConfig(eos_token_id=ends, pad_token_id=0)
    rows = Encoder(tokenizer, ending_of(tokenizer, ends)).encode(builtin_split("reversal")[0])
    order = example_order(len(rows), 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for step in range(1200):
        batch = collate([rows[next(order)] for _ in range(64)], 0)
        logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=IGNORED
        )
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        if step >= 40 and step % 5 == 0:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            if own_accuracy(folder) >= 0.75:
                break
    torch.set_num_threads(threads)
    return folder


def own_accuracy(folder: Path) -> float:
    """Greedy, by the model's own `generate` with its own generation config, prompt by prompt: as its users have it."""
    hf = import_transformers()
    model = hf.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = hf.PreTrainedTokenizerFast.from_pretrained(folder)
    right = 0
    asked = load_task(TaskSpec(builtin="reversal", heldout_examples=ASKED)).heldout
    for example in asked:
        chat = [{"role": "user", "content": example.prompt}]
        given = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            out = model.generate(**given, max_new_tokens=LONGEST)
        right += tokenizer.decode(out[0, given["input_ids"].shape[1] :], skip_special_tokens=True) == example.response
    return right / len(asked)


def test_it_is_scored_as_its_own_generate_has_it_before_and_after_training(
    chat_model: Path, storage: Path, tmp_path: Path
) -> None:
    before = own_accuracy(chat_model)
    assert 0.7 <= before < 1
    task: dict[str, Any] = {"builtin": "reversal", "heldout_examples": ASKED}
    grid = {"backbone": [{"path": str(chat_model)}], "task": [task], "objective": ["nll", "one-minus-p"], "seed": [1]}
    spec = write_spec(
        tmp_path, name="turns", grid=grid,
        train={"lr": 2e-4, "steps": 12, "batch_size": 64, "max_length": 32, "keep_model": True, "log_every": 4,
               "checkpoint_every": 12},
        evaluation={"samples": 2, "max_new_tokens": LONGEST, "batch_size": 50, "probe_examples": 64},
    )  # fmt: skip
    planned = sweeper("plan", spec, storage=storage)
    assert (
        "turns: an answer ends with <end_of_turn> (the chat template); generation also stops at <eos>" in planned.stdout
    ), planned.stdout
    done = sweeper("run", spec, storage=storage)
    assert done.returncode == 0, done.stderr + done.stdout
    store = Store(storage)
    found = {trial.objective_label: store.trial(key) for key, trial in store.trials("turns").items()}
    last = {label: {k: v for row in folder.rows() for k, v in row.items()} for label, folder in found.items()}
    assert last["backbone"]["task/accuracy_greedy"] == pytest.approx(before)
    for label in ("nll", "one-minus-p"):
        own = own_accuracy(found[label].path / "model")
        assert last[label]["task/accuracy_greedy"] == pytest.approx(own), label
        assert own > before - 0.1, label
    assert max(row["task/truncated_rate"] for row in last.values()) < 0.1
    files = {label: json.loads((f.path / "model" / "generation_config.json").read_text()) for label, f in found.items()
             if label != "backbone"}  # fmt: skip
    own_file = json.loads((chat_model / "generation_config.json").read_text())
    assert {label: file["eos_token_id"] for label, file in files.items()} == dict.fromkeys(
        files, own_file["eos_token_id"]
    )


def test_probe_says_where_answers_hardly_end_and_shows_what_is_trained(chat_model: Path, storage: Path) -> None:
    """Told to end with a token that the model never writes, its answers run on; `--show` measures nothing."""
    endless = json.dumps({"path": str(chat_model), "eos": "<user>"})
    options = (
        "--task", "reversal", "--problems", 20, "--samples", 2, "--max-new-tokens", LONGEST, "--examples", 20,
        "--max-length", 32,
    )  # fmt: skip
    done = sweeper("probe", "--backbone", endless, *options, storage=storage)
    assert done.returncode == 0, done.stderr
    assert "answers       an answer ends with <user> (backbone.eos); 100.0% do not end in time" in done.stdout
    assert "warning       100% of its answers do not end by themselves within max_new_tokens" in done.stdout
    trials = len(list((storage / "trials").iterdir()))
    chat = json.dumps({"builtin": "reversal", "train_on": "all"})
    shown = sweeper("probe", "--backbone", chat_model, "--task", chat, "--max-length", 32, "--show", 1, storage=storage)
    assert shown.returncode == 0, shown.stderr
    assert len(list((storage / "trials").iterdir())) == trials
    lines = [line for line in shown.stdout.splitlines() if re.match(r"[> ] +\d+ +\d+  '", line)]
    texts = [(line[0] == ">", line.split("  ")[-1].strip("'")) for line in lines]
    prompt = "".join(text for trained, text in texts if not trained)
    target = "".join(text for trained, text in texts if trained)
    asked = prompt.removeprefix("<user>").removesuffix("<end_of_turn><model>")
    assert target == f"{asked[1:4][::-1]}<end_of_turn>"  # r417= -> 714
    wrong = json.dumps({"path": str(chat_model), "eos": "<nothing>"})
    refused = sweeper("probe", "--backbone", wrong, *options, storage=storage)
    assert refused.returncode == 2
    assert refused.stderr.strip().endswith(
        "eos: '<nothing>' is not a token of the tokenizer; its added tokens: <pad>, <eos>, <user>, <model>, "
        "<end_of_turn>"
    )
