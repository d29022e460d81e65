"""Objectives of a user's own: registered by an installed package, never by a path or an expression in a spec.

In the package's pyproject.toml:

    [project.entry-points."objective_continuum.objectives"]
    my-objective = "my_package.objectives:MY_OBJECTIVE"

where MY_OBJECTIVE is a jobs.objectives.Objective of that name. `python -m jobs.conformance my-objective` holds it
to the same checks as the table's own.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points

from jobs.failure import Failure
from jobs.objectives import OBJECTIVES, Objective

GROUP = "objective_continuum.objectives"


class PluginError(ValueError):
    """An installed package registers something that is no objective; the message names it."""


@cache
def _registered() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def known_objectives() -> list[str]:
    """Names of the table and of installed packages, without importing those."""
    return [*OBJECTIVES, *(name for name in _registered() if name not in OBJECTIVES)]


@cache
def objective_named(name: str) -> Objective:
    """The row of that name; the table's own first. Raises PluginError, KeyError."""
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    point = _registered()[name]
    try:
        found = point.load()
    except Exception as error:  # somebody else's module: whatever it raises, the objective is not there
        raise PluginError(
            f"objective '{name}': {point.value} cannot be imported: {Failure.of(error).line}; "
            f"python -c 'import {point.module}' shows where"
        ) from error
    if not isinstance(found, Objective) or found.name != name:
        raise PluginError(
            f"objective '{name}': entry point {point.value} is {found!r}; "
            f"it has to be a jobs.objectives.Objective with name='{name}'"
        )
    return found


def version_of(name: str) -> str | None:
    """Distribution and version that bring an objective; None for the table's own."""
    point = None if name in OBJECTIVES else _registered()[name]
    return f"{point.dist.name} {point.dist.version}" if point is not None and point.dist is not None else None
