"""Files that are not what was written there: one trial's trouble is that trial's alone, and says what to do."""

import os
import signal
from pathlib import Path

from sweeper.store import Store

from .conftest import sweeper, until, write_spec
from .test_death import TRAIN, start, under_way


def test_a_damaged_record_is_one_trials_trouble(storage: Path, tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    assert sweeper("run", spec, storage=storage).returncode == 0
    store = Store(storage)
    first, second, third = store.trials("small")
    (store.trial(first).path / "result.json").write_text("")
    with (store.trial(second).path / "metrics.jsonl").open("a") as file:
        file.write("garbage\n")

    status = sweeper("status", "small", storage=storage)
    assert status.returncode == 1
    assert "2 damaged, 1 finished of 3 trials" in status.stdout
    for path in (store.trial(first).path / "result.json", store.trial(second).path / "metrics.jsonl"):
        assert f"{path}" in status.stdout
    done = sweeper("run", spec, storage=storage)
    assert done.returncode == 1
    assert done.stderr.count("damaged: ") == 2
    assert "Traceback" not in done.stderr
    assert (store.trial(third).result() or {})["status"] == "finished"
    assert sweeper("report", "small", storage=storage).returncode == 0
    assert "2 damaged" in (storage / "sweeps/small/report/report.html").read_text()

    for key in (first, second):  # as the message says
        store.trial(key).path.rename(tmp_path / key)
    assert sweeper("run", spec, storage=storage).returncode == 0
    assert {(store.trial(key).result() or {})["status"] for key in (first, second, third)} == {"finished"}


def test_a_checkpoint_that_was_cut_short_is_set_aside_and_the_trial_begins_anew(storage: Path, tmp_path: Path) -> None:
    spec = write_spec(tmp_path, train=TRAIN)
    store = Store(storage)
    driver = start(spec, storage)
    try:
        until("a plan", (storage / "sweeps" / "small" / "plan.json").exists)
        key = until("a trial with a checkpoint", lambda: under_way(store, "small"))
    finally:
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    newest = store.trial(key).checkpoints()[-1]
    for shard in newest.rglob("*.pt"):
        shard.write_bytes(b"")
    assert sweeper("run", spec, storage=storage).returncode == 0
    result, notes = store.trial(key).result() or {}, store.trial(key).failures()
    assert (result["status"], result["resumed_from"]) == ("finished", None)
    assert [note["kind"] for note in notes] == ["damaged"]
    assert "the trial begins anew" in notes[0]["error"]
