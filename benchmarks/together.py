"""Trials together on one frozen backbone, beside one after another and beside processes: python benchmarks/together.py

K LoRA trials of a Llama of SmolLM2-135M's shape (random weights), each in three ways:

    in turn    one process, one trial after another, as a lane does
    processes  K processes at once, as K lanes do
    together   one process, all K in each step (jobs/together.py)

Work is CPU seconds a trial and step (user and system, all processes), wall the tokens a second of all K. Memory is the
peak beyond what a process holds before its model is made, proportional set sizes summed over processes, so that what
they share is counted once; on CUDA what torch has of the card and, a process, CUDA beside it. Ratios are to `in turn`
with the same K. Each way runs in processes of its own, in turn; on CUDA in bf16.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

SMOL = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "tie_word_embeddings": True, "max_position_embeddings": 2048,
}  # fmt: skip
OBJECTIVES: list[dict[str, Any]] = [
    {"name": "nll"}, {"name": "one-minus-p"}, {"name": "power", "alpha": 0.5}, {"name": "power", "alpha": 2.0},
]  # fmt: skip
WAYS = ("in turn", "processes", "together")


def proportional_mb() -> float:
    """This process's memory; a page that n processes map counts 1/n."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 2**10
    return 0.0


class Peak:
    """Of this process's memory, looked at every few hundredths of a second."""

    def __init__(self) -> None:
        self.before = self.highest = proportional_mb()
        self.over = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self.over.wait(0.05):
            self.highest = max(self.highest, proportional_mb())

    def mb(self) -> float:
        self.over.set()
        return self.highest - self.before


class CardPeak:
    """Bytes of the card that this process takes at its peak: torch's and, beside it, CUDA's own."""

    def __init__(self) -> None:
        import torch

        free, total = torch.cuda.mem_get_info()
        self.context = float(os.environ.get("CUDA_CONTEXT_MB") or (total - free - torch.cuda.memory_reserved()) / 2**20)

    def mb(self) -> float:
        import torch

        return torch.cuda.max_memory_reserved() / 2**20 + self.context


