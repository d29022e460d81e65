"""How large a model and a task are, before either is loaded: parameters and shapes, examples and tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from jobs.backbone import BackboneError, gguf_file, local_dir
from jobs.pretrain import ALPHABET, RECIPE, SPECIAL
from jobs.spec import BackboneSpec, LoraSpec
from jobs.task_spec import TaskSpec
from jobs.weights import read_config
from sweeper.task_facts import task_facts

CHARS_PER_TOKEN = 4.0  # usual of byte-level BPE on English; the built-in tokenizer has 1


@dataclass(frozen=True)
class Shape:
    """Of a decoder. keys: width of the keys of all groups together; inner: of the gated MLP."""

    params: int
    hidden: int
    layers: int
    vocab: int
    heads: int
    keys: int
    inner: int

    def adapters(self, lora: LoraSpec) -> int:
        """Parameters of LoRA: rank x (inputs + outputs) of every linear layer that is named, of every block."""
        h, k, f = self.hidden, self.keys, self.inner
        widths = {
            "q_proj": 2 * h, "k_proj": h + k, "v_proj": h + k, "o_proj": 2 * h,
            "gate_proj": h + f, "up_proj": h + f, "down_proj": h + f,
        }  # fmt: skip
        return lora.rank * self.layers * sum(w for name, w in widths.items() if name in (lora.targets or widths))


@lru_cache(maxsize=256)
def model_shape(backbone: BackboneSpec, root: Path) -> Shape | None:
    if backbone.builtin is not None:
        config: dict[str, Any] = {
            "hidden_size": RECIPE["hidden"],
            "num_hidden_layers": RECIPE["layers"],
            "num_attention_heads": RECIPE["heads"],
            "intermediate_size": 4 * RECIPE["hidden"],
            "vocab_size": len(SPECIAL) + len(ALPHABET),
        }
        return shape_of_config(config)
    folder = local_dir(backbone, root)
    if folder is not None and (folder / "config.json").is_file():
        try:
            return shape_of_config(read_config(folder, backbone.name))
        except BackboneError:
            return None
    if backbone.gguf is not None:
        try:
            size = gguf_file(backbone).stat().st_size
        except BackboneError:
            return None
        # until it is unpacked: about 5.6 bits a weight
        return Shape(round(size / 0.7), 1024, 24, 50_000, heads=16, keys=1024, inner=4096)
    return shape_of_config(dict(backbone.shape)) if backbone.shape else None


def shape_of_config(config: dict[str, Any]) -> Shape | None:
    """A decoder of the Llama kind: attention with grouped keys, gated MLP, two norms; biases (of Qwen) are left out."""
    heads = config.get("num_attention_heads", 1)
    groups = config.get("num_key_value_heads") or heads
    names = ("hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size")
    sizes: list[Any] = [config.get(name) for name in names]
    if not all(type(size) is int and size > 0 for size in (*sizes, heads, groups)):
        return None  # of another kind, or wrong: a run says what is wrong with it
    hidden, layers, vocab, inner = sizes
    keys = hidden * groups // heads
    block = 2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * inner + 2 * hidden
    embeddings = vocab * hidden * (1 if config.get("tie_word_embeddings") else 2)
    return Shape(layers * block + embeddings + hidden, hidden, layers, vocab, heads, keys, inner)


def task_size(task: TaskSpec, characters: bool) -> tuple[int, float]:
    """Training examples, and mean tokens of an example. Raises TaskError."""
    if task.expected is not None and (task.hub or task.parts or task.generator):
        return min(task.expected.examples, task.train_examples or task.expected.examples), float(task.expected.tokens)
    facts = task_facts(task)
    return facts.train, facts.characters / (1.0 if characters else CHARS_PER_TOKEN) + 1
