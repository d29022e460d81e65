"""From examples to token ids: prompt masked, EOS trained, cuts counted. And the order of examples.

The order is a function of the trial's seed alone: the same for every objective and any number of workers.
torch only where batches are made: a driver, which only tokenises, does without.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from jobs.chats import Turn
from jobs.sources import NO_TEMPLATE, TaskError
from jobs.tasks import Example

if TYPE_CHECKING:
    import torch
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


def prompt_text(tokenizer: PreTrainedTokenizerBase, example: Example) -> str:
    """The prompt in the model's own chat template where it has one, else as plain text.

    Raises TaskError where the example is a chat and the tokenizer has no template, or one that refuses it.
    """
    from jinja2 import TemplateError

    if tokenizer.chat_template is None:
        if example.messages:
            raise TaskError(NO_TEMPLATE)
        return example.prompt
    chat = [turn.message() for turn in example.messages or (Turn("user", example.prompt),)]
    try:
        return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
    except (TemplateError, TypeError, ValueError, LookupError) as error:
        roles = ", ".join(turn["role"] for turn in chat)
        place = example.where or f"'{example.prompt[:40]}'"
        raise TaskError(f"{place}: the chat template refuses the roles {roles}: {error}") from None


def tokenise(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> list[Encoded]:
    """Ids of every example: its prompt, its response and EOS, uncut. Raises TaskError."""
    if tokenizer.eos_token_id is None:
        raise TaskError("the tokenizer has no EOS token: a model trained without one never learns to stop")
    if not examples:
        return []
    # a chat template writes its special tokens itself
    prompts = tokenizer(
        [prompt_text(tokenizer, example) for example in examples], add_special_tokens=tokenizer.chat_template is None
    )["input_ids"]
    responses = tokenizer([example.response for example in examples], add_special_tokens=False)["input_ids"]
    eos = int(tokenizer.eos_token_id)
    return [
        Encoded([*prompt, *response, eos], len(prompt)) for prompt, response in zip(prompts, responses, strict=True)
    ]


def example_order(num_examples: int, seed: int) -> Iterator[int]:
    """Endless: one seeded permutation after another."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(num_examples, generator=generator).tolist()


def global_batches(num_examples: int, seed: int, batch_size: int, num_steps: int) -> list[list[int]]:
    """Indices [num_steps, batch_size]."""
    order = example_order(num_examples, seed)
    return [[next(order) for _ in range(batch_size)] for _ in range(num_steps)]


@dataclass(frozen=True)
class Batch:
    """ids, mask, labels: [rows, tokens], padded on the right; labels are IGNORED on prompt and padding.

    sequence:  [rows, tokens], the number of each token's sequence in the micro-batch
    sequences: how many there are
    position:  [rows, tokens], restarting at every sequence, where rows hold several (jobs/packing.py); else None
    before:    [N], where the token before each target stands, in rows x tokens; read off the labels while they are on
               the host, since a GPU would have to be waited for
    """

    ids: Tensor
    mask: Tensor
    labels: Tensor
    sequence: Tensor
    sequences: int
    position: Tensor | None = None
    before: Tensor | None = None

    def __post_init__(self) -> None:
        if self.before is None:
            row, column = (self.labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
            object.__setattr__(self, "before", row * self.labels.shape[1] + column)

    def to(self, device: torch.device) -> Batch:
        """The same on a device; to a GPU without waiting for it."""
        pinned = device.type == "cuda"
        tensors: dict[str, Any] = {
            name: (t.contiguous().pin_memory() if pinned and t.device.type == "cpu" else t).to(
                device, non_blocking=pinned
            )
            for name, t in vars(self).items()
            if hasattr(t, "to")
        }
        return replace(self, **tensors)


def collate(rows: Sequence[Encoded], pad: int) -> Batch:
    """A row for each sequence."""
    import torch

    lengths = [len(row.ids) for row in rows]
    width = max(lengths)
    ids = torch.tensor([[*row.ids, *[pad] * (width - length)] for row, length in zip(rows, lengths, strict=True)])
    place = torch.arange(width)
    inside = place < torch.tensor(lengths)[:, None]
    response = inside & (place >= torch.tensor([row.prompt_length for row in rows])[:, None])
    labels = torch.where(response, ids, IGNORED)
    return Batch(ids, inside.long(), labels, torch.arange(len(rows))[:, None].expand_as(ids), len(rows))
