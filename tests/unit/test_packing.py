"""Packed rows: nothing is lost, nothing is seen across, and every objective comes out as on padded rows."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import jobs.packing
from jobs.data import IGNORED, Encoded, collate
from jobs.hf import import_transformers
from jobs.loss import BoundObjective
from jobs.model import ObjectiveModel, hidden_states
from jobs.objectives import State
from jobs.packing import PackingError, check_packing, lay, pack
from jobs.spec import ObjectiveSpec

VOCABULARY, PAD = 61, 0
SIZES = [(3, 9), (2, 21), (5, 12), (1, 4), (4, 11), (2, 5), (0, 6)]  # prompt, whole; the last one has no prompt


def rows(seed: int = 0) -> list[Encoded]:
    draw = torch.Generator().manual_seed(seed)
    return [Encoded(torch.randint(1, VOCABULARY, (n,), generator=draw).tolist(), prompt) for prompt, n in SIZES]


def tiny(kind: str, attention: str = "sdpa") -> Any:
    hf = import_transformers()
    torch.manual_seed(0)
    common = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.2}
    heads = {"num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 64}
    if kind == "llama":
        config = hf.LlamaConfig(**common, **heads, num_key_value_heads=2)
    elif kind == "gpt2":
        config = hf.GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
    elif kind == "opt":
        config = hf.OPTConfig(
            vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64,
            word_embed_proj_dim=32, max_position_embeddings=64, init_std=0.2, dropout=0.0,
        )  # fmt: skip
    elif kind == "mamba":
        config = hf.MambaConfig(**common, state_size=4)
    else:
        assert kind == "hybrid"
        config = hf.Qwen3NextConfig(
            **common, **heads, num_key_value_heads=2, head_dim=8, linear_num_key_heads=2, linear_num_value_heads=2,
            linear_key_head_dim=8, linear_value_head_dim=8, num_experts=2, num_experts_per_tok=1,
            moe_intermediate_size=16, shared_expert_intermediate_size=16,
            layer_types=["linear_attention", "full_attention"],
        )  # fmt: skip
    return hf.AutoModelForCausalLM.from_config(config, attn_implementation=attention).float()


MODELS = [(kind, attention) for kind in ("llama", "gpt2") for attention in ("sdpa", "eager")]


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_every_sequence_lies_once_in_a_row_that_holds_it(lengths: list[int]) -> None:
    layout = lay(lengths, max(lengths))
    assert sorted(i for row in layout for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= max(lengths) for row in layout)
    # first fit: no two rows could be one
    sums = sorted(sum(lengths[i] for i in row) for row in layout)
    assert len(sums) < 2 or sums[0] + sums[1] > max(lengths)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 20)), min_size=1, max_size=12), st.booleans())
def test_tokens_labels_and_positions_are_those_of_padded_rows(sizes: list[tuple[int, int]], one_row: bool) -> None:
    given_rows = [Encoded([100 * i + t for t in range(p + n)], p) for i, (p, n) in enumerate(sizes)]
    batch = pack(given_rows, PAD, one_row)
    assert batch.sequences == len(given_rows)
    assert int(batch.mask.sum()) == sum(len(row.ids) for row in given_rows)
    for i, row in enumerate(given_rows):
        here = (batch.sequence == i) & (batch.mask == 1)
        assert batch.ids[here].tolist() == row.ids
        if batch.position is not None:
            first = max(1, row.prompt_length)
            assert batch.labels[here].tolist() == [IGNORED] * first + row.ids[first:]
            assert batch.position[here].tolist() == list(range(len(row.ids)))
    assert (batch.labels[batch.mask == 0] == IGNORED).all()


def test_sequences_that_cannot_share_a_row_are_padded_as_ever() -> None:
    equal = [Encoded([1, 2, 3], 1), Encoded([4, 5, 6], 1)]
    assert pack(equal, PAD).position is None
    assert len(pack(equal, PAD, one_row=True).ids) == 1


OBJECTIVES = {
    "nll": ObjectiveSpec(name="nll"),
    "adaptive-sequence": ObjectiveSpec(name="adaptive-sequence"),
    "eaft": ObjectiveSpec(name="eaft"),
    "asft": ObjectiveSpec(name="asft"),
    "kept": ObjectiveSpec.model_validate(
        {"name": "nll", "normalisation": "kept", "gate": {"side": "top", "at": 0.02}}
    ),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "attention"), MODELS)
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("one_row", [False, True])
def test_loss_gradients_and_statistics_are_those_of_padded_rows(
    name: str, kind: str, attention: str, one_row: bool
) -> None:
    model = ObjectiveModel(tiny(kind, attention), BoundObjective.bind(OBJECTIVES[name]))
    if model.reference is not None:  # a reference that differs
        with torch.no_grad():
            for parameter in model.reference.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    state = State(*(torch.tensor(x) for x in (0.4, 1.0, 0.3, 0.5)))
    seen = []
    for batch in (collate(rows(), PAD), pack(rows(), PAD, one_row)):
        model.zero_grad()
        loss, sums, nll = model(batch, 30.0, state)
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.backbone.parameters() if p.grad is not None])
        seen.append((loss.detach(), sums, nll, gradient))
    assert len(pack(rows(), PAD, one_row).ids) < len(SIZES)
    assert 0 < float(seen[0][1][1]) < float(seen[0][1][4]) or name != "kept"  # the gate drops some, not all
    for padded, packed in zip(*seen, strict=True):
        assert float((padded - packed).norm()) <= 2e-5 * float(padded.norm())
    assert float(seen[0][3].norm()) > 1e-3


@pytest.mark.parametrize(("kind", "attention"), MODELS)
def test_a_sequence_changes_nothing_of_its_row_neighbours(kind: str, attention: str) -> None:
    model, before = tiny(kind, attention).eval(), rows()
    after = [
        row if i != 1 else Encoded([1 + t % 60 for t in row.ids], row.prompt_length) for i, row in enumerate(before)
    ]
    one, two = (pack(some, PAD, one_row=True) for some in (before, after))
    with torch.no_grad():
        a, b = hidden_states(model, one), hidden_states(model, two)
    changed = one.sequence == 1
    assert torch.equal(a[~changed], b[~changed])
    assert not torch.allclose(a[changed], b[changed])


def engine_of(model: Any) -> Any:
    return SimpleNamespace(module=SimpleNamespace(
        backbone=model, training=True, eval=model.eval, train=model.train), device=torch.device("cpu"))  # fmt: skip


@pytest.mark.parametrize(("kind", "attention"), MODELS)
@pytest.mark.parametrize("count", [1, len(SIZES)])
def test_the_check_passes_where_masks_follow_positions(kind: str, attention: str, count: int) -> None:
    found = check_packing(engine_of(tiny(kind, attention)), rows()[:count], PAD)
    assert found["neighbour"] == 0
    assert found["layout"] < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 0.1])
@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("mamba", "MambaForCausalLM takes no position ids"),
        ("opt", "OPTForCausalLM: sequences in one row see each other"),  # takes position ids, masks without them
        ("hybrid", "Qwen3NextForCausalLM: sequences in one row see each other"),
    ],
)
def test_models_whose_sequences_would_see_each_other_are_refused_by_name(
    kind: str, why: str, scale: float, dtype: torch.dtype
) -> None:
    """Also where they see little of each other."""
    model = tiny(kind, "eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale if parameter.dim() > 1 else 1)
    with pytest.raises(PackingError, match=f"{why}.*set packing: false"):
        check_packing(engine_of(model.to(dtype)), rows(), PAD)


def test_a_mask_instead_of_positions_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers looks for packed sequences only where it is given no mask."""

    def masked(backbone: Any, batch: Any) -> torch.Tensor:
        given = {"input_ids": batch.ids, "attention_mask": batch.mask, "position_ids": batch.position}
        return backbone.base_model(**given, use_cache=False).last_hidden_state

    monkeypatch.setattr(jobs.packing, "hidden_states", masked)
    with pytest.raises(PackingError, match="LlamaForCausalLM: sequences in one row see each other"):
        check_packing(engine_of(tiny("llama")), rows(), PAD)
