"""What it costs to start a trial: python benchmarks/startup.py [--trials 32] [--more 128] [--others 4] [--json]

The same one-step trials (a small Llama, one worker) by every way there is:

    lanes         sweeper run
    a trial more  what each of --more trials beyond those has cost
    no lanes      sweeper run with lanes: false, a worker group a trial
    tune + train  Ray Tune over Ray Train as Ray documents it: a function trainable that calls TorchTrainer.fit()
    plain         a Python process a trial
    torchrun, deepspeed   that process under either launcher
    imports       a process that imports what one of our workers must have (ray.train, torch, deepspeed, transformers)
                  and does nothing: two of them are the least that two lanes can take, however many trials they serve

CPU seconds are of all processes that a way has started, Ray's own among them, sampled from /proc. Backbone and
tokenised task are there before, for all. Taken off ours is what the same command takes when all is trained (`base`:
plan, everything into a fresh MLflow database, report), which the others do not do.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TICKS = os.sysconf("SC_CLK_TCK")

ONE = """
import sys
from pathlib import Path
from jobs.spec import TrialSpec
from jobs.train import train
import torch
torch.set_num_threads(1)
train(TrialSpec.model_validate_json(Path(sys.argv[1]).read_text()), Path(sys.argv[2]), lambda *_: True)
"""

IMPORTS = """
import jobs.worker
from jobs.hf import import_transformers
import_transformers().LlamaForCausalLM
"""

DOCUMENTED = """
import sys
from pathlib import Path
import ray
from ray import tune
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

root, storage, files = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]

def train_fn(config):
    import torch
    from jobs.spec import TrialSpec
    from jobs.train import train
    torch.set_num_threads(1)
    train(TrialSpec.model_validate_json(Path(config["file"]).read_text()), root, lambda *_: True)

def driver(config):
    name = "train-" + Path(config["file"]).stem
    TorchTrainer(train_fn, train_loop_config=config, scaling_config=ScalingConfig(num_workers=1),
                 run_config=RunConfig(name=name, storage_path=storage)).fit()

