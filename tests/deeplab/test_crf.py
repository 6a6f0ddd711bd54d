"""`crf`: published results, its parts, and the command."""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from deeplab_runs import (
    config_of,
    copy_of,
    finished_run,
    log_of,
    paths_of,
    run,
    run_apart,
)
from PIL import Image
from pipeline import VAL_IDS, disturb_weights

from deeplab import crf, refinement
from deeplab.config import FINAL, Config, Crf, Mean
from misc.files import read_json, sha256_file
from misc.maps_io import read_image, read_label
from misc.provenance import read_record
from net.crf import CrfParameters, DenseCrf
from voc12.devkit import Devkit

NEAR_TIE = 1e-3  # the golden probabilities were rounded to float16
TORCH_FREE = "import sys, deeplab.main, deeplab.crf; sys.exit('torch' in sys.modules)"


@pytest.fixture
def refined(sample: Path, tmp_path: Path) -> Path:
    """Folder of a finished run to change."""
    return copy_of(finished_run(sample), tmp_path / "run")


# --------------------------------------------------------------------------------- computation


@pytest.mark.parametrize("kind", ["rgb", "official"])
def test_label_maps_equal_the_published_ones(golden, kind: str) -> None:
    expected = golden("deeplab_crf")
    image, probabilities = expected["image"], expected["prob"].astype(np.float32)
    label = crf.refine_probabilities(probabilities, image, Crf(IMAGE=kind), Mean())
    settings = CrfParameters(0.7, 1, 3, 67, 3, 4, 10)
    seen = crf.crf_picture(image, kind, Mean())
    after = np.sort(DenseCrf(seen, 4, settings).refine_probabilities(probabilities), axis=0)
    differs = label != expected[f"label_{kind}"]
    assert (after[-1] - after[-2])[differs].max(initial=0) < NEAR_TIE
    assert differs.sum() <= 1
    other = {"rgb": "official", "official": "rgb"}[kind]
    assert (label != expected[f"label_{other}"]).mean() > 0.02


def test_official_picture_wraps_around() -> None:
    image = np.array([[[0, 116, 104], [255, 117, 0]]], np.uint8)
    # BGR minus (104.008, 116.669, 122.675), cut off towards 0, modulo 256
    expected = [[[0, 0, 256 - 122], [256 - 104, 0, 132]]]
    np.testing.assert_array_equal(crf.crf_picture(image, "official", Mean()), expected)


def test_upsampling_and_softmax_equal_those_of_torch() -> None:
    logits = np.random.default_rng(0).normal(size=(21, 7, 9)).astype(np.float32) * 5
    for size in ((55, 70), (7, 9), (5, 20)):
        full = F.interpolate(torch.from_numpy(logits)[None], size, mode="bilinear")
        probabilities = crf.softmax(crf.upsample(logits, size))
        np.testing.assert_allclose(probabilities, full[0].softmax(0), atol=1e-4)


def test_every_setting_of_the_configuration_counts(golden) -> None:
    expected = golden("deeplab_crf")
    image, probabilities = expected["image"], expected["prob"].astype(np.float32)

    def refine(**values: object) -> np.ndarray:
        return crf.refine_probabilities(probabilities, image, Crf(**values), Mean())

    default = refine()
    changes = {
        "ITER_MAX": 1,
        "POS_W": 30,
        "POS_XY_STD": 5,
        "BI_W": 40,
        "BI_XY_STD": 5,
        "BI_RGB_STD": 30,
        "IMAGE": "official",
    }
    for name, value in changes.items():
        assert (refine(**{name: value}) != default).any(), name


def test_worker_processes_start_without_torch() -> None:
    done = run_apart("-c", TORCH_FREE)
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------- command


