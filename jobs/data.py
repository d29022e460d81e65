"""From examples to token ids: prompt masked, response and its end trained. And the order of examples.

The order is a function of the trial's seed alone: the same for every objective and any number of workers.
torch only where batches are made: a driver, which only tokenises, does without.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from jobs.answers import special_ids
from jobs.continuation import Continuation, plain_ids
from jobs.ending import Ending, ending_of
from jobs.layout import Layout, Layouts
from jobs.sources import TaskError
from jobs.tasks import Example

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # label of a token that is not a target


@dataclass(frozen=True)
class Encoded:
    """One example as ids. `ids[:prompt_length]` is the prompt, the rest are targets.

    earlier: (start, end) of targets inside the prompt: earlier assistant turns that are trained, too
    """

    ids: list[int]
    prompt_length: int
    earlier: tuple[tuple[int, int], ...] = ()

    @property
    def num_targets(self) -> int:
        return len(self.ids) - self.prompt_length + sum(end - start for start, end in self.earlier)

    @property
    def spans(self) -> list[tuple[int, int]]:
        """(start, end) of all targets, in order; none begins at 0, since nothing predicts the first token."""
        every = [*self.earlier, (self.prompt_length, len(self.ids))]
        return [(max(1, start), end) for start, end in every if end > max(1, start)]


def prompt_text(tokenizer: PreTrainedTokenizerBase, example: Example) -> str:
    """The prompt in the model's own chat template where it has one, else as plain text.

    Raises TaskError where the example is a chat and the tokenizer has no template, or one that refuses it.
    """
    return Layouts(tokenizer, ending_of(tokenizer))(example).prompt


def tokenise(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], ending: Ending | None = None
) -> list[Encoded]:
    """Ids of every example: its prompt, its response and what ends it, uncut. Raises TaskError."""
    return Encoder(tokenizer, ending).encode(examples)


class Encoder:
    """Makes ids of examples, and notes what was found in them.

    notes: sentence with {} -> how many examples it holds of
    kept:  special tokens that responses are made of; after: see jobs.answers.Reading
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ending: Ending | None = None) -> None:
        self.tokenizer = tokenizer
        self.ending = ending_of(tokenizer) if ending is None else ending
        self.layouts = Layouts(tokenizer, self.ending)
        self.continuation = Continuation(tokenizer)
        self.special = special_ids(tokenizer)
        self.notes: Counter[str] = Counter()
        self.kept: set[int] = set()
        self._garbled = ""

    @property
    def after(self) -> set[str]:
        return self.layouts.after

    def cleaned(self, examples: Sequence[Example]) -> list[Example]:
        """Without the ends that responses and references of some data bring along. Raises TaskError."""
        return [self._clean(example) for example in examples]

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Raises TaskError."""
        examples = self.cleaned(examples)
        layouts = [self.layouts(example) for example in examples]
        prompts, earlier = self._prompts(layouts)
        targets = self.continuation.encode([layout.target for layout in layouts])
        end, stops = list(self.ending.trained), frozenset(self.ending.stops)
        rows = []
        for layout, prompt, target, spans in zip(layouts, prompts, targets, earlier, strict=True):
            self.notes.update(layout.notes)
            whole = target if layout.ended else [*target, *end]
            body = whole[:-1] if layout.ended else target
            self.kept |= self.special.intersection(body) - stops
            if not stops.isdisjoint(body):
                self.notes[STOPPED] += 1
            if prompt and prompt[-1] in (end[-1], self.tokenizer.eos_token_id):
                self.notes[OVER] += 1
            rows.append(Encoded([*prompt, *whole], len(prompt), spans))
        self._read_back(examples, targets, layouts)
        return rows

    def with_reference(self, example: Example, row: Encoded) -> Example:
        """A turn that calls tools is right as the template writes it, where the data name no reference."""
        if example.reply is None or example.reference is not None or not example.reply.calls_tools:
            return example
        text = self.ending.without(self.continuation.decode(row.ids[row.prompt_length :]))
        return replace(example, reference=text)

    def _clean(self, example: Example) -> Example:
        without = self.ending.without
        response, reference = without(example.response), example.reference and without(example.reference)
        if (response, reference) == (example.response, example.reference):
            return example
        if not response:
            place = example.where or f"'{example.prompt[:40]}'"
            raise TaskError(
                f"{place}: its response is nothing but {example.response.strip()}, which ends every "
                "response anyway; give it a text"
            )
        self.notes[ENDED] += 1
        reply = example.reply and replace(example.reply, content=without(example.reply.content))
        return replace(example, response=response, reply=reply, reference=reference)

    def _prompts(self, layouts: Sequence[Layout]) -> tuple[list[list[int]], list[tuple[tuple[int, int], ...]]]:
        """Ids of the prompts, and where in them the earlier turns stand."""
        texts = [layout.prompt for layout in layouts]
        prompts = plain_ids(self.tokenizer, texts)
        earlier = [self._tokens_of(layout) if layout.earlier else () for layout in layouts]
        if self.tokenizer.chat_template is not None or not texts:
            return prompts, earlier  # a chat template writes its special tokens itself
        begin = self._beginning(texts, prompts)
        doubled = [bool(begin) and ids[: len(begin)] == begin for ids in prompts]
        self.notes.update({BEGUN: sum(doubled)} if any(doubled) else {})
        return [ids if already else [*begin, *ids] for ids, already in zip(prompts, doubled, strict=True)], earlier

    def _beginning(self, texts: Sequence[str], ids: Sequence[list[int]]) -> list[int]:
        """The tokens that the tokenizer puts before a text. Those behind it, as an EOS, would end every prompt."""
        text, alone = next(((t, i) for t, i in zip(texts, ids, strict=True) if i), ("", []))
        whole = list(self.tokenizer(text)["input_ids"])
        places = (i for i in range(len(whole) - len(alone) + 1) if whole[i : i + len(alone)] == alone)
        return whole[: next(places, 0)]

    def _tokens_of(self, layout: Layout) -> tuple[tuple[int, int], ...]:
        """Tokens that lie inside the earlier turns; one that covers a turn's edge is no target."""
        if not self.tokenizer.is_fast:
            raise TaskError("train_on: all needs a tokenizer with a tokenizer.json; set train_on: last")
        places = self.tokenizer(layout.prompt, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        spans = []
        for start, end in layout.earlier:
            inside = [i for i, (a, b) in enumerate(places) if start <= a and b <= end and a < b]
            if inside:
                spans.append((inside[0], inside[-1] + 1))
        return tuple(spans)

    def _read_back(self, examples: Sequence[Example], targets: Sequence[list[int]], layouts: Sequence[Layout]) -> None:
        """Note responses that the tokenizer cannot write: what is scored would never equal them."""
        for example, ids, layout in list(zip(examples, targets, layouts, strict=True))[:READ_BACK]:
            if self.continuation.decode(ids) != layout.target:
                self._garbled = self._garbled or f"{GARBLED} (the first: '{_plain(example.response[:40])}')"
                self.notes[self._garbled] += 1


# what is found in examples, each with how many it holds of
ENDED = "{} responses end with the end of an answer already, which is written once"
STOPPED = "{} responses hold the end of an answer in their middle, where generation stops"
OVER = "{} prompts end with the end of an answer, behind which a model has nothing to say"
BEGUN = "{} prompts begin with the token that the tokenizer begins them with, which is written once"
GARBLED = "{} responses come back otherwise from the tokenizer, so that no answer can equal them"
READ_BACK = 1024  # responses of a part that are decoded again


def _plain(text: str) -> str:
    """Braces are for counts."""
    return text.replace("{", "(").replace("}", ")")


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
    trained = inside & (place >= torch.tensor([row.prompt_length for row in rows])[:, None])
    for line, row in enumerate(rows):
        for start, end in row.earlier:
            trained[line, start:end] = True
    labels = torch.where(trained, ids, IGNORED)
    return Batch(ids, inside.long(), labels, torch.arange(len(rows))[:, None].expand_as(ids), len(rows))