def make_model(folder: Path, layers: int, vocab: int) -> None:
    """A model directory with the built-in tokenizer; rows are ids of characters, the head is as wide as `vocab`."""
    import torch

    from jobs.hf import import_transformers
    from jobs.pretrain import char_tokenizer

    hf = import_transformers()
    torch.manual_seed(0)
    config = hf.LlamaConfig(**SMOL | {"num_hidden_layers": layers, "vocab_size": vocab})
    hf.LlamaForCausalLM(config).save_pretrained(folder)
    char_tokenizer().save_pretrained(folder)
    text = "".join(str(i * 7 % 10) for i in range(4096))
    rows = [{"prompt": text[i : i + 32], "response": text[i : i + 96]} for i in range(0, 2048, 8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def trials(args: argparse.Namespace, count: int) -> list[Any]:
    from jobs.spec import TrialSpec

    folder = str(args.folder)
    return [
        TrialSpec.model_validate(
            {
                "backbone": {"path": folder, "lora": {"rank": 16}, "fingerprint": "bench"},
                "task": {"path": f"{folder}/rows.jsonl", "heldout_examples": 1},
                "objective": OBJECTIVES[i % len(OBJECTIVES)], "seed": i,
                "train": {"lr": 1e-4, "batch_size": args.batch, "steps": args.steps, "max_length": 160,
                          "log_every": 1, "checkpoint_every": 1000, "precision": args.precision},
                "evaluation": {"samples": 1, "max_new_tokens": 1, "batch_size": 1},
            }
        )
        for i in range(count)
    ]  # fmt: skip


class Clock:
    """Wall and CPU seconds from the end of a trial's first step, which warms up, to that of the last but one."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []

    def report(self, *_: Any) -> bool:
        self.marks.append((time.perf_counter(), time.process_time()))
        return True

    def spent(self) -> tuple[float, float]:
        (wall, cpu), (end_wall, end_cpu) = self.marks[0], self.marks[-2]
        return end_wall - wall, end_cpu - cpu


def child(args: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(args.threads)
    from jobs.hf import import_transformers
    from jobs.together import Member, train_together
    from jobs.train import train

    import_transformers().LlamaForCausalLM  # noqa: B018 its import is in the baseline
    mine = trials(args, args.trials)[args.first :]
    peak = CardPeak() if torch.cuda.is_available() else Peak()
    clocks = [Clock() for _ in mine]
    if args.child == "together":
        members = [Member(t, c.report, lambda _: None) for t, c in zip(mine, clocks, strict=True)]
        train_together(members, args.folder)
        spent = clocks[-1].spent()  # one clock for all: they are in step
    else:
        for one, clock in zip(mine[:1] if args.child == "processes" else mine, clocks, strict=False):
            train(one, args.folder, clock.report)
        each = [clock.spent() for clock in clocks if clock.marks]
        spent = sum(wall for wall, _ in each), sum(cpu for _, cpu in each)
    print("RESULT " + json.dumps({"wall": spent[0], "cpu": spent[1], "peak_mb": peak.mb()} | context_mb(peak)))


def context_mb(peak: Peak | CardPeak) -> dict[str, float]:
    return {"context_mb": peak.context} if isinstance(peak, CardPeak) else {}


def measure(args: argparse.Namespace, way: str, count: int) -> dict[str, float]:
    """One way, once: wall seconds and CPU seconds over the steps measured, peak memory, over all its processes."""
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": str(args.threads)}
    passed = [f"--{n}={getattr(args, n)}" for n in ("batch", "steps", "threads", "folder", "precision")]
    firsts = range(count) if way == "processes" else range(1)
    started = [
        subprocess.Popen(
            [sys.executable, __file__, *passed, "--child", way, f"--trials={count}", f"--first={first}"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env,
        )
        for first in firsts
    ]  # fmt: skip
    found = []
    for process in started:
        out, errors = process.communicate()
        if process.returncode:
            raise SystemExit(errors[-3000:])
        found.append(json.loads(next(line[7:] for line in out.splitlines() if line.startswith("RESULT "))))
    return {
        "wall": max(f["wall"] for f in found),
        "cpu": sum(f["cpu"] for f in found),
        "peak_mb": sum(f["peak_mb"] for f in found),
        "context_mb": found[0].get("context_mb", 0.0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[1, 2, 4, 8], help="K")
    parser.add_argument("--batch", type=int, default=4, help="sequences of 129 tokens a step, each trial's")
    parser.add_argument("--steps", type=int, default=5, help="of each trial; the first and the last are not timed")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--threads", type=int, default=1, help="a process")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="bf16 on CUDA, else fp32")
    parser.add_argument("--json", action="store_true")
    for hidden in ("--child", "--folder", "--first"):
        parser.add_argument(hidden, default=None if hidden != "--first" else 0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.first, args.folder = int(args.first), Path(args.folder) if args.folder else None
    if args.child:
        args.trials = args.trials[0]
        child(args)
        return
    import torch

    args.precision = args.precision or ("bf16" if torch.cuda.is_available() else "fp32")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        args.folder = Path(folder)
        make_model(args.folder, args.layers, args.vocab)
        for count in args.trials:
            base: dict[str, float] = {}
            for way in WAYS:
                found = measure(args, way, count)
                base = base or found
                if found["context_mb"]:  # a card that others are on does not tell how much of it is whose
                    os.environ["CUDA_CONTEXT_MB"] = str(found["context_mb"])
                steps = count * (args.steps - 2)
                rows.append(
                    {
                        "trials": count, "way": way, "cpu_s_a_step": found["cpu"] / steps,
                        "tokens_per_s": steps * args.batch * 129 / found["wall"], "peak_mb": found["peak_mb"],
                        "work_ratio": found["cpu"] / base["cpu"], "speed_ratio": base["wall"] / found["wall"],
                        "memory_ratio": found["peak_mb"] / base["peak_mb"],
                    }
                )  # fmt: skip
                print(f"  {count} {way} {found}", file=sys.stderr, flush=True)
    if args.json:
        print(json.dumps({"batch": args.batch, "steps": args.steps, "threads": args.threads, "rows": rows}, indent=1))
        return
    print(
        f"{args.precision}, {args.batch} x 129 tokens a trial and step, {args.steps - 2} steps timed, "
        f"{args.threads} thread a process"
    )
    print(f"{'K':>2} {'way':10}{'CPU s / trial-step':>20}  ratio  tokens/s  ratio  peak MB  ratio")
    for r in rows:
        print(
            f"{r['trials']:2} {r['way']:10}{r['cpu_s_a_step']:20.2f}{r['work_ratio']:7.2f}{r['tokens_per_s']:10.0f}"
            f"{r['speed_ratio']:7.2f}{r['peak_mb']:9.0f}{r['memory_ratio']:7.2f}"
        )


if __name__ == "__main__":
    main()
