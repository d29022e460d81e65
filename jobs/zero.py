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


def deepspeed_config(trial: TrialSpec) -> dict[str, Any]:
    """For deepspeed.initialize; the optimiser is torch's AdamW, handed over separately.

    torch's own AdamW needs no C++ build on the CPU and resumes bit for bit in every ZeRO stage.
    """
    train, micro = trial.train, micro_batch_size(trial)
    return {
        "train_batch_size": train.batch_size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": train.batch_size // (micro * trial.execution.workers),
        "gradient_clipping": train.clip,
        "bf16": {"enabled": train.precision == "bf16"},
        "zero_optimization": {"stage": train.zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
