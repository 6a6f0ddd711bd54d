"""Files as other methods of this field write them, and a small devkit for them.

Every layout is that of the code that saves it (named beside each function); nothing of that code is
repeated here but names, types and shapes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from misc.maps_io import load_cam
from step import export_cams, import_cams
from voc12.labels import VOC_CLASSES

PICTURES = {
    "2007_000032": (20, 30, ("aeroplane", "person")),
    "2007_000039": (21, 17, ("tvmonitor",)),
}
"""Height, width and classes of the pictures."""
KEYS = {"2007_000032": [0, 14], "2007_000039": [19]}
FLOAT16 = 2.0**-11  # rounding of values up to 1


def build_devkit(root: Path, pictures: Mapping[str, Any] = PICTURES) -> Path:
    """Pictures, annotations and masks; every mask has its first class in the left half."""
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number, (image_id, (height, width, names)) in enumerate(pictures.items()):
        photo = np.full((height, width, 3), 40 * number + 30, np.uint8)
        Image.fromarray(photo).save(root / f"JPEGImages/{image_id}.jpg")
        objects = "".join(f"<object><name>{name}</name></object>" for name in names)
        (root / f"Annotations/{image_id}.xml").write_text(f"<annotation>{objects}</annotation>")
        mask = np.zeros((height, width), np.uint8)
        mask[:, : width // 2] = VOC_CLASSES.index(names[0]) + 1
        Image.fromarray(mask).save(root / f"SegmentationClass/{image_id}.png")
    lines = "".join(f"{image_id}\n" for image_id in pictures)
    (root / "ImageSets/Segmentation/train.txt").write_text(lines)
    return root


def scores(image_id: str, count: int, seed: int = 0) -> np.ndarray:
    """Maps (count, h, w) float32 in 0..1, each with maximum 1, in steps of 1/255."""
    height, width, _ = PICTURES[image_id]
    steps = np.random.default_rng(seed).integers(0, 256, (count, height, width))
    steps[:, 3, 5] = 255
    return (steps / 255).astype(np.float32)


def quarter(maps: np.ndarray) -> np.ndarray:
    """Every fourth pixel, with maximum 1."""
    small = maps[:, ::4, ::4].copy()
    small[:, 0, 0] = 1
    return small


def irn(image_id: str, maps: np.ndarray) -> dict[str, Any]:
    """jiwoon-ahn/irn step/make_cam.py; also AdvCAM and ReCAM: keys and cam are tensors."""
    keys = torch.tensor(KEYS[image_id])
    return {"keys": keys, "cam": torch.from_numpy(quarter(maps)), "high_res": maps}


def lpcam(image_id: str, maps: np.ndarray) -> dict[str, Any]:
    """zhaozhengChen/LPCAM step/make_lpcam.py: both maps are tensors, the keys an array."""
    keys = np.array(KEYS[image_id])
    return {
        "keys": keys,
        "cam": torch.from_numpy(quarter(maps)),
        "high_res": torch.from_numpy(maps),
    }


def amn(image_id: str, maps: np.ndarray) -> dict[str, Any]:
    """gaviotas/AMN step/make_amn_cam.py: keys without, maps with the background first."""
    both = np.concatenate((1 - maps.max(axis=0, keepdims=True), maps))
    keys = torch.tensor(KEYS[image_id])
    return {"keys": keys, "cam": torch.from_numpy(quarter(both)), "high_res": both}


def puzzle_cam(image_id: str, maps: np.ndarray) -> dict[str, Any]:
    """shjo-april/PuzzleCAM inference_classification.py: keys with, maps without background."""
    keys = np.array([0, *(key + 1 for key in KEYS[image_id])])
    return {"keys": keys, "cam": torch.from_numpy(quarter(maps)), "hr_cam": maps}


def sipe(image_id: str, maps: np.ndarray) -> dict[str, Any]:
    """chenqi1126/SIPE make_cam.py: keys and maps with the background first."""
    keys = np.array([0, *(key + 1 for key in KEYS[image_id])])
    return {"keys": keys, "IS_CAM": np.concatenate((0.5 * maps[:1], maps))}


def clip_es(image_id: str, maps: np.ndarray) -> dict[str, Any]:
    """linyq2117/CLIP-ES generate_cams_voc12.py: keys in the order of the annotation."""
    keys = np.array(KEYS[image_id][::-1])
    return {"keys": keys, "attn_highres": maps[::-1].astype(np.float16)}


def psa(image_id: str, maps: np.ndarray) -> dict[int, np.ndarray]:
    """jiwoon-ahn/psa infer_cls.py, YudeWang/SEAM infer_SEAM.py, xulianuwa/MCTformer engine.py and
    PengtaoJiang/L2G scripts/test_l2g_voc.py: a map for each class, from 0."""
    return dict(zip(KEYS[image_id], maps, strict=True))


def psa_crf(image_id: str, maps: np.ndarray) -> dict[int, np.ndarray]:
    """jiwoon-ahn/psa infer_cls.py, --out_la_crf: 0 is the background, 1 class 0."""
    foreground = {key + 1: one for key, one in zip(KEYS[image_id], maps, strict=True)}
    return {0: 1 - maps.max(axis=0), **foreground}


LAYOUTS = {
    "IRN": irn,
    "LPCAM": lpcam,
    "AMN": amn,
    "PuzzleCAM": puzzle_cam,
    "SIPE": sipe,
    "CLIP-ES": clip_es,
    "PSA": psa,
}


def save_npy(folder: Path, name: str, content: Any) -> Path:
    """Write an npy file as those methods do."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{name}.npy", content, allow_pickle=True)
    return folder / f"{name}.npy"


def save_l2g(folder: Path, image_id: str, maps: np.ndarray) -> None:
    """PengtaoJiang/L2G scripts/test_l2g_voc.py: ID_CLASS.png, classes from 0, 255 is 1."""
    folder.mkdir(parents=True, exist_ok=True)
    for key, one in zip(KEYS[image_id], maps, strict=True):
        gray = np.round(one * 255).astype(np.uint8)
        Image.fromarray(gray).save(folder / f"{image_id}_{key}.png")


def save_all(folder: Path, layout: Any, ids: Sequence[str] = tuple(PICTURES)) -> dict[str, Any]:
    """Write a file for each picture; returns the maps by id."""
    maps = {image_id: scores(image_id, len(KEYS[image_id])) for image_id in ids}
    for image_id, one in maps.items():
        save_npy(folder, image_id, layout(image_id, one))
    return maps


def imported(root: Path, source: Path, work: Path, *options: str) -> int:
    common = ("--voc12_root", str(root), "--work_dir", str(work), "--num_workers", "0")
    return import_cams.main([str(source), *common, *options])


def exported(work: Path, target: Path, *options: str) -> int:
    return export_cams.main([str(target), "--work_dir", str(work), "--num_workers", "0", *options])


def cam(work: Path, image_id: str) -> Path:
    return work / "result/cam" / f"{image_id}.npz"


def assert_maps(work: Path, maps: dict[str, np.ndarray], tolerance: float = FLOAT16) -> None:
    """The CAMs are those maps, of the classes of the pictures, at both sizes."""
    for image_id, expected in maps.items():
        found = load_cam(cam(work, image_id))
        order = np.argsort(found.keys)
        assert found.keys[order].tolist() == KEYS[image_id]
        np.testing.assert_allclose(found.high_res[order], expected, atol=tolerance)
        height, width, _ = PICTURES[image_id]
        assert found.cam.shape == (len(expected), -(-height // 4), -(-width // 4))
