"""The report's figures. Objects of matplotlib only, no pyplot: nothing global, and no display is needed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from jobs.curve import weights
from jobs.failure import Failure
from jobs.spec import ObjectiveSpec
from jobs.yardsticks import PRIMARY, YARDSTICKS
from sweeper.continuum import BACKBONE, NLL
from sweeper.recommend import Advice, Cell, advise, log_odds

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

# Told apart by colour-blind readers too: Okabe and Ito's colours without the pale yellow, then Paul Tol's muted ones.
PALETTE = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#332288", "#882255", "#999933", "#44AA99",
    "#7F3B08", "#1B7837", "#762A83", "#B2182B", "#2166AC", "#E08214", "#5AAE61", "#C994C7", "#8C510A", "#01665E",
    "#DE77AE", "#7FBC41", "#4D4D4D", "#F46D43",
)  # fmt: skip
FIXED = {NLL: "#333333", BACKBONE: "#9A9A9A"}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
INK, GRID, NOTE = "#222222", "#E3E3E3", "#666666"
WIDTH = 10.0  # inches; at 160 dots an inch a figure is 1600 pixels wide
P_TICKS = (0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)


def colours(labels: Iterable[str]) -> dict[str, str]:
    """Objective label -> colour, the same for the same set of labels; NLL is always dark, the backbone grey."""
    others = sorted(set(labels) - set(FIXED))
    return FIXED | {label: PALETTE[i % len(PALETTE)] for i, label in enumerate(others)}


def quantity(yardstick: str) -> str:
    """What a yardstick measures and how, short enough for an axis."""
    return ", ".join(YARDSTICKS[yardstick].meaning.split(", ")[:2])


def continuum_figure(gains: pd.DataFrame, yardstick: str = PRIMARY) -> Figure:
    """Gain over NLL against the backbone's mean p before SFT: a line an objective and task, weak to strong.

    gains: `sweeper.continuum.gains`. Rows without a gain or a mean p are left out, and counted in the figure.
    """
    figure, axes = _canvas(5.2)
    known = gains.dropna(subset=["base_mean_p", "gain"]) if len(gains) else gains
    if known.empty:
        return _empty(
            figure, axes, "No gain over NLL yet: it takes a finished NLL trial, a finished trial of another objective\n"
            "with the same seed, and the measured backbone.",
        )  # fmt: skip
    colour, tasks = colours(gains["objective"]), list(known["task"].drop_duplicates())
    objectives = sorted(known["objective"].unique())
    for (objective, task), line in known.groupby(["objective", "task"]):
        # Objectives of one backbone share their x: a small step aside keeps their intervals apart.
        step = (objectives.index(objective) - (len(objectives) - 1) / 2) * 0.05
        y, look = line["gain"], _look(tasks.index(task), colour[str(objective)])
        error = [(y - line["low"]).fillna(0), (line["high"] - y).fillna(0)]
        axes.errorbar(_logit(line["base_mean_p"]) + step, y, error, capsize=3, elinewidth=1.2, linewidth=1.8, **look)
    axes.axhline(0, color=INK, linewidth=1)
    _logit_axis(axes, known["base_mean_p"])
    axes.set_xlabel(
        "mean p of the target tokens under the backbone, on the task's training set, before SFT (logit scale)"
    )
    direction = "" if YARDSTICKS[yardstick].higher_is_better else ", as a decrease"
    axes.set_ylabel(f"gain over NLL{direction}\n({quantity(yardstick)})")
    for x, side, text in (
        (0, "left", "← weak end: hardly knows the task"),
        (1, "right", "strong end: knows the task →"),
    ):
        axes.text(x, 1.02, text, transform=axes.transAxes, ha=side, va="bottom", color=NOTE, fontsize=10)
    handles = [Line2D([], [], color="none", label="objective")]
    handles += [Line2D([], [], color=colour[o], linewidth=2.5, label=o) for o in objectives]
    handles += [Line2D([], [], color="none", label=""), Line2D([], [], color="none", label="task")]
    handles += [Line2D([], [], label=task, **_look(i, NOTE)) for i, task in enumerate(tasks)]
    figure.legend(handles=handles, loc="outside right upper", **_LEGEND)
    left_out = len(gains) - len(known)
    missing = f" Left out, without a gain or a mean p: {left_out} of {len(gains)} points." if left_out else ""
    figure.supxlabel(f"{_seeds(known['n'])}. Above 0: better than NLL.{missing}", color=NOTE, fontsize=10)
    return figure


def alpha_figure(curve: pd.DataFrame, yardstick: str = PRIMARY) -> Figure:
    """The yardstick against alpha, a panel a task and a line a backbone, pale (weak) to dark (strong).

    curve: `sweeper.continuum.alpha_curve`.
    """
    if curve.empty:
        return _empty(*_canvas(3.0), "No finished trial of NLL, 1 - p or a power yet.")
    tasks = list(curve["task"].drop_duplicates())
    backbones = list(curve.groupby("backbone")["base_mean_p"].max().sort_values().index)  # unknown ones last
    columns = min(2, len(tasks))
    rows = math.ceil(len(tasks) / columns)
    height = rows * (3.9 + 0.2 * len(backbones))
    figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    last = len(backbones) - 1
    shades = [colormaps["viridis_r"](1 - 0.75 * (last - i) / max(last, 1)) for i in range(last + 1)]
    for axes, task in zip(grid.flat, tasks, strict=False):
        _style(axes)
        panel = curve[curve["task"] == task]
        for i, backbone in enumerate(backbones):
            line = panel[panel["backbone"] == backbone]
            if line.empty:
                continue
            p = float(line["base_mean_p"].iloc[0])
            low, high = (line[end].clip(*limits(yardstick)) for end in ("low", "high"))
            error = [(line["mean"] - low).fillna(0), (high - line["mean"]).fillna(0)]
            axes.errorbar(
                line["alpha"] + (i - (len(backbones) - 1) / 2) * 0.012, line["mean"], error, capsize=3, elinewidth=1.2,
                marker="o", linewidth=1.8, color=shades[i],
                label=f"{backbone}, " + ("mean p not measured" if math.isnan(p) else f"mean p {p:.2f}"),
            )  # fmt: skip
        axes.set_title(str(task), loc="left", fontsize=11, fontweight="bold")
        axes.set_xlabel("alpha (0 is NLL, 1 is 1 - p)")
        axes.legend(loc="upper left", bbox_to_anchor=(0.0, -0.15), **_LEGEND)
    for axes in grid.flat[len(tasks) :]:
        axes.remove()
    for axes in grid[:, 0]:
        axes.set_ylabel(quantity(yardstick))
    return figure


def probe_figure(facts: Mapping[str, Any]) -> Figure:
    """What a backbone knows of a task: the histogram of p, and mean p along the response.

    facts: `jobs.probe.Probe.facts` with backbone and task
    """
    figure = Figure(figsize=(WIDTH, 4.0), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        _style(axes)
    share = [count / facts["tokens"] for count in facts["histogram"]]
    width = 1 / len(share)
    left.bar([(i + 0.5) * width for i in range(len(share))], share, width * 0.92, color=PALETTE[0])
    mean = facts["trainset/mean_p"]
    left.axvline(mean, color=PALETTE[1], linewidth=1.8)
    left.annotate(
        f"mean p {mean:.2f}", (mean, 0.97), xycoords=("data", "axes fraction"), color=PALETTE[1], fontsize=10,
        xytext=(6 if mean < 0.7 else -6, 0), textcoords="offset points", ha="left" if mean < 0.7 else "right", va="top",
    )  # fmt: skip
    left.set_xlabel("p of a target token before training")
    left.set_ylabel("share of target tokens")
    left.set_title(f"{facts['backbone']} on {facts['task']}", loc="left", fontsize=11, fontweight="bold")
    places = [(i, p) for i, (p, n) in enumerate(zip(facts["position_p"], facts["position_count"], strict=True)) if n]
    right.plot([i for i, _ in places], [p for _, p in places], color=PALETTE[0], marker="o", markersize=4)
    right.axhline(facts["trainset/eos_p"], color=PALETTE[2], linestyle="--", linewidth=1.6, label="EOS")
    right.set_ylim(0, 1.03)
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.set_xlabel("place in the response")
    right.set_ylabel("mean p")
    right.legend(loc="best", **_LEGEND)
    return figure


def weight_figure(objectives: Mapping[str, ObjectiveSpec]) -> Figure:
    """W_f(p), how hard each objective pulls on the target's logit (paper Lemma 3.1), with its gate.

    What an objective reads besides p is held at ordinary numbers: mean p 0.5, an entropy of 1.25 nats, ...
    """
    figure, axes = _canvas(3.9)
    if not objectives:
        return _empty(figure, axes, "No objective has been planned.")
    colour = colours(objectives)
    p = numpy.arange(1, 1000) / 1000  # each the nearest number, so that a gate stands where it should
    for name, objective in sorted(objectives.items(), key=lambda item: (item[1].gate is not None, item[0])):
        gated = objective.gate is not None
        try:
            curve = weights(p, objective, mean_p=0.5)
        except Exception as error:  # a package's own function, which may raise here as it does in training
            axes.plot([], [], label=f"{name}: {Failure.of(error).line[:40]}", color=colour[name])
            continue
        axes.plot(p, curve, label=name, color=colour[name], linestyle="--" if gated else "-", linewidth=2.2)
        if objective.gate is not None and objective.gate.at is not None:
            axes.axvline(objective.gate.at, color=colour[name], linewidth=1, linestyle=":")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, min(1.25, axes.get_ylim()[1]))  # negative alphas have no bound at p = 0
    axes.set_xlabel("p, the model's probability of the target token")
    axes.set_ylabel("W_f(p), pull on the target's logit")
    figure.legend(title="objective", loc="outside right upper", **_LEGEND)
    return figure


def recommend_figure(cells: Sequence[Cell], advice: Advice, what: str) -> Figure:
    """What is expected of objectives along the continuum, what was measured, and where the new cell stands.

    Lines are of the first few objectives; the band is the interval of the one that is advised. Cells of other tasks are
    pale where they were not asked.
    """
    figure, axes = _canvas(4.6)
    task = advice.near[0].task if advice.same_task else None
    asked = [cell for cell in cells if task in (None, cell.task)]
    shown = [one.objective for one in advice.expected if one.objective != NLL][:4]
    shown = shown or sorted({name for cell in cells for name in cell.gains})[:4]
    colour = colours({name for cell in cells for name in cell.gains})
    ends = [log_odds(cell.mean_p) for cell in asked] + [log_odds(advice.mean_p)]
    places = [min(ends) - 0.3 + i * (max(ends) - min(ends) + 0.6) / 80 for i in range(81)]
    along = [advise(asked, 1 / (1 + math.exp(-x)), task, advice.smoother) for x in places]
    for name in shown:
        found = [next((one for one in at.expected if one.objective == name), None) for at in along]
        y = [math.nan if one is None else one.gain for one in found]
        axes.plot(places, y, color=colour[name], linewidth=2, label=name)
        if name == (advice.take if advice.take != NLL else shown[0]):
            low, high = ([math.nan if one is None else getattr(one, end) for one in found] for end in ("low", "high"))
            axes.fill_between(places, low, high, color=colour[name], alpha=0.12, linewidth=0)
        for cell in cells:
            if name in cell.gains:
                axes.scatter(
                    log_odds(cell.mean_p), cell.gains[name], s=28, color=colour[name], edgecolor="white", linewidth=0.6,
                    alpha=1.0 if task in (None, cell.task) else 0.2, zorder=3,
                )  # fmt: skip
    axes.axhline(0, color=INK, linewidth=1)
    axes.axvline(log_odds(advice.mean_p), color=NOTE, linewidth=1.5, linestyle="--")
    axes.text(
        log_odds(advice.mean_p), 1.02, f"{what}: mean p {advice.mean_p:.2f}", transform=axes.get_xaxis_transform(),
        ha="center", va="bottom", color=NOTE, fontsize=10,
    )  # fmt: skip
    _logit_axis(axes, [cell.mean_p for cell in cells] + [advice.mean_p])
    reach = [abs(cell.gains[name]) for cell in cells for name in shown if name in cell.gains]
    axes.set_ylim(-1.25 * max(reach, default=1), 1.25 * max(reach, default=1))
    axes.set_xlabel(
        "mean p of the target tokens under the backbone, on the task's training set, before SFT (logit scale)"
    )
    axes.set_ylabel(f"gain over NLL\n({quantity(PRIMARY)})")
    axes.legend(title="objective", loc="upper left", bbox_to_anchor=(1.0, 1.0), **_LEGEND)
    pale = "" if task is None else f" (pale: not {task})"
    note = (
        f"points: measured cells{pale}; lines: expected of one more; band: its 95 % interval, for the one advised here"
    )
    figure.supxlabel(note, color=NOTE, fontsize=10)
    return figure


def limits(yardstick: str) -> tuple[float, float]:
    """Where a yardstick can lie: a share in 0..1, a negative log-likelihood above 0. Intervals are shown cut there."""
    return 0.0, 1.0 if YARDSTICKS[yardstick].higher_is_better else math.inf


_LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 10, "title_fontsize": 10, "alignment": "left"}


def _canvas(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")
    axes = figure.subplots()
    _style(axes)
    return figure, axes


def _style(axes: Axes) -> None:
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=10)


def _look(task: int, colour: str) -> dict[str, Any]:
    """How the points of the task-th task are drawn: only the first one's are filled and joined by a solid line."""
    fill, line = (colour, "-") if task == 0 else ("white", "--")
    shape = {"marker": MARKERS[task % len(MARKERS)], "markersize": 7, "markeredgewidth": 1.6}
    return {"color": colour, "markerfacecolor": fill, "linestyle": line} | shape


