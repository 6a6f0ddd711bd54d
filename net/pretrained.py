"""ImageNet weights: where they come from, and what to say when they cannot be had."""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import timm
import torch
import torchvision
from torch import Tensor

from misc.checkpoint import load_checkpoint, state_dict_of
from misc.errors import UserError
from misc.files import sha256_file
from misc.progress import log


@dataclass(frozen=True)
class WeightFile:
    """A published weight file; `hash_prefix` starts the SHA-256 of its bytes."""

    name: str
    url: str
    hash_prefix: str

    @property
    def cached(self) -> Path:
        """Where the file is kept, and where it may be put by hand."""
        return Path(torch.hub.get_dir()) / "checkpoints" / Path(self.url).name


DEIT_SMALL = WeightFile(
    "deit_small_patch16_224",
    "https://dl.fbaipublicfiles.com/deit/deit_small_patch16_224-cd65a155.pth",
    "cd65a155",
)


# The published runs' file of the V1 weights; torchvision has uploaded them again since.
_PUBLISHED_URLS = {"resnet152": "https://download.pytorch.org/models/resnet152-b121ed2d.pth"}


def torchvision_file(name: str) -> WeightFile:
    """The IMAGENET1K_V1 file of a torchvision model (never the newer V2 recipe).

    To start from V2 or other weights, give their file by name (`--cnn_weights`).
    """
    url = torchvision.models.get_model_weights(name).IMAGENET1K_V1.url
    url = _PUBLISHED_URLS.get(name, url)
    return WeightFile(name, url, Path(url).stem.rsplit("-", 1)[1])


def fetch(weights: WeightFile, option: str) -> dict[str, Tensor]:
    """Return a published state dict, from the cache or downloaded, its hash checked.

    Args:
        weights: which file.
        option: the option that names a local file instead, for the message.

    Raises:
        UserError: offline and not cached, or the file is not the published one.
    """
    path = weights.cached
    if not path.is_file():
        log(f"downloading the ImageNet weights of {weights.name} from {weights.url}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(weights.url, str(path), weights.hash_prefix)
        except (URLError, OSError, RuntimeError) as error:
            raise UserError(
                f"the ImageNet weights of {weights.name} could not be downloaded ({error}): put "
                f"{weights.url} at {path}, name a local file with {option}, or start from "
                "--init random."
            ) from None
    digest = sha256_file(path)
    if not digest.startswith(weights.hash_prefix):
        raise UserError(
            f"{path} has SHA-256 {digest[:8]}..., expected {weights.hash_prefix}...: it is damaged "
            "or another file; remove it to download it again."
        )
    return state_dict_of(load_checkpoint(path))


def state_for_timm(
    name: str, path: str | Path, model_args: Mapping[str, Any] | None = None
) -> dict[str, Tensor]:
    """Read a local weight file for a timm model.

    A file with timm's keys is used as it is. A file from another code base whose tensors have the
    same shapes in the same order (such as EfficientNet-Lite0 of `efficientnet_lite_pytorch`) is
    renamed by position. Batch counters (`num_batches_tracked`) may be missing.

    Raises:
        UserError: the tensors belong to another network.
    """
    state = state_dict_of(load_checkpoint(path))
    wanted = timm.create_model(name, **(model_args or {})).state_dict()
    learnt = _without_counters(wanted)
    shared = [key for key in learnt if key in state]
    enough = len(shared) >= 0.9 * len([key for key in learnt if not key.startswith("head")])
    if enough and not of_larger_network(wanted, state):
        return state
    for own in (wanted, learnt):
        if [value.shape for value in state.values()] == [value.shape for value in own.values()]:
            log(f"{path}: {len(own)} tensors of {name} matched by position, not by name")
            return dict(zip(own, state.values(), strict=True))
    raise UserError(
        f"{path} holds {len(state)} tensors of which {len(shared)} are named as in {name} "
        f"({len(wanted)} tensors): give the weights of {name}."
    )


def _without_counters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: v for key, v in state.items() if not key.endswith("num_batches_tracked")}


def require_weights(
    own: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    source: Path | str,
    rename: Callable[[str], str] = str,
    resized: Container[str] = (),
) -> None:
    """Check that a weight file has every tensor of a network but the batch counters.

    Args:
        own: state dict of the network.
        state: tensors of the file.
        source: the file, for the message.
        rename: applied to the names of both sides before they are compared.
        resized: names of tensors that may have another shape.

    Raises:
        UserError: tensors are missing or of another shape.
    """
    shapes = {rename(key): value.shape for key, value in state.items()}
    wrong = [
        key
        for key, value in _without_counters(own).items()
        if shapes.get(rename(key)) != value.shape and not (key in resized and key in state)
    ]
    if wrong:
        raise UserError(
            f"{source} does not hold the weights of this network: {len(wrong)} of {len(own)} "
            f"tensors are missing or of another shape, the first is {wrong[0]}."
        )


def of_larger_network(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Weights of a file that lie in parts of the network (`layer3`) but are not in the network."""
    parts = {key.split(".")[0] for key in own}
    return [
        key
        for key in state
        if key not in own and key.endswith(".weight") and key.split(".")[0] in parts
    ]
