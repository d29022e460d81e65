"""From YAML to trials: what is merged, what is named, what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from jobs.files import BLOCK, WHOLE_BELOW, fingerprint
from sweeper.cli import main
from sweeper.memory_need import memory_of
from sweeper.plan import Plan, make_plan
from sweeper.sizes import model_shape
from sweeper.spec import SpecError, load_sweep, parse_sweep
from sweeper.store import Store
from sweeper.table import plan_facts, print_plan

ROOT = Path(__file__).parents[2]
BASE = """
name: t
grid:
  backbone: [{builtin: char-llama, pretrain_steps: [0, 10]}]
  task: [{builtin: addition}]
  objective: %s
  seed: [1]
train: {lr: 1e-3, steps: 5, batch_size: 8}
"""


def plan(objectives: str, extra: str = "") -> Plan:
    return make_plan(parse_sweep(BASE % objectives + extra, "t.yaml"), ROOT)


def labels(made: Plan) -> list[str]:
    return [t.objective_label for t in made.trials if t.backbone.name == "char-llama-0"]


def test_power_at_one_is_one_minus_p_and_appears_once() -> None:
    made = plan("[one-minus-p, {name: power, alpha: [0.5, 1]}]")
    assert labels(made) == ["backbone", "one-minus-p", "power a=0.5"]
    assert ["one-minus-p", "power a=1"] in made.merged.values()


def test_power_at_zero_is_nll_and_appears_once() -> None:
    assert labels(plan("[nll, {name: power, alpha: 0}]")) == ["backbone", "nll"]


def test_gates_that_keep_everything_are_no_gates() -> None:
    made = plan("[nll, {name: nll, gate: {side: top, at: [0, 0.2]}}, {name: nll, gate: {side: bottom, at: 1}}]")
    assert labels(made) == ["backbone", "nll", "nll p>=0.2"]


def test_lists_in_an_axis_expand_as_a_product() -> None:
    made = plan("[{name: power, alpha: [0.1, 0.5], gate: {side: [top, bottom], at: [0.1, 0.2]}}]")
    assert len(labels(made)) == 1 + 2 * 2 * 2


def test_every_backbone_is_measured_once_per_task_and_first() -> None:
    made = plan("[nll, one-minus-p]")
    assert [t.objective is None for t in made.trials] == [True, True, False, False, False, False]


def test_key_ignores_how_the_work_is_cut_up() -> None:
    one = plan("[nll]").trials[-1]
    other = plan("[nll]", "execution: {workers: 2}\nconcurrency: 1\n").trials[-1]
    assert one.key == other.key


def test_key_changes_with_whatever_changes_the_result() -> None:
    trial = plan("[nll]").trials[-1]
    changed = [
        trial.model_copy(update={"seed": 2}),
        trial.model_copy(update={"train": trial.train.model_copy(update={"lr": 2e-3})}),
        trial.model_copy(update={"task": trial.task.model_copy(update={"noise": 0.1})}),
        trial.model_copy(update={"evaluation": trial.evaluation.model_copy(update={"samples": 5})}),
        trial.model_copy(update={"backbone": trial.backbone.model_copy(update={"pretrain_steps": 11})}),
    ]
    assert len({t.key for t in [trial, *changed]}) == 1 + len(changed)


def test_keys_never_change_by_accident() -> None:
    """Recorded results are found by these names: if this fails, raise KEY_VERSION knowingly."""
    assert plan("[{name: power, alpha: 0.5}]").trials[-1].key == "char-llama-10_addition_power-a0.5_s1_e600681b27f1"


def test_attention_is_an_axis_and_what_names_none_keeps_its_key() -> None:
    """Each its own trials and measure; eager's scores are in its memory. Of execution it stays out of the key."""
    before = plan("[nll]")
    text = (BASE % "[nll]").replace("pretrain_steps: [0, 10]", "pretrain_steps: 10, attention: [null, eager, sdpa]")
    made = make_plan(parse_sweep(text, "t.yaml"), ROOT)
    names = ["char-llama-10", "char-llama-10-eager", "char-llama-10-sdpa"]
    assert [(t.backbone.name, t.objective is None) for t in made.trials] == [
        *((name, True) for name in names), *((name, False) for name in names)
    ]  # fmt: skip
    assert len({t.key for t in made.trials}) == 6
    assert {t.key for t in made.trials} & {t.key for t in before.trials} == {made.trials[0].key, made.trials[3].key}
    assert [t.key for t in plan("[nll]", "execution: {attention: eager}\n").trials] == [t.key for t in before.trials]
    plain, eager, sdpa = (memory_of(t, model_shape(t.backbone, ROOT), 512).activations for t in made.trials[3:])
    assert eager > sdpa == plain


