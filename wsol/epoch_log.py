"""What a training run tells about its finished epochs: JSON lines and TensorBoard curves."""

import json
from collections.abc import Callable, Mapping, Sequence

from misc.distributed import is_main_process
from misc.files import atomic_path
from misc.tensorboard import Board, open_board
from wsol.config import Paths


class EpochLog:
    """Writes the history of a training whenever it has grown.

    The history comes from the training state, so that the files of a resumed run have every epoch
    once, also where the run was killed between the state and the log.
    """

    def __init__(self, paths: Paths, more: Callable[[int], dict[str, float]]) -> None:
        """Write to the files of `paths`; `more` gives further numbers of an epoch, from 1."""
        self.paths = paths
        self.more = more
        self._board: Board | None = None
        self._written = 0

    def write(self, history: Sequence[Mapping[str, float]]) -> None:
        """Write `log.jsonl` afresh, and TensorBoard points of epochs that this run has not written.

        The first call opens the board, and writes the last epoch alone: those before it were
        written by a run before.

        Args:
            history: numbers of all finished epochs by name; the first one is epoch 1.

        Raises:
            UserError: tensorboard is not installed, or the folder cannot be written.
        """
        if not is_main_process():
            return
        if self._board is None:
            newest = max(1, len(history))
            self._board = open_board(self.paths.board, first_step=newest)
            self._written = newest - 1
        if not history:
            return
        rows = [{**row, **self.more(epoch)} for epoch, row in enumerate(history, start=1)]
        with atomic_path(self.paths.epoch_log) as temporary:
            lines = (json.dumps({"epoch": e, **row}) for e, row in enumerate(rows, start=1))
            temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        for epoch in range(self._written + 1, len(rows) + 1):
            self._board.scalars(rows[epoch - 1], epoch)
        self._written = len(rows)

    def close(self) -> None:
        """Close the TensorBoard files."""
        if self._board is not None:
            self._board.close()
