"""All nine steps on tiny data: what a run leaves behind, repeats, variants, weights it is given."""

import re
from pathlib import Path

import numpy as np
import published
import pytest
import torch
from PIL import Image
from pipeline import (
    EPOCHS,
    EVAL_STEPS,
    PICTURE_OUTPUTS,
    QUICK,
    TRAIN_IDS,
    WEIGHTS,
    command_line,
    copy_of,
    equal_weights,
    hashes,
    log_of,
    metrics,
    output,
    outputs,
    run,
    same_list,
    times,
    weights,
    write_list,
)

import run_sample
from misc.checkpoint import save_checkpoint
from misc.maps_io import load_cam, load_instances, read_image, read_label, voc_palette
from misc.provenance import read_record
from misc.seed import run_facts
from step.options import STEP_NAMES
from voc12.devkit import Devkit
from voc12.labels import VOC_CLASSES, load_image_labels

STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "


# ---------------------------------------------------------------------- what a run leaves behind


def test_every_picture_has_every_output(finished: Path, sample: Path) -> None:
    for (kind, image_id), path in outputs(finished).items():
        assert path.is_file(), (kind, image_id)
    made = {path.stem for path in (finished / "result").rglob("sample_*")}
    assert made == set(TRAIN_IDS)
    assert not list(finished.rglob(".tmp-*"))


