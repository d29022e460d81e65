"""Draws docs/objectives.png from the table of objectives: python docs/draw_objectives.py"""

from pathlib import Path

import torch
from matplotlib.figure import Figure

from jobs.conformance import example_tokens
from jobs.loss import BoundObjective
from jobs.objectives import OBJECTIVES
from jobs.spec import ObjectiveSpec

# What an objective reads besides p, shown at a low, a middle and a high value of it
READS = {
    "entropy": ("top_entropy", (0.5, 1.5, 2.9), "H = {:g}"),
    "concentration": ("concentration", (0.1, 0.5, 0.9), "sum p² = {:g}"),
    "state": ("mean_p", (0.1, 0.5, 0.9), "mean p = {:g}"),
    "sequence": ("sequence_p", (0.1, 0.5, 0.9), "mean p = {:g}"),
    "reference": ("ref_logp", (-2.3, -0.7, -0.1), "log p_ref = {:g}"),
}
PARAMS = {"power": ("alpha", (-0.5, 0.1, 0.5, 2.0, 10.0), "a = {:g}"), "focal": ("gamma", (0.5, 2.0, 5.0), "g = {:g}")}
OWN = {"talr": ("median_nll", (0.3, 1.0, 3.0), "tau = {:g}"), "prift-mass": ("ref_mass", (0.2, 0.8), "u = {:g}"),
       "asft": ("ref_logp", (), ""), "adaptive-probe": ("probe_p", (0.1, 0.5, 0.9), "mean p = {:g}"),
       "adaptive-ramp": ("progress", (0.0, 0.5, 1.0), "done = {:g}")}  # fmt: skip


def curves(name: str, p: torch.Tensor) -> list[tuple[str, list[float]]]:
    """(label, W_f at p) of one objective."""

    def pull(given: dict[str, object], seen: dict[str, float]) -> list[float]:
        spec = ObjectiveSpec.model_validate({"name": name} | given)
        return BoundObjective(spec)(torch.logit(p), example_tokens(len(p), torch.float64, **seen)).pull.tolist()

    if name in PARAMS:
        param, values, text = PARAMS[name]
        return [(text.format(v), pull({param: v}, {})) for v in values]
    given: dict[str, object] = {"threshold": 0.2} if name == "profit" else {}
    reads = OWN.get(name) or next((READS[n] for n in READS if n in OBJECTIVES[name].needs), ("", (), ""))
    return [(reads[2].format(v), pull(given, {reads[0]: v})) for v in reads[1]] or [("", pull(given, {}))]


def draw() -> Figure:
    p = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64)
    columns, rows = 4, -(-len(OBJECTIVES) // 4)
    figure = Figure(figsize=(13, 2.6 * rows), layout="constrained", facecolor="white")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True)
    for axes, (name, objective) in zip(grid.flat, OBJECTIVES.items(), strict=False):
        axes.plot(p, 1 - p, color="0.75", linewidth=1.2, linestyle="--")
        lines = curves(name, p)
        for i, (label, values) in enumerate(lines):
            shade = 0.15 + 0.7 * i / max(1, len(lines) - 1) if len(lines) > 1 else 0.3
            axes.plot(p, values, color=(0.1, 0.75 - 0.6 * shade, 0.35 + 0.5 * shade), linewidth=1.9, label=label)
        axes.set_title(f"{name}\n", loc="left", fontsize=11, fontweight="bold", pad=2)
        axes.text(0, 1.02, objective.formula, transform=axes.transAxes, fontsize=7.5, color="0.35")
        axes.set_ylim(0, 1.15)
        axes.set_xlim(0, 1)
        axes.spines[["top", "right"]].set_visible(False)
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=7.5, loc="upper right")
    for axes in grid.flat[len(OBJECTIVES) :]:
        axes.remove()
    figure.supxlabel("p, the model's probability of the target token", fontsize=10)
    figure.supylabel("W_f(p), pull on the target's logit (dashed: NLL)", fontsize=10)
    return figure


if __name__ == "__main__":
    draw().savefig(Path(__file__).with_name("objectives.png"), dpi=80)
