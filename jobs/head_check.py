"""The head that is measured and trained is the model's own, and the model does not look ahead.

Logits are computed here from hidden states and head (jobs/model.py). A model may do more to them in its forward: scale
them, cap them, put a layer before its head. So before anything is measured, both are compared on a few tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from jobs.data import Batch, Encoded, collate
from jobs.faults import faults, said
from jobs.model import HeadError, Targets, gathered, head_of, hidden_states

if TYPE_CHECKING:
    from jobs.fused import Head

ROWS = 2
LENGTH = 32  # tokens of each row
# of the largest logit before a token; a model may compute logits in bf16 and round them there
LOGITS = {torch.float64: 1e-5, torch.float32: 1e-3, torch.bfloat16: 2e-2, torch.float16: 5e-3}
# of a hidden state: how far it may move because other tokens of its batch are grouped otherwise, as experts group them
AHEAD = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}


def check_head(model: nn.Module, rows: Sequence[Encoded], pad: int) -> None:
    """Compare on the first of `rows`, once a loaded model. A collective where the model is sharded. Raises HeadError.

    model: whole, or inside an engine that gathers its layers
    """
    if getattr(model, "_head_is_checked", False) or not rows:
        return
    device = next(model.parameters()).device
    batch = collate([Encoded(row.ids[:LENGTH], 0) for row in rows[:ROWS]], pad).to(device)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            hidden, own = _both(model, batch)
            compare_logits(model, Targets.of(hidden, batch), Targets.of(own, batch).hidden)
            _refuse_looking_ahead(model, batch, hidden)
    finally:
        model.train(was_training)
    model._head_is_checked = True  # type: ignore[assignment]


def _both(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Hidden states, and the logits of the model's own forward."""
    try:
        return hidden_states(model, batch), own_logits(model, batch)
    except HeadError:
        raise
    except faults() as error:
        raise HeadError(
            f"{type(model).__name__}: its forward cannot be run on token ids alone ({said(error)}); "
            "name a text-only decoder"
        ) from error


def own_logits(model: nn.Module, batch: Batch) -> Tensor:
    """What the model's own forward says, [rows, tokens, V]."""
    out: Any = model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
    logits: Tensor = out.logits
    return logits


def compare_logits(model: nn.Module, targets: Targets, own: Tensor) -> None:
    """own [N, V]: of the model's forward, before each target. Raises HeadError where they are not the head's."""
    head = head_of(model)
    with gathered(head.weight, head.bias):
        if targets.hidden.shape[1] != head.weight.shape[1]:
            raise HeadError(
                f"{type(model).__name__}: its hidden states are {targets.hidden.shape[1]} wide and its head takes "
                f"{head.weight.shape[1]}, so something stands between them that is not computed here; "
                "name another architecture"
            )
        mine = head.logits(targets.hidden)
    if (error := logit_error(mine, own, targets.hidden.dtype)) is not None:
        raise HeadError(
            f"{type(model).__name__}: {error}. Its forward does more to them than is done here "
            f"({_described(head)}), so its probabilities cannot be measured or trained; name another architecture"
        )


def logit_error(mine: Tensor, own: Tensor, dtype: torch.dtype) -> str | None:
    """How logits [N, V] differ from the model's own, in words; None where they agree but for rounding.

    dtype: of the hidden states. One token in ten may differ: a router's choice between experts can turn on rounding.
    """
    if mine.shape != own.shape:
        return f"the model's forward gives {own.shape[-1]} logits a token, its head has {mine.shape[-1]} rows"
    if not len(own):
        return None
    own = own.to(mine.dtype)
    off, size = (mine - own).abs().amax(1), own.abs().amax(1)
    wrong = ~(off <= LOGITS[dtype] * size)  # NaN is wrong
    if int(wrong.sum()) * 10 <= len(own):
        return None
    return (
        f"the logits of the model's forward reach {float(size.max()):.4g} and differ by {float(off.max()):.4g} from "
        f"those of its head, on {int(wrong.sum())} of {len(own)} tokens"
    )


def _described(head: Head) -> str:
    parts = ["hidden states times its head"]
    parts += ["plus a bias"] if head.bias is not None else []
    parts += [f"times {head.scale:g}"] if head.scale != 1 else []
    parts += [f"capped at {head.softcap:g}"] if head.softcap is not None else []
    return ", ".join(parts)


def _refuse_looking_ahead(model: nn.Module, batch: Batch, hidden: Tensor) -> None:
    """Change the later half of each row: the states of the earlier half must not move. Raises HeadError."""
    lengths = batch.mask.sum(1)
    later = (torch.arange(batch.ids.shape[1], device=batch.ids.device) >= (lengths // 2)[:, None]) & batch.mask.bool()
    there = torch.unique(batch.ids[batch.mask.bool()])
    if len(there) < 2:
        return
    other = there[(torch.searchsorted(there, batch.ids.clamp(there[0], there[-1])) + 1) % len(there)]
    changed = Batch(torch.where(later, other, batch.ids), batch.mask, batch.labels, batch.sequence, batch.sequences)
    again = hidden_states(model, changed)
    earlier = ~later & batch.mask.bool()
    off = (again - hidden)[earlier].float().norm(dim=1) / hidden[earlier].float().norm(dim=1).clamp_min(1e-12)
    if len(off) and float(off.median()) > AHEAD[hidden.dtype]:
        raise HeadError(
            f"{type(model).__name__}: the states before a token depend on the tokens after it, so it is no causal "
            "language model (is_decoder: true is missing in its config.json, or it is an encoder); name a decoder"
        )
