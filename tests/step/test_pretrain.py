"""The sample's first weights: how they are made, and what those that ship are."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from misc.files import read_json, sha256_file
from step import pretrain
from step.command_line import parse_args
from step.networks import build_cnn, build_deit, build_irn
from step.presets import SAMPLE_CNN, SAMPLE_VIT, SAMPLE_WEIGHTS
from step.run import _SAMPLE_PICTURES, Run, prepare_data
from voc12.sample import scene_sets
from voc12.sample.devkit import DEFAULT_SIZE_RANGE
from voc12.sample.scene_sets import digest, paint
from voc12.sample.scenes import paint_scenes

MOST_BYTES = 4_000_000


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few scenes and steps."""
    monkeypatch.setattr(scene_sets, "PART", 8)
    recipes = {name: replace(recipe, batch_size=4) for name, recipe in pretrain.RECIPES.items()}
    monkeypatch.setattr(pretrain, "RECIPES", recipes)


def run(folder: Path, *words: str) -> int:
    command = ["--work_dir", str(folder / "work"), "--output", str(folder / "weights")]
    return pretrain.main([*command, "--parts", "1", "--num_workers", "0", *words])


@pytest.mark.usefixtures("small")
def test_it_writes_half_precision_weights_with_records(tmp_path: Path) -> None:
    assert run(tmp_path, "--epochs", "1") == 0
    for name, first in (("cnn", "conv1.0.weight"), ("vit", "patch_embed.proj.weight")):
        path = tmp_path / "weights" / f"{name}.safetensors"
        state = load_file(path)
        assert state[first].dtype == torch.float16
        assert not any(key.startswith(("head", "classifier")) for key in state)
        record = read_json(path.with_name(f"{path.name}.json"))
        assert record["sha256"] == sha256_file(path)
        assert record["arguments"]["scenes"] == 8
        assert len(record["facts"]["history"]) == 1
    digests = np.load(tmp_path / "weights" / "scenes.npy")
    assert digests.tolist() == sorted(digest(scene.image) for scene in paint(0, 0))


@pytest.mark.usefixtures("small")
def test_an_interrupted_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    assert run(straight, "--epochs", "2") == 0
    with monkeypatch.context() as patch:
        finish = pretrain.Training._finish

        def killed(self: pretrain.Training, finished: int) -> None:
            finish(self, finished)
            raise KeyboardInterrupt

        patch.setattr(pretrain.Training, "_finish", killed)
        assert run(resumed, "--epochs", "2") == 130
    assert run(resumed, "--epochs", "2") == 0
    assert "cnn: continued after epoch 1" in "".join(capsys.readouterr())
    for name in ("cnn", "vit"):
        first, second = (f / "weights" / f"{name}.safetensors" for f in (straight, resumed))
        assert first.read_bytes() == second.read_bytes()


# --------------------------------------------------------------------------- what ships


def test_the_shipped_weights_are_small_and_those_of_their_records() -> None:
    assert sum(path.stat().st_size for path in (SAMPLE_CNN, SAMPLE_VIT)) <= MOST_BYTES
    for name, path in (("cnn", SAMPLE_CNN), ("transformer", SAMPLE_VIT)):
        record = read_json(path.with_name(f"{path.name}.json"))
        assert record["sha256"] == sha256_file(path)
        assert record["step"] == f"pretrain {name}"
        assert not record["facts"]["dirty"]


def test_no_picture_of_the_sample_was_pretrained_on() -> None:
    digests = np.load(SAMPLE_WEIGHTS / "scenes.npy")
    assert digests.dtype == np.uint64 and len(np.unique(digests)) == len(digests)
    record = read_json(SAMPLE_CNN.with_name(f"{SAMPLE_CNN.name}.json"))
    arguments = record["arguments"]
    assert arguments["scenes"] == len(digests)
    known = set(digests.tolist())
    # That these are found shows that scenes are painted and counted here as they were then.
    assert {digest(scene.image) for scene in islice(paint(arguments["seed"], 0), 5)} <= known
    for part, number in enumerate(_SAMPLE_PICTURES.values()):
        sample = paint_scenes(number, DEFAULT_SIZE_RANGE, (0, part))
        assert not {digest(scene.image) for scene in sample} & known


def test_the_sample_starts_from_them(tmp_path: Path) -> None:
    run = _run_of_the_sample(tmp_path)
    cnn, vit = load_file(SAMPLE_CNN), load_file(SAMPLE_VIT)
    backbone = build_cnn(run).backbone.features.state_dict()
    assert torch.equal(backbone["layer4.0.conv1.weight"], cnn["layer4.0.conv1.weight"].float())
    blocks = build_deit(run).vit.state_dict()
    assert torch.equal(blocks["blocks.3.mlp.fc1.weight"], vit["blocks.3.mlp.fc1.weight"].float())
    assert build_irn(run, trained=True).backbone.features.state_dict().keys() == cnn.keys()


def test_the_sample_starts_from_nothing_where_that_is_asked_for(tmp_path: Path) -> None:
    options = parse_args(["--preset", "demo", "--init", "random", "--work_dir", str(tmp_path)])
    assert (options.cnn_weights, options.vit_weights) == (None, None)
    assert options.cam_fusion == "cnn"


def _run_of_the_sample(folder: Path) -> Run:
    return prepare_data(parse_args(["--preset", "demo", "--work_dir", str(folder)]))
