"""Options that contradict each other, told before anything is read or computed.

Nothing here imports torch: wrong options are answered at once.
"""

from itertools import combinations, permutations
from pathlib import Path

from misc.errors import UserError
from net.strides import GRID_STRIDE, OUTPUT_STRIDE
from step.options import CAM_BACKBONE, Options

PUBLISHED_CROP = (512, 336)  # default of the published option, which it ignored, and what it ran


def require_consistent(options: Options) -> None:
    """Check options against each other; paths are absolute by now.

    Raises:
        UserError: names the options that do not fit together and values that would.
    """
    problems = [problem for check in _CHECKS if (problem := check(options)) is not None]
    if problems:
        raise UserError(" ".join(problems))


def _nested_folders(options: Options) -> str | None:
    """Two output folders are the same, or one is inside another."""
    folders = _paths_of(options, "_out_dir")
    for (first, outer), (second, inner) in permutations(folders.items(), 2):
        if outer == inner or outer in inner.parents:
            return (
                f"--{second} {inner} lies in --{first} {outer}; give every output a folder of its "
                "own."
            )
    return None


def _equal_files(options: Options) -> str | None:
    weights = _paths_of(options, "_weights_name")
    for (first, one), (second, other) in combinations(weights.items(), 2):
        if one == other:
            return f"--{first} and --{second} are both {one}; give each its own file."
    return None


def _outputs_among_photos(options: Options) -> str | None:
    """Something would be written among the user's photos."""
    if options.photos is None:
        return None
    photos = options.photos.resolve()
    endings = ("work_dir", "_out_dir", "_weights_name", "cache_dir", "result_dir")
    for name, path in _paths_of(options, endings).items():
        if path.is_relative_to(photos):
            return (
                f"--{name} {path} lies in --photos {photos}, where nothing is ever written; give "
                "--work_dir a folder elsewhere."
            )
    return None


def _paths_of(options: Options, ending: str | tuple[str, ...]) -> dict[str, Path]:
    """The paths of all options whose name ends so."""
    return {n: path.resolve() for n, path in vars(options).items() if n.endswith(ending)}


def _several_sources(options: Options) -> str | None:
    given = [f"--{n}" for n in ("voc12_root", "classes", "cls_labels") if getattr(options, n)]
    if options.photos is not None and given:
        return (
            f"--photos {options.photos} gives pictures, classes and labels; leave out "
            f"{', '.join(given)}."
        )
    return None


def _long_side(options: Options) -> str | None:
    sides = options.cam_long_side
    if len(sides) != 2 or not 1 <= sides[0] <= sides[1]:
        shown = ",".join(f"{side:g}" for side in sides)
        return f"--cam_long_side {shown} is not LEAST,GREATEST; give for example 210,420."
    return None


def _crossed_thresholds(options: Options) -> str | None:
    background, foreground = options.conf_bg_thres, options.conf_fg_thres
    if background > foreground:
        return (
            f"--conf_bg_thres {background} is above --conf_fg_thres {foreground}; the confident "
            "background needs the lower background score."
        )
    return None


def _vit_args(options: Options) -> str | None:
    """Sizes of a transformer; what else timm cannot build is told when the network is built."""
    for name in ("depth", "embed_dim", "num_heads", "patch_size"):
        value = options.vit_args.get(name, 1)
        if not isinstance(value, int) or value < 1:
            return f"--vit_args {name}={value} must be an integer of at least 1."
    heads, dim = options.vit_args.get("num_heads", 1), options.vit_args.get("embed_dim", 0)
    if dim % heads:
        return f"--vit_args num_heads={heads} does not divide embed_dim={dim}; give a divisor."
    return None


def _tiles(options: Options) -> str | None:
    """The training crop must be covered by whole tiles."""
    crop, tile, stride = options.cam_crop_size, options.tile_size, options.tile_stride
    if crop < tile or (crop - tile) % stride:
        default, actual = PUBLISHED_CROP
        ignored = (
            f" The published code has {default} as its default but ignored it and ran {actual}."
            if crop == default
            else ""
        )
        return (
            f"--cam_crop_size {crop} is not covered exactly by tiles of --tile_size {tile} every "
            f"--tile_stride {stride}; give {tile}, {tile + stride}, {tile + 2 * stride} and so on."
            + ignored
        )
    return None


def _irn_crop(options: Options) -> str | None:
    """The crop must fit the strides of the network, and its grid the pairs of cells."""
    crop, cells = options.irn_crop_size, 2 * options.irn_radius - 1
    least = -(-cells * GRID_STRIDE // OUTPUT_STRIDE) * OUTPUT_STRIDE
    if crop % OUTPUT_STRIDE or crop < least:
        return (
            f"--irn_crop_size {crop} does not fit: it must be a multiple of {OUTPUT_STRIDE} and, "
            f"with --irn_radius {options.irn_radius}, at least {least}."
        )
    return None


def _other_backbone(options: Options) -> str | None:
    if options.irn_backbone_weights == CAM_BACKBONE and options.irn_backbone != options.cnn:
        return (
            f"--irn_backbone_weights {CAM_BACKBONE} needs the same network in both places, but "
            f"--irn_backbone is {options.irn_backbone} and --cnn is {options.cnn}."
        )
    return None


_CHECKS = (
    _several_sources,
    _long_side,
    _crossed_thresholds,
    _vit_args,
    _tiles,
    _irn_crop,
    _other_backbone,
    _nested_folders,
    _equal_files,
    _outputs_among_photos,
)
