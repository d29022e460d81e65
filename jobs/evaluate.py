"""The yardsticks of a model: token statistics by one forward pass, answers by generation.

Batches are the same whatever the number of workers, and each has its own seed: rank r takes batches
r, r + world, ... All ranks run equally many (some twice, counted once), which ZeRO-3 needs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from jobs.answers import Answer, Reading
from jobs.data import Encoded, collate
from jobs.head_check import check_head
from jobs.hf import import_transformers
from jobs.model import Targets, hidden_states, statistics_of, target_entropy, target_statistics
from jobs.sampling_statistics import bootstrap_interval, pass_at_k
from jobs.scores import Score, score
from jobs.spec import EvalSpec, TrialSpec
from jobs.tasks import Example

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


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
def measuring(model: PreTrainedModel) -> Iterator[None]:
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


@dataclass(frozen=True)
class TargetRows:
    """A batch's target tokens, on the CPU, [N] each.

    log_odds of the target; entropy before it, nats; the row of the batch that it stands in; its place in its response,
    from 0; whether it is the end of one
    """

    number: int
    log_odds: Tensor
    entropy: Tensor
    row: Tensor
    position: Tensor
    eos: Tensor


def target_rows(
    model: PreTrainedModel, rows: Sequence[Encoded], pad: int, ends: Collection[int], batch_size: int
) -> Iterator[TargetRows]:
    """This rank's batches of `rows`. ends: ids that may end a response

    Raises HeadError where the model's probabilities are not what is computed here.
    """
    check_head(model, rows, pad)
    with measuring(model):
        for number, index, weight in _my_batches(len(rows), batch_size):
            batch = collate([rows[i] for i in index], pad).to(model.device)
            targets = Targets.of(hidden_states(model, batch), batch)
            odds, entropy = statistics_of(model, targets).log_odds, target_entropy(model, targets)
            if weight:
                row, ids = targets.row.cpu(), targets.ids.cpu()
                position, last = _places([rows[i] for i in index])
                end = last & torch.isin(ids, torch.tensor(sorted(ends)))
                yield TargetRows(number, odds.cpu(), entropy.cpu(), row, position, end)


def _places(rows: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
    """Of the rows' target tokens, [N] each: their place in their response, from 0; whether they are its last."""
    sizes = [end - start for row in rows for start, end in row.spans]
    position = torch.cat([torch.arange(size) for size in sizes])
    last = torch.zeros(len(position), dtype=torch.bool)
    last[torch.tensor(sizes).cumsum(0) - 1] = True
    return position, last


def token_yardsticks(
    model: PreTrainedModel, rows: Sequence[Encoded], pad: int, batch_size: int, prefix: str
) -> dict[str, float]:
    """Over all target tokens of `rows`: mean -log p (nats), mean p (Eq. 5: token-weighted), token accuracy.

    Raises HeadError where the model's probabilities are not what is computed here.
    """
    check_head(model, rows, pad)
    sums = torch.zeros(4, dtype=torch.float64, device=model.device)
    with measuring(model):
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


@dataclass(frozen=True)
class Problem:
    """One prompt's answers, scored: value in [0, 1] each, the greedy one first, then the k sampled ones."""

    number: int
    texts: list[str]
    scores: list[Score]
    tokens: list[int]  # of each answer, its end not counted
    ended: list[bool]  # by itself, not by max_new_tokens

    @property
    def sampled(self) -> list[float]:
        return [score.value for score in self.scores[1:]]


# prompts' ids, answers a prompt (0: one greedy), temperature, seed -> the answers in prompt order
Answerer = Callable[[Sequence[Sequence[int]], int, float, int], list[Answer]]