def test_an_override_gives_chosen_cells_more_workers_under_the_same_key() -> None:
    plain = plan("[nll]")
    wide = plan("[nll]", "overrides: [{where: {objective: nll}, execution: {workers: 2}}]\n")
    assert [t.key for t in wide.trials] == [t.key for t in plain.trials]
    assert {t.execution.workers for t in wide.trials if t.objective} == {2}
    assert {t.execution.workers for t in wide.trials if not t.objective} == {1}


def test_overrides_reach_the_cells_they_name_and_no_other() -> None:
    made = plan("[nll]", "overrides: [{where: {backbone: char-llama-10}, train: {lr: 5e-4, epochs: 2}}]\n")
    assert [(t.backbone.name, t.train.lr, t.train.steps, t.train.epochs) for t in made.trials[2:]] == [
        ("char-llama-0", 1e-3, 5, None),
        ("char-llama-10", 5e-4, None, 2.0),
    ]


def test_same_data_elsewhere_is_the_same_trial(tmp_path: Path) -> None:
    keys = set()
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "d.jsonl").write_text('{"prompt": "x", "response": "y"}\n' * 2)
        text = (BASE % "[nll]").replace("{builtin: addition}", "{path: d.jsonl}")
        keys.add(make_plan(parse_sweep(text, "t.yaml"), tmp_path / folder).trials[-1].key)
    (tmp_path / "b" / "d.jsonl").write_text('{"prompt": "x", "response": "z"}\n')
    assert len(keys) == 1
    keys.add(make_plan(parse_sweep(text, "t.yaml"), tmp_path / "b").trials[-1].key)
    assert len(keys) == 2


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("kind", ["train", "heldout"])
def test_any_changed_byte_of_a_data_file_is_another_trial(kind: str, suffix: str, tmp_path: Path) -> None:
    """Training and held-out file alike, also where the rows would read the same; files that only swap parts, too."""
    text = (BASE % "[nll]").replace("{builtin: addition}", f"{{path: train{suffix}, heldout_path: heldout{suffix}}}")
    files = {name: tmp_path / f"{name}{suffix}" for name in ("train", "heldout")}
    for name, file in files.items():
        file.write_bytes(f"{name} bytes that plan only hashes".encode())

    def key() -> str:
        return make_plan(parse_sweep(text, "t.yaml"), tmp_path, require_files=True).trials[-1].key

    first, whole = key(), files[kind].read_bytes()
    assert key() == first
    found = {first}
    for place in (0, len(whole) // 2, len(whole) - 1):
        changed = bytearray(whole)
        changed[place] ^= 1
        files[kind].write_bytes(changed)
        found.add(key())
    files[kind].write_bytes(whole + b"\n")
    found.add(key())
    assert len(found) == 5
    files[kind].write_bytes(whole)
    assert key() == first
    train, heldout = (file.read_bytes() for file in files.values())
    files["train"].write_bytes(heldout)
    files["heldout"].write_bytes(train)
    assert key() not in found


def test_a_model_directory_is_named_by_its_files(tmp_path: Path) -> None:
    text = (BASE % "[nll]").replace("{builtin: char-llama, pretrain_steps: [0, 10]}", "{path: model}")
    (tmp_path / "model").mkdir()
    with pytest.raises(SpecError, match="not a Hugging Face model directory"):
        make_plan(parse_sweep(text, "t.yaml"), tmp_path, require_files=True)
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(SpecError, match=r"no \*.safetensors in .*; other formats are not loaded"):
        make_plan(parse_sweep(text, "t.yaml"), tmp_path, require_files=True)
    keys = []
    for value in (1.0, 1.0, 2.0):
        save_file({"w": np.array([value])}, tmp_path / "model" / "model.safetensors")
        keys.append(make_plan(parse_sweep(text, "t.yaml"), tmp_path, require_files=True).trials[-1].key)
    assert keys[0] == keys[1] != keys[2]


def test_missing_data_is_a_note_for_plan_and_an_error_for_run(tmp_path: Path) -> None:
    spec = parse_sweep((BASE % "[nll]").replace("{builtin: addition}", "{path: d.jsonl}"), "t.yaml")
    assert "no file" in make_plan(spec, tmp_path).notes[0]
    with pytest.raises(SpecError, match="no file .*d.jsonl; relative paths start at --data-root"):
        make_plan(spec, tmp_path, require_files=True)


@pytest.mark.parametrize("example", sorted((ROOT / "examples").rglob("*.yaml")), ids=lambda p: p.name)
def test_every_example_loads_and_plans(example: Path, tmp_path: Path) -> None:
    made = make_plan(load_sweep(example), example.parent)
    facts = plan_facts(made, Store(tmp_path))
    assert len(facts["trials"]) == len(made.trials) > 1
    json.dumps(facts)


def test_plan_prints_without_torch_ray_or_mlflow(capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import sys; from sweeper.cli import main; status = main(['plan', 'examples/quickstart.yaml']);"
        "heavy = {'torch', 'ray', 'mlflow', 'transformers', 'pandas', 'deepspeed'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else status)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "54 trials to train" in done.stdout


def test_plan_of_a_bad_file_exits_2_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(tmp_path / "none.yaml")]) == 2
    assert capsys.readouterr().err.strip() == f"{tmp_path / 'none.yaml'}: no such file"
    binary = tmp_path / "weights.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert main(["plan", str(binary)]) == 2
    assert capsys.readouterr().err.strip() == f"{binary}: is no text in UTF-8"
    assert main(["plan", "n" * 300]) == 2
    assert capsys.readouterr().err.strip().endswith("cannot be read: File name too long")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.touch(mode=0o000)
    assert main(["plan", str(file)]) == 2
    assert capsys.readouterr().err.strip() == f"{file}: cannot be read: Permission denied"


