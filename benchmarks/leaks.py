"""What the check for leaks from training to evaluation costs: python benchmarks/leaks.py [--json]

Made-up texts of words drawn evenly from 30,000; some evaluation examples are copies of training ones. CPU seconds of
one thread.
"""

import argparse
import json
import random
import time

from jobs.leaks import leaks
from jobs.tasks import Example


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=int, default=100_000, help="training examples")
    parser.add_argument("--measured", type=int, default=5_000, help="evaluation examples")
    parser.add_argument("--words", type=int, default=200, help="of a prompt and its response together")
    parser.add_argument("--planted", type=int, default=10, help="evaluation examples that are training ones")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rng = random.Random(0)
    words = [f"w{i}" for i in range(30_000)]

    def example() -> Example:
        text = rng.choices(words, k=args.words)
        return Example(" ".join(text[: args.words // 3]), " ".join(text[args.words // 3 :]))

    train = [example() for _ in range(args.train)]
    measured = [*train[: args.planted], *(example() for _ in range(args.measured - args.planted))]
    since = time.process_time()
    found = leaks(train, measured)
    result = vars(args) | {"cpu_seconds": time.process_time() - since, "found": found["ngram"]}
    if args.json:
        print(json.dumps(result, indent=1))
        return
    print(
        f"{args.train} x {args.measured} examples of {args.words} words: {result['cpu_seconds']:.1f} CPU seconds; "
        f"{found['ngram']} of {args.planted} planted leaks found"
    )


if __name__ == "__main__":
    main()
