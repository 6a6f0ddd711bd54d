"""Reproducible random numbers and the facts of a run."""

import json
import random
from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from misc.seed import run_facts, seed_everything


@pytest.fixture(autouse=True)
def default_flags() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False


def _draw() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002


def test_same_seed_same_numbers() -> None:
    seed_everything(5)
    first = _draw()
    assert first != _draw()
    seed_everything(5)
    assert first == _draw()
    seed_everything(6)
    assert all(a != b for a, b in zip(first, _draw(), strict=True))


def test_deterministic_kernels_are_asked_for() -> None:
    seed_everything(0)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark


def test_facts_are_json_and_name_versions() -> None:
    facts = json.loads(json.dumps(run_facts(torch.device("cpu"))))
    assert facts["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert facts["versions"]["numpy"] == np.__version__
    absent = {name for name, version in facts["versions"].items() if version is None}
    optional = set() if find_spec("pydensecrf") else {"pydensecrf2"}
    assert absent == optional  # a misspelt package would have no version
    assert facts["host"]["device"] == "cpu"
    assert facts["host"]["cpu_count"] >= 1
    assert facts["commit"] is None or len(facts["commit"]) == 40
