"""The yardsticks of a model: token statistics by one forward pass, answers by generation.

Batches are the same whatever the number of workers, and each has its own seed: rank r takes batches
r, r + world, ... All ranks run equally many (some twice, counted once), which ZeRO-3 needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from jobs.data import Encoded, collate
from jobs.hf import import_transformers
from jobs.model import target_statistics
from jobs.scores import final_answer
from jobs.spec import EvalSpec
from jobs.tasks import Example

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def _my_batches(num_rows: int, size: int) -> Iterator[tuple[int, range, float]]:
    """(number, rows, weight) of this rank's batches; weight 0 marks the ones that only keep step."""
    rank, world = dist.get_rank(), dist.get_world_size()
    count = -(-num_rows // size)
    for turn in range(-(-count // world)):
        mine = turn * world + rank
        number = mine % count
        yield number, range(number * size, min(num_rows, (number + 1) * size)), float(mine < count)


def _sum_over_ranks(sums: Tensor) -> list[float]:
    dist.all_reduce(sums)
    return [float(x) for x in sums]


@contextmanager
def _measuring(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode, no gradients, the KV cache on; the global generator is left as it was."""
    was_training, had_cache = model.training, model.config.use_cache
    model.eval()
    model.config.use_cache = True
    try:
        with torch.no_grad(), torch.random.fork_rng():
            yield
    finally:
        model.config.use_cache = had_cache
        model.train(was_training)


def target_rows(
    model: PreTrainedModel, rows: Sequence[Encoded], pad: int, batch_size: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """This rank's batches: (number, log-odds of every target token [N], the row of the batch each stands in [N])."""
    with _measuring(model):
        for number, index, weight in _my_batches(len(rows), batch_size):
            measured, row = target_statistics(model, collate([rows[i] for i in index], pad).to(model.device))
            if weight:
                yield number, measured.log_odds.cpu(), row.cpu()


def token_yardsticks(
    model: PreTrainedModel, rows: Sequence[Encoded], pad: int, batch_size: int, prefix: str
) -> dict[str, float]:
    """Over all target tokens of `rows`: mean -log p (nats), mean p (Eq. 5: token-weighted), token accuracy."""
    sums = torch.zeros(4, dtype=torch.float64, device=model.device)
    with _measuring(model):
        for _, index, weight in _my_batches(len(rows), batch_size):
            measured, _ = target_statistics(model, collate([rows[i] for i in index], pad).to(model.device))
            logp, right = measured.logp.double(), measured.first.double()
            sums += weight * torch.stack([-logp.sum(), logp.exp().sum(), right.sum(), torch.ones_like(logp).sum()])
    nll, p, right_sum, count = _sum_over_ranks(sums)
    return {
        f"{prefix}/nll": nll / count,
        f"{prefix}/mean_p": p / count,
        f"{prefix}/token_accuracy": right_sum / count,
    }


def answer_yardsticks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Encoded],
    examples: Sequence[Example],
    evaluation: EvalSpec,
    marker: str | None,
) -> dict[str, float]:
    """Greedy accuracy and accuracy sampled at T = 1 (mean over k answers a prompt); share of empty answers."""
    sums = torch.zeros(4, dtype=torch.float64, device=model.device)
    with _measuring(model):
        for number, index, weight in _my_batches(len(rows), evaluation.batch_size):
            prompts = [rows[i].ids[: rows[i].prompt_length] for i in index]
            wanted = [final_answer(examples[i].response, marker) for i in index]
            torch.manual_seed(evaluation.seed * 1_000_003 + number)
            for column, samples in ((0, 0), (1, evaluation.samples)):
                texts = _generate(model, tokenizer, prompts, evaluation.max_new_tokens, samples)
                repeat = max(samples, 1)
                got = [final_answer(text, marker) for text in texts]
                right = sum(g == wanted[i // repeat] for i, g in enumerate(got))
                sums[column] += weight * right / repeat
                if samples:
                    sums[2] += weight * sum(not text.strip() for text in texts) / repeat
            sums[3] += weight * len(index)
    greedy, sampled, empty, count = _sum_over_ranks(sums)
    return {
        "task/accuracy_sampled": sampled / count,
        "task/accuracy_greedy": greedy / count,
        "task/empty_rate": empty / count,
    }


def _generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    samples: int,
) -> list[str]:
    """Texts, `samples` a prompt in prompt order (0: one greedy). Plain T = 1: no top-k, no top-p."""
    GenerationConfig = import_transformers().GenerationConfig
    width = max(map(len, prompts))
    pad = int(tokenizer.pad_token_id)
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    stop = int(tokenizer.eos_token_id)
    # the model's own generation defaults (temperature, top_k = 50 ...) would make this another yardstick
    model.generation_config = GenerationConfig(eos_token_id=stop, pad_token_id=pad)
    config = GenerationConfig(
        do_sample=samples > 0,
        num_return_sequences=max(samples, 1),
        max_new_tokens=max_new_tokens,
        eos_token_id=stop,
        pad_token_id=pad,
        **({"temperature": 1.0, "top_k": 0, "top_p": 1.0} if samples else {}),
    )
    out = model.generate(
        ids.to(model.device),
        attention_mask=mask.to(model.device),
        generation_config=config,
        synced_gpus=dist.get_world_size() > 1,
    )
    return list(tokenizer.batch_decode(out[:, width:], skip_special_tokens=True))
