"""The curve of an objective's weights, W_f(p), for pictures: without torch, whose import costs more than a report.

The table's functions use methods of tensors only (jobs/objectives.py). `Dual` has the same ones, on numbers that carry
their derivative along. It draws and never trains: what trains is jobs/loss.py, to which tests hold it.
"""

from __future__ import annotations

from typing import Any

import numpy

from jobs.objectives import OBJECTIVES, State, Tokens
from jobs.spec import ObjectiveSpec

Array = Any  # float64, of any shape
# What an objective may read besides p, at ordinary values; the last four are the state's
ORDINARY = {
    "top_entropy": 1.25, "concentration": 0.375, "ref_logp": -0.75, "ref_mass": 0.625, "sequence_p": 0.4375,
    "mean_p": 0.3125, "median_nll": 1.5, "probe_p": 0.25, "progress": 0.5,
}  # fmt: skip
STATE = ("mean_p", "median_nll", "probe_p", "progress")


def weights(p: Array, objective: ObjectiveSpec, **values: float) -> Array:
    """W_f(p) = -f'(p) p (1 - p) (paper Lemma 3.1), 0 where the gate drops p; p inside (0, 1). values: as ORDINARY."""
    spec = objective.canonical()
    of = _by_numpy if spec.name in OBJECTIVES else _by_torch  # a package's own may use all of torch
    pull = of(p, spec, values)
    if spec.gate is None or spec.gate.at is None:
        return pull
    return numpy.where(p >= spec.gate.at if spec.gate.side == "top" else p <= spec.gate.at, pull, 0.0)


def _by_numpy(p: Array, spec: ObjectiveSpec, values: dict[str, float]) -> Array:
    known: dict[str, Any] = {name: Dual(numpy.float64(value)) for name, value in (ORDINARY | values).items()}
    state = State(**{name: known.pop(name) for name in STATE})
    # their derivatives by the log-odds, log(p / (1 - p))
    logp: Any = Dual(numpy.log(p), 1 - p)
    log1mp: Any = Dual(numpy.log1p(-p), -p)
    loss: Any = OBJECTIVES[spec.name].loss(Tokens(logp, log1mp, state=state, **known), **spec.arguments())
    return -loss.slope


def _by_torch(p: Array, spec: ObjectiveSpec, values: dict[str, float]) -> Array:
    import torch

    from jobs.conformance import example_tokens
    from jobs.loss import weight

    ungated = spec.model_copy(update={"gate": None})
    return weight(torch.from_numpy(p), ungated, example_tokens(len(p), torch.float64, **values)).numpy()


class Dual:
    """A value and its derivative: what the table's functions use of a tensor. Comparisons give plain booleans."""

    __array_ufunc__ = None  # numpy leaves `array * Dual` to this class

    def __init__(self, value: Array, slope: Array = 0.0) -> None:
        self.value, self.slope = value, slope

    def detach(self) -> Dual:
        return Dual(self.value)

    def exp(self) -> Dual:
        return Dual(numpy.exp(self.value), self.slope * numpy.exp(self.value))

    def expm1(self) -> Dual:
        return Dual(numpy.expm1(self.value), self.slope * numpy.exp(self.value))

    def where(self, condition: Array, other: Dual) -> Dual:
        value = numpy.where(condition, self.value, other.value)
        return Dual(value, numpy.where(condition, self.slope, other.slope))

    def clamp(self, low: float, high: float) -> Dual:
        inside = (self.value >= low) & (self.value <= high)
        return Dual(numpy.clip(self.value, low, high), numpy.where(inside, self.slope, 0.0))

    def clamp_min(self, low: float) -> Dual:
        return self.clamp(low, numpy.inf)

    def clamp_max(self, high: float) -> Dual:
        return self.clamp(-numpy.inf, high)

    def relu(self) -> Dual:
        return self.clamp_min(0.0)

    def __neg__(self) -> Dual:
        return Dual(-self.value, -self.slope)

    def __add__(self, other: Any) -> Dual:
        other = _dual(other)
        return Dual(self.value + other.value, self.slope + other.slope)

    def __mul__(self, other: Any) -> Dual:
        other = _dual(other)
        return Dual(self.value * other.value, self.slope * other.value + self.value * other.slope)

    def __pow__(self, power: float) -> Dual:
        return Dual(self.value**power, self.slope * power * self.value ** (power - 1))

    def __sub__(self, other: Any) -> Dual:
        return self + -_dual(other)

    def __truediv__(self, other: Any) -> Dual:
        return self * _dual(other) ** -1

    __radd__ = __add__
    __rmul__ = __mul__

    def __rsub__(self, other: Any) -> Dual:
        return -self + other

    def __gt__(self, other: Any) -> Array:
        return self.value > _dual(other).value

    def __ge__(self, other: Any) -> Array:
        return self.value >= _dual(other).value

    def __lt__(self, other: Any) -> Array:
        return self.value < _dual(other).value

    def __le__(self, other: Any) -> Array:
        return self.value <= _dual(other).value


def _dual(number: Any) -> Dual:
    """A bool array is numbers, too: an objective multiplies by a comparison."""
    return number if isinstance(number, Dual) else Dual(numpy.asarray(number, dtype=numpy.float64))
