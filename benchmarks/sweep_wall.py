"""How much of a sweep's wall time is not training: python benchmarks/sweep_wall.py [SPEC] [--set KEY=VALUE] [--json]

Runs the sweep (default: examples/quickstart.yaml) in a fresh storage and compares its wall time, from the command to
its end, with the ideal: the seconds that its trials trained (steps, evaluation, checkpoints; of all legs, of stopped
trials too), each times its workers, spread over the slots without a gap. Both are of the same run, so other load
stretches both.

    setup    what trials took in their workers besides: backbone, engine, check; spread likewise
    before   until the first trial begins: Python, plan, Ray, pre-training of built-in backbones, lanes
    between  while trials are left: all that slots waited
    after    from the last trial's end: MLflow, report, Ray

With --prepared the storage holds what an earlier sweep has left there: pre-trained built-in backbones, tokenised tasks.
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

from jobs.record import TrialFolder

ROOT = Path(__file__).resolve().parents[1]


def prepared(spec: Path, settings: list[str], storage: Path) -> None:
    """Do beforehand what a sweep does once a storage, however many trials it has."""
    from sweeper.inputs import prepare
    from sweeper.plan import make_plan
    from sweeper.spec import load_sweep

    prepare(list(make_plan(load_sweep(spec, sets=settings), ROOT).trials), storage)


def measure(spec: Path, settings: list[str], slots: int, before: bool = False) -> dict[str, Any]:
    """slots: workers that train at once; before: what is made once a storage is there already"""
    with tempfile.TemporaryDirectory() as folder:
        if before:
            prepared(spec, settings, Path(folder))
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
        folders = [TrialFolder(file.parent) for file in Path(folder).glob("trials/*/result.json")]
        results = [(f.result() or {}) | {"workers": f.spec().execution.workers} for f in folders]
        first = min(f.started() or ended for f in folders)
    work, setup = (sum(r.get(name, 0.0) * r["workers"] for r in results) for name in ("train_s", "setup_s"))
    last = max(result["time"] for result in results)
    return {
        "trials": len(results),
        "slots": slots,
        "wall_s": ended - started,
        "ideal_s": work / slots,
        "ratio": (ended - started) * slots / work,
        "before_s": first - started,
        "setup_s": setup / slots,
        "between_s": last - first - (work + setup) / slots,
        "after_s": ended - last,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", nargs="?", type=Path, default=ROOT / "examples" / "quickstart.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for sweeper run")
    parser.add_argument("--slots", type=int, default=os.cpu_count(), help="workers at once (default: one a CPU)")
    parser.add_argument("--prepared", action="store_true", help="backbones and tasks are in the storage already")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = measure(args.spec.resolve(), args.set, args.slots, args.prepared)
    if args.json:
        print(json.dumps(found, indent=1))
        return
    print("{trials} trials on {slots} slots: {wall_s:.0f} s, ideal {ideal_s:.0f} s, ratio {ratio:.2f}".format(**found))
    print("before {before_s:.1f} s, set-up of trials {setup_s:.1f} s, ".format(**found), end="")
    print("between {between_s:.1f} s, after {after_s:.1f} s".format(**found))


if __name__ == "__main__":
    main()
