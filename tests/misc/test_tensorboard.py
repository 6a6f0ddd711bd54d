"""Curves and pictures: what TensorBoard shows of a run that was killed and resumed."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from misc.errors import UserError
from misc.tensorboard import open_board


def _shown(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder)).Reload()


def _points(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in _shown(folder).Scalars(tag)]


def test_points_and_pictures_are_on_disk_at_once(tmp_path: Path) -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    image[1, 2] = 255, 128, 0
    with open_board(tmp_path / "new", 0) as board:
        board.scalars({"loss": 0.5, "rate/1x": 2.0}, 0)
        board.scalars({"loss": 0.25}, 10)
        board.picture("grid", image, 10)
        shown = _shown(tmp_path / "new")
        assert _points(tmp_path / "new", "loss") == [(0, 0.5), (10, 0.25)]
        assert _points(tmp_path / "new", "rate/1x") == [(0, 2.0)]
    picture = Image.open(io.BytesIO(shown.Images("grid")[0].encoded_image_string))
    assert np.array_equal(np.asarray(picture), image)


def test_resumed_run_has_no_double_points(tmp_path: Path) -> None:
    killed = open_board(tmp_path, 0)
    for step in (1, 2, 3, 4):
        killed.scalars({"loss": 1.0 * step}, step)
    killed.close()
    with open_board(tmp_path, 3) as board:  # the state is of step 2
        for step in (3, 4, 5):
            board.scalars({"loss": 10.0 * step}, step)
    assert _points(tmp_path, "loss") == [(1, 1), (2, 2), (3, 30), (4, 40), (5, 50)]


def test_other_processes_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with open_board(tmp_path / "board", 0) as board:
        board.scalars({"loss": 1.0}, 0)
        board.picture("grid", np.zeros((2, 2, 3), np.uint8), 0)
    assert not (tmp_path / "board").exists()


def test_closed_board_is_silent(tmp_path: Path) -> None:
    board = open_board(tmp_path, 0)
    board.scalars({"loss": 1.0}, 0)
    board.close()
    board.scalars({"loss": 1.0}, 1)
    assert _points(tmp_path, "loss") == [(0, 1.0)]


def test_missing_package_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        open_board(tmp_path, 0)


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.board cannot be written"):
        open_board(tmp_path / "file" / "board", 0)
