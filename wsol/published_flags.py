"""Training flags of the published scripts: what each of them means here.

The published parser knows the flags of timm's training script, most of which nothing reads. A flag
either sets a key of the configuration, or only its published value exists, or it has no effect, as
in the published code. Nothing here imports torch.
"""

import argparse
from collections.abc import Iterator
from typing import NamedTuple

from misc.errors import UserError


class _Only(NamedTuple):
    """A flag of which only one value exists, and what to do instead of giving another one."""

    values: tuple[float | str, ...]
    instead: str


_KEYS = {"--weight-decay": "SOLVER.VIT_WEIGHT_DECAY", "--drop-path": "MODEL.DROP_PATH"}

_OTHER_OPTIMISERS = "the transformer is trained by AdamW with timm's constants alone"
_ONLY = {
    "--opt": _Only(("adamw",), _OTHER_OPTIMISERS),
    "--opt-eps": _Only((1e-8,), _OTHER_OPTIMISERS),
    "--opt-betas": _Only((0.9, 0.999), _OTHER_OPTIMISERS),
    "--drop": _Only((0.0,), "set dropout by MODEL.VIT_ARGS, such as {proj_drop_rate: 0.1}"),
}

# What decides instead of a flag without effect, where anything does.
_UNUSED = {
    "--model": "MODEL.ARCH",
    "--input-size": "DATA.CROP_SIZE",
    "--momentum": "AdamW has none",
    "--clip-grad": "",
    "--sched": "SOLVER.LR_STEPS",
    "--lr-noise": "",
    "--lr-noise-pct": "",
    "--lr-noise-std": "",
    "--warmup-lr": "",
    "--min-lr": "",
    "--decay-epochs": "SOLVER.LR_STEPS",
    "--warmup-epochs": "",
    "--cooldown-epochs": "",
    "--patience-epochs": "",
    "--decay-rate": "SOLVER.LR_FACTOR",
    "--color-jitter": "",
    "--aa": "",
    "--smoothing": "",
    "--train-interpolation": "",
    "--reprob": "",
    "--remode": "",
    "--recount": "",
    "--mixup": "",
    "--cutmix": "",
    "--cutmix-minmax": "",
    "--mixup-prob": "",
    "--mixup-switch-prob": "",
    "--mixup-mode": "",
    "--model-ema-decay": "",
    "--teacher-model": "",
    "--teacher-path": "",
    "--distillation-type": "",
    "--distillation-alpha": "",
    "--distillation-tau": "",
    "--finetune": "MODEL.VIT_WEIGHTS",
    "--data-path": "DATA.DATADIR",
    "--data-set": "DATA.DATASET",
    "--inat-category": "",
    "--output_dir": "BASIC.SAVE_DIR",
    "--seed": "BASIC.SEED",
    "--start_epoch": "",
}
_SWITCHES = (
    *("--model-ema", "--no-model-ema", "--model-ema-force-cpu"),
    *("--repeated-aug", "--no-repeated-aug", "--resplit"),
)
_LISTS = ("--opt-betas", "--lr-noise", "--cutmix-minmax")
_OTHER_NAMES = {"--decay-rate": ("--dr",)}


def add_published_flags(parser: argparse.ArgumentParser) -> None:
    """Add every flag of the published scripts that the parser does not have yet."""
    for flag, key in _KEYS.items():
        parser.add_argument(flag, default=argparse.SUPPRESS, help=f"the same as {key}")
    for flag in (*_ONLY, *_UNUSED):
        parser.add_argument(
            *(flag, *_OTHER_NAMES.get(flag, ())),
            nargs="+" if flag in _LISTS else None,
            default=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
        )
    for flag in _SWITCHES:
        switch = {"action": "store_true", "default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
        parser.add_argument(flag, **switch)
    parser.epilog = "The other training flags of the published script are accepted without effect."


def overrides_of(args: argparse.Namespace) -> list[str]:
    """`KEY=VALUE` for the flags that set a key."""
    return [f"{key}={value}" for flag, key in _KEYS.items() if (value := _given(args, flag))]


def unused_flags(args: argparse.Namespace) -> list[str]:
    """The given flags that have no effect, with what decides instead.

    Raises:
        UserError: a flag has another value than the only one that there is.
    """
    for flag, only in _ONLY.items():
        _require_only(flag, only, _given(args, flag))
    return list(_unused(args))


def _unused(args: argparse.Namespace) -> Iterator[str]:
    for flag in (*_UNUSED, *_SWITCHES):
        if _given(args, flag) is not None:
            instead = _UNUSED.get(flag)
            yield f"{flag} ({instead})" if instead else flag


def _require_only(flag: str, only: _Only, given: str | list[str] | None) -> None:
    if given is None:
        return
    words = [given] if isinstance(given, str) else given
    if [_number_or_word(word) for word in words] != list(only.values):
        values = " ".join(f"{value}" for value in only.values)
        raise UserError(
            f"{flag} {' '.join(words)}: the only value is the published {values}; {only.instead}."
        )


def _number_or_word(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text.lower()


def _given(args: argparse.Namespace, flag: str) -> str | list[str] | bool | None:
    return getattr(args, flag.removeprefix("--").replace("-", "_"), None)
