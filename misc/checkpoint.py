"""Files of weights and resumable training states: written whole, read without running code."""

import pickle
import random
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from misc.errors import UserError
from misc.files import atomic_path

StateDict = dict[str, torch.Tensor]

_WRAPPERS = ("model", "state_dict")  # entries of public training scripts that hold the tensors
_OPTIMISERS = ("optimiser", "optimizer")  # start of the entries that hold no network
_FINISHED, _EARLIER = "finished", "epoch"  # number of finished units, and what it was called once
_NAN_BY_DESIGN = ".qkv.bias_mask"


class Resumed(NamedTuple):
    """Where a training run goes on: finished units, and what the caller stored beside them."""

    finished: int
    extra: dict[str, Any]


# --------------------------------------------------------------------------------------- files


def save_checkpoint(path: Path | str, state: Mapping[str, Any]) -> None:
    """Write a dictionary of tensors, numbers, strings and containers of these.

    The file is whole or absent, even when the process is killed. Equal states give equal bytes
    (torch would put the temporary name into the file) and any file name will do (torch wants a
    suffix): both are had by writing to a stream.

    Raises:
        UserError: a network has NaN or infinite values; a file that is there already is kept.
    """
    if name := _first_non_finite(state):
        raise UserError(
            f"{path} was not written: {name} has NaN or infinite values, so the training has "
            "diverged; lower the learning rate and start again with --overwrite. Files written "
            "before are kept."
        )
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        torch.save(dict(state), stream)


