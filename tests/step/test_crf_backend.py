"""`--crf_backend`: equal labels and records, and no need for the one that is not asked for."""

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipeline import TRAIN_IDS, copy_of, hashes, log_of, output, run

from misc import parallel
from misc.maps_io import read_label
from misc.provenance import read_record
from net import crf

ASKED = {"steps": "cam_to_ir_label", "crf_backend": "pydensecrf"}


def without_labels(finished: Path, work_dir: Path) -> Path:
    """A copy of a finished run that has CAMs, but no IR labels."""
    copy_of(finished, work_dir)
    shutil.rmtree(work_dir / "result/ir_label")
    return work_dir


@pytest.mark.usefixtures("pydensecrf")
def test_backends_write_equal_labels_and_records(
    sample: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, infer = [], crf._pydensecrf_inference

    def counted(*args: Any) -> crf.Inference:
        made.append(args)
        return infer(*args)

    monkeypatch.setattr(crf, "_pydensecrf_inference", counted)
    work = without_labels(finished, tmp_path / "work")
    assert run(sample, work, **ASKED) == 0
    assert len(made) == len(TRAIN_IDS)
    assert hashes(work, "ir_label") == hashes(finished, "ir_label")
    assert any(len(np.unique(read_label(output(work, "ir_label", i)))) > 1 for i in TRAIN_IDS)
    ours, theirs = (read_record(folder / "result/ir_label") for folder in (work, finished))
    assert ours.fingerprint == theirs.fingerprint
    assert run(sample, work, steps="cam_to_ir_label") == 0  # by the default: nothing to do
    assert f"cam_to_ir_label: 0 of {len(TRAIN_IDS)} pictures" in log_of(work)


@pytest.mark.parametrize("workers", [0, 2])
def test_torch_needs_neither_pydensecrf_nor_processes(
    sample: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    if workers == 0:
        monkeypatch.setattr(parallel, "ProcessPoolExecutor", None)  # would fail if called
    work = without_labels(finished, tmp_path / "work")
    assert run(sample, work, steps="cam_to_ir_label", num_workers=workers) == 0
    assert hashes(work, "ir_label") == hashes(finished, "ir_label")


def test_missing_backend_stops_the_run_before_it_starts(
    sample: Path,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    work = without_labels(finished, tmp_path / "work")
    assert run(sample, work, **ASKED) == 2
    assert "pip install pydensecrf2" in capsys.readouterr().err
    assert not (work / "result/ir_label").exists()
