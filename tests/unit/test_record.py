"""A trial's folder survives kills: torn rows, half checkpoints, repeated steps."""

import time
from pathlib import Path

import pytest

from jobs.clock import EVALUATE, SETUP, TRAIN, Clock
from jobs.record import DAMAGED, RowWriter, TrialFolder
from sweeper.results import taken
from sweeper.store import Store, StoreError


def folder(tmp_path: Path) -> TrialFolder:
    (tmp_path / "trials" / "k").mkdir(parents=True)
    return TrialFolder(tmp_path / "trials" / "k")


def test_a_row_torn_by_a_kill_is_healed_not_glued(tmp_path: Path) -> None:
    trial = folder(tmp_path)
    RowWriter(trial).write({"step": 10, "a": 1.0})
    with (trial.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "a"')
    assert [row["step"] for row in trial.rows()] == [10]
    RowWriter(trial).write({"step": 20, "a": 2.0})
    assert [(row["step"], row["a"]) for row in trial.rows()] == [(10, 1.0), (20, 2.0)]


def test_steps_repeated_after_a_resume_are_not_written_twice(tmp_path: Path) -> None:
    trial = folder(tmp_path)
    for step in (10, 20, 30):
        RowWriter(trial).write({"step": step})
    writer = RowWriter(trial)  # resumed from a checkpoint at 20
    for step in (30, 40):
        writer.write({"step": step})
    assert [row["step"] for row in trial.rows()] == [10, 20, 30, 40]


def test_rows_are_read_on_from_an_offset(tmp_path: Path) -> None:
    trial = folder(tmp_path)
    writer = RowWriter(trial)
    writer.write({"step": 1})
    rows, offset = trial.rows_from(0)
    writer.write({"step": 2})
    assert [row["step"] for row in rows] == [1]
    assert [row["step"] for row in trial.rows_from(offset)[0]] == [2]
    assert trial.rows_from(trial.rows_from(offset)[1])[0] == []


def test_only_complete_checkpoints_count_and_old_ones_go(tmp_path: Path) -> None:
    trial = folder(tmp_path)
    for step in (10, 20, 30):
        trial.checkpoint_dir(step).mkdir(parents=True)
    trial.complete_checkpoint(10, keep=1)
    trial.complete_checkpoint(20, keep=1)
    assert trial.checkpoints() == [trial.checkpoint_dir(20)]
    assert not trial.checkpoint_dir(10).exists()
    assert trial.checkpoint_dir(30).exists()  # half written: neither used nor taken away from its writer


def test_a_trial_is_over_only_with_its_last_word(tmp_path: Path) -> None:
    trial = folder(tmp_path)
    assert trial.result() is None
    trial.finish("failed", error="boom")
    assert (trial.result() or {})["error"] == "boom"
    trial.reopen()
    assert trial.result() is None


def test_one_driver_a_sweep(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with (
        store.lock("s"),
        pytest.raises(StoreError, match="sweep 's' is being run already .process \\d+"),
        store.lock("s"),
    ):
        pass
    with store.lock("s"):
        pass


def test_an_unknown_sweep_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no sweep 'x' in .*; sweeps there: none"):
        Store(tmp_path).plan("x")


def test_a_trial_that_has_its_last_word_is_not_stopped_by_hand(tmp_path: Path) -> None:
    trial = folder(tmp_path)
    trial.finish("finished", step=30)
    trial.stop_by_hand()  # asked for a moment before that
    assert (trial.result() or {})["status"] == "finished"


def test_seconds_of_all_legs_are_in_the_last_word_whoever_says_it(tmp_path: Path) -> None:
    trial = folder(tmp_path)
    assert trial.seconds() == {}
    told: list[str] = []
    for leg in (1, 2):  # held at a rung, then stopped there by a race
        clock = Clock(trial.seconds(), told.append)
        clock.add(SETUP, 2.0)
        clock.add(TRAIN, 10.0)
        clock.add(EVALUATE, 1.0)
        trial.write_seconds(clock.read())
        assert trial.seconds() == {"setup_s": 2.0 * leg, "train_s": 11.0 * leg}
    trial.finish("stopped", by="race", step=20)
    assert taken(trial.result() or {}) == 26.0
    assert taken({"train_s": 5.0}) == 5.0  # a record of before
    assert taken({}) is None


def test_a_clock_counts_while_it_runs_and_tells_each_phase_once() -> None:
    told: list[str] = []
    clock = Clock(tell=told.append)
    for phase in (SETUP, TRAIN, TRAIN, EVALUATE, TRAIN):
        clock.enter(phase)
        time.sleep(0.002)
        clock.read()  # goes on
        time.sleep(0.002)
    clock.pause()
    found = clock.read()
    time.sleep(0.01)
    assert clock.read() == found
    assert found["train_s"] >= 4 * 0.004
    assert 0.004 <= found["setup_s"] < found["train_s"]
    clock.enter(TRAIN)  # after a pause: nothing new
    assert told == [SETUP, TRAIN, EVALUATE, TRAIN]


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"null", b"\xff\xfe", b'{"step": 3}', b"[" * 100_000])
def test_a_result_that_cannot_be_read_is_damaged_and_names_its_file(tmp_path: Path, text: bytes) -> None:
    trial = folder(tmp_path)
    trial.finish("finished")
    assert trial.damage() is None
    (trial.path / "result.json").write_bytes(text)
    assert (trial.result() or {})["status"] == DAMAGED
    damage = trial.damage()
    assert damage is not None
    assert damage.startswith(f"{trial.path / 'result.json'} is not what was written there")
    assert f"move {trial.path} away" in damage