def _logit(p: pd.Series[float]) -> pd.Series[float]:
    """log(p / (1 - p)): the scale on which 0.04 and 0.09 stand as far apart as they are for a backbone."""
    inside = p.clip(1e-4, 1 - 1e-4)
    return (inside / (1 - inside)).map(math.log)


def _logit_axis(axes: Axes, p: Iterable[float]) -> None:
    """An axis in log-odds whose ticks read as probabilities."""
    at = [log_odds(one) for one in p]
    low, high = min(at) - 0.35, max(at) + 0.35
    ticks = {math.log(t / (1 - t)): f"{t:g}" for t in P_TICKS}
    shown = {x: text for x, text in ticks.items() if low <= x <= high}
    axes.set_xlim(low, high)
    axes.set_xticks(list(shown), list(shown.values()))


def _seeds(counts: pd.Series[int]) -> str:
    """How the intervals were made, with the number of pairs that each stands on."""
    low, high = int(counts.min()), int(counts.max())
    if high == 1:
        return "n = 1 seed: no interval"
    single = ", none where n = 1" if low == 1 else ""
    return f"Bars: 95 % t interval over n = {low if low == high else f'{low} to {high}'} seeds, paired with NLL{single}"


def _empty(figure: Figure, axes: Axes, text: str) -> Figure:
    axes.axis("off")
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=NOTE, fontsize=12)
    return figure
