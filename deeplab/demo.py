"""The published demo, which opens windows; says which command does the same without one.

python demo.py single -c CONFIG.yaml -m MODEL.pth -i PHOTO [--crf] [--cuda/--cpu]
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from misc.entry import run_entry
from misc.errors import UserError

PROGRAM = "deeplab/demo.py"


def main(argv: Sequence[str] | None = None) -> int:
    """Say what replaced the demo; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    return run_entry(PROGRAM, lambda: _refuse(arguments))


def _refuse(arguments: Sequence[str]) -> None:
    if arguments[:1] == ["live"]:
        raise UserError(
            "live is not built, as nothing here opens a window or a camera; save frames as "
            "pictures and use `main.py predict --input FOLDER`."
        )
    given = [one for one in arguments if one != "single"]
    command = shlex.join(["python", "main.py", "predict", *given, "--output", "FOLDER"])
    raise UserError(f"no window is opened here; write the label map and an overlay with: {command}")


if __name__ == "__main__":
    sys.exit(main())
