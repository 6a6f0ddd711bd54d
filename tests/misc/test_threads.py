"""Every entry decides how idle threads wait before torch is there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
ENTRIES = [
    "run_sample.py",
    "deeplab/demo.py",
    "deeplab/main.py",
    "step/ablation/__main__.py",
    "step/eval_cam.py",
    "step/export.py",
    "step/export_cams.py",
    "step/import_cams.py",
    "step/make_figure.py",
    "step/make_report.py",
    "step/pretrain.py",
    "step/sweep.py",
    "voc12/coco/__main__.py",
    "wsol/tools_cam/launch.py",
    "wsol/tools_cam/test_cam.py",
    "wsol/tools_cam/train_cam.py",
    "wsol/tools_cam/visualize.py",
]
SLEEPING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}

# Looks at the environment in the moment in which somebody asks for torch.
_WATCH = """
import importlib.abc, json, os, runpy, sys

class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch":
            names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
            print(json.dumps({name: os.environ.get(name) for name in names}), flush=True)
            os._exit(0)

sys.meta_path.insert(0, Watch())
sys.argv = sys.argv[1:]
if "/" in sys.argv[0]:
    runpy.run_path(sys.argv[0], run_name="an_entry")
else:  # python -m
    runpy.run_module(sys.argv[0], run_name="an_entry")
import torch
"""


def _waiting(entry: str, **variables: str) -> dict[str, str | None]:
    """The variables of a fresh process that runs an entry as a module, when torch is asked for."""
    environment = {k: v for k, v in os.environ.items() if k not in SLEEPING}
    is_module = entry.startswith(("step/", "voc12/"))
    folders = [str(REPOSITORY)] if is_module else []  # as python -m has it
    environment |= {"PYTHONPATH": os.pathsep.join(folders), **variables}
    name = entry.removesuffix(".py").replace("/", ".") if is_module else str(REPOSITORY / entry)
    answer = subprocess.run(
        [sys.executable, "-c", _WATCH, name],
        cwd=REPOSITORY / "tests",
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return json.loads(answer.stdout)


def test_no_entry_is_forgotten() -> None:
    sources = [
        path
        for path in REPOSITORY.rglob("*.py")
        if not {"tests", ".venv"}.intersection(path.relative_to(REPOSITORY).parts)
    ]
    found = [p for p in sources if '__name__ == "__main__"' in p.read_text(encoding="utf-8")]
    assert sorted(str(path.relative_to(REPOSITORY)) for path in found) == sorted(ENTRIES)


@pytest.mark.parametrize("entry", ENTRIES)
def test_idle_threads_sleep_in_every_entry(entry: str) -> None:
    assert _waiting(entry) == SLEEPING


@pytest.mark.parametrize(
    ("name", "value"), [("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "9")]
)
def test_what_the_user_has_set_stays(name: str, value: str) -> None:
    assert _waiting("run_sample.py", **{name: value}) == {**dict.fromkeys(SLEEPING), name: value}
