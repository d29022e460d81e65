"""What a plan says of memory, steps and GPU-hours: against published sizes and against real tensors."""

from pathlib import Path
from typing import Any

import pytest

import jobs.sources
from jobs.presets import presets
from jobs.spec import BackboneSpec, EvalSpec, TrialSpec
from jobs.task_spec import GeneratorSpec, TaskSpec
from sweeper.estimate import estimate
from sweeper.memory_need import GIB, Memory, memory_of, too_large
from sweeper.sizes import model_shape

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
    assert "take a smaller one" in hopeless
    assert memory(trial({"preset": "Qwen2.5-1.5B"})).total > GIB


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("shape", [(64, 128, 4, 4), (64, 256, 4, 2), (128, 128, 4, 1)])
def test_activations_are_the_tensors_that_a_forward_pass_saves(
    shape: tuple[int, int, int, int], precision: str, attention: str
) -> None:
    """Of two layers more: what stands before and after all layers is the same for both models."""
    fields = dict(
        zip(("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"), shape, strict=True)
    )
    found = []
    for layers in (2, 4):
        spec = trial(
            {"path": "/nowhere", "shape": {**fields, "num_hidden_layers": layers, "vocab_size": 32}},
            precision=precision, batch_size=2, micro_batch_size=2, max_length=32, zero_stage=0,
            execution={"workers": 1, "gpus_per_worker": 0, "attention": attention},
        )  # fmt: skip
        found.append((memory(spec, 32).activations, saved_bytes({**fields, "num_hidden_layers": layers}, spec)))
    (small, real_small), (large, real_large) = found
    assert large - small == pytest.approx(real_large - real_small, rel=0.02)


def saved_bytes(fields: dict[str, int], spec: TrialSpec) -> int:
    """Storages that the backward pass of [2, 32] tokens would need, the model's own parameters left out."""
    import torch

    from jobs.hf import import_transformers

    hf = import_transformers()
    config = hf.LlamaConfig(**fields, vocab_size=32, attn_implementation=spec.execution.attention)
    model = hf.LlamaModel(config).to(torch.float32 if spec.train.precision == "fp32" else torch.bfloat16)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(input_ids=torch.ones((2, 32), dtype=torch.long))
    assert output is not None
    return sum(tensor.untyped_storage().nbytes() for at, tensor in kept.items() if at not in own)


def test_answers_take_what_their_keys_and_values_take() -> None:
    evaluation = {"samples": 16, "max_new_tokens": 4096, "batch_size": 64}
    limit = {"memory_gb": 140, "gradient_checkpointing": True}
    spec = trial({"preset": "Qwen2.5-7B"}, precision="bf16", zero_stage=2, execution=limit)
    spec = spec.model_copy(update={"evaluation": EvalSpec.model_validate(evaluation)})
    a_token = 2 * 2 * (4 * 128) * 28  # keys and values, bf16, four groups of 128, 28 layers
    assert memory(spec, 512).answers == 64 * 16 * (512 + 4096) * a_token
    reason = too_large(spec, Path())
    assert reason is not None
    assert "(mostly answers)" in reason
    assert "fits with execution.evaluate_at_once: " in reason  # which leaves the draws as they are


def test_an_untrained_backbone_is_in_fp32_and_sharded_where_training_shards_it() -> None:
    n = PUBLISHED["Qwen2.5-7B"] * 1e9
    for stage, whole in ((2, 1), (3, 2)):
        spec = trial({"preset": "Qwen2.5-7B"}, precision="bf16", zero_stage=stage).model_copy(
            update={"objective": None}
        )
        found = memory(spec)
        assert found.weights == pytest.approx(4 * n / whole, rel=0.01)
        assert found.gradients == found.optimizer == found.activations == 0


def test_loading_is_whole_without_zero_3_and_a_share_with_it() -> None:
    n = PUBLISHED["Qwen2.5-72B"] * 1e9
    largest = 152_064 * 8192
    wide = {"workers": 16}

    def loading(objective: str, **train: Any) -> float:
        return memory(trial({"preset": "Qwen2.5-72B"}, objective, precision="bf16", execution=wide, **train)).loading

    assert loading("nll", zero_stage=2) == pytest.approx(2 * n, rel=0.01)
    assert loading("adaptive", zero_stage=2) == pytest.approx(4 * n, rel=0.01)  # reads a probe, measured in fp32
    assert loading("nll", zero_stage=3) == pytest.approx(2 * (n / 16 + 3 * largest), rel=0.01)
    assert loading("asft", zero_stage=3) == pytest.approx(2 * (2 * n / 16 + 3 * largest), rel=0.01)
    assert loading("adaptive", zero_stage=3) == pytest.approx(4 * (n / 16 + 3 * largest), rel=0.01)


def test_72b_is_refused_on_few_gpus_with_how_many_would_do() -> None:
    for objective in ({"name": "nll"}, None):
        spec = trial({"preset": "Qwen2.5-72B"}, precision="bf16", zero_stage=3, execution={"memory_gb": 140})
        own = {"objective": objective, "evaluation": {"batch_size": 1}}
        few = TrialSpec.model_validate(spec.model_dump() | own)
        reason = too_large(few, Path())
        assert reason is not None
        named = int(reason.split("execution.workers: ")[1].split()[0].rstrip(","))
        settings = {"memory_gb": 140, "workers": named, "gradient_checkpointing": True}
        enough = trial(
            {"preset": "Qwen2.5-72B"}, precision="bf16", zero_stage=3, execution=settings, micro_batch_size=1
        )
        assert too_large(TrialSpec.model_validate(enough.model_dump() | own), Path()) is None


def test_answering_in_small_batches_takes_longer() -> None:
    spec = trial({"preset": "Qwen2.5-7B"}, precision="bf16")
    seconds = []
    for batch_size in (1, 16, 4096):
        evaluation = EvalSpec.model_validate({"samples": 16, "max_new_tokens": 1024, "batch_size": batch_size})
        cost = estimate(spec.model_copy(update={"evaluation": evaluation}), Path(), None)
        assert cost.seconds is not None
        seconds.append(cost.seconds)
    problems = sum(benchmark.examples or 0 for benchmark in spec.task.benchmarks)
    assert seconds[0] - seconds[2] > 0.9 * problems / 2 * 2 * 1024 * 28e-3  # two workers, greedy and sampled, 28 layers
    assert seconds[0] > 4 * seconds[1] > 4 * seconds[2]


def test_a_generator_is_not_run_through_for_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("reasoning_gym")
    made = []
    real = jobs.sources.generated

    def counted(generator: GeneratorSpec) -> list[dict[str, Any]]:
        made.append(generator.size + generator.heldout_size)
        return real(generator)

    monkeypatch.setattr(jobs.sources, "generated", counted)
    spec = trial({"preset": "Qwen2.5-1.5B"}, epochs=1, batch_size=100, micro_batch_size=1)
    task = TaskSpec.model_validate({"generator": {"name": "spell_backward", "size": 5000}})
    assert estimate(spec.model_copy(update={"task": task}), Path(), None).steps == 50
    assert sum(made) <= 40
