"""A whole training step, ours beside Hugging Face Trainer and TRL: python benchmarks/train_step.py [--json]

Same model (a Llama of SmolLM2-135M's shape, random weights), same sequences, fp32 on a CPU and bf16 on CUDA, AdamW,
clip 1.0, no gradient checkpointing. Each candidate trains in a process of its own, in turn, for some rounds; a step's
time is the median after the first two, a ratio the median over rounds of (tokens a second / Trainer's in the same
round). Memory is the peak beyond what the process held before the model was made. TRL where it is installed (pip
install trl).
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CANDIDATES = ("Trainer nll", "ours nll", "ours dft", "ours adaptive", "TRL nll", "TRL dft")
SMOL = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True, "max_position_embeddings": 2048,
}  # fmt: skip


def resident_mb() -> float:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.memory_allocated() / 2**20
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def peak_mb() -> float:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def make_model(layers: int | None) -> Any:
    import torch

    from jobs.hf import import_transformers

    hf = import_transformers()
    torch.manual_seed(0)
    return hf.LlamaForCausalLM(hf.LlamaConfig(**SMOL | ({"num_hidden_layers": layers} if layers else {})))


def sequences(args: argparse.Namespace) -> list[list[int]]:
    import torch

    g = torch.Generator().manual_seed(1)
    return torch.randint(SMOL["vocab_size"], (args.batch * args.steps, args.length), generator=g).tolist()


def ours(args: argparse.Namespace, objective: str) -> list[float]:
    import torch

    from jobs import engine as ds
    from jobs.capability import Capability
    from jobs.data import Encoded
    from jobs.loss import BoundObjective
    from jobs.model import ObjectiveModel
    from jobs.probe import Probe
    from jobs.spec import TrialSpec
    from jobs.train import step as train_step

    precision = "bf16" if torch.cuda.is_available() else "fp32"
    trial = TrialSpec.model_validate(
        {
            "backbone": {"builtin": "char-llama", "pretrain_steps": 0}, "task": {"builtin": "addition"},
            "objective": {"name": objective}, "seed": 0, "evaluation": {},
            "train": {"lr": 1e-4, "batch_size": args.batch, "steps": args.steps, "precision": precision},
        }
    )  # fmt: skip
    assert trial.objective is not None
    rows = [Encoded(ids, args.length // 4) for ids in sequences(args)]
    ds.ensure_process_group()
    times = []
    model = ObjectiveModel(make_model(args.layers).to(ds.device()), BoundObjective.bind(trial.objective))
    with ds.engine_for(trial, model) as engine:
        import numpy as np

        state = Capability(Probe(0.5, 1.0, np.zeros(1), 0.0, 0.0, 0.0, [], []), engine.device).state(0.0)
        for step in range(args.steps):
            started = time.perf_counter()
            sums, *_ = train_step(trial, engine, rows[step * args.batch : (step + 1) * args.batch], 0, state)
            float(sums[0])
            times.append(time.perf_counter() - started)
    return times


def theirs(args: argparse.Namespace, trl_loss: str | None) -> list[float]:
    import datasets
    import torch

    from jobs.hf import import_transformers

    hf = import_transformers()
    ids, masked = sequences(args), args.length // 4
    labels = [[-100] * masked + row[masked:] for row in ids]
    times: list[float] = []

    class Clock(hf.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.perf_counter() - self.started)

    common = {
        "output_dir": tempfile.mkdtemp(), "per_device_train_batch_size": args.batch, "max_steps": args.steps,
        "learning_rate": 1e-4, "max_grad_norm": 1.0, "logging_strategy": "no", "save_strategy": "no", "report_to": [],
        "disable_tqdm": True, "gradient_checkpointing": False,
        "bf16": torch.cuda.is_available(), "use_cpu": not torch.cuda.is_available(), "dataloader_pin_memory": False,
    }  # fmt: skip
    model, data = make_model(args.layers), {"input_ids": ids, "labels": labels}
    if trl_loss is None:
        trainer = hf.Trainer(
            model=model, args=hf.TrainingArguments(**common), train_dataset=datasets.Dataset.from_dict(data),
            data_collator=hf.default_data_collator, callbacks=[Clock()],
        )  # fmt: skip
    else:
        import trl

        from jobs.pretrain import char_tokenizer

        config = trl.SFTConfig(
            **common, loss_type=trl_loss, max_length=args.length, packing=False,
            dataset_kwargs={"skip_prepare_dataset": True},
        )  # fmt: skip
        data["completion_mask"] = [[int(label >= 0) for label in row] for row in labels]
        trainer = trl.SFTTrainer(
            model=model, args=config, train_dataset=datasets.Dataset.from_dict(data), callbacks=[Clock()],
            processing_class=char_tokenizer(),
        )  # fmt: skip
    trainer.train()
    return times


def child(args: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(args.threads)
    import jobs.train  # noqa: F401 so that its imports are in the baseline
    from jobs.hf import import_transformers

    import_transformers()
    before = resident_mb()
    who, loss = args.child.split()
    times = ours(args, loss) if who == "ours" else theirs(args, None if who == "Trainer" else loss)
    print("RESULT " + json.dumps({"seconds": statistics.median(times[2:]), "peak_mb": peak_mb() - before}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4, help="sequences a step")
    parser.add_argument("--length", type=int, default=256, help="tokens a sequence, a quarter of them prompt")
    parser.add_argument("--layers", type=int, help="fewer layers, to try it out")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args)
        return
    passed = [f"--{name}={value}" for name in ("batch", "length", "layers", "steps", "threads")
              if (value := getattr(args, name)) is not None]  # fmt: skip
    rounds: list[dict[str, dict[str, float]]] = []
    for number in range(args.rounds):
        rounds.append({})
        for name in CANDIDATES:
            done = subprocess.run(
                [sys.executable, __file__, *passed, "--child", name], capture_output=True, text=True, check=False
            )
            found = [line[7:] for line in done.stdout.splitlines() if line.startswith("RESULT ")]
            if found:
                rounds[-1][name] = json.loads(found[0])
            elif number == 0:
                print(f"  {name} left out: {done.stderr.strip().splitlines()[-1][:150]}", file=sys.stderr)
        print(f"  round {number + 1} of {args.rounds}", file=sys.stderr, flush=True)
    tokens = args.batch * args.length
    table = {
        name: {
            "tokens_per_s": statistics.median(tokens / r[name]["seconds"] for r in rounds),
            "ratio": statistics.median(r["Trainer nll"]["seconds"] / r[name]["seconds"] for r in rounds),
            "peak_mb": statistics.median(r[name]["peak_mb"] for r in rounds),
        }
        for name in CANDIDATES
        if all(name in r for r in rounds)
    }
    if args.json:
        print(json.dumps({"batch": args.batch, "length": args.length, "rounds": args.rounds, "rows": table}, indent=1))
        return
    print(f"{args.batch} x {args.length} tokens a step, {args.rounds} rounds, {args.threads} threads")
    for name, row in table.items():
        print(f"  {name:16}{row['tokens_per_s']:9.0f} tokens/s {row['ratio']:6.2f}x {row['peak_mb']:8.0f} MB")


if __name__ == "__main__":
    main()