def test_predictions_come_from_the_stored_logits(sample: Path) -> None:
    folder = finished_run(sample)
    config, paths = config_of(sample, folder), paths_of(sample, folder)
    changed = 0
    for image_id in VAL_IDS:
        image = read_image(Devkit(sample).image_path(image_id))
        logits = torch.from_numpy(np.load(paths.logits_dir("val") / f"{image_id}.npy")).float()
        full = F.interpolate(logits[None], image.shape[:2], mode="bilinear")[0]
        expected = crf.refine_probabilities(
            full.softmax(0).numpy(), image, config.CRF, config.IMAGE.MEAN
        )
        label = read_label(paths.prediction_dir("val", crf=True) / f"{image_id}.png")
        assert (label != expected).mean() < 0.01  # rounding may tip a tie
        changed += (label != read_label(paths.prediction_dir("val") / f"{image_id}.png")).sum()
    assert changed > 0


def test_scores_and_table_stand_beside_those_without_crf(sample: Path) -> None:
    folder = finished_run(sample)
    paths, text = paths_of(sample, folder), log_of(sample, folder, "crf")
    plain, crf = (read_json(paths.scores_path("val", crf=crf)) for crf in (False, True))
    assert paths.scores_path("val", crf=True).name == "scores_crf.json"
    assert crf["model"] == plain["model"]
    assert crf["initialisation"] == plain["initialisation"]
    row = f"background  {100 * plain['Class IoU']['background']:7.2f}"
    assert "DeepLab  DeepLab + CRF" in text and row in text
    assert f"{100 * crf['Class IoU']['background']:.2f}" in text


def test_processes_give_the_same_pictures(sample: Path, tmp_path: Path) -> None:
    copy_of(finished_run(sample), tmp_path, "models", "features")
    assert run("crf", sample, tmp_path, "-j", "2") == 0
    one, two = (
        paths_of(sample, folder).prediction_dir("val", crf=True)
        for folder in (finished_run(sample), tmp_path)
    )
    for image_id in VAL_IDS:
        assert sha256_file(one / f"{image_id}.png") == sha256_file(two / f"{image_id}.png")
    assert "in 2 processes" in log_of(sample, tmp_path, "crf")


@pytest.mark.usefixtures("pydensecrf")
def test_backends_give_the_same_pictures_and_records(sample: Path, tmp_path: Path) -> None:
    finished, values = finished_run(sample), {"CRF.BACKEND": "pydensecrf"}
    copy_of(finished, tmp_path, "models", "features")
    assert run("crf", sample, tmp_path, values=values) == 0
    theirs, ours = (
        paths_of(sample, folder).prediction_dir("val", crf=True) for folder in (finished, tmp_path)
    )
    for image_id in VAL_IDS:
        assert sha256_file(ours / f"{image_id}.png") == sha256_file(theirs / f"{image_id}.png")
    assert read_record(ours).fingerprint == read_record(theirs).fingerprint
    assert run("crf", sample, tmp_path) == 0  # by the default: nothing to do
    assert "crf: 0 pictures of list val" in log_of(sample, tmp_path, "crf")


