"""How long `sweeper plan` takes, beside a Python that does nothing: python benchmarks/plan_time.py [SPEC] [--json]"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROUNDS = 7


def seconds(*command: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec", nargs="?", default="examples/quickstart.yaml")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rounds = [
        {"nothing": seconds("-c", "pass"), "plan": seconds("-m", "sweeper", "plan", args.spec)} for _ in range(ROUNDS)
    ]
    table = {
        name: {
            "median_s": statistics.median(r[name] for r in rounds),
            "min_s": min(r[name] for r in rounds),
            "max_s": max(r[name] for r in rounds),
        }
        for name in ("nothing", "plan")
    }
    if args.json:
        print(json.dumps({"spec": args.spec, "rounds": ROUNDS, **table}, indent=1))
        return
    print(f"{args.spec}, {ROUNDS} rounds, interleaved\n{'':10}{'median':>9}{'min':>9}{'max':>9}   (seconds)")
    for name, row in table.items():
        print(f"{name:10}" + "".join(f"{value:9.2f}" for value in row.values()))


main()
