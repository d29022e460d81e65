"""`sweeper probe`: what a backbone knows of a task before any training, as numbers and as a picture."""

from __future__ import annotations

import argparse
import glob
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from cluster.strict import readable
from jobs.presets import presets
from jobs.spec import BackboneSpec, EvalSpec, TrainSpec, TrialSpec
from jobs.strict import Strict
from jobs.task_spec import TaskSpec
from jobs.yardsticks import CAPABILITY, PRIMARY, hardly_ends, regime
from sweeper.options import add, json_option
from sweeper.shared import LOOK_S
from sweeper.spec import SpecError
from sweeper.store import Claims

PROBE = """\
Measure what a backbone knows of a task before any training: the token-weighted mean p of the training responses
(the paper's Eq. 5), the quantiles and the histogram of p, mean p by position, entropy, and its score.

Nothing is trained and Ray is not started. What is measured is kept in the storage; a sweep on the same backbone,
task and settings finds it there.

  sweeper probe --backbone char-llama-400 --task addition
  sweeper probe --backbone path/to/model --task '{path: train.jsonl, prompt: question, response: answer}'
  sweeper probe --backbone path/to/model --task train.jsonl --show    # which tokens are trained
"""
BACKBONE_HELP = "a directory, a GGUF file, a preset (jobs/presets.yaml), char-llama-STEPS, a hub id, or YAML in {}"
TASK_HELP = "addition, reversal, cipher, a preset, a data file, a folder or pattern of them, or YAML in {}"


def add_commands(commands: Any) -> None:
    sub = add(commands, "probe", PROBE, probe)
    probe_options(sub, required=True)
    sub.add_argument(
        "--show", metavar="N", type=int, nargs="?", const=2,
        help="print the first N training examples token by token (default: 2) and measure nothing",
    )  # fmt: skip
    sub.add_argument("--out", metavar="DIR", type=Path, help="where probe.png goes (default: beside what is kept)")
    json_option(sub)


def probe_options(sub: argparse.ArgumentParser, required: bool) -> None:
    """What is measured of which backbone on which task."""
    sub.add_argument("--backbone", metavar="B", required=required, help=BACKBONE_HELP)
    sub.add_argument("--task", metavar="T", required=required, help=TASK_HELP)
    sub.add_argument("--data-root", metavar="DIR", type=Path, default=Path(), help="where relative paths start")
    sub.add_argument("--examples", metavar="N", type=int, default=256, help="training examples probed (default: 256)")
    sub.add_argument("--problems", metavar="N", type=int, help="held-out problems answered (default: the task's)")
    sub.add_argument("--samples", metavar="K", type=int, default=4, help="answers a problem at T = 1 (default: 4)")
    sub.add_argument("--max-length", metavar="N", type=int, default=1024, help="tokens of an example (default: 1024)")
    sub.add_argument("--max-new-tokens", metavar="N", type=int, default=64, help="longest answer (default: 64)")
    sub.add_argument("--batch-size", metavar="N", type=int, default=16, help="examples at once (default: 16)")


def trial_of(args: argparse.Namespace) -> TrialSpec:
    """The measure that the options ask for. Raises SpecError."""
    from sweeper.plan import resolved

    trial = TrialSpec(
        backbone=_read(BackboneSpec, "--backbone", backbone_fields(args.backbone)).bare(),
        task=_read(TaskSpec, "--task", _sized(task_fields(args.task), args.problems)),
        objective=None,
        seed=0,
        train=TrainSpec(lr=1.0, steps=1, max_length=args.max_length),
        evaluation=_read(
            EvalSpec,
            "--samples, --max-new-tokens, --batch-size, --examples",
            {"samples": args.samples, "max_new_tokens": args.max_new_tokens, "batch_size": args.batch_size,
             "probe_examples": args.examples},
        ),
    )  # fmt: skip
    return resolved(trial, args.data_root)


def probe(args: argparse.Namespace) -> int:
    trial, root = trial_of(args), args.storage.resolve()
    if args.show is not None:
        return show(trial, root, args.show, args.json)
    row = measure(trial, root)
    from jobs.probe import probe_dir, read_probe
    from jobs.record import TrialFolder

    folder = probe_dir(trial, root)
    facts = read_probe(folder).facts() | row | {"backbone": trial.backbone.name, "task": trial.task.name}
    result = TrialFolder(root / "trials" / trial.key).result() or {}
    facts["answers"] = result.get("corpus", {}).get("answers")  # None in records of before
    picture = _draw(facts, args.out or folder)
    if args.json:
        print(json.dumps(facts | {"regime": regime(facts[CAPABILITY]), "picture": str(picture)}, indent=1))
    else:
        _print(facts, picture)
    return 0


