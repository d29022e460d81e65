"""From examples to token ids: prompt masked, EOS trained, cuts counted. And the order of examples.

The order is a function of the trial's seed alone: the same for every objective and any number of workers.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from jobs.sources import TaskError
from jobs.tasks import Example

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # label of a token that is not a target


@dataclass(frozen=True)
class Encoded:
    """One example as ids. `ids[:prompt_length]` is the prompt, the rest are targets."""

    ids: list[int]
    prompt_length: int

    @property
    def num_targets(self) -> int:
        return len(self.ids) - self.prompt_length


def prompt_ids(tokenizer: PreTrainedTokenizerBase, example: Example) -> list[int]:
    """The prompt in the model's own chat template where it has one, else as plain text."""
    if tokenizer.chat_template is None:
        if example.messages:
            raise TaskError(
                "the examples are chats and the tokenizer has no chat template; "
                "give the backbone a chat_template, or the task prompt and response fields"
            )
        return list(tokenizer(example.prompt, add_special_tokens=True)["input_ids"])
    turns = example.messages or (("user", example.prompt),)
    chat = [{"role": role, "content": content} for role, content in turns]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def encode(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], max_length: int
) -> tuple[list[Encoded], int]:
    """Ids of every example, and how many were cut to max_length (on the right, so that they lose their EOS).

    Raises TaskError where a prompt alone fills max_length: nothing would be left to learn.
    """
    if tokenizer.eos_token_id is None:
        raise TaskError("the tokenizer has no EOS token: a model trained without one never learns to stop")
    encoded, cut = [], 0
    for number, example in enumerate(examples):
        prompt = prompt_ids(tokenizer, example)
        response = tokenizer(example.response, add_special_tokens=False)["input_ids"]
        ids = [*prompt, *response, int(tokenizer.eos_token_id)]
        if len(prompt) >= max_length:
            raise TaskError(
                f"example {number}: its prompt alone has {len(prompt)} tokens, train.max_length is {max_length}; "
                "raise max_length or leave the example out"
            )
        cut += len(ids) > max_length
        encoded.append(Encoded(ids[:max_length], len(prompt)))
    if cut:
        warnings.warn(f"{cut} of {len(encoded)} examples are cut to {max_length} tokens", stacklevel=2)
    return encoded, cut


def example_order(num_examples: int, seed: int) -> Iterator[int]:
    """Endless: one seeded permutation after another."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(num_examples, generator=generator).tolist()


def global_batches(num_examples: int, seed: int, batch_size: int, num_steps: int) -> list[list[int]]:
    """Indices [num_steps, batch_size]."""
    order = example_order(num_examples, seed)
    return [[next(order) for _ in range(batch_size)] for _ in range(num_steps)]


@dataclass(frozen=True)
class Batch:
    """ids, mask, labels: [sequences, tokens], padded on the right; labels are IGNORED on prompt and padding."""

    ids: Tensor
    mask: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(self.ids.to(device), self.mask.to(device), self.labels.to(device))


def collate(rows: Sequence[Encoded], pad: int) -> Batch:
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    labels = torch.full((len(rows), width), IGNORED)
    for i, row in enumerate(rows):
        tokens = torch.tensor(row.ids)
        ids[i, : len(tokens)] = tokens
        mask[i, : len(tokens)] = 1
        labels[i, row.prompt_length : len(tokens)] = tokens[row.prompt_length :]
    return Batch(ids, mask, labels)