@pytest.mark.parametrize("line", [b"garbage", b"\0\0\0", b"{}", b'{"step": "x"}', b'["step"]', b"\xff", b""])
def test_a_line_that_is_no_row_is_left_out_and_told_by_its_number(tmp_path: Path, line: bytes) -> None:
    trial = folder(tmp_path)
    RowWriter(trial).write({"step": 1, "a": 1.0})
    with (trial.path / "metrics.jsonl").open("ab") as file:
        file.write(line + b"\n")
    RowWriter(trial).write({"step": 2, "a": 2.0})
    assert [row["step"] for row in trial.rows()] == [1, 2]
    damage = trial.damage()
    assert damage is not None
    assert damage.startswith(f"{trial.path / 'metrics.jsonl'}:2 ")


def test_seconds_and_failures_that_cannot_be_read_cost_nothing_else(tmp_path: Path) -> None:
    trial = folder(tmp_path)
    (trial.path / "seconds.json").write_text("")
    (trial.path / "failures.jsonl").write_text('{"time": 1, "error": "x"}\ngarbage\n')
    assert trial.seconds() == {}
    assert [failure["error"] for failure in trial.failures()] == ["x"]


def checkpoint(trial: TrialFolder, step: int, keep: int = 3) -> Path:
    target = trial.checkpoint_dir(step)
    (target / "ds").mkdir(parents=True)
    (target / "ds" / "shard-0.pt").write_bytes(b"0123456789" * step)
    (target / "latest").write_text("ds")
    trial.complete_checkpoint(step, keep)
    return target


@pytest.mark.parametrize("harm", ["cut", "empty", "changed", "gone", "mark"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_taken(tmp_path: Path, harm: str) -> None:
    trial = folder(tmp_path)
    older, newest = checkpoint(trial, 10), checkpoint(trial, 20)
    assert trial.intact_checkpoint() == (newest, [])
    shard = newest / "ds" / "shard-0.pt"
    if harm == "cut":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif harm == "empty":
        shard.write_bytes(b"")
    elif harm == "changed":
        shard.write_bytes(b"x" + shard.read_bytes()[1:])
    elif harm == "gone":
        shard.unlink()
    else:
        (newest / "COMPLETE").write_text("{")
    found, aside = trial.intact_checkpoint()
    assert found == older
    assert [path.name.startswith("damaged-step-00000020") for path in aside] == [True]
    assert trial.checkpoints() == [older]
    (older / "latest").unlink()
    assert trial.intact_checkpoint()[0] is None


def test_a_mark_of_before_says_nothing_of_its_files(tmp_path: Path) -> None:
    trial = folder(tmp_path)
    target = checkpoint(trial, 10)
    (target / "COMPLETE").write_text("")
    assert trial.intact_checkpoint() == (target, [])


def test_a_sweep_of_somebody_elses_is_not_overwritten(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.check_owner("s", "ada")
    store.save_plan("s", "name: s", [], {"owner": "ada"})
    store.check_owner("s", "ada")
    with pytest.raises(StoreError, match="sweep 's' in .* is ada's, and you are grace; give yours another name"):
        store.check_owner("s", "grace")
    store.save_plan("t", "name: t", [], {})  # of before owners were recorded
    store.check_owner("t", "grace")
