"""Holds an objective's function to what every objective here keeps: `python -m jobs.conformance NAME`.

For a user's own objective (jobs/plugins.py) as for the table's: finite and free of NaN in fp32 at both ends of p,
the same numbers in fp32 as in float64, pulling p up, and a gradient that is its value's derivative.
"""

from __future__ import annotations

import argparse
import math
import sys

import torch

from jobs.curve import ORDINARY, STATE
from jobs.loss import BoundObjective
from jobs.objectives import State, Tokens
from jobs.plugins import known_objectives, objective_named
from jobs.spec import ObjectiveSpec

LOG_ODDS = (-69.0, -30.0, -14.0, -4.6, -1.0, 0.0, 1.0, 2.2, 7.0, 20.7, 69.0, math.inf)


def example_tokens(size: int, dtype: torch.dtype = torch.float32, **values: float) -> Tokens:
    """Everything that an objective may read, with ordinary numbers, one value for all `size` tokens."""
    numbers = ORDINARY | values
    state = State(**{name: torch.tensor(numbers.pop(name), dtype=dtype) for name in STATE})
    nothing = torch.zeros(size, dtype=dtype)
    return Tokens(nothing, nothing, state=state, **{k: torch.full((size,), v, dtype=dtype) for k, v in numbers.items()})


def findings(spec: ObjectiveSpec) -> list[str]:
    """What is wrong with an objective; empty if nothing is."""
    bound, odds = BoundObjective.bind(spec), torch.tensor(LOG_ODDS)
    single, double = (
        bound(odds, example_tokens(len(odds))),
        bound(odds.double(), example_tokens(len(odds), torch.float64)),
    )
    wrong = []
    for name, mine, exact in (("loss", single.value, double.value), ("weight", single.pull, double.pull)):
        for gap, value, want in zip(LOG_ODDS, mine.tolist(), exact.tolist(), strict=True):
            at = f"{name} at log-odds {gap:g}"
            if math.isnan(value):
                wrong.append(f"{at} is NaN")
            elif not math.isclose(value, want, rel_tol=1e-4, abs_tol=1e-30) and not (
                math.isinf(want) and value == want
            ):
                wrong.append(f"{at} is {value:.8g} in fp32, {want:.8g} in float64")
            if name == "weight" and value < 0:
                wrong.append(f"{at} is {value:.3g}: it pushes the target's probability down")
    return wrong + _derivative(spec)


def _derivative(spec: ObjectiveSpec) -> list[str]:
    """Pull against the central difference of the value, in float64, where nothing is detached."""
    if objective_named(spec.name).detached:
        return []
    bound, odds = BoundObjective.bind(spec), torch.tensor([g for g in LOG_ODDS if abs(g) < 10], dtype=torch.float64)
    seen, step = example_tokens(len(odds), torch.float64), 1e-5
    slope = (bound.value(odds + step, seen) - bound.value(odds - step, seen)) / (2 * step)
    pull = bound(odds, seen).pull
    return [
        f"weight at log-odds {gap:g} is {p:.8g}, the derivative of the loss is {-s:.8g}"
        for gap, p, s in zip(odds.tolist(), pull.tolist(), slope.tolist(), strict=True)
        if not math.isclose(p, -s, rel_tol=1e-5, abs_tol=1e-9)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.conformance", description=__doc__)
    parser.add_argument("name", choices=known_objectives(), metavar="NAME", help="of an objective, own or built in")
    parser.add_argument("--param", action="append", default=[], metavar="NAME=NUMBER", help="where it needs one")
    args = parser.parse_args()
    params = {key: float(value) for key, _, value in (p.partition("=") for p in args.param)}
    wrong = findings(ObjectiveSpec.model_validate({"name": args.name} | params))
    print("\n".join(wrong) or f"{args.name}: finite, exact at both ends, and its gradient is its derivative")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