def test_outputs_fit_their_pictures(finished: Path, sample: Path) -> None:
    devkit = Devkit(sample)
    labels = load_image_labels(TRAIN_IDS, sample, VOC_CLASSES)
    for image_id in TRAIN_IDS:
        height, width = read_image(devkit.image_path(image_id)).shape[:2]
        maps = load_cam(output(finished, "cam", image_id))
        assert maps.keys.tolist() == np.flatnonzero(labels[image_id]).tolist()
        assert maps.high_res.shape[1:] == (height, width)
        assert maps.cam.shape[1:] == (-(-height // 4), -(-width // 4))
        assert maps.high_res.min() >= 0 and 0.9 < maps.high_res.max() <= 1
        found = load_instances(output(finished, "ins_seg", image_id))
        assert found.mask.shape[1:] == (height, width)
        allowed = {0, 255, *(maps.keys + 1)}
        for kind in ("ir_label", "sem_seg"):
            label = read_label(output(finished, kind, image_id))
            assert label.shape == (height, width)
            assert set(np.unique(label).tolist()) <= allowed, (kind, image_id)
        assert 255 not in label  # the last kind: pseudo masks are certain everywhere


def test_label_pngs_carry_the_voc_palette(finished: Path) -> None:
    for kind in ("ir_label", "sem_seg"):
        with Image.open(output(finished, kind, TRAIN_IDS[0])) as image:
            assert image.mode == "P"
            palette = np.reshape(image.getpalette(), (-1, 3))
        np.testing.assert_array_equal(palette, voc_palette()[: len(palette)])
        assert len(palette) > len(VOC_CLASSES)


def test_training_states_are_gone_and_weights_have_records(finished: Path) -> None:
    names = {path.name for path in (finished / "sess").iterdir()}
    assert names == {"cache", *WEIGHTS.values(), *(f"{name}.json" for name in WEIGHTS.values())}
    for kind in PICTURE_OUTPUTS:
        assert read_record(finished / "result" / kind) is not None, kind


def test_metrics_hold_scores_and_what_they_depend_on(finished: Path, sample: Path) -> None:
    content = metrics(finished)
    assert content["seed_miou"] == content["steps"]["eval_cam"]["miou"]
    assert content["mask_miou"] == content["steps"]["eval_sem_seg"]["miou"]
    assert content["instance_ap50"] == content["steps"]["eval_ins_seg"]["ap50"]
    for name, key in (("seed", "seed_miou"), ("mask", "mask_miou")):
        scores = content["per_class"][name]
        assert list(scores) == sorted(["background", *VOC_CLASSES])
        assert content[key] == pytest.approx(np.mean([v for v in scores.values() if v is not None]))
    assert content["arguments"]["cam_scales"] == [1.0, 0.5]
    assert content["arguments"]["voc12_root"] == str(sample)
    assert content["arguments"]["num_classes"] == 20
    assert content["seed"] == 0
    assert {"python", "torch", "torchvision", "timm", "numpy"} <= content["versions"].keys()
    assert content["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert content["commit"] == run_facts()["commit"]
    assert content["host"]["device"] == "cpu"
    assert set(content["seconds"]) == set(content["peak_memory_bytes"]) == set(STEP_NAMES)
    assert sum(content["seconds"].values()) <= content["total_seconds"]
    assert content["eval_list"]["name"] == "train"


def test_both_branches_are_trained_and_validated_every_epoch(finished: Path) -> None:
    epochs = metrics(finished)["steps"]["train_cam"]["epochs"]
    assert len(epochs) == EPOCHS
    names = {"cnn", "transformer", "l1", "val_cnn", "val_transformer"}
    assert all(epoch.keys() == names and min(epoch.values()) > 0 for epoch in epochs)


def test_log_is_stamped_and_tells_every_step_with_its_time(finished: Path) -> None:
    lines = log_of(finished).splitlines()
    assert all(re.match(STAMP, line) for line in lines)
    for number, name in enumerate(STEP_NAMES, start=1):
        title = re.escape(f"[{number}/9] {name}")
        assert sum(bool(re.match(rf"{STAMP}{title} \.\.\.$", line)) for line in lines) == 1
        assert any(re.match(rf"{STAMP}{title}: \d+\.\d s, peak memory cpu", line) for line in lines)


def test_log_ends_with_the_table(finished: Path) -> None:
    content, text = metrics(finished), log_of(finished)
    table = text[text.index("IoU in % on list train") :]
    assert re.search(r"class +seed +mask\n", table)
    for name in ("background", "bird"):
        seed, mask = (content["per_class"][kind][name] for kind in ("seed", "mask"))
        assert re.search(rf"{name} +{seed:.1f} +{mask:.1f}\n", table)
    assert "aeroplane" not in table  # a class without any pixel has no score
    assert re.search(
        rf"mean +{content['seed_miou']:.1f} +{content['mask_miou']:.1f}\n.*instance AP", table
    )


def test_figure_is_a_picture(finished: Path) -> None:
    with Image.open(finished / "result" / "figure.png") as figure:
        figure.load()
        assert min(figure.size) > 100


# -------------------------------------------------------------------------------------- repeats


def scores(work_dir: Path) -> dict:
    return {step: metrics(work_dir)["steps"][step] for step in EVAL_STEPS}


def test_second_run_keeps_everything_and_scores_the_same(
    sample: Path, finished: Path, tmp_path: Path
) -> None:
    work = copy_of(finished, tmp_path / "work")
    before = times(work)
    assert run(sample, work) == 0
    assert times(work) == before
    assert scores(work) == scores(finished)
    first, again = metrics(finished), metrics(work)
    assert set(again["carried_over"]) == set(STEP_NAMES) - set(EVAL_STEPS)
    assert all(again["seconds"][step] == first["seconds"][step] for step in again["carried_over"])


def test_same_seed_elsewhere_gives_the_same_numbers_another_seed_does_not(
    sample: Path, finished: Path, tmp_path: Path
) -> None:
    assert run(sample, tmp_path / "again", num_workers=1) == 0
    assert equal_weights(tmp_path / "again", finished, *WEIGHTS)
    assert hashes(tmp_path / "again") == hashes(finished)
    assert scores(tmp_path / "again") == scores(finished)
    assert run(sample, tmp_path / "other", "--steps", "train_cam", seed=1) == 0
    for branch in ("cnn", "transformer"):
        assert not equal_weights(tmp_path / "other", finished, branch)


def test_overwrite_redoes_everything(sample: Path, finished: Path, tmp_path: Path) -> None:
    work = copy_of(finished, tmp_path / "work")
    before = times(work)
    assert run(sample, work, "--overwrite") == 0
    after = times(work)
    assert all(after[path] > before[path] for path in before)
    assert hashes(work) == hashes(finished)


# ------------------------------------------------------------------------------------- variants


@pytest.mark.parametrize(
    "options",
    [
        {"cam_fusion": "max", "precision": "bfloat16"},
        {
            "cam_fusion": "cnn",
            "cnn": "tf_efficientnet_lite0",
            "irn_backbone": "tf_efficientnet_lite0",
            "irn_backbone_weights": "cam",
            "fixed_batchnorm": False,
            "cnn_frozen_stages": 0,
            "deit_optimiser": "adamw",
        },
    ],
    ids=["both branches in bfloat16", "EfficientNet for the CNN and IRNet"],
)
def test_variants_run_end_to_end(sample: Path, tmp_path: Path, options: dict) -> None:
    lists = same_list(write_list(tmp_path / "one.txt", TRAIN_IDS[:1]))
    assert run(sample, tmp_path, **QUICK, **lists, **options) == 0
    content = metrics(tmp_path)
    assert 0 <= content["seed_miou"] <= 100 and 0 <= content["mask_miou"] <= 100
    assert not list((tmp_path / "sess").glob("*.state.pth"))
    if options.get("irn_backbone_weights") == "cam":
        trained = {k: v for k, v in weights(tmp_path, "cnn").items() if k.startswith("backbone.")}
        irn = weights(tmp_path, "irn")
        assert all(torch.equal(irn[key], value) for key, value in trained.items())


def test_fusions_combine_the_maps_of_both_branches(
    sample: Path, finished: Path, tmp_path: Path
) -> None:
    maps = {}
    work = copy_of(finished, tmp_path / "work")
    for fusion in ("cnn", "transformer", "mean", "max"):
        folder = tmp_path / fusion
        options = {"cam_fusion": fusion, "cam_out_dir": folder}
        assert run(sample, work, "--steps", "make_cam", **options) == 0
        maps[fusion] = load_cam(folder / f"{TRAIN_IDS[0]}.npz").cam
    branches = np.stack([maps["cnn"], maps["transformer"]])
    np.testing.assert_allclose(maps["mean"], branches.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(maps["max"], branches.max(axis=0), atol=1e-6)
    assert not np.allclose(maps["cnn"], maps["transformer"], atol=0.01)


def test_steps_of_a_run_can_be_chosen(sample: Path, finished: Path, tmp_path: Path) -> None:
    work = copy_of(finished, tmp_path / "work", without=["sem_seg", "edge", "ins_seg"])
    assert run(sample, work, "--from_step", "make_ins_seg_labels", "--no-eval_ins_seg_pass") == 0
    assert hashes(work) == hashes(finished)
    steps = {"make_ins_seg_labels", "make_sem_seg_labels", "eval_sem_seg"}
    content = metrics(work)
    assert content["steps"].keys() - set(content["carried_over"]) == steps
    assert content["seed_miou"] == metrics(finished)["seed_miou"]  # of the run before
    text = log_of(work)
    assert "[7/9] eval_ins_seg: off (--eval_ins_seg_pass)" in text
    assert "[1/9]" not in text


# ---------------------------------------------------------------------- weights from elsewhere


def as_published(state: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    """A state dict as the published code saves it, with the prefix that DataParallel adds."""
    named = {published.name_of(key, kind): value for key, value in state.items()}
    return {f"module.{key}": value for key, value in published.file_of(kind, named).items()}


def test_published_weights_without_record_give_the_same_outputs(
    sample: Path, finished: Path, tmp_path: Path
) -> None:
    names = {"cnn": "cam_weights_name", "transformer": "deit_weights_name"}
    names["irn"] = "irn_weights_name"
    for name in names:
        state = as_published(weights(finished, name), name)
        save_checkpoint(tmp_path / "from_elsewhere" / f"{name}.pth", state)
    files = {o: tmp_path / "from_elsewhere" / f"{name}.pth" for name, o in names.items()}
    steps = "make_cam,make_ins_seg_labels,make_sem_seg_labels"
    # Neither the training list nor the arguments of the training are needed.
    foreign = {**files, "cam_batch_size": 9, "irn_radius": 3, "train_list": "val"}
    assert run(sample, tmp_path / "work", "--steps", steps, **foreign) == 0
    kinds = ("cam", "ins_seg", "edge", "sem_seg")
    assert hashes(tmp_path / "work", *kinds) == hashes(finished, *kinds)
    assert "transformer.pth has no record of what made it and is used as it is" in log_of(
        tmp_path / "work"
    )
    both = {**files, "cam_fusion": "mean", "cam_out_dir": tmp_path / "mean"}
    assert run(sample, tmp_path / "work", "--steps", "make_cam", **both) == 0


def test_irnet_takes_over_the_backbone_of_published_weights(
    sample: Path, finished: Path, tmp_path: Path
) -> None:
    work = copy_of(finished, tmp_path / "work", without=["res50_irn.*"])
    file = tmp_path / "published.pth"
    save_checkpoint(file, as_published(weights(finished, "cnn"), "cnn"))
    options = {"cam_weights_name": file, "irn_backbone_weights": "cam", "irn_num_epoches": 1}
    assert run(sample, work, "--steps", "train_irn", **options) == 0
    trained, irn = weights(finished, "cnn"), weights(work, "irn")
    names = [key for key in trained if key.startswith("backbone.")]
    assert names and all(torch.equal(irn[name], trained[name]) for name in names)


def test_saved_names_are_loaded_names(sample: Path, tmp_path: Path) -> None:
    names = {"cam_weights_name": "w/cnn", "deit_weights_name": "w/deit.pth.tar"}
    names["irn_weights_name"] = "w/irn.v1"
    lists = same_list(write_list(tmp_path / "one.txt", TRAIN_IDS[:1]))
    assert run(sample, tmp_path, **QUICK, **lists, **names, cam_fusion="mean") == 0
    files = {path.name for path in (tmp_path / "w").iterdir()}
    saved = {"cnn", "deit.pth.tar", "irn.v1"}
    assert files == saved | {f"{name}.json" for name in saved}


def test_weights_of_another_network_are_refused(
    sample: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    wrong = finished / "sess" / WEIGHTS["cnn"]
    status = run(sample, tmp_path, "--steps", "make_cam", "--force", deit_weights_name=wrong)
    assert status == 2
    assert "res152_cam.pth does not fit this network" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "step", "folders"),
    [
        ("transformer", "make_cam", ("cam",)),
        ("irn", "make_sem_seg_labels", ("sem_seg", "edge")),
    ],
)
def test_weights_with_nan_make_nothing(
    finished: Path, tmp_path: Path, sample: Path, capfd, name: str, step: str, folders: tuple
) -> None:
    work = copy_of(finished, tmp_path / "work", without=[f"{WEIGHTS[name]}*", *folders])
    state = weights(finished, name)
    last = [key for key, value in state.items() if value.is_floating_point()][-1]
    torch.save(state | {last: state[last] * float("nan")}, work / "sess" / WEIGHTS[name])
    assert run(sample, work, "--steps", step) == 2
    told = f"{WEIGHTS[name]} cannot be used: {last} has NaN or infinite values"
    assert told in capfd.readouterr().err
    assert not [path for folder in folders for path in (work / "result" / folder).glob("sample_*")]


# ------------------------------------------------------------------------------ the demo's data


def test_demo_builds_its_own_data(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Path] = []

    def build(root: Path, **_: object) -> Path:
        built.append(root)
        return sample

    monkeypatch.setattr("voc12.sample.devkit.build", build)
    options = {**dict.fromkeys(("voc12_root", "train_list")), "preset": "demo", **QUICK}
    argv = command_line(sample, tmp_path, "--steps", "train_cam", **options)
    assert run_sample.main(argv) == 0
    assert built == [tmp_path / "sess" / "sample_voc12"]
    assert metrics(tmp_path)["arguments"]["voc12_root"] == str(sample)


def test_metrics_that_are_no_object_are_named(
    sample: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    work = copy_of(finished, tmp_path / "work")
    (work / "result" / "metrics.json").write_text("[]")
    assert run(sample, work, "--steps", "eval_cam") == 2
    assert "metrics.json holds a list instead of names with values" in capsys.readouterr().err
    assert (work / "result" / "metrics.json").read_text() == "[]"
