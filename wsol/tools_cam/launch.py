"""Start a script in several processes, as torchrun does, and end with its exit status.

python wsol/tools_cam/launch.py COUNT SCRIPT [ARGUMENTS ...]

torchrun itself would bury the one sentence of a wrong input under tracebacks of its own.
"""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import misc.threads  # noqa: F401 - before torch


def main(argv: Sequence[str]) -> int:
    """Run `argv` = COUNT SCRIPT ARGUMENTS; returns the status of the process that failed first."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    count, *command = argv
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torchrun does so, too, with a warning
    try:
        torchrun(["--standalone", "--nproc_per_node", count, *command])
    except ChildFailedError as error:
        first = min(error.failures.values(), key=lambda failure: failure.timestamp)
        return first.exitcode
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