PAPER = sorted((ROOT / "examples" / "paper").glob("*.yaml"))


@pytest.mark.parametrize("path", PAPER, ids=lambda p: p.stem)
def test_every_paper_sweep_plans_with_its_cost_and_has_a_miniature(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = plan_facts(make_plan(load_sweep(path), path.parent), Store(tmp_path))
    assert facts["gpu_hours"] > 0
    print_plan(facts)
    printed = capsys.readouterr().out
    assert "GPU-hours: " in printed
    assert "None" not in printed
    assert all(t["steps"] for t in facts["trials"] if t["objective"] != "backbone")
    mini = make_plan(load_sweep(path, "mini"), path.parent, require_files=True)
    assert mini.spec.settings.name == f"paper-{path.stem}-mini"
    assert all(t.execution.workers * t.execution.cpus_per_worker <= 2 for t in mini.trials)  # a small laptop has two
    small = plan_facts(mini, Store(tmp_path))
    assert small["gpu_hours"] == 0
    assert sum(t["seconds"] for t in small["trials"]) < 600


def test_the_alpha_ablation_has_the_papers_19_values() -> None:
    plan = make_plan(load_sweep(ROOT / "examples" / "paper" / "alpha.yaml"), ROOT)
    alphas = {t.objective.alpha for t in plan.trials if t.objective and t.objective.name in ("power", "one-minus-p")}
    assert len(alphas) == 19  # 1 - p is alpha 1
    halves = {(t.backbone.name, t.task.name) for t in plan.trials}
    assert halves == {("Qwen2.5-Math-1.5B", "math"), ("Qwen2.5-7B", "figfont")}
    assert len(plan.trials) == 2 * (1 + 20)


def test_the_weak_half_of_the_alpha_ablation_trains_as_figfont_does() -> None:
    """Its trials are figfont.yaml's own, so that a storage has them once."""
    folder = ROOT / "examples" / "paper"
    alpha, figfont = (
        {t.key for t in make_plan(load_sweep(folder / f"{name}.yaml"), ROOT).trials if t.backbone.name == "Qwen2.5-7B"}
        for name in ("alpha", "figfont")
    )
    assert len(figfont) == 3
    assert figfont < alpha


def test_an_override_of_evaluation_is_for_all_objectives_of_a_cell() -> None:
    over = "overrides: [{where: {backbone: char-llama-10}, evaluation: {max_new_tokens: 8, samples: 2}}]\n"
    made, plain = (make_plan(parse_sweep(BASE % "[nll]" + more, "t.yaml"), ROOT) for more in (over, ""))
    asked = {(t.backbone.name, t.evaluation.max_new_tokens, t.evaluation.samples) for t in made.trials}
    default = plain.trials[0].evaluation
    assert asked == {("char-llama-0", default.max_new_tokens, default.samples), ("char-llama-10", 8, 2)}
    for trial, before in zip(made.trials, plain.trials, strict=True):
        assert (trial.key == before.key) == (trial.backbone.name == "char-llama-0")


def test_a_data_file_is_hashed_whole_and_weights_are_sampled(tmp_path: Path) -> None:
    """A fix of the same length between the samples of a large file makes another key; small ones keep theirs."""
    file = tmp_path / "d.jsonl"
    with file.open("wb") as stream:
        stream.truncate(WHOLE_BELOW + 1)
    before, sampled = fingerprint([file]), fingerprint([file], sampled=True)
    with file.open("r+b") as stream:
        stream.seek(WHOLE_BELOW // 2 + 3 * BLOCK)
        stream.write(b"x")
    assert fingerprint([file], sampled=True) == sampled
    assert fingerprint([file]) != before
    small = tmp_path / "s.jsonl"  # names count, too
    small.write_text('{"prompt": "p", "response": "r"}')
    assert fingerprint([small]) == fingerprint([small], sampled=True) == "9ab02ecebdf87f88e6a59bc0"
    text = (BASE % "[nll]").replace("{builtin: addition}", "{path: d.jsonl}")
    assert make_plan(parse_sweep(text, "t.yaml"), tmp_path).trials[0].task.fingerprint == fingerprint([file])


VARIED = BASE % "[nll]" + "profiles: {small: {train: {epochs: 2}, concurrency: 1}}\n"


def test_a_profile_and_single_values_are_merged_and_recorded(tmp_path: Path) -> None:
    file = tmp_path / "t.yaml"
    file.write_text(VARIED)
    spec = load_sweep(file, "small", ["train.lr=5e-4", "grid.seed=[7]"])
    assert (spec.settings.train.steps, spec.settings.train.epochs, spec.settings.train.lr) == (None, 2, 5e-4)
    assert spec.settings.concurrency == 1
    assert spec.grid[0].seed == (7,)
    assert spec.settings.name.endswith("-small")
    again = parse_sweep(spec.text, "t.yaml")
    assert (again.settings, again.grid) == (spec.settings, spec.grid)
    assert spec.text.startswith("# t.yaml with profile small, --set train.lr=5e-4, --set grid.seed=[7]\n")
    assert load_sweep(file).settings.concurrency is None


@pytest.mark.parametrize(
    ("profile", "sets", "message"),
    [
        ("smal", [], "no profile 'smal'; did you mean 'small'"),
        (None, ["train.stepz=4"], "train: unknown key 'stepz'; did you mean 'steps'"),
        (None, ["train.steps"], "--set train.steps: write it as train.steps=4"),
        (None, ["train.steps=["], "--set train.steps: line"),
    ],
)
def test_a_wrong_variation_is_one_line(tmp_path: Path, profile: str | None, sets: list[str], message: str) -> None:
    file = tmp_path / "t.yaml"
    file.write_text(VARIED)
    with pytest.raises(SpecError) as error:
        load_sweep(file, profile, sets)
    assert message in str(error.value)


def test_a_list_that_belongs_to_a_field_is_no_list_of_choices() -> None:
    score = "score: {kind: choice, options: [A-B, A-C], cues: [Jibu ni, Jibu]}"
    lora = "lora: [null, {rank: [8, 16], targets: [q_proj, v_proj]}]"
    text = (BASE % "[nll]").replace("{builtin: addition}", f"{{builtin: addition, {score}}}")
    spec = parse_sweep(text.replace("pretrain_steps: [0, 10]", f"pretrain_steps: 0, {lora}"), "t.yaml")
    (block,) = spec.grid
    assert [task.score.options for task in block.task] == ["A-B", "A-C"]
    assert {task.score.cues for task in block.task} == {("Jibu ni", "Jibu")}
    adapters = [backbone.lora for backbone in block.backbone]
    assert adapters[0] is None
    assert [(a.rank, a.targets) for a in adapters[1:] if a] == [(r, ("q_proj", "v_proj")) for r in (8, 16)]


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("grid.objective.1=one-minus-p", ["nll", "one-minus-p"]), ("grid.objective.2=dft", ["nll", "focal", "dft"]),
        ("grid.objective.1.gamma=3", ["nll", "focal gamma=3"]), ("grid.objective=[dft]", ["dft"]),
        ("grid.objective.0={name: power, alpha: 0.5}", ["power a=0.5", "focal"]),
    ],
)  # fmt: skip
def test_set_reaches_into_lists(tmp_path: Path, written: str, found: list[str]) -> None:
    file = tmp_path / "t.yaml"
    file.write_text(BASE % "[nll, {name: focal, gamma: 2}]")
    (block,) = load_sweep(file, sets=[written]).grid
    assert [objective.label for objective in block.objective] == found


