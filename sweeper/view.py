"""Ready-made pages of the MLflow UI: a stranger who opens one sees which trial is which, and compares them.

MLflow keeps the state of a shared view as a tag of the experiment, `mlflow.sharedViewState.<key>`, and opens it with
`?viewStateShareKey=<key>`. The format is not documented; seen on mlflow 3.17.2. An MLflow that does not know it shows
its ordinary page.
"""

from __future__ import annotations

import json
from typing import Any

from jobs.yardsticks import PRIMARY

TAG = "mlflow.sharedViewState."
COLUMNS = [
    *(f"params.`{name}`" for name in ("objective", "backbone", "task", "seed")),
    *(f"metrics.`{name}`" for name in ("task/accuracy_sampled", "task/accuracy_greedy", "heldout/nll")),
]


def view_tags() -> dict[str, str]:
    """Experiment tags: `trials` lists the runs with what tells them apart, `means` averages over seeds."""
    cells = [{"mode": "param", "groupByData": name} for name in ("objective", "backbone", "task")]
    views: dict[str, dict[str, Any]] = {
        "trials": {"groupBy": None},
        "means": {"groupBy": {"aggregateFunction": "average", "groupByKeys": cells}},
    }
    common = {
        "searchFilter": 'tags."sweeper.kind" != "sweep"',
        "orderByKey": f"metrics.`{PRIMARY}`",
        "orderByAsc": False,
        "selectedColumns": COLUMNS,
    }
    return {TAG + key: json.dumps(common | view) for key, view in views.items()}


def view_url(server: str, experiment_id: str, key: str) -> str:
    """Where the UI shows a view of an experiment."""
    return f"{server}/#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={key}"
