"""Options that contradict each other, told before anything is read or computed.

Nothing here imports torch: wrong options are answered at once.
"""

from argparse import Namespace
from itertools import combinations, permutations
from pathlib import Path

from misc.errors import UserError
from net.strides import GRID_STRIDE, OUTPUT_STRIDE

PUBLISHED_CROP = (512, 336)  # default of the published option, which it ignored, and what it ran
CAM_BACKBONE = "cam"  # value of --irn_backbone_weights: those of the trained CNN branch


def require_consistent(args: Namespace) -> None:
    """Check options against each other.

    Raises:
        UserError: names the options that do not fit together and values that would.
    """
    _require_one_source(args)
    _require_long_side(args)
    _require_thresholds(args)
    _require_vit_args(args)
    _require_tiles(args)
    _require_irn_crop(args)
    _require_same_backbone(args)


def require_separate_outputs(args: Namespace) -> None:
    """Refuse outputs that would lie in or on each other; paths are absolute by now.

    Raises:
        UserError: two output folders or files are the same, or one folder is inside another, or
            something would be written among the user's photos.
    """
    folders = _paths_of(args, "_out_dir")
    for (first, outer), (second, inner) in permutations(folders.items(), 2):
        if outer == inner or outer in inner.parents:
            raise UserError(
                f"--{second} {inner} lies in --{first} {outer}; give every output a folder of its "
                "own."
            )
    weights = _paths_of(args, "_weights_name")
    for (first, one), (second, other) in combinations(weights.items(), 2):
        if one == other:
            raise UserError(f"--{first} and --{second} are both {one}; give each its own file.")
    if args.photos is not None:
        _require_outside(args.photos.resolve(), args)


def _paths_of(args: Namespace, ending: str | tuple[str, ...]) -> dict[str, Path]:
    """The paths of all options whose name ends so."""
    return {n: path.resolve() for n, path in vars(args).items() if n.endswith(ending)}


def _require_outside(photos: Path, args: Namespace) -> None:
    endings = ("work_dir", "_out_dir", "_weights_name", "cache_dir", "result_dir")
    for name, path in _paths_of(args, endings).items():
        if path.is_relative_to(photos):
            raise UserError(
                f"--{name} {path} lies in --photos {photos}, where nothing is ever written; give "
                "--work_dir a folder elsewhere."
            )


def _require_one_source(args: Namespace) -> None:
    if args.photos == "":
        raise UserError("--photos is empty; name the folder that holds your class folders.")
    given = [f"--{n}" for n in ("voc12_root", "classes", "cls_labels") if getattr(args, n)]
    if args.photos is not None and given:
        raise UserError(
            f"--photos {args.photos} gives pictures, classes and labels; leave out "
            f"{', '.join(given)}."
        )


def _require_long_side(args: Namespace) -> None:
    sides = args.cam_long_side
    if len(sides) != 2 or not 1 <= sides[0] <= sides[1]:
        shown = ",".join(f"{side:g}" for side in sides)
        raise UserError(f"--cam_long_side {shown} is not LEAST,GREATEST; give for example 210,420.")


def _require_thresholds(args: Namespace) -> None:
    if args.conf_bg_thres > args.conf_fg_thres:
        raise UserError(
            f"--conf_bg_thres {args.conf_bg_thres} is above --conf_fg_thres {args.conf_fg_thres}; "
            "the confident background needs the lower background score."
        )


def _require_vit_args(args: Namespace) -> None:
    """Sizes of a transformer; what else timm cannot build is told when the network is built."""
    for name in ("depth", "embed_dim", "num_heads", "patch_size"):
        value = args.vit_args.get(name, 1)
        if not isinstance(value, int) or value < 1:
            raise UserError(f"--vit_args {name}={value} must be an integer of at least 1.")
    heads, dim = args.vit_args.get("num_heads", 1), args.vit_args.get("embed_dim", 0)
    if dim % heads:
        raise UserError(
            f"--vit_args num_heads={heads} does not divide embed_dim={dim}; give a divisor."
        )


def _require_tiles(args: Namespace) -> None:
    """The training crop must be covered by whole tiles."""
    crop, tile, stride = args.cam_crop_size, args.tile_size, args.tile_stride
    if crop < tile or (crop - tile) % stride:
        default, actual = PUBLISHED_CROP
        ignored = (
            f" The published code has {default} as its default but ignored it and ran {actual}."
            if crop == default
            else ""
        )
        raise UserError(
            f"--cam_crop_size {crop} is not covered exactly by tiles of --tile_size {tile} every "
            f"--tile_stride {stride}; give {tile}, {tile + stride}, {tile + 2 * stride} and so on."
            + ignored
        )


def _require_irn_crop(args: Namespace) -> None:
    """The crop must fit the strides of the network, and its grid the pairs of cells."""
    crop, cells = args.irn_crop_size, 2 * args.irn_radius - 1
    least = -(-cells * GRID_STRIDE // OUTPUT_STRIDE) * OUTPUT_STRIDE
    if crop % OUTPUT_STRIDE or crop < least:
        raise UserError(
            f"--irn_crop_size {crop} does not fit: it must be a multiple of {OUTPUT_STRIDE} and, "
            f"with --irn_radius {args.irn_radius}, at least {least}."
        )


def _require_same_backbone(args: Namespace) -> None:
    if args.irn_backbone_weights == CAM_BACKBONE and args.irn_backbone != args.cnn:
        raise UserError(
            f"--irn_backbone_weights {CAM_BACKBONE} needs the same network in both places, but "
            f"--irn_backbone is {args.irn_backbone} and --cnn is {args.cnn}."
        )
