"""How many trials fit. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping


class PlacementError(ValueError):
    """A trial can never be placed on this cluster; the message names the resource that is short."""


def lanes_that_fit(total: Mapping[str, float], workers: int, cpus: float, gpus: float) -> int:
    """Trials at once on a cluster with these total resources; raises PlacementError where not even one fits."""
    fit = []
    for name, each in (("CPU", cpus), ("GPU", gpus)):
        if each > 0:
            have, need = total.get(name, 0.0), each * workers
            if have < need:
                raise PlacementError(
                    f"a trial needs {need:g} {name} ({workers} workers x {each:g}), the cluster has {have:g}; "
                    f"lower execution.workers or execution.{name.lower()}s_per_worker, or add nodes"
                )
            fit.append(math.floor(have / need + 1e-9))
    return min(fit)
