"""What a person changed in a folder of photos since the networks were trained on it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from misc.errors import UserError
from misc.files import atomic_path
from misc.progress import log
from misc.provenance import read_record
from step.cam_origins import CamOrigin, cam_origins
from step.plan import OUTPUTS
from step.run import PHOTOS_FOLDER, Run
from voc12.lists import some_of

_GONE_NAME = "gone.txt"
_DATA = ("train_list", "train_data")


def check_photos(run: Run) -> None:
    """Tell a run of `--photos` what the changes of its folder mean; nothing for other data.

    Raises:
        UserError: the networks were trained on other photos or labels, and neither `--force` nor
            `--overwrite` says what shall become of them.
    """
    options = run.options
    if options.photos is None:
        return
    gone = _gone(run)
    recorded = read_record(options.cam_weights_name) if options.cam_weights_name.is_file() else None
    if recorded is None or options.force or options.overwrite:
        return
    expected = OUTPUTS["cam_weights_name"].record(run)
    if any(expected.inputs[name] != recorded.inputs.get(name) for name in _DATA):
        same_classes = list(run.class_names) == recorded.arguments.get("class_names")
        raise UserError(_sentence(run, gone, same_classes))


def _sentence(run: Run, gone: list[str], same_classes: bool) -> str:
    new, changed = _changes(run)
    kinds = {"new": new, "changed": changed, "gone": gone}
    shown = [f"{len(ids)} {kind} ({some_of(ids)})" for kind, ids in kinds.items() if ids]
    count, weights = len(run.source.photos), run.options.cam_weights_name
    keep = (
        "or with --force to keep the networks and make what is missing of the new and changed ones"
        if same_classes
        else "which other classes need"
    )
    first = f" (remove the files of the gone ones before, {_GONE_NAME} lists them)" if gone else ""
    return (
        f"the photos in {run.options.photos} are not those that {weights} was trained on: "
        f"{', '.join(shown) or 'another list'}. Repeat the command with --overwrite to train again "
        f"on all {count}{first}, {keep}."
    )


def _changes(run: Run) -> tuple[list[str], list[str]]:
    """Pictures without CAMs, and those whose CAMs are of another picture or other classes."""
    options = run.options
    source, new, changed = run.source, [], []
    labels = source.image_labels(ids := source.ids_of(options.train_list, options.infer_list))
    hashes = source.picture_hashes(ids)
    with cam_origins(options.cache_dir, options.cam_out_dir) as origins:
        for image_id in ids:
            path = options.cam_out_dir / f"{image_id}.npz"
            now = CamOrigin(tuple(np.flatnonzero(labels[image_id]).tolist()), hashes[image_id])
            if not path.is_file():
                new.append(image_id)
            elif origins.of(path) != now:
                changed.append(image_id)
    return new, changed


def _gone(run: Run) -> list[str]:
    """Ids of outputs whose photo is there no more; their files are listed, never removed."""
    photos = run.source.photos
    files = {path: i for path, i in _picture_outputs(run) if i not in photos}
    listing = run.options.work_dir / PHOTOS_FOLDER / _GONE_NAME
    with atomic_path(listing) as temporary:
        temporary.write_text("".join(f"{path}\n" for path in files), encoding="utf-8")
    ids = sorted(set(files.values()))
    if ids:
        log(
            f"the photos of {some_of(ids)} are gone or lie elsewhere now; their {len(files)} files "
            f"stay, {listing} lists them."
        )
    return ids


def _picture_outputs(run: Run) -> Iterator[tuple[Path, str]]:
    """Every output file of a picture with the picture's id."""
    folders = [(one.path(run), one.suffix) for one in OUTPUTS.values() if one.suffix]
    folders += [(run.options.overlay_out_dir, ".jpg"), (run.options.full_size_out_dir, ".png")]
    for folder, suffix in folders:
        for path in sorted(folder.glob(f"*{suffix}")):
            if not path.name.startswith(".tmp-"):
                yield path, path.name.removesuffix(suffix)
