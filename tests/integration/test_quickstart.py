"""`make quickstart`'s sweep, whole: the continuum shows on two CPU cores."""

import json
from pathlib import Path

from .conftest import ROOT, sweeper


def test_the_crossing_is_plain(tmp_path: Path) -> None:
    """Prior-leaning ahead of NLL at the strong end, behind it at the weak end, with intervals that do not overlap."""
    done = sweeper("run", ROOT / "examples" / "quickstart.yaml", storage=tmp_path, timeout=1200)
    assert done.returncode == 0, done.stderr + done.stdout
    report = json.loads((tmp_path / "sweeps" / "quickstart" / "report" / "report.json").read_text())
    assert [(d["task"], d["runs"]) for d in report["data"]] == [
        ("addition-noise0.3", 1),
        ("cipher", 1),
    ]  # for 60 trials
    rows = {(r["task"], r["backbone"], r["objective"]): r for r in report["leaderboard"]}

    def interval(task: str, backbone: str, objective: str) -> tuple[float, float]:
        row = rows[task, backbone, objective]
        assert row["n"] == 3
        assert len(row["run_ids"]) == 3
        return row["low"], row["high"]

    strong = ("addition-noise0.3", "char-llama-1600")
    weak = ("cipher", "char-llama-1600")
    assert interval(*strong, "one-minus-p")[0] > interval(*strong, "nll")[1]
    assert interval(*weak, "nll")[0] > interval(*weak, "one-minus-p")[1]
    assert len({r["base_mean_p"] for r in report["gains"]}) >= 4
    for name in ("report.html", "continuum.png", "trials.csv"):
        assert (tmp_path / "sweeps" / "quickstart" / "report" / name).stat().st_size > 1000
