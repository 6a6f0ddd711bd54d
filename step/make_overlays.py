"""Lay the pseudo masks over their photos, to be looked at: `result/overlay/ID.jpg`.

Where a photo was worked on in a smaller copy, its mask in the photo's own size is written, too:
`result/full_size/ID.png`. Run at the end of `run_sample.py --photos`, or with `--overlays`.
"""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from misc.distributed import on_main, shard, together
from misc.files import atomic_path, up_to_date
from misc.maps_io import read_image, read_label, write_label
from misc.outputs import prepare_output
from misc.progress import log, progress
from misc.provenance import Record
from misc.visualize import overlay_label
from step.run import Run

STEP = "make_overlays"
_QUALITY = 90  # of JPEG


def run(run: Run) -> dict[str, Any]:
    """Write what is missing or older than its mask, for all pictures of the inference list."""
    options, source = run.options, run.source
    ids = source.id_list(options.infer_list).ids
    large = {i: source.photos[i].full_size for i in ids if i in source.photos}
    large = {i: size for i, size in large.items() if size is not None}
    left = _left(run, options.overlay_out_dir, "--overlay_out_dir", ".jpg", ids)
    with together():
        for image_id in progress(left, STEP):
            _draw(run, image_id)
    log(f"photos with their masks over them are in {options.overlay_out_dir}")
    if large:
        left = _left(run, options.full_size_out_dir, "--full_size_out_dir", ".png", tuple(large))
        with together():
            for image_id in progress(left, "masks in full size"):
                label = enlarge(read_label(_mask(run, image_id)), large[image_id])
                write_label(options.full_size_out_dir / f"{image_id}.png", label)
        log(
            f"masks in the size of the {len(large)} large photos are in {options.full_size_out_dir}"
        )
    return {"pictures": len(ids)}


def _draw(run: Run, image_id: str) -> None:
    photo = read_image(run.source.devkit.image_path(image_id))
    picture = overlay_label(photo, read_label(_mask(run, image_id)))
    with atomic_path(run.options.overlay_out_dir / f"{image_id}.jpg") as temporary:
        Image.fromarray(picture).save(temporary, quality=_QUALITY)


def enlarge(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A label map (h, w) in another size (h, w); every pixel takes its nearest one's label."""
    picture = Image.fromarray(label).resize(size[::-1], Image.Resampling.NEAREST)
    return np.array(picture)


def _mask(run: Run, image_id: str) -> Path:
    return run.options.sem_seg_out_dir / f"{image_id}.png"


def _left(run: Run, folder: Path, option: str, suffix: str, ids: tuple[str, ...]) -> list[str]:
    """Prepare a folder; returns this process's ids whose file is missing or older than the mask."""

    def prepare() -> list[str]:
        prepare_output(folder, Record(STEP), suffix, ids, force=run.options.force, option=option)
        return [i for i in ids if not up_to_date(folder / f"{i}{suffix}", _mask(run, i))]

    return shard(on_main(prepare))
