"""How much of a sweep's wall time is not training: python benchmarks/sweep_wall.py [SPEC] [--set KEY=VALUE] [--json]

Runs the sweep (default: examples/quickstart.yaml) in a fresh storage and compares its wall time, from the command to
its end, with the ideal: the seconds that its trials took inside their workers (training, evaluation, checkpoints), each
times its workers, spread over the slots without a gap. Both are of the same run, so other load stretches both.

    before   until the first trial begins: Python, plan, Ray, pre-training of built-in backbones, lanes
    between  while trials are left: all that slots waited
    after    from the last trial's end: MLflow, report, Ray
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def measure(spec: Path, settings: list[str], slots: int) -> dict[str, Any]:
    """slots: workers that train at once"""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "sweeper", "run", spec, "--storage", folder]
        command += [word for setting in settings for word in ("--set", setting)]
        started = time.time()
        done = subprocess.run(
            [str(word) for word in command],
            env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        ended = time.time()
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        results = [json.loads(file.read_text()) for file in Path(folder).glob("trials/*/result.json")]
    work = sum(result["train_s"] * result["workers"] for result in results)
    first = min(result["time"] - result.get("wall_s", result["train_s"]) for result in results)
    last = max(result["time"] for result in results)
    return {
        "trials": len(results),
        "slots": slots,
        "wall_s": ended - started,
        "ideal_s": work / slots,
        "ratio": (ended - started) * slots / work,
        "before_s": first - started,
        "between_s": last - first - work / slots,
        "after_s": ended - last,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", nargs="?", type=Path, default=ROOT / "examples" / "quickstart.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for sweeper run")
    parser.add_argument("--slots", type=int, default=os.cpu_count(), help="workers at once (default: one a CPU)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = measure(args.spec.resolve(), args.set, args.slots)
    if args.json:
        print(json.dumps(found, indent=1))
        return
    print("{trials} trials on {slots} slots: {wall_s:.0f} s, ideal {ideal_s:.0f} s, ratio {ratio:.2f}".format(**found))
    print("before {before_s:.1f} s, between {between_s:.1f} s, after {after_s:.1f} s".format(**found))


if __name__ == "__main__":
    main()
