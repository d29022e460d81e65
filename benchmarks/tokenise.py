"""What 12 trials pay for their task as token ids: each tokenising it, against one corpus that all of them map.

    python benchmarks/tokenise.py FILE.jsonl [--prompt question --response answer] [--json]

The tokeniser is a byte-level BPE trained on the file on the spot. Both ways end with every id in the trial's hands.
CPU seconds, and how often the task was tokenised.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs import corpus as corpora
from jobs.data import tokenise
from jobs.hf import import_transformers
from jobs.task_spec import TaskSpec
from jobs.tasks import load_task

TRIALS = 12
VOCABULARY = 8192


def bpe(texts: list[str]) -> Any:
    from tokenizers import ByteLevelBPETokenizer

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(texts, vocab_size=VOCABULARY, special_tokens=["<eos>"], show_progress=False)
    return import_transformers().PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token="<eos>")


def cpu_seconds(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--prompt", default="question")
    parser.add_argument("--response", default="answer")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    task = TaskSpec(path=str(Path(args.file).resolve()), prompt=args.prompt, response=args.response)
    data = load_task(task)
    tokenizer = bpe([f"{e.prompt}\n{e.response}" for e in data.train])

    def alone() -> list[int]:
        loaded = load_task(task)
        return [len(row.ids) for row in tokenise(tokenizer, [*loaded.train, *loaded.heldout])]

    with tempfile.TemporaryDirectory() as root:

        def mapped() -> list[int]:
            made = corpora.corpus(tokenizer, task, Path(root))
            return [len(row.ids) for kind in ("train", "heldout") for row in made.rows(kind, 1 << 20)]

        first = cpu_seconds(mapped)
        assert mapped() == alone()
        # interleaved, so that drifting load falls on both
        each = [(cpu_seconds(alone), cpu_seconds(mapped)) for _ in range(TRIALS)]
        facts = corpora.corpus(tokenizer, task, Path(root)).facts
    every, once = sum(a for a, _ in each), first + sum(m for _, m in each[1:])
    found = {
        "examples": facts["train"]["examples"], "tokens": facts["train"]["tokens"], "trials": TRIALS,
        "tokenised": facts["runs"], "each_s": every, "once_s": once, "ratio": every / once,
    }  # fmt: skip
    if args.json:
        print(json.dumps(found, indent=1))
        return
    print(f"{found['examples']} examples, {found['tokens']} tokens, {TRIALS} trials; CPU seconds")
    print(f"{'':34}{'all trials':>12}{'tokenised':>12}")
    print(f"{'each trial tokenises':34}{every:12.2f}{TRIALS:12}")
    print(f"{'one corpus, mapped (leaks counted)':34}{once:12.2f}{facts['runs']:12}")
    print(f"{every / once:.1f} times less")


if __name__ == "__main__":
    main()