ray.init(num_cpus=2, include_dashboard=True, log_to_driver=False)
tuner = tune.Tuner(
    tune.with_resources(driver, {"cpu": 0.01}), param_space={"file": tune.grid_search(files)},
    tune_config=tune.TuneConfig(max_concurrent_trials=2), run_config=tune.RunConfig(storage_path=storage),
)
assert not tuner.fit().errors
"""


def spec(name: str, trials: int, lanes: bool) -> dict[str, Any]:
    return {
        "name": name,
        "grid": {
            "backbone": [{"builtin": "char-llama", "pretrain_steps": 0}],
            "task": [{"builtin": "addition", "train_examples": 64, "heldout_examples": 8}],
            "objective": ["nll"],
            "seed": list(range(trials)),
        },
        "train": {"lr": 1e-3, "steps": 1, "batch_size": 8, "max_length": 32},
        "evaluation": {"samples": 1, "max_new_tokens": 1, "batch_size": 8},
        "lanes": lanes,
    }


class Meter:
    """CPU seconds of a command and of all that it starts, told by a mark in their environment."""

    def __init__(self) -> None:
        self.mark = f"STARTUP_BENCHMARK={os.getpid()}-{time.time_ns()}"
        self.seen: dict[tuple[int, str], float] = {}
        self.ours: dict[tuple[int, str], bool] = {}

    def run(self, command: list[Any], count: int = 1) -> dict[str, float]:
        """`command` `count` times, one after another."""
        name, value = self.mark.split("=")
        stop = threading.Event()
        sampler = threading.Thread(target=self._sample, args=(stop,))
        sampler.start()
        started = time.perf_counter()
        for _ in range(count):
            done = subprocess.run(
                [str(part) for part in command], env=os.environ | {name: value, "PYTHONPATH": str(ROOT)}, cwd=ROOT,
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode:
                raise SystemExit(f"{command}: {done.stderr[-3000:]}")
        wall = time.perf_counter() - started
        time.sleep(0.3)  # two more samples
        stop.set()
        sampler.join()
        return {"wall_s": wall, "cpu_s": sum(self.seen.values())}

    def _sample(self, stop: threading.Event) -> None:
        while not stop.wait(0.1):
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit():
                    try:
                        self._look(int(entry.name))
                    except (OSError, ValueError):
                        continue  # gone meanwhile

    def _look(self, process: int) -> None:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        who = (process, fields[19])
        if who not in self.ours:
            self.ours[who] = self.mark.encode() in Path(f"/proc/{process}/environ").read_bytes()
        if self.ours[who]:
            self.seen[who] = (int(fields[11]) + int(fields[12])) / TICKS


def ours(prepared: Path, folder: Path, trials: int, lanes: bool) -> dict[str, Any]:
    """A sweep of `trials`, beside the same command with all but MLflow and the report done."""
    storage = folder / f"lanes-{lanes}-{trials}"
    shutil.copytree(prepared, storage)
    file = storage / "spec.yaml"
    file.write_text(json.dumps(spec("started", trials, lanes)))
    command = [sys.executable, "-m", "sweeper", "run", file, "--storage", storage]
    whole = Meter().run(command)
    for result in (storage / "trials").glob("*_nll_*/result.json"):
        found = json.loads(result.read_text())
        whole["in_trials_s"] = whole.get("in_trials_s", 0.0) + found["setup_s"] + found["train_s"]
    for file in storage.glob("mlflow.db*"):
        file.unlink()
    whole["base_cpu_s"] = Meter().run(command)["cpu_s"]
    return {"trials": trials} | whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=32, help="of a sweep with lanes (default: 32)")
    parser.add_argument("--more", type=int, default=128, help="of a longer one beyond them (default: 128)")
    parser.add_argument("--others", type=int, default=4, help="of every other way (default: 4)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = measure(Path(name), args.trials, args.more, args.others)
    if args.json:
        print(json.dumps(found, indent=1))
        return
    print(f"{'way':14} trials   CPU s a trial   wall s a trial   base CPU s")
    for way, line in found.items():
        n, base = line["trials"], line.get("base_cpu_s", 0.0)
        print(f"{way:14} {n:6d} {(line['cpu_s'] - base) / n:15.2f} {line['wall_s'] / n:16.2f} {base:12.1f}")


def measure(folder: Path, trials: int, more: int, others: int) -> dict[str, Any]:
    from sweeper.inputs import prepare
    from sweeper.plan import make_plan
    from sweeper.spec import parse_sweep

    root = folder / "prepared"
    root.mkdir()
    some = make_plan(parse_sweep(json.dumps(spec("some", others, True)), "some"), root).trials
    prepare(list(some), root)
    files = []
    for number, trial in enumerate(t for t in some if t.objective is not None):
        files.append(folder / f"trial-{number}.json")
        files[-1].write_text(trial.model_dump_json())
    one, documented = folder / "one.py", folder / "documented.py"
    one.write_text(ONE)
    documented.write_text(DOCUMENTED)
    bin_ = Path(sys.executable).parent
    found = {"lanes": ours(root, folder, trials, lanes=True)}
    longer = ours(root, folder, trials + more, lanes=True)
    found["a trial more"] = {name: longer[name] - value for name, value in found["lanes"].items()}
    found["no lanes"] = ours(root, folder, others, lanes=False)
    command = [sys.executable, documented, root, folder / "ray", *files]
    found["tune + train"] = {"trials": others, **Meter().run(command)}
    single = {"plain": [sys.executable, one], "torchrun": [bin_ / "torchrun", "--nproc-per-node=1", one],
              "deepspeed": [bin_ / "deepspeed", "--num_gpus=1", "--no_local_rank", one]}  # fmt: skip
    for way, command in single.items():
        found[way] = {"trials": others, **Meter().run([*command, files[0], root], others)}
    found["imports"] = {"trials": others, **Meter().run([sys.executable, "-c", IMPORTS], others)}
    return found


if __name__ == "__main__":
    main()
