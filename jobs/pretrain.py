"""The built-in continuum: one small Llama, pre-trained on the spot, taken at several points of the run.

Capability becomes a dial without a download: at step 0 the backbone knows nothing, at the end it adds and
reverses digits almost perfectly, and it has never seen the letters of the cipher task answered.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.files import make_dir
from jobs.hf import import_tokenizers, import_transformers
from jobs.tasks import LETTERS, builtin_split

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# All of it decides the weights: the folder's name is its hash.
RECIPE: dict[str, Any] = {
    "hidden": 64,
    "layers": 2,
    "heads": 4,
    "batch": 64,
    "lr": 2e-3,
    "betas": (0.9, 0.95),
    "weight_decay": 0.01,
    "warmup": 20,
    "clip": 1.0,
    "tasks": ("addition", "reversal"),
    "seed": 7,
}
SPECIAL = ("<pad>", "<eos>")
ALPHABET = "0123456789+=r" + "".join(dict.fromkeys("c" + LETTERS))

Progress = Callable[[int, int], None]


def recipe_digest() -> str:
    """Names the built-in weights: another recipe gives other backbones, and other trials on them."""
    return hashlib.sha256(json.dumps(RECIPE, sort_keys=True).encode()).hexdigest()[:8]


def builtin_dir(root: Path, name: str, step: int) -> Path:
    """Where the backbone at this step of pre-training lies; named by the recipe's content."""
    return root / "backbones" / f"{name}-{recipe_digest()}" / f"step-{step}"


def pretrain(root: Path, name: str, steps: Iterable[int], progress: Progress = lambda done, total: None) -> list[Path]:
    """Make the backbones at the wanted steps that are not there yet, in one run; one directory a step.

    Deterministic: one thread, one generator. Continuing an older run would need its optimiser, so the run
    starts again from 0; a step that is there already is kept.
    """
    wanted = sorted(set(steps))
    missing = [step for step in wanted if not builtin_dir(root, name, step).is_dir()]
    if missing:
        _run(root, name, missing, progress)
    return [builtin_dir(root, name, step) for step in wanted]


def char_tokenizer() -> PreTrainedTokenizerBase:
    """One token a character; anything else is an error, since the vocabulary has no unknown token."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    vocab = {token: i for i, token in enumerate((*SPECIAL, *ALPHABET))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = import_tokenizers().PreTrainedTokenizerFast
    return fast(tokenizer_object=tokenizer, pad_token=SPECIAL[0], eos_token=SPECIAL[1])


def _new_model() -> PreTrainedModel:
    import torch

    transformers = import_transformers()
    torch.manual_seed(RECIPE["seed"])
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=len(SPECIAL) + len(ALPHABET),
            hidden_size=RECIPE["hidden"],
            intermediate_size=4 * RECIPE["hidden"],
            num_hidden_layers=RECIPE["layers"],
            num_attention_heads=RECIPE["heads"],
            max_position_embeddings=64,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
            tie_word_embeddings=False,
        )
    )


def _run(root: Path, name: str, missing: list[int], progress: Progress) -> None:
    import torch
    from torch.nn.functional import cross_entropy

    from jobs.data import IGNORED, collate, example_order, tokenise

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in one order: the same bits on every machine of a kind
    try:
        model, tokenizer = _new_model(), char_tokenizer()
        examples = [e for task in RECIPE["tasks"] for e in builtin_split(task)[0]]
        rows = tokenise(tokenizer, examples)
        order = example_order(len(rows), RECIPE["seed"])
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=RECIPE["lr"], betas=RECIPE["betas"], weight_decay=RECIPE["weight_decay"]
        )
        for step in range(missing[-1] + 1):
            if step in missing:
                make_dir(builtin_dir(root, name, step), lambda folder: _save(model, tokenizer, folder))
                progress(step, missing[-1])
            for group in optimizer.param_groups:
                group["lr"] = RECIPE["lr"] * min(1.0, (step + 1) / RECIPE["warmup"])
            batch = collate([rows[next(order)] for _ in range(RECIPE["batch"])], pad=0)
            logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits[:, :-1]
            loss = cross_entropy(logits.flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=IGNORED)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), RECIPE["clip"])
            optimizer.step()
            if step % 20 == 0:
                progress(step, missing[-1])
    finally:
        torch.set_num_threads(threads)


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
