"""Weights and resumable training states: atomic files, strict loading, the published key layout."""

import pickle
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from misc.errors import UserError
from misc.files import atomic_path
from misc.progress import log

Kind = Literal["cnn", "transformer", "irn"]
StateDict = dict[str, torch.Tensor]

_OFFICIAL_BACKBONE = "resnet50."
_VIT = "vit."
_VIT_HEAD = "head."
# The published modules register the same tensors several times; `resnet50.*`, `classifier`, `fc_*`
# and `mean_shift` are the names to keep.
_DUPLICATES = ("stage", "backbone.", "newly_added.", "edge_layers.", "dp_layers.", "fc_dp7.4.")
# ImageNet classifier that some files carry along, and tables of IRNet's published training class
_UNUSED = ("resnet50.fc.", "path_indices", "disp_target")
_WRAPPERS = ("model", "state_dict")  # entries of public training scripts that hold the tensors
_OPTIMISERS = ("optimiser", "optimizer")  # start of the entries that hold no network
_NAN_BY_DESIGN = ".qkv.bias_mask"
_KEYS_SHOWN = 5


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


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """Read a `.pth` or `.safetensors` file onto the CPU without running code stored in it.

    Raises:
        UserError: the file is missing, damaged, holds something other than a dictionary of tensors
            and plain values, or a network with NaN or infinite values.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist; run the step that makes it or correct the path.")
    try:
        state = _read(path)
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


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


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


# ------------------------------------------------------------------------- published key layout


def find_kind(state: Mapping[str, Any]) -> Kind:
    """Tell which network a state dict belongs to, in the published or in our layout."""
    names = {key.removeprefix("module.").removeprefix(_VIT) for key in state}
    if "cls_token" in names:
        return "transformer"
    if any(name.startswith(("fc_edge", "fc_dp")) for name in names):
        return "irn"
    return "cnn"


def is_official(state: Mapping[str, Any], kind: Kind) -> bool:
    """True when a state dict has the key names of the published implementation.

    `backbone.` is a prefix of ours and of a published duplicate, so it decides nothing: the
    published networks are told by `resnet50.` and by a `cls_token` without prefix.
    """
    names = [key.removeprefix("module.") for key in state]
    if kind == "transformer":
        return "cls_token" in names
    return any(name.startswith(_OFFICIAL_BACKBONE) for name in names)


def from_official(state: Mapping[str, torch.Tensor], kind: Kind) -> StateDict:
    """Rename a published state dict to our keys; each tensor is kept once."""
    state = state_dict_of(state)
    if kind == "transformer":
        return {k if k.startswith(_VIT_HEAD) else _VIT + k: v for k, v in state.items()}
    return {
        _swap_prefix(key, _OFFICIAL_BACKBONE, "backbone."): value
        for key, value in state.items()
        if not key.startswith(_DUPLICATES + _UNUSED)
    }


def to_official(state: Mapping[str, torch.Tensor], kind: Kind) -> StateDict:
    """Rename our state dict to the published keys, each tensor once.

    The published networks load the result with `strict=False`: their duplicate names share the
    tensors of the names given here.
    """
    old, new = (_VIT, "") if kind == "transformer" else ("backbone.", _OFFICIAL_BACKBONE)
    return {_swap_prefix(key, old, new): value for key, value in state.items()}


def _swap_prefix(key: str, old: str, new: str) -> str:
    return new + key.removeprefix(old) if key.startswith(old) else key


def load_weights(
    model: nn.Module, path: Path | str, kind: Kind | None = None, strict: bool = True
) -> None:
    """Load weights in our or in the published key layout into `model`.

    Args:
        model: CNN branch, transformer branch or IRNet.
        path: `.pth` or `.safetensors` file.
        kind: which of the three; told from the keys when None.
        strict: False allows missing and unexpected keys, with a line in the log. Batch counters
            (`num_batches_tracked`) may be missing in any case: nothing reads them.

    Raises:
        UserError: the file cannot be read, or its tensors do not fit the model.
    """
    state = state_dict_of(load_checkpoint(path))
    if not state:
        raise UserError(f"{path} holds no tensors; name a file with the weights of a network.")
    kind = kind or find_kind(state)
    if is_official(state, kind):
        state = from_official(state, kind)
    problems = _shape_problems(model.state_dict(), state)
    keys = _key_problems(model.state_dict(), state)
    if problems or (strict and keys):
        raise UserError(
            f"{path} does not fit this network: {'; '.join(problems + keys)}. Use the options "
            "(backbone, class list) that the file was trained with, or another file."
        )
    if keys:
        log(f"{path} was loaded in part: {'; '.join(keys)}.")
    model.load_state_dict(state, strict=False)


def _key_problems(own: Mapping[str, Any], state: Mapping[str, Any]) -> list[str]:
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    problems = [("missing", missing), ("unexpected", unexpected)]
    return [f"{len(keys)} {name} ({_brief(keys)})" for name, keys in problems if keys]


def _shape_problems(own: StateDict, state: StateDict) -> list[str]:
    wrong = [
        f"{key} is {tuple(value.shape)} in the file and {tuple(own[key].shape)} in the network"
        for key, value in state.items()
        if key in own and own[key].shape != value.shape
    ]
    return [_brief(wrong)] if wrong else []


def _brief(names: list[str]) -> str:
    more = f", and {len(names) - _KEYS_SHOWN} more" if len(names) > _KEYS_SHOWN else ""
    return ", ".join(names[:_KEYS_SHOWN]) + more


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
            "finished": finished,
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
) -> Resumed | None:
    """Continue a run where `save_training_state` left it.

    Restores the networks, the optimisers and the random generators of Python, numpy and torch.

    Returns:
        Finished units and the stored extras; None when there is no state file.

    Raises:
        UserError: the state is damaged or belongs to a run with other arguments.
    """
    if not Path(path).exists():
        return None
    state = load_checkpoint(path)
    if state.get("fingerprint") != fingerprint:
        raise UserError(
            f"{path} is the state of a training run with other arguments or data; repeat that "
            "run's command to finish it, or start afresh with --overwrite."
        )
    try:
        for name, model in models.items():
            model.load_state_dict(state["models"][name])
        for name, optimiser in optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
        set_rng_state(state["rng"])
        return Resumed(state["finished"], state["extra"])
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
