"""Pure decisions: placement, DeepSpeed configuration, learning rate, and who imports what."""

import ast
from pathlib import Path

import pytest

from jobs.engine import learning_rate
from jobs.spec import TrainSpec, TrialSpec
from jobs.zero import deepspeed_config, micro_batch_size

ROOT = Path(__file__).parents[2]
ALLOWED = {  # heavy package -> the files that may import it
    "ray": {
        "cluster/broker.py", "cluster/connect.py", "cluster/submit.py", "cluster/actors.py", "cluster/doctor.py",
        "cluster/embedded.py", "cluster/fork_server.py", "jobs/worker.py", "jobs/process_group.py",
        "sweeper/run.py", "sweeper/tuning.py", "sweeper/lane_trainer.py", "sweeper/lanes.py", "sweeper/scheduler.py",
    },
    "deepspeed": set[str](),  # by name, in jobs/deepspeed_import.py
    "mlflow": {"sweeper/tracking.py", "sweeper/mlflow_file.py"},
    "pandas": {f"sweeper/{m}.py" for m in ("results", "continuum", "forecast", "figures", "report")},
    "matplotlib": {"sweeper/figures.py", "sweeper/report.py"},
    "vllm": {"jobs/vllm_engine.py"},
    "scipy": {"sweeper/continuum.py"},
    "transformers": {
        f"jobs/{m}.py"
        for m in (
            "hf", "answers", "backbone", "continuation", "corpus", "course", "data", "ending", "evaluate", "forecast",
            "layout", "pretrain", "probe", "rendering", "saving", "sharded", "show", "together", "train",
            "vllm_engine", "weights_check",
        )
    },
}  # fmt: skip
MAY_SHARE = {"cluster/strict.py", "cluster/actors.py", "cluster/node.py"}  # jobs.strict and jobs.network
MODULES = sorted(p.relative_to(ROOT) for d in ("cluster", "jobs", "sweeper") for p in (ROOT / d).rglob("*.py"))


def trial(workers: int = 1, **train: object) -> TrialSpec:
    settings = {"lr": 1e-3, "steps": 10, "batch_size": 8} | train
    return TrialSpec.model_validate(
        {
            "backbone": {"builtin": "char-llama", "pretrain_steps": 0},
            "task": {"builtin": "addition"},
            "objective": {"name": "nll"},
            "seed": 0,
            "train": settings,
            "evaluation": {},
            "execution": {"workers": workers},
        }
    )


def imported(path: Path) -> set[str]:
    """Top-level names of packages that a module imports, at its top or inside functions."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_flow_one_way_and_heavy_ones_stay_in_their_files(path: Path) -> None:
    names = imported(path)
    layer = path.parts[0]
    if layer != "sweeper":
        shared = {"jobs"} if str(path) in MAY_SHARE else set[str]()
        assert not names & ({"sweeper", "jobs", "cluster"} - {layer} - shared)
    for package, files in ALLOWED.items():
        assert package not in names or str(path) in files, f"{package} belongs to {files}"


def test_no_package_named_docker() -> None:
    assert not (ROOT / "docker" / "__init__.py").exists()  # it would shadow the Docker SDK that MLflow imports


def test_the_batch_is_cut_over_workers_and_accumulation() -> None:
    config = deepspeed_config(trial(workers=2, micro_batch_size=2))
    assert (config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]) == (2, 2)
    assert micro_batch_size(trial(workers=2)) == 4


def test_learning_rate_warms_up_then_falls_to_zero() -> None:
    spec = TrainSpec(lr=1.0, steps=10, warmup_ratio=0.2, schedule="linear")
    assert [round(learning_rate(spec, s, 10), 3) for s in (0, 1, 2, 6, 9)] == [0.5, 1.0, 1.0, 0.5, 0.125]
    cosine = spec.model_copy(update={"schedule": "cosine"})
    assert learning_rate(cosine, 6, 10) == pytest.approx(0.5)
    assert learning_rate(spec.model_copy(update={"schedule": "constant"}), 9, 10) == 1.0


@pytest.mark.parametrize(("epochs", "steps"), [(1.0, 3), (2.0, 7), (0.01, 1)])
def test_epochs_drop_the_last_partial_batch(epochs: float, steps: int) -> None:
    assert TrainSpec(lr=1, epochs=epochs, batch_size=8).num_steps(30) == steps