def test_set_after_set_and_steps_for_epochs(tmp_path: Path) -> None:
    file = tmp_path / "t.yaml"
    file.write_text(BASE % "[nll]")
    sets = ["grid.seed.1=5", "grid.seed.2=6", "train.epochs=2", "evaluation.samples=2", "execution={workers: 2}"]
    spec = load_sweep(file, sets=sets)
    assert spec.grid[0].seed == (1, 5, 6)
    assert (spec.settings.train.steps, spec.settings.train.epochs) == (None, 2)
    assert (spec.settings.evaluation.samples, spec.settings.execution.workers) == (2, 2)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("grid.objective.3=dft", "grid.objective is a list with grid.objective.0 to grid.objective.0, not "
         "grid.objective.3; grid.objective.1 would add one"),
        ("grid.objective.first=dft", "grid.objective is a list with .*, not grid.objective.first"),
        ("train.lr.0=1", r"train.lr is 0.001, which has no '0'; write --set train.lr=... to replace it"),
        ("grid.objective.0.alpha=1", "grid.objective.0 is 'nll', which has no 'alpha'"),
        ("train.stesp=4", "unknown key 'stesp'; did you mean 'steps'"), ("train.steps", "write it as train.steps=4"),
    ],
)  # fmt: skip
def test_set_that_leads_nowhere_says_so(tmp_path: Path, written: str, message: str) -> None:
    file = tmp_path / "t.yaml"
    file.write_text(BASE % "[nll]")
    with pytest.raises(SpecError, match=message):
        load_sweep(file, sets=[written])
