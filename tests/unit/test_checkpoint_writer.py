"""What is saved is what was there when saving began, however long the disk takes."""

import io
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.checkpoint_writer import CheckpointWriter


class Plain:
    """As DeepSpeed's: one torch.save a file."""

    name = "plain"

    def save(self, state_dict: Any, path: Any) -> None:
        torch.save(state_dict, path)


def test_training_goes_on_while_a_slow_disk_takes_what_was_there(tmp_path: Path) -> None:
    pipe = tmp_path / "a.pt"
    os.mkfifo(pipe)  # writing to it waits until somebody reads
    writer = CheckpointWriter(Plain())
    weights = torch.arange(6.0)
    writer.save({"weights": weights, "same": weights[:3], "step": 4}, str(pipe))
    writer.save({"rank": 0}, str(tmp_path / "b.pt"))
    parts = writer.take()
    assert not parts.written()
    weights += 1  # the next step
    found = torch.load(io.BytesIO(pipe.read_bytes()))
    parts.wait()
    assert parts.written()
    assert found["weights"].tolist() == [0, 1, 2, 3, 4, 5]
    assert found["same"].data_ptr() == found["weights"].data_ptr()  # shared as before
    assert torch.load(tmp_path / "b.pt") == {"rank": 0}
    assert writer.take().written()  # nothing since
    writer.close()


def test_what_goes_wrong_with_a_file_is_raised_to_who_waits(tmp_path: Path) -> None:
    writer = CheckpointWriter(Plain())
    writer.save({}, str(tmp_path / "gone" / "a.pt"))
    parts = writer.take()
    with pytest.raises(FileNotFoundError, match="gone"):
        parts.wait()
    writer.close()
    assert writer.name == "plain"  # all else is the engine's own
