"""Further arguments of the networks that timm and torchvision build, as `--vit_args` has them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from misc.arguments import keyword_text
from misc.errors import UserError
from net.option_names import OptionNames

ModelArgs = Mapping[str, Any] | None

# what timm and torch raise for arguments that they do not know or cannot use
_BUILD_ERRORS = (
    TypeError,
    ValueError,
    AssertionError,
    AttributeError,
    RuntimeError,
    LookupError,
    ArithmeticError,
)
_SET_ELSEWHERE = (
    *("img_size", "num_classes", "in_chans", "pretrained", "pretrained_cfg"),
    *("pretrained_cfg_overlay", "checkpoint_path", "weights", "features_only", "out_indices"),
    *("output_stride", "replace_stride_with_dilation"),
)
_LONGEST_REASON = 200  # characters of what timm and torch say


def described(asked: str, model_args: ModelArgs, names: OptionNames) -> str:
    """A network with its arguments, as `--vit deit_small_patch16_224 with --vit_args depth=0`."""
    return f"{asked} with {names.arguments} {keyword_text(model_args)}" if model_args else asked


def require_free(asked: str, model_args: ModelArgs) -> None:
    """Refuse arguments that follow from other options.

    Raises:
        UserError: names the argument.
    """
    for key in _SET_ELSEWHERE:
        if key in (model_args or {}):
            raise UserError(
                f"{asked} cannot be built with {key}={model_args[key]}: sizes, classes, strides "
                "and weights are set in other ways; leave it out."
            )


@contextmanager
def explained(failed: str) -> Iterator[None]:
    """One sentence for what timm or torch cannot build or run.

    Args:
        failed: the start of the sentence, such as `resnet10t with depth=3 cannot be built`.
    """
    try:
        yield
    except _BUILD_ERRORS as error:
        reason = " ".join(str(error).split())[:_LONGEST_REASON].rstrip(".") or type(error).__name__
        raise UserError(f"{failed}: {reason}.") from None
