"""Shared fixtures: golden values of the published implementation, and one finished tiny run."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

# Tiny networks gain nothing from threads, and lose a lot where the machine has other work to do.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pipeline
import pytest
import wsol_runs

GOLDEN_DIR = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """Load `tests/golden/NAME.npz` as a dictionary of arrays."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(GOLDEN_DIR / f"{name}.npz", allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}

    return load


@pytest.fixture
def pydensecrf() -> ModuleType:
    """The module pydensecrf.densecrf; tests that need it are skipped where it is not installed."""
    return pytest.importorskip("pydensecrf.densecrf", reason="needs pip install pydensecrf2==1.1")


@pytest.fixture(params=["torch", "pydensecrf"])
def crf_backend(request: pytest.FixtureRequest) -> str:
    """Each backend of the dense CRF."""
    if request.param == "pydensecrf":
        request.getfixturevalue("pydensecrf")
    return request.param


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a tiny synthetic data set; read only."""
    return pipeline.build_sample(tmp_path_factory.mktemp("data") / "voc")


@pytest.fixture(scope="session")
def finished(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work folder of one run of all nine steps; read only, see `pipeline.copy_of`."""
    work_dir = tmp_path_factory.mktemp("finished") / "work"
    assert pipeline.run(sample, work_dir, figure_num=2, report_num=6) == 0
    return work_dir


@pytest.fixture(scope="session")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a tiny set of birds in the layout of CUB; read only."""
    return wsol_runs.build_birds(tmp_path_factory.mktemp("birds") / "CUB_200_2011")


@pytest.fixture(scope="session")
def trained(birds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of one tiny WSOL training; read only."""
    folder = tmp_path_factory.mktemp("wsol") / "run"
    assert wsol_runs.run(birds, folder) == 0
    return folder


@pytest.fixture
def trained_copy(trained: Path, tmp_path: Path) -> Path:
    """A copy of `trained` to spoil, without its log."""
    return Path(shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("*.log")))
