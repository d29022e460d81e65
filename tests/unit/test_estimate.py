"""What a plan says of memory, steps and GPU-hours: against published sizes and against real tensors."""

from pathlib import Path
from typing import Any

import pytest

from jobs.presets import presets
from jobs.spec import BackboneSpec, TrialSpec
from sweeper.estimate import GIB, Memory, estimate, memory_of, model_shape, too_large

PUBLISHED = {  # billions of parameters, from the model cards
    "Qwen2.5-1.5B": 1.54, "Qwen2.5-3B": 3.09, "Qwen2.5-7B": 7.62, "Qwen2.5-14B": 14.77, "Qwen2.5-32B": 32.76,
    "Qwen2.5-72B": 72.71, "Qwen2.5-Math-1.5B": 1.54, "Qwen2.5-Math-7B": 7.62, "Qwen2.5-Coder-7B": 7.62,
    "Llama-3.1-8B": 8.03, "Llama-3.2-3B": 3.21, "DeepSeekMath-7B": 6.91,
}  # fmt: skip


def trial(
    backbone: dict[str, Any], objective: str = "nll", execution: dict[str, Any] | None = None, **train: Any
) -> TrialSpec:
    settings = {"lr": 1e-4, "epochs": 1, "batch_size": 256, "micro_batch_size": 4, "max_length": 3072} | train
    return TrialSpec.model_validate(
        {
            "backbone": backbone, "task": {"preset": "math"}, "objective": {"name": objective}, "seed": 0,
            "train": settings, "evaluation": {}, "execution": {"workers": 2, "gpus_per_worker": 1} | (execution or {}),
        }
    )  # fmt: skip


def memory(spec: TrialSpec, length: float = 512) -> Memory:
    shape = model_shape(spec.backbone, Path())
    assert shape is not None
    return memory_of(spec, shape, length)


def test_every_backbone_of_the_paper_has_its_published_size() -> None:
    assert presets()["backbones"].keys() == PUBLISHED.keys()
    for name, billions in PUBLISHED.items():
        shape = model_shape(BackboneSpec.model_validate({"preset": name}), Path())
        assert shape is not None
        assert shape.params / 1e9 == pytest.approx(billions, rel=0.01), name


def test_steps_are_the_papers_without_the_data() -> None:
    cost = estimate(trial({"preset": "Qwen2.5-Math-7B"}), Path(), None)
    assert cost.steps == 264  # section 5.2 of the paper's appendix: 67.6k rows, 256 a step, the rest dropped
    assert cost.seconds_from == "formula"


@pytest.mark.parametrize(("precision", "word", "state"), [("fp32", 4, 12), ("bf16", 2, 12)])
def test_each_zero_stage_shards_what_zero_says(precision: str, word: int, state: int) -> None:
    n = PUBLISHED["Qwen2.5-7B"] * 1e9
    for stage in (1, 2, 3):
        found = memory(trial({"preset": "Qwen2.5-7B"}, zero_stage=stage, precision=precision, execution={"workers": 4}))
        assert found.weights == pytest.approx(word * n / (4 if stage == 3 else 1), rel=0.01)
        assert found.gradients == pytest.approx(word * n / (4 if stage >= 2 else 1), rel=0.01)
        assert found.optimizer == pytest.approx(state * n / 4, rel=0.01)


def test_adapters_offload_checkpointing_and_a_reference_move_their_own_part() -> None:
    backbone = {"preset": "Qwen2.5-7B"}
    full = memory(trial(backbone, precision="bf16"))
    lora = memory(trial({**backbone, "lora": {"rank": 16}}, precision="bf16"))
    assert lora.gradients < 0.01 * full.gradients
    assert lora.optimizer < 0.01 * full.optimizer
    assert lora.weights == pytest.approx(full.weights, rel=0.01)
    assert memory(trial(backbone, precision="bf16", execution={"offload": "optimizer"})).optimizer == 0
    offloaded = memory(trial(backbone, precision="bf16", zero_stage=3, execution={"offload": "parameters"}))
    assert offloaded.weights < 0.3 * full.weights
    checkpointed = memory(trial(backbone, precision="bf16", execution={"gradient_checkpointing": True}))
    assert checkpointed.activations < 0.15 * full.activations
    assert memory(trial(backbone, "asft", precision="bf16")).weights == pytest.approx(2 * full.weights)


def test_weights_gradients_and_state_are_those_of_real_tensors(tmp_path: Path) -> None:
    import torch

    from jobs.backbone import add_adapters
    from jobs.hf import import_transformers

    hf = import_transformers()
    fields = {
        "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 128, "vocab_size": 100, "tie_word_embeddings": False,
    }  # fmt: skip
    for lora in (None, {"rank": 4}):
        backbone = BackboneSpec.model_validate({"path": str(tmp_path), "shape": fields, "lora": lora})
        model = hf.LlamaForCausalLM(hf.LlamaConfig(**fields))
        add_adapters(model, backbone)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained)
        model(input_ids=torch.ones((1, 4), dtype=torch.long)).logits.sum().backward()
        optimizer.step()
        spec = trial(backbone.model_dump(), zero_stage=0, execution={"workers": 1})
        found = memory(spec)
        real = sum(p.nbytes for p in model.parameters())
        assert found.weights == pytest.approx(real, rel=0.01)  # norms are left out
        assert found.gradients == pytest.approx(sum(p.grad.nbytes for p in trained if p.grad is not None), rel=0.01)
        states = sum(v.nbytes for s in optimizer.state.values() for v in s.values() if v.ndim)
        assert found.optimizer == pytest.approx(states, rel=0.01)


def test_what_cannot_fit_is_refused_with_what_would() -> None:
    small = {"memory_gb": 40, "workers": 2}
    reason = too_large(trial({"preset": "Qwen2.5-7B"}, precision="bf16", zero_stage=1, execution=small), Path())
    assert reason is not None
    assert reason.startswith("Qwen2.5-7B needs about ")
    assert "execution.memory_gb is 40; fits with" in reason
    assert "backbone.lora" in reason
    assert too_large(trial({"preset": "Qwen2.5-7B"}, precision="bf16", execution={"memory_gb": 10_000}), Path()) is None
    assert too_large(trial({"preset": "Qwen2.5-7B"}), Path()) is None
    hopeless = too_large(trial({"preset": "Qwen2.5-72B"}, precision="bf16", execution={"memory_gb": 1}), Path())
    assert hopeless is not None
    assert "nothing short of more workers or a smaller one fits" in hopeless
    assert memory(trial({"preset": "Qwen2.5-1.5B"})).total > GIB
