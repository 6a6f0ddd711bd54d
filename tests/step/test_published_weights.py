"""The authors' weight files through the command line, from their layout to the published outputs.

Files are named and laid out as published and hold the golden values; CAMs and edges that
run_sample.py makes with them are compared with the golden outputs of the published code.
"""

from pathlib import Path

import numpy as np
import published
import pytest
import torch
import torch.nn.functional as F
from golden import fill
from networks import picture
from numpy.testing import assert_allclose
from PIL import Image
from pipeline import log_of, metrics, write_list

import run_sample
from misc.checkpoint import save_checkpoint
from misc.maps_io import load_cam
from misc.progress import set_log_file
from net.pretrained import load_weights
from net.resnet_cam import build_cnn_cam

CAM_PICTURE, EDGE_PICTURE = "cams", "edges"
FILES = {
    "cnn": "sess/res152_cam.pth",
    "transformer": "sess/deits_cam.pth",
    "irn": "sess/res50_irn.pth",
}
MEAN_DISPLACEMENT = (0.3, -0.2)


def write_weights(folder: Path, *kinds: str) -> None:
    """Files of the authors below `folder`, where the commands look for them."""
    for kind in kinds:
        state = published.values(published.SHAPES[kind]())
        if kind == "irn":
            state["mean_shift.running_mean"] = torch.tensor(MEAN_DISPLACEMENT)
        save_checkpoint(folder / FILES[kind], published.file_of(kind, state))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Devkit of two golden pictures with made-up masks."""
    root = tmp_path / "voc"
    photos = {CAM_PICTURE: fill.image("deit/infer0", 150, 200)}
    photos[EDGE_PICTURE] = fill.image("irn/infer", 93, 125)
    for folder in ("JPEGImages", "SegmentationClass"):
        (root / folder).mkdir(parents=True)
    for name, photo in photos.items():
        Image.fromarray(photo).save(root / "JPEGImages" / f"{name}.png")
        mask = np.full(photo.shape[:2], 7, dtype=np.uint8)
        Image.fromarray(mask).save(root / "SegmentationClass" / f"{name}.png")
    labels = f"{CAM_PICTURE},car;person\n{EDGE_PICTURE},car\n"  # indices 6 and 14
    (root / "labels.csv").write_text(labels, encoding="utf-8")
    return root


def test_outputs_equal_published(golden, pictures: Path, tmp_path: Path) -> None:
    write_weights(tmp_path, "transformer", "irn")
    listed = str(write_list(tmp_path / "two.txt", (CAM_PICTURE, EDGE_PICTURE)))
    steps = "make_cam,eval_cam,make_sem_seg_labels,eval_sem_seg"
    words = ["--voc12_root", str(pictures), "--cls_labels", str(pictures / "labels.csv")]
    words += ["--train_list", listed, "--infer_list", listed, "--work_dir", str(tmp_path)]
    words += ["--eval_list", listed, "--device", "cpu", "--num_workers", "0", "--figure_num", "0"]
    words += ["--cam_scales", "1.0"]
    try:
        assert run_sample.main([*words, "--steps", steps]) == 0
    finally:
        set_log_file(None)
    maps = load_cam(tmp_path / "result/cam" / f"{CAM_PICTURE}.npz")
    assert maps.keys.tolist() == [6, 14]
    coarse = torch.from_numpy(golden("cam_deit")["infer_150x200"][[6, 14]])
    cam = F.interpolate(coarse[None], (38, 50), mode="bilinear", align_corners=False)[0]
    assert_allclose(maps.cam, cam / (cam.amax(dim=(1, 2), keepdim=True) + 1e-5), atol=2e-4)
    with Image.open(tmp_path / "result/edge" / f"{EDGE_PICTURE}.png") as image:
        edge = np.asarray(image) / 255
    assert_allclose(edge, golden("irn")["edge"][0], atol=0.51 / 255)
    assert "res50_irn.pth has no record of what made it and is used as it is" in log_of(tmp_path)
    assert all(0 <= metrics(tmp_path)[name] <= 100 for name in ("seed_miou", "mask_miou"))


def test_maps_of_the_cnn_branch_equal_published(golden, tmp_path: Path) -> None:
    write_weights(tmp_path, "cnn")
    model = build_cnn_cam("resnet152", 20, init="random")
    load_weights(model, tmp_path / FILES["cnn"], "cnn")
    with torch.no_grad():
        cam = model.eval().cam(picture("cnn/a", 96, 112))
    assert_allclose(cam, golden("cam_cnn")["infer_out"], atol=1e-4)
