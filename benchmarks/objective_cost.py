"""What an objective costs, beside plain NLL and beside other ways to compute it.

    python benchmarks/objective_cost.py                   CPU shapes, a table
    python benchmarks/objective_cost.py --device cuda     the CUDA shape in bf16
    python benchmarks/objective_cost.py --json

One process, every candidate once a round, in turn, each right after our NLL; a ratio is the median over rounds of
(its time / that NLL's time), on a CPU in CPU seconds, so that other load disturbs both alike. "nll again" is our NLL
measured so against itself: the noise. Memory is the peak beyond what was there before and beyond the two gradients,
which nobody can avoid. Of the targets a third each lies near p = 1e-6, 0.5 and 1 - 1e-9, so that denormals and
saturation are in the timing.
Other libraries are measured where they are installed:
pip install cut-cross-entropy liger-kernel triton
"""

import argparse
import gc
import json
import math
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jobs import fused
from jobs.fused import Context, Head
from jobs.loss import BoundObjective
from jobs.objectives import OBJECTIVES, State
from jobs.spec import ObjectiveSpec

# tokens, hidden size, vocabulary: SmolLM2-135M's head, Qwen2.5-0.5B's, Qwen2.5-7B's
SHAPES = {"cpu": [(2048, 576, 49152), (4096, 896, 151936)], "cuda": [(16384, 3584, 152064)]}
LARGE = 10**12  # multiplications: beyond it a CPU measures fewer objectives
POINTS = (1e-6, 0.5, 1 - 1e-9)
Step = Callable[[], Tensor]


def specs(all_of_them: bool) -> dict[str, ObjectiveSpec]:
    """By label: the paper's, their gates, and (all_of_them) the rest of the table."""
    given = {"power": {"alpha": 0.5}, "profit": {"threshold": 0.2}}
    few = [
        {"name": "power", "alpha": 0.5}, {"name": "power", "alpha": -0.5}, {"name": "power", "alpha": 10},
        {"name": "one-minus-p"}, {"name": "unlikelihood"},
        {"name": "nll", "gate": {"side": "top", "at": 0.2}}, {"name": "nll", "gate": {"side": "bottom", "at": 0.2}},
        {"name": "adaptive"},
    ]  # fmt: skip
    done = {"nll", "power", "one-minus-p", "unlikelihood", "adaptive"}
    same = {"adaptive-squared", "adaptive-root", "adaptive-odds", "adaptive-probe", "adaptive-ramp", "eaft-fixed"}
    rest = [{"name": name} | given.get(name, {}) for name in OBJECTIVES if name not in done | same]
    chosen = [ObjectiveSpec.model_validate(item) for item in (few + rest if all_of_them else few[:1] + few[3:6])]
    return {spec.label: spec for spec in chosen}


