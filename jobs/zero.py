"""TrialSpec -> DeepSpeed configuration. Pure; imports nothing heavy."""

from __future__ import annotations

from typing import Any

from jobs.spec import TrialSpec


def micro_batch_size(trial: TrialSpec) -> int:
    """Sequences a worker takes at once; without a wish, its whole share of the step.

    Raises ValueError where the batch cannot be cut evenly.
    """
    batch, workers = trial.train.batch_size, trial.execution.workers
    micro = trial.train.micro_batch_size or max(1, batch // workers)
    if batch % (micro * workers):
        raise ValueError(
            f"train.batch_size {batch} is no multiple of micro_batch_size {micro} x workers {workers}; "
            f"e.g. batch_size {max(1, round(batch / (micro * workers))) * micro * workers}"
        )
    return micro


def zero_stage(trial: TrialSpec) -> int:
    """The stage in force: one worker has nobody to share with, and ZeRO 1 and 2 in fp32 would only keep flat copies."""
    train = trial.train
    alone = trial.execution.workers == 1 and train.precision == "fp32" and trial.execution.offload == "none"
    return 0 if alone and train.zero_stage in (1, 2) else train.zero_stage


def clips_here(trial: TrialSpec) -> bool:
    """Whether gradients are clipped by jobs/engine.py: DeepSpeed's plain fp32 path would not tell their norm."""
    return zero_stage(trial) == 0 and trial.train.precision == "fp32"


def shards_weights(trial: TrialSpec) -> bool:
    """Whether the weights are sharded, or offloaded, from the moment that they are loaded (jobs/sharded.py)."""
    alone = trial.execution.workers == 1 and trial.execution.offload != "parameters"
    return trial.train.zero_stage == 3 and not alone


def loading_config(trial: TrialSpec, precision: str) -> dict[str, Any]:
    """For deepspeed.zero.Init and an engine that only measures: ZeRO 3 in this precision, without an optimiser."""
    sharing: dict[str, Any] = {"stage": 3, "memory_efficient_linear": False}  # that one would replace torch's for good
    if trial.execution.offload == "parameters":
        sharing["offload_param"] = {"device": "cpu", "pin_memory": False}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": precision == "bf16"},
        "zero_optimization": sharing,
        "steps_per_print": 10**9,
    }


def deepspeed_config(trial: TrialSpec) -> dict[str, Any]:
    """For deepspeed.initialize; the optimiser is torch's AdamW, handed over separately.

    torch's own AdamW needs no C++ build on the CPU and resumes bit for bit in every ZeRO stage.
    """
    train, micro = trial.train, micro_batch_size(trial)
    return {
        "train_batch_size": train.batch_size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": train.batch_size // (micro * trial.execution.workers),
        "gradient_clipping": 0.0 if clips_here(trial) else train.clip,
        "bf16": {"enabled": train.precision == "bf16"},
        "zero_optimization": {"stage": zero_stage(trial)} | _offloads(trial),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


def _offloads(trial: TrialSpec) -> dict[str, Any]:
    """The optimiser's state in host memory, and with `parameters` the weights too."""
    offload, to = trial.execution.offload, {"device": "cpu", "pin_memory": False}
    if offload == "none":
        return {}
    return {"offload_optimizer": to} | ({"offload_param": to} if offload == "parameters" else {})


def check_shape(trial: TrialSpec) -> None:
    """Raises ValueError where the settings of a trial cannot go together."""
    micro_batch_size(trial)
    if trial.evaluation.engine == "vllm" and trial.execution.workers > 1:
        raise ValueError("evaluation.engine vllm goes with execution.workers 1; take transformers for more")
    if trial.execution.workers > 1 and 0 < trial.execution.gpus < 1:
        raise ValueError(
            f"execution.gpus_per_worker {trial.execution.gpus:g} goes with execution.workers 1, since NCCL has no two "
            "workers of a trial on one card; give each a whole one"
        )
    needed = {"none": 0, "optimizer": 1, "parameters": 3}[trial.execution.offload]
    if trial.train.zero_stage < needed:
        raise ValueError(
            f"execution.offload {trial.execution.offload} needs train.zero_stage {needed} or more, "
            f"got {trial.train.zero_stage}"
        )
