"""Curves and pictures of a training run for TensorBoard."""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from misc.distributed import is_main_process
from misc.errors import UserError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


_EVENT_FILES = "events.out.tfevents.*"


class Board:
    """Writes scalars and pictures, or nothing when there is no writer.

    Everything is on disk when a call returns, so that a killed run loses no point.
    """

    def __init__(self, writer: "SummaryWriter | None") -> None:
        """Write to `writer`; None keeps silent."""
        self._writer = writer

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add one point to the curve of every tag."""
        if self._writer is not None:
            for tag, value in values.items():
                self._writer.add_scalar(tag, value, step)
            self._writer.flush()

    def picture(self, tag: str, image: np.ndarray, step: int) -> None:
        """Add an (h, w, 3) uint8 RGB picture."""
        if self._writer is not None:
            self._writer.add_image(tag, image, step, dataformats="HWC")
            self._writer.flush()

    def close(self) -> None:
        """Close the files; a closed board stays silent."""
        if self._writer is not None:
            self._writer.close()
        self._writer = None

    def __enter__(self) -> "Board":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def open_board(folder: Path | None, first_step: int) -> Board:
    """Open the board of a run in its main process; the other processes get a silent one.

    Args:
        folder: of the event files; created when needed. None gives a silent board.
        first_step: the first step that this run will write. Points that an earlier, killed run
            wrote from this step on are not shown any more.

    Raises:
        UserError: tensorboard is not installed, or the folder cannot be written.
    """
    if folder is None or not is_main_process():
        return Board(None)
    writer = require_tensorboard()
    try:
        return Board(writer(str(folder), purge_step=first_step))
    except OSError as error:
        raise UserError(f"the TensorBoard folder {folder} cannot be written: {error}.") from None


def remove_event_files(folder: Path) -> None:
    """Remove the curves of a run that is started afresh; other files of the folder stay."""
    for path in folder.glob(_EVENT_FILES):
        path.unlink(missing_ok=True)


def require_tensorboard() -> type["SummaryWriter"]:
    """What writes event files.

    Raises:
        UserError: tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "the training curves need the package tensorboard, which is not installed; run: "
            "pip install tensorboard"
        ) from None
    return SummaryWriter
