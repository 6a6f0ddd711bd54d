"""Published weights: where they come from, and what to say when they cannot be had."""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import timm
import torch
import torchvision
from timm.models import load_state_dict_from_hf
from torch import Tensor

from misc.checkpoint import load_checkpoint, state_dict_of
from misc.errors import UserError
from misc.files import sha256_file
from misc.progress import log


@dataclass(frozen=True)
class WeightFile:
    """A published weight file; `hash_prefix` starts the SHA-256 of its bytes where it is known.

    `file` is what it is called here, by default the last part of the URL.
    """

    name: str
    url: str
    hash_prefix: str
    file: str = ""

    @property
    def cached(self) -> Path:
        """Where the file is kept, and where it may be put by hand."""
        return Path(torch.hub.get_dir()) / "checkpoints" / (self.file or Path(self.url).name)


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
            raise not_downloaded(weights, str(error), option) from None
    digest = sha256_file(path)
    if not digest.startswith(weights.hash_prefix):
        raise UserError(
            f"{path} has SHA-256 {digest[:8]}..., expected {weights.hash_prefix}...: it is damaged "
            "or another file; remove it to download it again."
        )
    return state_dict_of(load_checkpoint(path))


def require_timm_name(name: str, option: str, advice: str) -> None:
    """Check the name of a timm network, with or without the tag of its weights.

    Args:
        name: such as `resnet50` or `resnet50.a1_in1k`.
        option: what the message writes in front of the name.
        advice: what to do about an unknown network.

    Raises:
        UserError: timm has no such network, or no such weights of it.
    """
    architecture, dot, tag = name.partition(".")
    if architecture not in timm.list_models():
        raise UserError(f"{option}{name} is not a timm model; {advice}.")
    if dot and name not in (tags := timm.list_models(f"{architecture}.*", include_tags=True)):
        raise UserError(
            f"{option}{name}: timm has no weights {tag} of {architecture}; give "
            f"{', '.join([architecture, *tags])}."
        )


def timm_file(name: str) -> WeightFile | None:
    """The published file of a timm network, None where there is none.

    It lies on the Hugging Face hub, as a rule; a copy by hand is called `NAME.TAG.safetensors`.
    """
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        return None
    full = ".".join(filter(None, (config.architecture, config.tag)))
    if not config.hf_hub_id:
        return WeightFile(full, config.url, "")
    file = config.hf_hub_filename or "model.safetensors"
    url = f"https://huggingface.co/{config.hf_hub_id}/resolve/main/{file}"
    return WeightFile(full, url, "", f"{full}{Path(file).suffix}")


def fetch_timm(name: str, option: str) -> tuple[dict[str, Tensor], str]:
    """Return the published state dict of a timm network, and what to call it in messages.

    Args:
        name: timm's name; without a tag timm's first choice is taken.
        option: the option that names a local file instead, for the message.

    Raises:
        UserError: there are no such weights, or offline and not cached.
    """
    file = require_timm_file(name, option)
    if file.cached.is_file():
        return state_dict_of(load_checkpoint(file.cached)), str(file.cached)
    hub_id = timm.get_pretrained_cfg(name).hf_hub_id
    try:
        return state_dict_of(load_state_dict_from_hf(hub_id)), f"{hub_id} of the hub"
    except (OSError, ConnectionError) as error:
        raise not_downloaded(file, type(error).__name__, option) from None


def require_timm_file(name: str, option: str) -> WeightFile:
    """The published file of a timm network; see `timm_file`.

    Raises:
        UserError: there is none.
    """
    file = timm_file(name)
    if file is None:
        raise UserError(
            f"timm has no weights of {name}: name another network, a local file with {option}, or "
            "start from --init random."
        )
    return file


def not_downloaded(weights: WeightFile, reason: str, option: str) -> UserError:
    """What to say when a file is neither here nor to be had: which one to put where."""
    return UserError(
        f"the published weights of {weights.name} could not be downloaded ({reason}): put "
        f"{weights.url} at {weights.cached}, name a local file with {option}, or start from "
        "--init random."
    )


def state_for_timm(name: str, path: str | Path) -> dict[str, Tensor]:
    """Read a local weight file for a timm CNN.

    A file with timm's keys is used as it is. A file from another code base whose tensors have the
    same shapes in the same order (such as EfficientNet-Lite0 of `efficientnet_lite_pytorch`) is
    renamed by position. Batch counters (`num_batches_tracked`) may be missing.

    Raises:
        UserError: the tensors belong to another network.
    """
    state = state_dict_of(load_checkpoint(path))
    wanted = timm.create_model(name).state_dict()
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
