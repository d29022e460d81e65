"""How long a checkpoint holds training up: python benchmarks/checkpoint.py [--layers 4] [--rounds 5] [--folder DIR]

A Llama with the widths of SmolLM2-135M and its AdamW state, one worker. Side by side, in turns: DeepSpeed's own
save_checkpoint, after which training goes on, and ours, after which it goes on while a thread writes (`written`).
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def measure(layers: int, rounds: int, folder: Path) -> dict[str, Any]:
    import torch

    from jobs import engine as ds
    from jobs.hf import import_transformers
    from jobs.loss import BoundObjective
    from jobs.model import ObjectiveModel
    from jobs.spec import TrialSpec

    trial = TrialSpec.model_validate(
        {
            "backbone": {"builtin": "char-llama", "pretrain_steps": 0}, "task": {"builtin": "addition"},
            "objective": {"name": "nll"}, "seed": 0, "evaluation": {}, "train": {"lr": 1e-4, "steps": 1},
        }
    )  # fmt: skip
    assert trial.objective is not None
    ds.ensure_process_group()
    hf = import_transformers()
    shape = hf.LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=9, num_key_value_heads=3,
        vocab_size=49152, tie_word_embeddings=True,
    )  # fmt: skip
    model = ObjectiveModel(hf.LlamaForCausalLM(shape).to(ds.device()), BoundObjective.bind(trial.objective))
    times: dict[str, list[float]] = {"deepspeed": [], "held up": [], "written": []}
    with ds.engine_for(trial, model) as engine:
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        engine.optimizer.step()  # so that there is a state to save
        for _ in range(rounds):
            writer, engine.checkpoint_engine = engine.checkpoint_engine, engine.checkpoint_engine.plain
            started = time.perf_counter()
            engine.save_checkpoint(str(folder), tag="plain", exclude_frozen_parameters=True)
            times["deepspeed"].append(time.perf_counter() - started)
            engine.checkpoint_engine = writer
            started = time.perf_counter()
            parts = ds.save(engine, {}, folder)
            times["held up"].append(time.perf_counter() - started)
            parts.wait()
            times["written"].append(time.perf_counter() - started)
        size = sum(file.stat().st_size for file in (folder / ds.TAG).iterdir())
    found = {name: statistics.median(values) for name, values in times.items()}
    return {"megabytes": size / 1e6, "seconds": found, "ratio": found["held up"] / found["deepspeed"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured (default: a temporary one)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    try:
        found = measure(args.layers, args.rounds, folder)
    finally:
        shutil.rmtree(folder)
    if args.json:
        print(json.dumps(found, indent=1))
        return
    print(f"{found['megabytes']:.0f} MB, median of {args.rounds}, seconds")
    for name, value in found["seconds"].items():
        print(f"{name:12} {value:6.2f}")
    print(f"held up / deepspeed: {found['ratio']:.2f}")


if __name__ == "__main__":
    main()
