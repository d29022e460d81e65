"""The objective inside the model's forward: hidden states -> fused objective, so that ZeRO-3 sees every use."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jobs.data import Batch
from jobs.deepspeed_import import import_deepspeed
from jobs.fused import CHUNK_BYTES, NLL, Context, Head, LinearLoss, linear_objective, sequence_means
from jobs.loss import BoundObjective
from jobs.objectives import State, Tokens
from jobs.plugins import objective_named
from jobs.spec import ObjectiveSpec
from jobs.weights import BackboneError


class HeadError(BackboneError):
    """The model's logits are not what is computed here from its hidden states and head; the message names it."""


# what a field of a configuration does to logits; jobs/head_check.py compares the result with the model's own forward
_FIELDS = {
    "logit_scale": "multiplies",  # Cohere
    "lm_head_multiplier": "multiplies",  # Falcon-H1
    "output_multiplier": "multiplies",  # Muse
    "logits_scaling": "divides",  # Granite, MiniCPM3
    "logits_mup_width_multiplier": "divides",  # Inkling
    "final_logit_softcapping": "caps",  # Gemma
    "logits_soft_cap": "caps",  # RecurrentGemma
    "output_logit_soft_cap": "caps",  # xLSTM
}
_ELSEWHERE = {("hyperclovax", "logits_scaling"): "multiplies", ("mpt", "logit_scale"): "does nothing"}


def head_of(backbone: nn.Module) -> Head:
    """The head of a causal language model. Raises HeadError where it is more than matrix, bias, scale and softcap."""
    module: Any = backbone.get_output_embeddings()  # type: ignore[operator]
    config: Any = backbone.config.get_text_config()  # type: ignore[union-attr, operator]
    if not isinstance(module, nn.Linear) or type(module).forward is not nn.Linear.forward:
        raise HeadError(
            f"{type(backbone).__name__}: its head is a {type(module).__module__}.{type(module).__name__}, not a plain "
            "linear layer; leave the head out of LoRA and quantisation"
        )
    scale, softcap = 1.0, None
    for field, usually in _FIELDS.items():
        value = getattr(config, field, None)
        if not isinstance(value, int | float) or not value:
            continue
        does = _ELSEWHERE.get((config.model_type, field), usually)
        if does == "caps":
            softcap = float(value)
        elif does != "does nothing":
            scale *= value if does == "multiplies" else 1 / value
    return Head(module.weight, module.bias, scale, softcap)


