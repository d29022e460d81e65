"""What padding costs and packing saves, on a task's own lengths: python benchmarks/packing.py TRAIN.jsonl [--json]

Share of padding in the micro-batches of one seed's order, and time of forward and backward of a small Llama on some of
them, padded and packed in turn: CPU seconds in fp32, on CUDA seconds in bf16.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenise import cpu_seconds, task_of, tokeniser

from jobs.data import Batch, collate, global_batches, tokenise
from jobs.hf import import_transformers
from jobs.loss import BoundObjective
from jobs.model import ObjectiveModel
from jobs.packing import pack
from jobs.spec import ObjectiveSpec
from jobs.tasks import load_task

MICRO = (4, 8, 16, 32)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if torch.cuda.is_available() else torch.float32


def padding(batches: list[Batch]) -> float:
    return 1 - sum(int(b.mask.sum()) for b in batches) / sum(b.mask.numel() for b in batches)


def small_llama(vocabulary: int, width: int, layers: int) -> ObjectiveModel:
    hf = import_transformers()
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=width // 64, num_key_value_heads=width // 64, tie_word_embeddings=True,
    )  # fmt: skip
    model = hf.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").to(DEVICE, DTYPE)
    return ObjectiveModel(model, BoundObjective.bind(ObjectiveSpec(name="nll")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, help="training examples, JSONL")
    parser.add_argument("--prompt", default="question")
    parser.add_argument("--response", default="answer")
    parser.add_argument("--examples", type=int, default=2048, help="taken in the order of seed 0")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=4, help="micro-batches timed for each size")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    data = load_task(task_of(args.path, args.prompt, args.response))
    name, ids = tokeniser([f"{e.prompt}\n{e.response}" for e in data.train])
    rows = tokenise(ids, data.train)
    model = small_llama(len(ids), args.width, args.layers)
    result: dict[str, Any] = {}
    for micro in MICRO:
        order = global_batches(len(rows), 0, micro, max(args.rounds, args.examples // micro))
        padded = [collate([rows[i] for i in batch], 0) for batch in order]
        packed = [pack([rows[i] for i in batch], 0) for batch in order]
        times: list[tuple[float, float]] = []
        if DEVICE.type == "cuda":  # each shape once beforehand
            for batch in (*padded[: args.rounds], *packed[: args.rounds]):
                step(model, batch)
        for pair in zip(padded[: args.rounds], packed[: args.rounds], strict=True):
            a, b = (seconds(lambda batch=batch: step(model, batch)) for batch in pair)  # type: ignore[misc]
            times.append((a, b))
        result[str(micro)] = {
            "padding_padded": padding(padded), "padding_packed": padding(packed),
            "rows": sum(len(b.ids) for b in packed) / sum(len(b.ids) for b in padded),
            "time": statistics.median(b / a for a, b in times),
        }  # fmt: skip
    if args.json:
        print(json.dumps({"tokeniser": name, "examples": args.examples, "rows": result}, indent=1))
        return
    print(
        f"{name}; a Llama of {args.layers} layers, {args.width} wide\n{'micro-batch':>11}{'padding':>10}{'packed':>10}"
    )
    for micro_size, row in result.items():
        print(f"{micro_size:>11}{row['padding_padded']:10.1%}{row['padding_packed']:10.1%}   rows x {row['rows']:.2f}, "
              f"time x {row['time']:.2f}")  # fmt: skip


def seconds(work: Callable[[], None]) -> float:
    if DEVICE.type == "cpu":
        return cpu_seconds(work)
    torch.cuda.synchronize()
    since = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - since


def step(model: ObjectiveModel, batch: Batch) -> None:
    model.zero_grad()
    batch = batch.to(DEVICE)
    loss, *_ = model(batch, float((batch.labels >= 0).sum()))
    loss.backward()


if __name__ == "__main__":
    main()
