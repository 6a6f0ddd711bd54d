"""Where the files of a PASCAL VOC devkit, or of a data set laid out like one, lie."""

from dataclasses import dataclass
from pathlib import Path

IMAGE_FOLDER = "JPEGImages"
ANNOTATION_FOLDER = "Annotations"
MASK_FOLDER = "SegmentationClass"
AUG_MASK_FOLDER = "SegmentationClassAug"
OBJECT_MASK_FOLDER = "SegmentationObject"
LIST_FOLDER = "ImageSets/Segmentation"
_USUAL_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
_OTHER_SUFFIXES = (
    *(".jpe", ".jfif", ".apng", ".webp", ".tif", ".tiff", ".bmp", ".dib", ".gif", ".avif"),
    *(".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".pcx", ".psd", ".qoi"),
    *(".sgi", ".ico", ".dds"),
)
IMAGE_SUFFIXES = (
    *_USUAL_SUFFIXES,
    *_OTHER_SUFFIXES,
    *(suffix.upper() for suffix in _OTHER_SUFFIXES),
)
"""Of the still pictures that Pillow reads, in the order in which they are looked for."""


@dataclass(frozen=True)
class Devkit:
    """Paths of a devkit by picture id; ids are any strings.

    Attributes:
        root: the folder that holds JPEGImages (for VOC 2012 it ends in VOCdevkit/VOC2012).
    """

    root: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root))

    def image_path(self, image_id: str) -> Path:
        """The first that exists of ID.jpg, ID.jpeg, ID.png and so on, ID.jpg if none does."""
        folder = self.root / IMAGE_FOLDER
        candidates = (folder / f"{image_id}{suffix}" for suffix in IMAGE_SUFFIXES)
        first = folder / f"{image_id}{IMAGE_SUFFIXES[0]}"
        return next((path for path in candidates if path.is_file()), first)

    def image_stems(self) -> set[str]:
        """Names without suffix of the files in JPEGImages itself; none if there is no folder."""
        folder = self.root / IMAGE_FOLDER
        return {path.stem for path in folder.iterdir()} if folder.is_dir() else set()

    def mask_path(self, image_id: str) -> Path | None:
        """SegmentationClass/ID.png, else SegmentationClassAug/ID.png, None if neither exists."""
        folders = (MASK_FOLDER, AUG_MASK_FOLDER)
        candidates = (self.root / folder / f"{image_id}.png" for folder in folders)
        return next((path for path in candidates if path.is_file()), None)

    def has_masks(self) -> bool:
        """Whether there is a folder with ground truth at all."""
        return any((self.root / folder).is_dir() for folder in (MASK_FOLDER, AUG_MASK_FOLDER))

    def object_mask_path(self, image_id: str) -> Path:
        """SegmentationObject/ID.png, which may not exist."""
        return self.root / OBJECT_MASK_FOLDER / f"{image_id}.png"

    def annotation_path(self, image_id: str) -> Path:
        """Annotations/ID.xml, which may not exist."""
        return self.root / ANNOTATION_FOLDER / f"{image_id}.xml"

    def list_path(self, stem: str) -> Path:
        """ImageSets/Segmentation/STEM.txt, which may not exist."""
        return self.root / LIST_FOLDER / f"{stem}.txt"
