"""Places that a user names and that cannot be had are one line and exit status 2."""

import errno
import os
from pathlib import Path

import pytest

from sweeper.cli import main
from sweeper.places import words


@pytest.mark.parametrize("place", ["s3://bucket/sweeps", "gs://bucket", "hdfs://x", "file:///tmp/x"])
@pytest.mark.parametrize("command", [["list"], ["status", "x"], ["report", "x"], ["sync", "x"], ["ui"]])
def test_a_storage_that_is_no_folder_is_refused_by_every_command(
    place: str, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main([*command, "--storage", place])
    assert left.value.code == 2
    assert f"{place}: object storage and other addresses are not supported" in capsys.readouterr().err
    monkeypatch.setenv("SWEEPER_STORAGE", place)
    assert main(command) == 2
    assert f"$SWEEPER_STORAGE {place}: object storage" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["list", "status", "stop", "wait", "watch", "logs", "report"])
def test_an_address_that_is_none_is_refused_and_this_machine_not_asked(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, *([] if command == "list" else ["x"]), "--address", "head:6379"])
    assert left.value.code == 2
    assert "head:6379: the address of a cluster's Jobs API, such as http://HEAD:8265" in capsys.readouterr().err


def test_the_ui_of_a_storage_without_sweeps_or_on_a_taken_port_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import socket

    assert main(["ui", "--storage", str(tmp_path / "none")]) == 2
    assert "so there is nothing to show" in capsys.readouterr().err
    plan = tmp_path / "sweeps" / "s" / "plan.json"
    plan.parent.mkdir(parents=True)
    plan.write_text("{}")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["ui", "--storage", str(tmp_path), "--port", str(taken.getsockname()[1])]) == 2
    assert "Address already in use; --port names another" in capsys.readouterr().err


@pytest.mark.parametrize("storage", ["/proc/x", "/dev/null/x"])
def test_a_storage_that_cannot_be_written_is_one_line(storage: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend", "--backbone", "char-llama-60", "--task", "addition", "--storage", storage]) == 2
    said = capsys.readouterr().err
    assert said.startswith(storage.removesuffix("/x") if "null" in storage else storage)
    assert len(said.splitlines()) == 1


def test_what_is_nobodys_place_is_our_bug_and_a_full_disk_is_said_anywhere() -> None:
    ours = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/usr/lib/x")
    assert words(ours, ["/data/sweeps", None, 3]) is None
    assert words(PermissionError(errno.EACCES, "no", "/data/sweeps/a/b"), ["/data/sweeps"]) == (
        "/data/sweeps/a/b: no; name another place, or change its rights"
    )
    full = words(OSError(errno.ENOSPC, "No space left on device", "/data/x"), [])
    assert full == "the disk is full for /data/x (No space left on device); make room and run the same command again"
