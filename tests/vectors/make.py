"""Writes tests/vectors/objectives.csv: loss and weight of every objective in 50 digits, from formulas written out anew.

    python tests/vectors/make.py

Columns: objective; params (JSON); p as a decimal string; log_odds, loss (nats for NLL), weight, each with 17 digits.
weight is W_f(p) = -f'(p) p (1 - p), with every weight that the source detaches held fixed. The KL term of asft is
not in it: it is no function of p. What an objective reads besides p (jobs/objectives.py) is the same in all rows
and stands in context.json.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from mpmath import diff, exp, expm1, inf, log, mp, mpf

mp.dps = 50
POINTS = ("1e-30", "1e-6", "0.01", "0.5", "0.9", "0.999999999", "1")
FOLDER = Path(__file__).parent
CONTEXT = {
    "top_entropy": 1.25,
    "concentration": 0.375,
    "ref_logp": -0.75,
    "ref_mass": 0.625,
    "sequence_p": 0.4375,
    "mean_p": 0.3125,
    "median_nll": 1.5,
    "probe_p": 0.25,
    "progress": 0.5,
}
C = {name: mpf(value) for name, value in CONTEXT.items()}
Number = mpf


def power(a: Number) -> Callable[[Number], Number]:
    return lambda p: -log(p) if a == 0 else -expm1(a * log(p)) / a


def weighted(w: Callable[[Number], Number]) -> tuple[Callable[[Number], Number], Callable[[Number], Number]]:
    """-sg(w) log p and its W."""
    return (lambda p: -w(p) * log(p) if p < 1 else mpf(0)), (lambda p: w(p) * (1 - p))


def powered(a: Callable[[Number], Number], extra: float = 0.0):
    """(1 - p^a) / (a + extra) with a detached, and its W."""
    return (lambda p: -expm1(a(p) * log(p)) / (a(p) + mpf(extra)),
            lambda p: p ** a(p) * (1 - p) * a(p) / (a(p) + mpf(extra)))  # fmt: skip


def infosft_weight(p: Number) -> Number:
    top = mpf("0.93")
    if p == 1:
        return mpf(0)
    return p * max(mpf(0), 1 - log(p / (1 - p)) / log(top / (1 - top)))


def table() -> Iterator[tuple[str, dict[str, float], Callable, Callable]]:
    """(objective, params, loss, weight)"""
    for a in (-0.5, 0.0, 1e-6, 0.1, 0.5, 1.0, 10.0):
        yield "power", {"alpha": a}, power(mpf(a)), lambda p, a=a: p ** mpf(a) * (1 - p)
    yield "nll", {}, lambda p: -log(p), lambda p: 1 - p
    yield "one-minus-p", {}, lambda p: 1 - p, lambda p: p * (1 - p)
    yield "unlikelihood", {}, lambda p: log(1 - p) if p < 1 else -inf, lambda p: p
    yield "dft", {}, *weighted(lambda p: p)
    for g in (0.5, 2.0):
        f = lambda p, g=g: -((1 - p) ** mpf(g)) * log(p)  # noqa: E731
        yield (
            "focal",
            {"gamma": g},
            f,
            lambda p, f=f: -diff(f, p, h=p * mpf("1e-25")) * p * (1 - p) if p < 1 else mpf(0),
        )
    yield "talr", {}, *weighted(lambda p: max(exp(log(p) / C["median_nll"]), mpf("0.01")))
    yield "profit", {"threshold": 0.2}, *weighted(lambda p: mpf(p > mpf("0.2")))
    yield "infosft", {}, *weighted(infosft_weight)
    yield "eaft", {}, *weighted(lambda p: C["top_entropy"] / log(20))
    yield "eaft-fixed", {}, *weighted(lambda p: C["top_entropy"] / 3)
    yield "asft", {}, *weighted(lambda p: p)
    yield "deft", {}, *powered(lambda p: C["concentration"], 1e-6)
    base = C["mean_p"] / 2
    yield "deft-cayley", {}, *powered(lambda p: min(max(base + (1 - base) * p / (2 - p), mpf("0.001")), mpf(1)), 1e-6)
    yield "prift-prob", {}, *weighted(lambda p: exp(C["ref_logp"]))
    yield "prift-mass", {}, *weighted(lambda p: mpf(C["ref_mass"] >= 0.5))
    m = C["mean_p"]
    yield "adaptive", {}, *powered(lambda p: m)
    yield "adaptive-squared", {}, *powered(lambda p: m**2)
    yield "adaptive-root", {}, *powered(lambda p: m ** mpf("0.5"))
    yield "adaptive-odds", {}, *powered(lambda p: m / (1 - m))
    yield "adaptive-sequence", {}, *powered(lambda p: C["sequence_p"])
    yield "adaptive-token", {}, *powered(lambda p: p)
    yield "adaptive-probe", {}, *powered(lambda p: C["probe_p"])
    yield "adaptive-ramp", {}, *powered(lambda p: C["probe_p"] + (1 - C["probe_p"]) * C["progress"])


def main() -> None:
    def text(x: Number) -> str:
        return mp.nstr(x, 17)

    (FOLDER / "context.json").write_text(json.dumps(CONTEXT, indent=1) + "\n")
    with (FOLDER / "objectives.csv").open("w", newline="") as file:
        write = csv.writer(file, lineterminator="\n").writerow
        write(["objective", "params", "p", "log_odds", "loss", "weight"])
        for name, params, loss, weight in table():
            for point in POINTS:
                p = mpf(point)
                odds = text(log(p) - log(1 - p)) if p < 1 else "inf"
                write([name, json.dumps(params), point, odds, text(loss(p)), text(weight(p))])


if __name__ == "__main__":
    main()