def hidden_states(backbone: nn.Module, batch: Batch) -> Tensor:
    """What the head is applied to, [rows, tokens, d]. Raises HeadError where the model does not give it."""
    base: Any = backbone.base_model
    if base is backbone:  # Llama 4 names its decoder otherwise than its class says
        base = getattr(backbone, "model", backbone)
    if batch.position is None:
        out = base(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
    else:
        # transformers reads the borders of packed sequences off the positions, and only where it is given no mask
        out = base(input_ids=batch.ids, attention_mask=None, position_ids=batch.position, use_cache=False)
    hidden: Tensor | None = getattr(out, "last_hidden_state", None)
    if hidden is None:
        raise HeadError(f"{type(backbone).__name__}: its decoder gives no hidden states; name another architecture")
    return hidden


@dataclass(frozen=True)
class Targets:
    """The target tokens of a batch: hidden states before them [N, d], ids [N], and the sequence each stands in [N]."""

    hidden: Tensor
    ids: Tensor
    row: Tensor

    @classmethod
    def of(cls, hidden: Tensor, batch: Batch) -> Targets:
        before = batch.before
        assert before is not None
        ids, row = (t.flatten().index_select(0, before + 1) for t in (batch.labels, batch.sequence))
        return cls(hidden.flatten(0, 1).index_select(0, before), ids, row)


def target_statistics(backbone: nn.Module, batch: Batch) -> tuple[LinearLoss, Tensor]:
    """Log-odds and first choice of every target token, and its row: no gradient, no [tokens, vocabulary] tensor."""
    targets = Targets.of(hidden_states(backbone, batch), batch)
    return statistics_of(backbone, targets), targets.row


def statistics_of(backbone: nn.Module, targets: Targets) -> LinearLoss:
    head = head_of(backbone)
    with gathered(head.weight, head.bias):
        return linear_objective(targets.hidden, head, targets.ids, NLL)


def target_entropy(backbone: nn.Module, targets: Targets, chunk_bytes: int = CHUNK_BYTES) -> Tensor:
    """Entropy of the model's distribution before each target token, nats [N]; a chunk of logits at a time."""
    head = head_of(backbone)
    with gathered(head.weight, head.bias):
        rows = max(1, chunk_bytes // (4 * len(head.weight)))
        parts = [_entropy(head.logits(targets.hidden[i : i + rows])) for i in range(0, len(targets.ids), rows)]
    return torch.cat(parts) if parts else torch.zeros(0)


def _entropy(logits: Tensor) -> Tensor:
    logp = logits.log_softmax(1)
    return -(logp.exp() * logp.clamp_min(torch.finfo(logp.dtype).min)).sum(1)


@contextmanager
def gathered(*tensors: Tensor | None) -> Iterator[None]:
    """Under ZeRO-3, whole parameters for the time of the block; else nothing."""
    sharded = [t for t in tensors if t is not None and hasattr(t, "ds_id")]
    if not sharded:
        yield
        return
    with import_deepspeed().zero.GatheredParameters(sharded):
        yield


@dataclass(frozen=True)
class Measured:
    """What a micro-batch leaves behind, detached.

    sums:         [7] float64: objective, kept tokens, p, -log p, tokens, alpha, first choices; each summed over tokens
    sequence_nll: [sequences], mean -log p of each sequence's targets
    """

    sums: Tensor
    sequence_nll: Tensor


def needs_reference(spec: ObjectiveSpec) -> bool:
    return "reference" in objective_named(spec.name).needs


class ObjectiveModel(nn.Module):
    """A causal language model whose forward returns the objective.

    `reference` is the frozen copy of the backbone that some objectives read: `frozen`, where the backbone is sharded
    already, else a deep copy, which may share the weights that do not move beside adapters (`share_frozen`). It stands
    in this module, so that ZeRO-3 shards it with the rest.
    """

    def __init__(
        self,
        backbone: nn.Module,
        objective: BoundObjective,
        frozen: nn.Module | None = None,
        share_frozen: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.objective = objective
        head_of(backbone)  # refuse before training
        if frozen is None and needs_reference(objective.spec):
            same = {id(p): p for p in backbone.parameters() if share_frozen and not p.requires_grad}
            frozen = copy.deepcopy(backbone, same).eval().requires_grad_(False)
        self.reference = frozen

    def forward(self, batch: Batch, num_targets: float, state: State | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, and the two tensors of Measured (a flat tuple: the engine's hooks look for tensors).

        num_targets: what 'valid' divides the micro-batch's sum by, the share of the step's targets (Eq. 4's mean);
        'kept' divides by the tokens that the gate keeps in this micro-batch.
        """
        return self.loss_of(hidden_states(self.backbone, batch), batch, num_targets, state)

    def loss_of(
        self, hidden: Tensor, batch: Batch, num_targets: float, state: State | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What forward returns, from the batch's hidden states [rows, tokens, d]."""
        targets = Targets.of(hidden, batch)
        context = Context(state, self._reference(batch), targets.row)
        loss = linear_objective(targets.hidden, head_of(self.backbone), targets.ids, self.objective, context)
        kept = loss.kept.sum()
        divisor = num_targets if self.objective.spec.normalisation == "valid" else kept.clamp_min(1)
        measured = self._measured(loss, targets, state, batch.sequences)
        return loss.total / divisor, measured.sums, measured.sequence_nll

    def _reference(self, batch: Batch) -> tuple[Tensor, Head] | None:
        if self.reference is None:
            return None
        with torch.no_grad():
            self.reference.eval()
            return Targets.of(hidden_states(self.reference, batch), batch).hidden, head_of(self.reference)

    def _measured(self, loss: LinearLoss, targets: Targets, state: State | None, sequences: int) -> Measured:
        logp = loss.logp
        alpha = _alpha(self.objective.spec, state, logp)
        count = torch.ones_like(logp).sum()
        parts = (loss.value.sum(), loss.kept.sum(), logp.exp().sum(), -logp.sum(), count)
        sums = torch.stack([part.detach().double() for part in (*parts, alpha * count, loss.first.sum())])
        return Measured(sums, sequence_means(-logp.float(), targets.row, sequences))


def _alpha(spec: ObjectiveSpec, state: State | None, logp: Tensor) -> Tensor:
    """The alpha in force, for the record: the rule's where one number holds for all tokens, else the spec's or 0."""
    rule = objective_named(spec.name).alpha
    if rule is None or state is None or "state" not in objective_named(spec.name).needs:
        return torch.full((), spec.alpha or 0.0, device=logp.device)
    return rule(Tokens(logp, logp, state=state)).to(logp.device)