def load_checkpoint(path: Path | str, mapped: bool = False) -> dict[str, Any]:
    """Read a `.pth` or `.safetensors` file onto the CPU without running code stored in it.

    Args:
        path: the file.
        mapped: let the tensors lie in the file instead of in memory, where its format allows it.
            For those who copy them at once: they are lost when somebody else cuts the file off.

    Raises:
        UserError: the file is missing, damaged, holds something other than a dictionary of tensors
            and plain values, or a network with NaN or infinite values.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist; run the step that makes it or correct the path.")
    try:
        state = _read(path, mapped)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} is damaged or holds Python objects other than tensors and plain values, which "
            "are not loaded for safety; save its state dict alone and use that file."
        ) from None
    except Exception as error:  # torch, zipfile and safetensors have no common base class
        raise UserError(
            f"{path} cannot be read as a checkpoint ({_first_line(error)}); delete it and make it "
            "or download it again."
        ) from None
    _require_names(path, state)
    if name := _first_non_finite(state):
        raise UserError(
            f"{path} cannot be used: {name} has NaN or infinite values, so the training that wrote "
            "it diverged or the file is damaged; train again with a lower learning rate, or use "
            "another file."
        )
    return state


def _require_names(path: Path, state: Any) -> None:
    """Refuse lists, and keys that are no names, wherever `state_dict_of` looks for tensors."""
    _require_state_dict(path, "", state)
    for wrapper in _WRAPPERS:
        if isinstance(state.get(wrapper), list | tuple | dict):
            state = state[wrapper]
            _require_state_dict(path, f" as {wrapper!r}", state)


def _require_state_dict(path: Path, place: str, entry: Any) -> None:
    remedy = "save the state_dict() of the network and use that file."
    if not isinstance(entry, dict):
        kind = type(entry).__name__
        raise UserError(f"{path} holds a {kind}{place}, not a state dict; {remedy}")
    for key in entry:
        if not isinstance(key, str):
            raise UserError(
                f"{path} holds a dictionary{place} with the key {key!r}, which is no name of a "
                f"tensor; {remedy}"
            )


def _first_non_finite(state: Mapping[str, Any]) -> str | None:
    """Name of the first tensor of a network with a NaN or infinite value, None if all are finite.

    Optimisers are left out, as no result comes from them, and so are DINOv3's masks of biases,
    which its authors fill with NaN and which only timm's conversion looks at.
    """
    tensors = ((n, v) for n, v in _network_tensors(state) if not n.endswith(_NAN_BY_DESIGN))
    return next((name for name, value in tensors if not _is_finite(value)), None)


def _is_finite(value: torch.Tensor) -> bool:
    """A finite sum has finite terms and is had much faster; one that overflows tells nothing."""
    if not value.is_floating_point():
        return True
    return bool(value.sum().isfinite()) or bool(value.isfinite().all())


def _network_tensors(entries: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """Tensors by name at any depth, those of optimisers left out."""
    for key, value in entries.items():
        if torch.is_tensor(value):
            yield f"{place}{key}", value
        elif isinstance(value, Mapping) and not str(key).startswith(_OPTIMISERS):
            yield from _network_tensors(value, f"{place}{key}.")


def _read(path: Path, mapped: bool) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    mapped = mapped and zipfile.is_zipfile(path)  # the format before torch 1.6 cannot be
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def state_dict_of(checkpoint: Mapping[str, Any]) -> StateDict:
    """The tensors of a checkpoint by name.

    Unwraps the `model` and `state_dict` entries of public training scripts and removes the
    `module.` prefix that DataParallel leaves in front of every key.
    """
    for wrapper in _WRAPPERS:
        if isinstance(checkpoint.get(wrapper), Mapping):
            checkpoint = checkpoint[wrapper]
    tensors = {key: value for key, value in checkpoint.items() if torch.is_tensor(value)}
    if tensors and all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors


# ---------------------------------------------------------------------------- resumable training


def save_training_state(
    path: Path | str,
    models: Mapping[str, nn.Module],
    optimisers: Mapping[str, torch.optim.Optimizer],
    finished: int,
    fingerprint: str,
    extra: dict[str, Any] | None = None,
) -> None:
    """Store everything that the rest of a training run depends on.

    Args:
        path: the state file; replaced atomically.
        models: networks by name.
        optimisers: optimisers by name, with their schedules.
        finished: number of finished units, epochs or iterations.
        fingerprint: identifies the arguments and data of the run.
        extra: plain values and tensors to hand back on resuming.
    """
    save_checkpoint(
        path,
        {
            "models": {name: model.state_dict() for name, model in models.items()},
            "optimisers": {name: optimiser.state_dict() for name, optimiser in optimisers.items()},
            _FINISHED: finished,
            "fingerprint": fingerprint,
            "rng": rng_state(),
            "extra": extra or {},
        },
    )


def load_training_state(
    path: Path | str,
    models: Mapping[str, nn.Module],
    optimisers: Mapping[str, torch.optim.Optimizer],
    fingerprint: str,
    units: int | None = None,
) -> Resumed | None:
    """Continue a run where `save_training_state` left it.

    Restores the networks, the optimisers and the random generators of Python, numpy and torch.

    Args:
        path: the state file.
        models: networks by name.
        optimisers: optimisers by name.
        fingerprint: identifies the arguments and data of the run.
        units: that the whole run has; a state of an earlier version must have finished them.

    Returns:
        Finished units and the stored extras; None when there is no state file.

    Raises:
        UserError: the state is damaged, belongs to a run with other arguments, or to one that an
            earlier version has not finished.
    """
    if not Path(path).exists():
        return None
    state = load_checkpoint(path)
    if state.get("fingerprint") != fingerprint:
        raise UserError(
            f"{path} is the state of a training run with other arguments or data; repeat that "
            "run's command to finish it, or start afresh with --overwrite."
        )
    if _FINISHED not in state and _EARLIER in state:
        if state[_EARLIER] != units:
            raise UserError(
                f"{path} was written by an earlier version of this program, whose order of "
                "pictures was another; finish that run with that version, or start afresh with "
                "--overwrite."
            )
        state[_FINISHED] = units
    return _restored(path, state, models, optimisers)


def _restored(
    path: Path | str,
    state: Mapping[str, Any],
    models: Mapping[str, nn.Module],
    optimisers: Mapping[str, torch.optim.Optimizer],
) -> Resumed:
    try:
        for name, model in models.items():
            model.load_state_dict(state["models"][name])
        for name, optimiser in optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
        set_rng_state(state["rng"])
        return Resumed(state[_FINISHED], state["extra"])
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not a whole training state ({_first_line(error)}); remove it to train from "
            "the start."
        ) from None


def rng_state() -> dict[str, Any]:
    """State of every generator as tensors and plain values, which `weights_only` loading allows."""
    name, keys, *position = np.random.get_state()  # noqa: NPY002 - the global generator is meant
    return {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *position],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Put the generators where `rng_state` found them."""
    random.setstate(state["python"])
    name, keys, *position = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *position))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        for index, value in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(value, index)
