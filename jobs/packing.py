"""Packing: several sequences in a row of a micro-batch, none of which sees another.

Position ids restart at every sequence, and from them transformers builds its block-diagonal masks. Not every model
that takes position ids hands them on to its mask, and a recurrent mixer has no mask, so `check_packing` shows on the
trial's own model, before its first step, that packed sequences come out as they do alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from jobs.data import IGNORED, Batch, Encoded, collate
from jobs.model import hidden_states

ROWS = 4  # of the check
LENGTH = 64  # tokens of each
# relative, on each token's hidden state. In one layout a neighbour that is not seen changes nothing (but how
# a mixture's experts round); another layout rounds differently everywhere
SEEN = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 1e-2}
ROUNDED = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.1}


class PackingError(ValueError):
    """The model cannot be trained on packed rows; the message names it."""


def lay(lengths: Sequence[int], width: int) -> list[list[int]]:
    """First-fit decreasing: the numbers of the sequences in each row of at most `width` tokens."""
    rows: list[list[int]] = []
    room: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fits = (i for i, free in enumerate(room) if lengths[number] <= free)
        row = next(fits, len(rows))
        if row == len(rows):
            rows.append([])
            room.append(width)
        rows[row].append(number)
        room[row] -= lengths[number]
    return rows


def pack(rows: Sequence[Encoded], pad: int, one_row: bool = False) -> Batch:
    """As jobs.data.collate, in fewer rows, none longer than the longest sequence; or all of them in one row."""
    lengths = [len(row.ids) for row in rows]
    layout = lay(lengths, sum(lengths) if one_row else max(lengths))
    if len(layout) == len(rows):
        return collate(rows, pad)
    shape = (len(layout), max(sum(lengths[i] for i in row) for row in layout))
    ids, labels = torch.full(shape, pad), torch.full(shape, IGNORED)
    sequence, position = torch.full(shape, -1), torch.zeros(shape, dtype=torch.long)
    for line, numbers in enumerate(layout):
        start = 0
        for number in numbers:
            end, tokens = start + lengths[number], torch.tensor(rows[number].ids)
            ids[line, start:end] = tokens
            for first, after in rows[number].spans:
                labels[line, start + first : start + after] = tokens[first:after]
            sequence[line, start:end] = number
            position[line, start:end] = torch.arange(end - start)
            start = end
        position[line, start:] = torch.arange(shape[1] - start)  # padding: a sequence of its own
    return Batch(ids, (sequence >= 0).long(), labels, sequence, len(rows), position)


def in_one_row(backbone: nn.Module) -> bool:
    """Flash attention keeps sequences apart in a batch of one row only, and needs no mask there."""
    config: Any = backbone.config
    return "flash" in str(config._attn_implementation)


def check_packing(engine: Any, rows: Sequence[Encoded], pad: int) -> dict[str, float]:
    """Sequences in one row as they are, and with the first one swapped for padding tokens. A collective.

    Returns the largest relative differences of a hidden state: neighbour (the swap's effect on the others), layout (a
    packed row against padded ones). Raises PackingError: sequences see each other, or the model takes no position ids.
    """
    backbone: nn.Module = engine.module.backbone
    name, base = type(backbone).__name__, backbone.base_model
    if "position_ids" not in inspect.signature(base.forward).parameters:  # type: ignore[union-attr]
        raise PackingError(f"{name} takes no position ids, so it cannot be trained on packed rows; set packing: false")
    some = sorted((Encoded(rows[i % len(rows)].ids[:LENGTH], 0) for i in range(ROWS)), key=lambda row: -len(row.ids))
    swapped = [Encoded([pad] * len(some[0].ids), 0), *some[1:]]
    batches = collate(some, pad), pack(some, pad, one_row=True), pack(swapped, pad, one_row=True)
    was_training = engine.module.training
    engine.module.eval()  # dropout would draw differently in each forward
    try:
        with torch.no_grad():
            alone, packed, beside = (_hidden(backbone, batch.to(engine.device)) for batch in batches)
    finally:
        engine.module.train(was_training)
    others = slice(len(some[0].ids), None)
    found = {"neighbour": _furthest(packed[others], beside[others]), "layout": _furthest(packed, alone)}
    dtype = next(backbone.parameters()).dtype
    if not (found["neighbour"] <= SEEN[dtype] and found["layout"] <= ROUNDED[dtype]):
        raise PackingError(
            f"{name}: sequences in one row see each other (a neighbour changes a hidden state by "
            f"{found['neighbour']:.1g} of its size, packing by {found['layout']:.1g}); set packing: false"
        )
    return found


def _furthest(a: Tensor, b: Tensor) -> float:
    return float(((a - b).norm(dim=1) / b.norm(dim=1).clamp_min(1e-12)).max())


def _hidden(backbone: nn.Module, batch: Batch) -> Tensor:
    """Of all real tokens, sequence after sequence, [tokens, d] in double precision."""
    hidden = hidden_states(backbone, batch).double()
    return torch.cat([hidden[(batch.sequence == i) & (batch.mask == 1)] for i in range(batch.sequences)])