@contextmanager
def answering(model: PreTrainedModel, reading: Reading, trial: TrialSpec) -> Iterator[Answerer]:
    """What answers prompts with the model as it is now: transformers, or vLLM where evaluation.engine says so.

    Where a worker has fewer prompts in memory at once, each part of a batch draws what it draws in the whole batch.
    """
    longest = trial.evaluation.max_new_tokens
    if trial.evaluation.engine == "vllm":
        from jobs.vllm_engine import vllm_answerer

        yield vllm_answerer(model, reading, trial)
        return

    size, cache = trial.evaluated_at_once, trial.execution.cache
    # as many parts of every batch on every rank, which ZeRO-3 needs; of a short one some only keep step
    starts = range(0, trial.evaluation.batch_size, size)

    def answer(prompts: Sequence[Sequence[int]], samples: int, temperature: float, seed: int) -> list[Answer]:
        if len(starts) == 1:
            torch.manual_seed(seed)
            return generate(model, reading, prompts, longest, samples, temperature, cache)
        said: list[Answer] = []
        for start in starts if dist.get_world_size() > 1 else starts[: -(-len(prompts) // size)]:
            part = prompts[start : start + size]
            rows = range(start * samples, (start + len(part)) * samples)
            drawn = WholeBatchDraws(len(prompts) * samples, rows, temperature) if part and samples else None
            each = [prompt for prompt in part or prompts[:1] for _ in range(max(samples, 1))]
            torch.manual_seed(seed)
            found = generate(model, reading, each, longest, 0, temperature, cache, drawn)
            said += found if part else []
        return said

    with measuring(model):
        yield answer


def answer_problems(
    answer: Answerer,
    prompts: Sequence[Sequence[int]],
    examples: Sequence[Example],
    evaluation: EvalSpec,
    reading: Reading,
    temperature: float = 1.0,
    stream: int = 0,
) -> list[Problem]:
    """Answer and score every prompt: greedily, and `evaluation.samples` times at `temperature`. All, on every rank.

    stream: tells the draws of one set of problems from those of another; each batch of prompts has a seed of its own
    """
    mine, k = [], evaluation.samples
    for number, index, weight in _my_batches(len(prompts), evaluation.batch_size):
        seed = (evaluation.seed * 1_000_003 + number) ^ (stream << 40)
        batch = [prompts[i] for i in index]
        greedy, sampled = answer(batch, 0, temperature, seed), answer(batch, k, temperature, seed)
        if weight:
            mine += [
                _scored(i, examples[i], reading, [greedy[place], *sampled[place * k : (place + 1) * k]])
                for place, i in enumerate(index)
            ]
    every: list[list[Problem] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(every, mine)
    return sorted((p for part in every for p in part or ()), key=lambda p: p.number)


def _scored(number: int, example: Example, reading: Reading, answers: Sequence[Answer]) -> Problem:
    texts, wanted = [answer.text for answer in answers], reading.content(example.wanted)
    scores = [score(example.score, reading.content(text), wanted, example.entry) for text in texts]
    return Problem(number, texts, scores, [a.tokens for a in answers], [a.ended for a in answers])


def answer_yardsticks(problems: Sequence[Problem], prefix: str) -> dict[str, float]:
    """What a set of problems comes to.

    accuracy_sampled is avg@k with a bootstrap interval over problems (level 0.95), pass_at_k the unbiased estimate for
    k = 2, 4, ... up to the number of samples; rates and answer_tokens are means over the sampled answers.
    """
    drawn = [(p.texts[i], p.scores[i], p.tokens[i], p.ended[i]) for p in problems for i in range(1, len(p.texts))]
    means = [fmean(p.sampled) for p in problems]
    low, high = bootstrap_interval(means)
    k = len(problems[0].sampled)
    return {
        f"{prefix}/accuracy_sampled": fmean(means),
        f"{prefix}/accuracy_sampled_low": low,
        f"{prefix}/accuracy_sampled_high": high,
        f"{prefix}/accuracy_greedy": fmean(p.scores[0].value for p in problems),
        f"{prefix}/empty_rate": fmean(not text.strip() for text, *_ in drawn),
        f"{prefix}/no_answer_rate": fmean(score.answer is None for _, score, *_ in drawn),
        f"{prefix}/truncated_rate": fmean(not ended for *_, ended in drawn),
        f"{prefix}/answer_tokens": fmean(tokens for *_, tokens, _ in drawn),
        **{
            f"{prefix}/pass_at_{n}": fmean(pass_at_k(k, sum(v >= 1 for v in p.sampled), n) for p in problems)
            for n in (2**e for e in range(1, k.bit_length()))
        },
    }


def task_yardsticks(answered: Mapping[str, Sequence[Problem]]) -> dict[str, float]:
    """`task/...` over all sets of problems: of several benchmarks the unweighted mean, and each one's own beside it.

    The interval of a mean over benchmarks is from bootstrap means of each, benchmark by benchmark.
    """
    each = {name: answer_yardsticks(problems, f"benchmark/{name}") for name, problems in answered.items()}
    if len(each) == 1:
        name, row = next(iter(each.items()))
        return {key.replace(f"benchmark/{name}", "task", 1): value for key, value in row.items()}
    own = [{key.removeprefix(f"benchmark/{name}/"): v for key, v in row.items()} for name, row in each.items()]
    row = {f"task/{key}": fmean(one[key] for one in own) for key in own[0]}
    low, high = bootstrap_interval(*([fmean(p.sampled) for p in problems] for problems in answered.values()))
    row |= {"task/accuracy_sampled_low": low, "task/accuracy_sampled_high": high}
    return row | {key: value for one in each.values() for key, value in one.items()}


class WholeBatchDraws:
    """A logits processor that lets the largest score be what torch.multinomial draws for these rows in a whole batch.

    It draws as torch.multinomial does: of p / q with q exponential for every row and token. So all rows' q are drawn at
    every step, and some are used.
    """

    def __init__(self, of: int, rows: range, temperature: float) -> None:
        self.of, self.rows, self.temperature = of, rows, temperature

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """scores [rows, vocabulary] -> the same shape"""
        q = torch.empty(self.of, scores.shape[1], dtype=scores.dtype, device=scores.device).exponential_()
        p = torch.softmax(scores / self.temperature, dim=-1)
        return p / q[self.rows.start : self.rows.stop]


class StopAtText:
    """A stopping criterion: rows whose text holds one of the texts that end an answer. width: tokens of the prompts."""

    def __init__(self, reading: Reading, width: int) -> None:
        self.reading, self.width = reading, width
        # a character may take four tokens (bytes); what was looked at before need not be looked at again
        self.tail = 4 * max(map(len, reading.strings)) + 4

    def __call__(self, ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        """ids [rows, tokens] -> whether each row is over, [rows]"""
        tails = ids[:, max(self.width, ids.shape[1] - self.tail) :].tolist()
        over = [self.reading.string_at(self.reading.text(tail)) is not None for tail in tails]
        return torch.tensor(over, device=ids.device)


def generate(
    model: PreTrainedModel,
    reading: Reading,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    samples: int,
    temperature: float,
    cache: str,
    chooser: WholeBatchDraws | None = None,
) -> list[Answer]:
    """`samples` answers a prompt in prompt order (0: one greedy). No top-k, no top-p.

    cache: of keys and values: dynamic grows with the answers, static is allocated whole (compiled on CUDA)
    chooser: makes of the scores others, whose largest is taken; with no samples
    """
    GenerationConfig = import_transformers().GenerationConfig
    width = max(map(len, prompts))
    pad, stops = int(reading.tokenizer.pad_token_id), list(reading.stops)
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    config = GenerationConfig(
        do_sample=samples > 0,
        num_return_sequences=max(samples, 1),
        max_new_tokens=max_new_tokens,
        eos_token_id=stops,
        pad_token_id=pad,
        cache_implementation=cache,
        **({"temperature": temperature, "top_k": 0, "top_p": 1.0} if samples else {}),
    )
    own = model.generation_config
    # the model's own generation defaults (temperature, top_k = 50 ...) would make this another yardstick
    model.generation_config = GenerationConfig(eos_token_id=stops, pad_token_id=pad)
    try:
        out = model.generate(
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=config,
            synced_gpus=dist.get_world_size() > 1,
            logits_processor=[chooser] if chooser is not None else None,
            stopping_criteria=[StopAtText(reading, width)] if reading.strings else None,
        )
    finally:
        model.generation_config = own
    return [reading.answer(said) for said in out[:, width:].tolist()]