@pytest.mark.parametrize("command", ["crf", "predict"])
def test_pydensecrf_is_needed_only_where_it_is_asked_for(
    sample: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    command: str,
) -> None:
    for name in ("pydensecrf", "pydensecrf.densecrf"):
        monkeypatch.setitem(sys.modules, name, None)
    copy_of(finished_run(sample), tmp_path, "models", "features")
    output = tmp_path / "out"
    pictures = ("--input", str(sample / "JPEGImages"), "--output", str(output), "--crf")
    flags = pictures if command == "predict" else ()
    assert run(command, sample, tmp_path, *flags, values={"CRF.BACKEND": "pydensecrf"}) == 2
    assert "pip install pydensecrf2" in capsys.readouterr().err
    assert not output.exists() and not (tmp_path / "scores").exists()
    assert run(command, sample, tmp_path, *flags) == 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, 2), ({"n_jobs": 5}, 5), ({"n_jobs": 0}, 0), ({"N_JOBS": 3}, 3), ({"cores": 2}, 1)],
)
def test_processes_of_a_machine_share_its_cores(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, int], expected: int
) -> None:
    """Of 8 cores, each of three processes takes two, unless a number for each of them is given."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setattr(os, "cpu_count", lambda: options.get("cores", 8))
    config = Config(CRF=Crf(N_JOBS=options.get("N_JOBS")))
    assert refinement.workers_of(config, options.get("n_jobs")) == expected


def test_finished_pictures_are_kept(sample: Path, refined: Path) -> None:
    paths = paths_of(sample, refined)
    first, second = (paths.prediction_dir("val", crf=True) / f"{i}.png" for i in VAL_IDS)
    before = first.stat().st_mtime_ns
    second.unlink()
    assert run("crf", sample, refined) == 0
    assert first.stat().st_mtime_ns == before and second.is_file()
    assert "crf: 1 pictures of list val" in log_of(sample, refined, "crf")
    scores = paths.scores_path("val", crf=True)
    seconds = read_json(scores)["seconds_per_picture"]
    assert run("crf", sample, refined) == 0  # nothing to do, so nothing to time
    assert read_json(scores)["seconds_per_picture"] == seconds > 0


def test_other_settings_are_refused_until_overwritten(
    sample: Path, refined: Path, capsys: pytest.CaptureFixture
) -> None:
    values = {"CRF.IMAGE": "official"}
    assert run("crf", sample, refined, values=values) == 2
    assert "CRF.IMAGE is official now and was rgb" in capsys.readouterr().err
    assert run("crf", sample, refined, "--overwrite", values=values) == 0
    assert read_json(paths_of(sample, refined).scores_path("val", crf=True))["config"][
        "CRF.IMAGE"
    ] == ("official")


def test_logits_of_another_model_are_refused(
    sample: Path, refined: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    paths, told = paths_of(sample, refined), "Redo it with `test --split val --overwrite`"
    assert run("crf", sample, refined, "-m", str(paths.checkpoint(3))) == 2
    error = capsys.readouterr().err
    assert "input model is" in error and told in error and "--force" not in error
    assert run("crf", sample, refined, "-m", str(paths.checkpoint(6))) == 0  # equal to the final
    assert run("test", sample, refined, "--overwrite") == 0
    disturb_weights(paths.checkpoint(FINAL))  # trained again, say
    capsys.readouterr()
    assert run("crf", sample, refined) == 2
    assert told in capsys.readouterr().err
    paths.checkpoint(FINAL).unlink()  # nothing left to compare with
    assert run("crf", sample, refined) == 0


def test_changed_pictures_are_refused_until_tested_again(
    sample: Path, refined: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root = Path(shutil.copytree(sample, tmp_path / "voc"))
    picture = Devkit(root).image_path(VAL_IDS[0])
    Image.fromarray(read_image(picture)[::-1].copy()).save(picture)
    os.utime(picture, (1, 1))
    assert run("crf", root, refined) == 2
    error = capsys.readouterr().err
    assert "1 of 2 pictures" in error and VAL_IDS[0] in error and "run `test --split val`" in error
    assert run("test", root, refined) == 0 == run("crf", root, refined)
    assert "crf: 1 pictures of list val" in log_of(root, refined, "crf")


def test_missing_logits_are_named(
    sample: Path, refined: Path, capsys: pytest.CaptureFixture
) -> None:
    paths = paths_of(sample, refined)
    (paths.logits_dir("val") / f"{VAL_IDS[1]}.npy").unlink()
    assert run("crf", sample, refined) == 2
    error = capsys.readouterr().err
    assert "1 of 2 files are missing" in error and f"{VAL_IDS[1]}.npy" in error
    assert run("crf", sample, refined, "--split", "train") == 2
    assert "run `test --split train`" in capsys.readouterr().err


@pytest.mark.parametrize("spoiled", ["damaged", "not finite"])
def test_nothing_is_removed_for_logits_that_cannot_be_refined(
    sample: Path, refined: Path, spoiled: str, capsys: pytest.CaptureFixture
) -> None:
    paths = paths_of(sample, refined)
    path = paths.logits_dir("val") / f"{VAL_IDS[1]}.npy"
    if spoiled == "damaged":
        path.write_bytes(path.read_bytes()[:100])
    else:
        np.save(path, np.load(path) * np.float16(np.nan))
    predictions = paths.prediction_dir("val", crf=True)
    before = sorted(predictions.iterdir())
    assert run("crf", sample, refined, "--overwrite") == 2
    error = capsys.readouterr().err
    assert str(path) in error and "run test for this split again" in error
    assert sorted(predictions.iterdir()) == before and len(before) == 3
