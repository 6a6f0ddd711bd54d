"""What the machine refuses (disk, memory, GPU, processes), as a sentence with a remedy.

Nothing here imports torch.
"""

import errno
import re
import sys

from misc.errors import os_error_in

_NO_SPACE = "free some space or write to another disk"
_NO_PERMISSION = "change the permissions or use another folder"
_NO_FOLDER = "a file is where a folder is needed; move it away or use another folder"
_NO_MEMORY = "use a smaller batch, crop or network, or end other programs"
_REMEDIES = {
    errno.ENOENT: "it was moved or never made; put it back, or run again what makes it",
    errno.EMFILE: "raise the limit (ulimit -n 4096) or use fewer workers",
    errno.ENAMETOOLONG: "use shorter names",
    errno.EIO: "the disk or the connection to it fails; check it",
    errno.ENOMEM: _NO_MEMORY,
    errno.ENOSPC: _NO_SPACE,
    errno.EDQUOT: _NO_SPACE,
    errno.EFBIG: _NO_SPACE,
    errno.EACCES: _NO_PERMISSION,
    errno.EPERM: _NO_PERMISSION,
    errno.EROFS: _NO_PERMISSION,
    errno.ENOTDIR: _NO_FOLDER,
    errno.EEXIST: _NO_FOLDER,
    errno.EISDIR: "a folder is where a file is needed; move it away or use another folder",
}
"""What to do about the errors of the operating system that are no bugs of ours."""

_LOADER_DIED = re.compile(
    r"killed by signal: [\w ]+|exited unexpectedly|received 0 items of ancdata"
    r"|unable to (?:write to|open|mmap|resize|allocate) (?:file|shared memory)[^\n]*"
)
_PROCESS_LOST = re.compile(r"gloo[^\n]*by peer|ncclRemoteError|NCCL communicator was aborted")
_ERROR_OF_LOADER = re.compile(
    r"DataLoader worker process.*\[Errno (?P<number>\d+)\] (?P<reason>[^\n]*?)"
    r"(?:: (?P<quote>['\"])(?P<name>[^\n]*)(?P=quote))?\s*$",
    re.DOTALL,
)


def refusal(error: OSError | RuntimeError | MemoryError) -> str | None:
    """What disk, memory or GPU refused and a remedy; None for an error that is a bug."""
    if isinstance(error, MemoryError):
        return f"memory ran out ({error}); {_NO_MEMORY}." if str(error) else f"{_NO_MEMORY}."
    if _PROCESS_LOST.search(str(error)):
        return (
            "another process of this run has ended, and the rest cannot go on alone: see what it "
            "said; the same command, without --overwrite, goes on from here."
        )
    if _LOADER_DIED.search(str(error)):
        return _loader_refusal(error)
    system = os_error_in(error)
    if system is not None:
        return _system_refusal(system)
    return _memory_refusal(error)


def _system_refusal(error: OSError) -> str | None:
    number, reason, name = error.errno, error.strerror, error.filename
    wrapped = _ERROR_OF_LOADER.search(str(error)) if number is None else None
    if wrapped is not None:  # from a process that loads pictures: the text is all that is left
        number, reason, name = int(wrapped["number"]), wrapped["reason"], wrapped["name"]
    if number not in _REMEDIES:
        return None
    where = f"{name}: " if name is not None else ""
    return f"{where}{reason}; {_REMEDIES[number]}."


def _loader_refusal(error: OSError | RuntimeError) -> str:
    """Workers die of too little memory, above all of the 64 MB of shared memory of a container."""
    reason = _LOADER_DIED.search(str(error))[0]
    return (
        f"a process that loads pictures was stopped ({reason}): memory or shared memory ran out; "
        "load in the main process (--num_workers 0, in a configuration NUM_WORKERS: 0), or start "
        "a container with more shared memory (docker run --shm-size 8g)."
    )


def _memory_refusal(error: RuntimeError) -> str | None:
    if "DefaultCPUAllocator" in str(error):
        return f"memory ran out ({str(error).rpartition('] ')[2].lstrip(' .')}); {_NO_MEMORY}."
    out_of_memory = getattr(sys.modules.get("torch"), "OutOfMemoryError", None)
    if out_of_memory is None or not isinstance(error, out_of_memory):
        return None
    reason = str(error).partition(". ")[0]  # advice for programmers comes after it
    return (
        f"{reason}; use a smaller batch, crop or network, end other programs on the GPU, or use "
        "the CPU."
    )