class Problem:
    """Hidden states, head and targets of one shape."""

    def __init__(self, shape: tuple[int, int, int], device: str, dtype: torch.dtype) -> None:
        tokens, width, vocab = shape
        g = torch.Generator(device).manual_seed(0)
        head = torch.randn(vocab, width, generator=g, device=device) / math.sqrt(width)
        self.target = torch.randint(vocab, (tokens,), generator=g, device=device)
        hidden = torch.randn(tokens, width, generator=g, device=device)
        # move every hidden state along its target's row of the head until the target has the p that is wanted
        wanted = torch.tensor([math.log(p) - math.log1p(-p) for p in POINTS], device=device)
        row = head[self.target]
        for _ in range(2):  # the move shifts the other logits too
            with torch.no_grad():
                odds = fused.linear_objective(hidden, Head(head), self.target, NLL).log_odds
            move = wanted.repeat(tokens // len(POINTS) + 1)[:tokens] - odds
            hidden = hidden + (move / row.square().sum(1)).unsqueeze(1) * row
        self.hidden = hidden.to(dtype).requires_grad_()
        self.head = head.to(dtype).requires_grad_()
        self.reference = (torch.randn(tokens, width, generator=g, device=device).to(dtype), Head(self.head.detach()))
        numbers = (torch.tensor(x, device=device) for x in (0.5, 1.0, 0.5, 0.5))
        self.context = Context(State(*numbers), self.reference, torch.arange(tokens, device=device) // 128)

    def ours(self, spec: ObjectiveSpec) -> Step:
        bound = BoundObjective(spec)
        if spec.gate is not None:
            bound = BoundObjective.bind(spec)

        def step() -> Tensor:
            loss = fused.linear_objective(self.hidden, Head(self.head), self.target, bound, self.context)
            return loss.total / len(self.target)

        return step


NLL = BoundObjective.bind(ObjectiveSpec(name="nll"))


def rivals(p: Problem) -> Iterator[tuple[str, Step]]:
    """Other ways to plain NLL; those that are not installed, or do not run here, are left out with a word."""
    yield (
        "authors' way: fp32 logits, log_softmax",
        lambda: -(F.linear(p.hidden, p.head).float().log_softmax(-1).gather(1, p.target.unsqueeze(1)).mean()),
    )
    yield "F.cross_entropy", lambda: F.cross_entropy(F.linear(p.hidden, p.head), p.target)
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):
        options = torch.nn.LinearCrossEntropyOptions
        rows = max(1, fused.CHUNK_BYTES // (4 * len(p.head)))
        for label, choice in (("as it comes", options()), ("our chunk", options(batch_chunk_size=rows))):
            yield (
                f"torch fused, {label}",
                lambda choice=choice: F.linear_cross_entropy(p.hidden, p.head, p.target, options=choice),
            )
    try:
        from cut_cross_entropy import linear_cross_entropy

        impl = "cce" if p.hidden.is_cuda else "torch_compile"
        yield f"cut-cross-entropy, {impl}", lambda: linear_cross_entropy(p.hidden, p.head, p.target, impl=impl)
    except ImportError as error:
        print(f"  cut-cross-entropy left out: {error}")
    try:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        if p.hidden.is_cuda:  # its kernels are Triton's
            yield "Liger", lambda: liger_fused_linear_cross_entropy(p.hidden, p.head, p.target)
        else:
            print("  Liger left out: its fused linear cross-entropy is a CUDA kernel")
    except ImportError as error:
        print(f"  Liger left out: {error}")


def run(step: Step, p: Problem) -> float:
    """Seconds of a forward and backward; on a CPU those that this process was computing."""
    p.hidden.grad = p.head.grad = None
    clock = time.perf_counter if p.hidden.is_cuda else time.process_time
    started = clock()
    step().backward()
    if p.hidden.is_cuda:
        torch.cuda.synchronize()
    return clock() - started


def transient_bytes(step: Step, p: Problem) -> int:
    """Peak memory beyond the start and the two gradients."""
    p.hidden.grad = p.head.grad = None
    gc.collect()
    gradients = sum(t.numel() * t.element_size() for t in (p.hidden, p.head))
    if p.hidden.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(step, p)
        return max(0, torch.cuda.max_memory_allocated() - before - gradients)
    with _watching() as seen:
        run(step, p)
    return max(0, max(seen) - seen[0] - gradients)


@contextmanager
def _watching() -> Iterator[list[int]]:
    """Resident bytes of this process, sampled every millisecond; tensors this large come and go as whole pages."""
    stop = threading.Event()

    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    seen = [resident()]

    def watch() -> None:
        while not stop.wait(0.001):
            seen.append(resident())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def measure(
    shape: tuple[int, int, int], device: str, rounds: int, every: bool, only: list[str] | None
) -> dict[str, Any]:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    p = Problem(shape, device, dtype)
    with torch.no_grad():
        loss = fused.linear_objective(p.hidden, Head(p.head), p.target, NLL)
    found = [float(loss.log_odds[i :: len(POINTS)].double().sigmoid().median()) for i in range(len(POINTS))]
    print(f"\n{' x '.join(map(str, shape))}, {dtype}, {device}; median p of the targets {found}", flush=True)
    nll = ObjectiveSpec(name="nll")
    steps: dict[str, Step] = {"nll": p.ours(nll), "nll again": p.ours(nll)}
    steps |= {label: p.ours(spec) for label, spec in specs(every).items()}
    others = dict(rivals(p))
    steps |= others
    steps = {
        label: step for label, step in steps.items() if label == "nll" or not only or any(w in label for w in only)
    }
    memory: dict[str, int] = {}
    for label, step in list(steps.items()):  # also the warm-up: compilation, first pages
        try:
            if every:
                run(step, p)
            memory[label] = transient_bytes(step, p)
        except (ImportError, RuntimeError, NotImplementedError) as error:
            if label not in others:
                raise
            print(f"  {label} left out: {type(error).__name__}: {str(error).splitlines()[0][:100]}")
            del steps[label]
    times: dict[str, list[float]] = {label: [] for label in steps}
    before: dict[str, list[float]] = {label: [] for label in steps}  # our NLL's, just before
    for number in range(rounds):
        for label, step in steps.items():
            before[label].append(run(steps["nll"], p) if label != "nll" else 0.0)
            times[label].append(run(step, p))
        print(f"  round {number + 1} of {rounds}", flush=True)
    rows = {
        label: {
            "ratio": 1.0
            if label == "nll"
            else statistics.median(t / b for t, b in zip(times[label], before[label], strict=True)),
            "seconds": statistics.median(times[label]),
            "transient_mb": memory[label] / 2**20,
        }
        for label in steps
    }
    return {"shape": shape, "dtype": str(dtype), "device": device, "rounds": rounds, "median_p": found, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; one gives the steadiest ratios")
    parser.add_argument("--shape", type=int, nargs=3, metavar=("TOKENS", "HIDDEN", "VOCABULARY"))
    parser.add_argument("--few", action="store_true", help="fewer objectives, as for the large CPU shape")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="candidates whose label has one of these words")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    shapes = [tuple(args.shape)] if args.shape else SHAPES[args.device]
    results = []
    for shape in shapes:
        large = args.device == "cpu" and math.prod(shape) * 3 > LARGE
        rounds = min(2, args.rounds) if large else args.rounds
        results.append(measure(shape, args.device, rounds, every=not (large or args.few), only=args.only))
        if not args.json:
            for label, row in results[-1]["rows"].items():
                print(f"  {label:42}{row['ratio']:7.2f}x {row['seconds']:9.3f} s {row['transient_mb']:9.0f} MB")
    if args.json:
        print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
