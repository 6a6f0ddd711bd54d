"""Options that contradict each other, told before anything is read or computed.

Nothing here imports torch: wrong options are answered at once.
"""

from collections.abc import Iterator
from itertools import combinations, permutations
from pathlib import Path

from misc.arguments import keyword_text
from misc.errors import UserError
from net.strides import GRID_STRIDE, OUTPUT_STRIDE
from step.options import CAM_BACKBONE, Options

PUBLISHED_CROP = (512, 336)  # default of the published option, which it ignored, and what it ran


def require_consistent(options: Options) -> None:
    """Check options against each other; paths are absolute by now.

    Raises:
        UserError: names the options that do not fit together and values that would.
    """
    problems = [problem for check in _CHECKS for problem in check(options)]
    if problems:
        raise UserError(" ".join(problems))


def _several_sources(options: Options) -> Iterator[str]:
    given = [f"--{n}" for n in ("voc12_root", "classes", "cls_labels") if getattr(options, n)]
    if options.photos is not None and given:
        yield (
            f"--photos {options.photos} gives pictures, classes and labels; leave out "
            f"{', '.join(given)}."
        )


def _long_side(options: Options) -> Iterator[str]:
    sides = options.cam_long_side
    if len(sides) != 2 or not 1 <= sides[0] <= sides[1]:
        shown = ",".join(f"{side:g}" for side in sides)
        yield f"--cam_long_side {shown} is not LEAST,GREATEST; give for example 210,420."


def _crossed_thresholds(options: Options) -> Iterator[str]:
    background, foreground = options.conf_bg_thres, options.conf_fg_thres
    if background > foreground:
        yield (
            f"--conf_bg_thres {background} is above --conf_fg_thres {foreground}; the confident "
            "background needs the lower background score."
        )


def _vit_args(options: Options) -> Iterator[str]:
    """Sizes of a transformer; what else timm cannot build is told when the network is built."""
    for name in ("depth", "embed_dim", "num_heads", "patch_size"):
        value = options.vit_args.get(name, 1)
        if not isinstance(value, int) or value < 1:
            yield f"--vit_args {name}={value} must be an integer of at least 1."
            return
    heads, dim = options.vit_args.get("num_heads", 1), options.vit_args.get("embed_dim", 0)
    if dim % heads:
        yield f"--vit_args num_heads={heads} does not divide embed_dim={dim}; give a divisor."


def _tiles(options: Options) -> Iterator[str]:
    """The training crop must be covered by whole tiles."""
    crop, tile, stride = options.cam_crop_size, options.tile_size, options.tile_stride
    if crop < tile or (crop - tile) % stride:
        default, actual = PUBLISHED_CROP
        ignored = (
            f" The published code has {default} as its default but ignored it and ran {actual}."
            if crop == default
            else ""
        )
        yield (
            f"--cam_crop_size {crop} is not covered exactly by tiles of --tile_size {tile} every "
            f"--tile_stride {stride}; give {tile}, {tile + stride}, {tile + 2 * stride} and so on."
            + ignored
        )


def _irn_crop(options: Options) -> Iterator[str]:
    """The crop must fit the strides of the network, and its grid the pairs of cells."""
    crop, cells = options.irn_crop_size, 2 * options.irn_radius - 1
    least = -(-cells * GRID_STRIDE // OUTPUT_STRIDE) * OUTPUT_STRIDE
    if crop % OUTPUT_STRIDE or crop < least:
        yield (
            f"--irn_crop_size {crop} does not fit: it must be a multiple of {OUTPUT_STRIDE} and, "
            f"with --irn_radius {options.irn_radius}, at least {least}."
        )


def _other_backbone(options: Options) -> Iterator[str]:
    if options.irn_backbone_weights != CAM_BACKBONE:
        return
    if options.irn_backbone != options.cnn:
        yield (
            f"--irn_backbone_weights {CAM_BACKBONE} needs the same network in both places, but "
            f"--irn_backbone is {options.irn_backbone} and --cnn is {options.cnn}."
        )
    elif options.irn_backbone_args != options.cnn_args:
        cnn, irn = (keyword_text(a) for a in (options.cnn_args, options.irn_backbone_args))
        yield (
            f"--irn_backbone_weights {CAM_BACKBONE} needs the same network in both places, but "
            f"--irn_backbone_args is {irn or 'empty'} and --cnn_args is {cnn or 'empty'}."
        )


def _nested_folders(options: Options) -> Iterator[str]:
    """Two output folders are the same, or one is inside another."""
    folders = _paths_of(options, "_out_dir")
    for (first, outer), (second, inner) in permutations(folders.items(), 2):
        if outer == inner or outer in inner.parents:
            yield (
                f"--{second} {inner} lies in --{first} {outer}; give every output a folder of its "
                "own."
            )
            return


def _equal_files(options: Options) -> Iterator[str]:
    weights = _paths_of(options, "_weights_name")
    for (first, one), (second, other) in combinations(weights.items(), 2):
        if one == other:
            yield f"--{first} and --{second} are both {one}; give each its own file."


def _outputs_among_photos(options: Options) -> Iterator[str]:
    """Something would be written among the user's photos."""
    endings = ("work_dir", "_out_dir", "_weights_name", "cache_dir", "result_dir")
    photos = options.photos.resolve() if options.photos is not None else None
    for name, path in _paths_of(options, endings).items():
        if photos is not None and path.is_relative_to(photos):
            yield (
                f"--{name} {path} lies in --photos {photos}, where nothing is ever written; give "
                "--work_dir a folder elsewhere."
            )
            return


def _paths_of(options: Options, ending: str | tuple[str, ...]) -> dict[str, Path]:
    """The paths of all options whose name ends so."""
    return {n: path.resolve() for n, path in vars(options).items() if n.endswith(ending)}


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