def show(trial: TrialSpec, root: Path, count: int, as_json: bool) -> int:
    """The first training examples, token by token, and which of them are trained."""
    from jobs.backbone import load_tokenizer
    from jobs.corpus import corpus_for
    from jobs.show import rows_of, text_of
    from sweeper.inputs import check_inputs, prepare

    trial = trial.model_copy(update={"evaluation": EvalSpec(max_new_tokens=1)})  # nothing is answered
    prepare([trial], root, check_inputs([trial], root))
    made = corpus_for(trial.backbone.bare(), trial.task, root)
    rows = made.rows("train", trial.train.max_length, trial.train.overlong)[:count]
    tokenizer = load_tokenizer(trial.backbone, root)
    answers = made.facts["answers"]
    if as_json:
        examples = [[asdict(token) for token in rows_of(row, tokenizer)] for row in rows]
        print(json.dumps({"answers": answers, "examples": examples}, indent=1, ensure_ascii=False))
        return 0
    print(f"{answers['sentence']}\n> marks what is trained")
    for number, row in enumerate(rows):
        print(f"\nexample {number}: {len(row.ids)} tokens, {row.num_targets} trained")
        print(text_of(rows_of(row, tokenizer)))
    for note in answers["notes"]:
        print(f"note: {note}")
    return 0


def measure(trial: TrialSpec, root: Path) -> dict[str, float]:
    """The row of a backbone's own measure, from its record where it is finished, else measured in this process.

    Where another process measures it just now, this waits for that one.
    """
    from jobs.record import RowWriter, TrialFolder
    from jobs.train import train
    from sweeper.inputs import check_inputs, prepare

    folder = TrialFolder(root / "trials" / trial.key)
    with Claims(root) as claims:
        if not claims.take(trial.key):
            print(f"another process measures {trial.key} just now: waiting for it", file=sys.stderr, flush=True)
            while not claims.take(trial.key):
                time.sleep(LOOK_S)
        result = folder.result()
        if result is None or result["status"] != "finished":
            prepare([trial], root, check_inputs([trial], root))
            folder.create(trial)
            writer = RowWriter(folder)

            def report(row: dict[str, float], *_: Any) -> bool:
                writer.write(row)
                return True

            facts: dict[str, Any] = {}
            train(trial, root, report, facts=facts)
            folder.finish("finished", step=0, workers=1, train_s=0.0, **facts)
    return {name: value for row in folder.rows() for name, value in row.items() if name not in ("step", "time")}


def backbone_fields(text: str) -> dict[str, Any]:
    """What --backbone means."""
    if text.startswith("{"):
        return _mapping("--backbone", text)
    if text in presets()["backbones"]:
        return {"preset": text}
    if text.endswith(".gguf"):
        return {"gguf": text}
    name, _, steps = text.rpartition("-")
    if name == "char-llama" and steps.isdigit():
        return {"builtin": name, "pretrain_steps": int(steps)}
    return {"path": text} if Path(text).is_dir() or text.startswith((".", "/")) else {"hub": text}


def task_fields(text: str) -> dict[str, Any]:
    """What --task means."""
    if text.startswith("{"):
        return _mapping("--task", text)
    if text in presets()["tasks"]:
        return {"preset": text}
    files = Path(text).suffix or text.endswith("/") or Path(text).is_dir() or glob.has_magic(text)
    return {"path": text} if files else {"builtin": text}


def _mapping(where: str, text: str) -> dict[str, Any]:
    try:
        fields = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError(where, [f"not YAML: {getattr(error, 'problem', error)}"]) from None
    if not isinstance(fields, dict):
        raise SpecError(where, [f"a mapping in {{}}, got {text}"])
    return fields


def _sized(fields: dict[str, Any], problems: int | None) -> dict[str, Any]:
    return fields if problems is None else fields | {"heldout_examples": problems}


def _read(model: type[Any], where: str, fields: dict[str, Any]) -> Any:
    assert issubclass(model, Strict)
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise SpecError(where, readable(error, "")) from None


def _print(facts: dict[str, Any], picture: Path) -> None:
    mean = facts[CAPABILITY]
    print(f"{facts['backbone']} on {facts['task']}: mean p {mean:.3f} over {facts['tokens']} target tokens")
    print(f"regime        {regime(mean)}")
    print(f"p > 0.55      {facts['trainset/known']:.1%} of tokens; the end of an answer {facts['trainset/eos_p']:.3f}")
    print(f"entropy       {facts['trainset/entropy']:.2f} nats")
    print(f"score         T=1 {facts[PRIMARY]:.3f}, greedy {facts['task/accuracy_greedy']:.3f}")
    answers = facts["answers"] or {"sentence": "how they end is not recorded", "notes": []}
    print(f"answers       {answers['sentence']}; {facts['task/truncated_rate']:.1%} do not end in time")
    if (warning := hardly_ends(facts["task/truncated_rate"])) is not None:
        print(f"warning       {warning}")
    for note in answers["notes"]:
        print(f"note          {note}")
    names = sorted((n for n in facts if n.startswith("trainset/p_q")), key=lambda n: int(n[12:]))
    print("quantiles     " + "  ".join(f"{int(n[12:])}%: {facts[n]:.4g}" for n in names))
    most = max(facts["histogram"])
    for i, count in enumerate(facts["histogram"]):
        print(f"p {i / 20:.2f}-{(i + 1) / 20:.2f}   {'█' * round(40 * count / most):40s} {count}")
    print(f"picture       {picture}")


def _draw(facts: dict[str, Any], folder: Path) -> Path:
    from sweeper.figures import probe_figure

    folder.mkdir(parents=True, exist_ok=True)
    probe_figure(facts).savefig(folder / "probe.png", dpi=160)
    return folder / "probe.png"
