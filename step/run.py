"""What the steps work with: the options, and the data that they name."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from misc.distributed import select_device
from misc.errors import UserError
from misc.files import expand_user
from misc.precision import settle_precision
from misc.progress import log
from step.options import DEFAULT_EVAL_LIST, PATH_OPTIONS, Options
from voc12.devkit import IMAGE_FOLDER
from voc12.photos import folder as photo_folder
from voc12.photos.folder import Photo
from voc12.sample import devkit as sample
from voc12.source import DataSource, open_source

PHOTOS_FOLDER = "sess/photos"  # where --photos keeps its links, in --work_dir
_SAMPLE_FOLDER = "sess/sample_voc12"  # where --preset demo builds its data, in --work_dir
_SAMPLE_PICTURES = {"num_train": 120, "num_val": 32}


@dataclass(frozen=True)
class Run:
    """A run of the pipeline, or of a command that looks at its outputs.

    Attributes:
        options: all of them; what follows from the data is filled in.
        source: the data.
        trial_steps: of each training in a trial, see `step.estimate`; None trains to the end.
    """

    options: Options
    source: DataSource
    trial_steps: int | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Foreground classes, in label order."""
        return self.source.classes

    @property
    def num_classes(self) -> int:
        """How many foreground classes there are."""
        return len(self.source.classes)

    def ids(self, *lists: str) -> tuple[str, ...]:
        """Ids of the pictures of some lists, each once; the lists are named by their options."""
        return self.source.ids_of(*(getattr(self.options, name) for name in lists))


def prepare_data(options: Options) -> Run:
    """Build the sample or the set of photos that is asked for, and open the data.

    Raises:
        UserError: photos, class names or what `--preset coco` reads are not usable.
    """
    photos: dict[str, Photo] = {}
    if options.photos is not None:
        options, photos = _build_photos(options)
    elif options.voc12_root is None:
        options = replace(options, voc12_root=str(build_sample(options.work_dir)))
    root = expand_user(options.voc12_root).resolve()
    if options.preset == "coco" and not Path(options.classes).is_file():
        raise UserError(
            f"{options.classes} does not exist; python -m voc12.coco ROOT writes it, with "
            "everything else that --preset coco reads."
        )
    source = open_source(
        root,
        Path(options.classes) if options.classes else None,
        Path(options.cls_labels) if options.cls_labels else None,
        options.cache_dir,
        photos,
    )
    precision = settle_precision(options.precision, select_device(options.device))
    options = replace(options, voc12_root=str(root), precision=precision)
    return Run(_settle_eval_list(options, source), source)


def build_sample(work_dir: Path) -> Path:
    """The built-in sample of a work folder, which is built unless it is there."""
    root = sample.build(work_dir / _SAMPLE_FOLDER, **_SAMPLE_PICTURES)
    log(f"the built-in sample is in {root}")
    return root


def _build_photos(options: Options) -> tuple[Options, dict[str, Photo]]:
    """Link the photos into a devkit folder; returns the options that name it, and the photos."""
    root = options.work_dir / PHOTOS_FOLDER
    photos = photo_folder.build(options.photos, root, options.photos_long_side)
    if options.init == "random" and options.cnn_weights is None:
        log("from random weights few photos teach little: expect rough or wrong masks.")
    classes, labels = root / photo_folder.CLASSES_NAME, root / photo_folder.LABELS_NAME
    named = replace(options, voc12_root=str(root), classes=str(classes), cls_labels=str(labels))
    return named, photos


def _settle_eval_list(options: Options, source: DataSource) -> Options:
    """Score the inference list where the data set has no list of the default name, `train`.

    That is so for own data. A list that somebody named and that is not there is a problem instead,
    and so is a folder without pictures.
    """
    wanted, pictures = options.eval_list, source.devkit.root / IMAGE_FOLDER
    if wanted != DEFAULT_EVAL_LIST or Path(wanted).is_file() or not pictures.is_dir():
        return options
    try:
        source.id_list(wanted)
    except UserError:
        log(
            f"there is no list {wanted} (--eval_list): of --infer_list {options.infer_list} is "
            "scored what has masks."
        )
        return replace(options, eval_list=options.infer_list)
    return options


def finished_run(source: DataSource, work_dir: Path = Path(), **values: Any) -> Run:
    """What a command of its own looks at: outputs that are there already.

    Args:
        source: the data.
        work_dir: where relative paths of outputs start.
        values: options that the command has, too; the others have their defaults.
    """
    root = str(source.devkit.root)
    options = replace(Options(), voc12_root=root, work_dir=work_dir, **values)
    paths = {name: work_dir / getattr(options, name) for name in PATH_OPTIONS}
    return Run(replace(options, **paths), source)
