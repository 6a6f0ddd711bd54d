"""--estimate: units, times worked out from a trial, and that nothing of the user's is changed."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from pipeline import (
    BATCH_SIZE,
    TRAIN_IDS,
    command_line,
    copy_of,
    output,
    run,
)

import run_sample
from misc import progress
from misc.errors import UserError
from step import estimate, steps
from step.command_line import parse_args
from step.estimate import Cost, Part, cost_table
from step.options import STEP_NAMES
from step.plan import OUTPUTS
from step.run import Run

MIB, GIB = 2**20, 2**30


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def costs_of(sample: Path, work_dir: Path, *flags: str, **options: object) -> dict[str, Cost]:
    """The estimate of a tiny run, by step."""
    found = estimate.estimate(parse_args(command_line(sample, work_dir, *flags, **options)))
    return {cost.step: cost for cost in found}


def units_of(cost: Cost) -> dict[str, int]:
    """How often each part is done."""
    return {part.unit: part.units for part in cost.parts}


def tree(folder: Path) -> dict[Path, int]:
    """All files and folders with their time of change in ns."""
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


# ----------------------------------------------------------------------------------- whole trials


def test_units_of_all_steps(
    sample: Path, tmp_path: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six pictures, two to validate; three pictures a step, of which the trial has but two."""
    before = tree(sample)
    costs = costs_of(sample, tmp_path / "work", "--estimate=2")
    assert tuple(costs) == STEP_NAMES
    step = f"step of {BATCH_SIZE} pictures"
    # two steps an epoch, two epochs; each validates two pictures
    validated = {"picture validated": 4, "end of an epoch": 2}
    assert units_of(costs["train_cam"]) == {step: 4, **validated}
    displaced = {"end of an epoch": 2, "picture displaced": 6}
    assert units_of(costs["train_irn"]) == {step: 4, **displaced}
    for name in set(STEP_NAMES) - {"train_cam", "train_irn"}:
        assert units_of(costs[name]) == {"picture": 6}, name
    for name, cost in costs.items():
        assert cost.seconds > 0 and cost.memory["cpu"] > 50 * MIB
        assert (cost.disk > 0) == (not name.startswith("eval")), name
    assert costs["train_cam"].disk > 40 * MIB  # 11 million parameters of a resnet18 are 45 MB
    assert tree(sample) == before
    assert not (tmp_path / "work").exists() and not list(place.iterdir())
    printed = capsys.readouterr().out
    assert "computed from up to 2 pictures of each list" in printed
    assert "mIoU" not in printed  # scores of untrained networks mean nothing


def test_what_is_finished_does_not_count(
    finished: Path, sample: Path, tmp_path: Path, place: Path
) -> None:
    """Two masks and one CAM are gone: the latter's label, instances and mask follow it."""
    work_dir = copy_of(finished, tmp_path / "work")
    gone = TRAIN_IDS[1]
    for kind, image_id in (("sem_seg", TRAIN_IDS[0]), ("sem_seg", gone), ("cam", gone)):
        output(work_dir, kind, image_id).unlink()
    before = tree(work_dir)
    costs = costs_of(sample, work_dir, "--estimate")
    assert costs["train_cam"] == Cost("train_cam") and costs["train_irn"] == Cost("train_irn")
    left = {"make_cam": 1, "cam_to_ir_label": 1, "make_ins_seg_labels": 1, "make_sem_seg_labels": 2}
    for name, count in {**left, "eval_cam": 6, "eval_sem_seg": 6, "eval_ins_seg": 6}.items():
        assert units_of(costs[name]) == {"picture": count}, name
    assert tree(work_dir) == before and not list(place.iterdir())


def test_overwrite_counts_all_and_removes_nothing(
    finished: Path, sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work_dir = copy_of(finished, tmp_path / "work")
    before = tree(work_dir)
    names = "make_cam,cam_to_ir_label"
    costs = costs_of(sample, work_dir, "--estimate=2", "--overwrite", steps=names)
    assert [units_of(cost) for cost in costs.values()] == [{"picture": 6}, {"picture": 6}]
    assert "nothing is removed" in capsys.readouterr().out
    assert tree(work_dir) == before


def test_lists_that_differ(sample: Path, tmp_path: Path) -> None:
    """Masks of another list than that of the training; more pictures are asked for than it has."""
    options = {"infer_list": "val", "steps": "train_cam,make_cam,eval_cam"}
    costs = costs_of(sample, tmp_path / "work", "--estimate=50", **options)
    assert units_of(costs["make_cam"]) == {"picture": 8}
    assert units_of(costs["eval_cam"]) == {"picture": 2}


# ------------------------------------------------------------------------------------- arithmetic


def fake_step(
    monkeypatch: pytest.MonkeyPatch, name: str, folder: str, rounds: list[float]
) -> list[Run]:
    """A step that takes 3 s, then `rounds` for its pictures, then 1 s; writes 100 bytes for each.

    Returns:
        The runs that it was called with.
    """
    now, calls = [0.0], []
    for module in (progress, steps):
        monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])

    def work(run: Run) -> None:
        calls.append(run)
        now[0] += 3
        ids = run.ids(*OUTPUTS[folder].lists)
        for image_id, seconds in zip(progress.progress(ids, name), rounds, strict=True):
            now[0] += seconds
            path = OUTPUTS[folder].file(run, image_id)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(100))
        now[0] += 1

    class Module:
        run = staticmethod(work)

    monkeypatch.setitem(steps.MODULES, name, Module)
    return calls


def test_first_picture_is_no_measure_of_the_others(
    finished: Path, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """15 s in all, of which 4 x 2 are pictures: 7 for the start, and 6 pictures take 12."""
    work_dir = copy_of(finished, tmp_path / "work", without=["cam"])
    fake_step(monkeypatch, "make_cam", "cam_out_dir", [5, 1, 2, 3])
    cost = costs_of(sample, work_dir, "--estimate=4", steps="make_cam")["make_cam"]
    assert cost.parts == (Part("picture", 2.0, 6, 8.0),)
    assert cost.start == 7 and cost.seconds == 19
    assert cost.disk == 600


def test_processes_share_the_crf(
    finished: Path, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four pictures keep one process busy; the run has five, which are five times as fast."""
    work_dir = copy_of(finished, tmp_path / "work", without=["ir_label"])
    calls = fake_step(monkeypatch, "cam_to_ir_label", "ir_label_out_dir", [5, 1, 2, 3])
    options = {"steps": "cam_to_ir_label", "num_workers": 5}
    cost = costs_of(sample, work_dir, "--estimate=4", **options)["cam_to_ir_label"]
    assert calls[0].options.num_workers == 1
    assert cost.parts == (Part("picture", 0.4, 6, 8.0),)
    assert cost.start == 7 and cost.seconds == pytest.approx(9.4)


def test_table() -> None:
    """36.5 s x 100 + 0.5 s x 2 + 10 s are 1:01:01; of the peaks the greatest counts."""
    parts = (Part("step of 4 pictures", 36.5, 100, 0), Part("end of an epoch", 0.5, 2, 0))
    memory = {"cpu": GIB, "cuda": GIB // 4}
    costs = [
        Cost("train_cam", parts, 10.0, memory, 3.5 * MIB),
        Cost("make_cam"),
        Cost("eval_cam", (Part("picture", 0.25, 4, 0),), 0.0, {"cpu": 2 * GIB, "cuda": 0}, 0.0),
    ]
    assert cost_table(costs).splitlines() == [
        "step       unit                s per unit  units  start s    whole  cpu GiB  cuda GiB  "
        "disk MiB",
        "train_cam  step of 4 pictures      36.500    100     10.0  1:01:01     1.00      0.25  "
        "     3.5",
        "           end of an epoch          0.500      2",
        "make_cam   finished                 0.000      0      0.0  0:00:00     0.00      0.00  "
        "     0.0",
        "eval_cam   picture                  0.250      4      0.0  0:00:01     2.00      0.00  "
        "     0.0",
        "total                                                      1:01:02     2.00      0.25  "
        "     3.5",
    ]


# -------------------------------------------------------------------------------- what goes wrong


def stopping(error: BaseException) -> Callable[[Run], None]:
    def stop(run: Run) -> None:
        raise error

    return stop


@pytest.mark.parametrize(
    ("error", "status"), [(UserError("no such thing."), 2), (KeyboardInterrupt(), 130)]
)
def test_temporary_folder_goes_after_an_error(
    sample: Path,
    tmp_path: Path,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    status: int,
) -> None:
    class Module:
        run = staticmethod(stopping(error))

    monkeypatch.setitem(steps.MODULES, "train_cam", Module)
    assert run(sample, tmp_path / "work", "--estimate") == status
    assert not list(place.iterdir()) and not (tmp_path / "work").exists()


def test_what_the_run_would_refuse(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work_dir = tmp_path / "work"
    assert run(sample, work_dir, "--estimate", from_step="cam_to_ir_label") == 2
    told = capsys.readouterr().err
    assert f"{work_dir / 'result' / 'cam'} does not exist" in told
    assert not work_dir.exists()


@pytest.mark.parametrize("number", ["0", "1", "-3", "many"])
def test_numbers_of_pictures_that_tell_nothing(
    sample: Path, tmp_path: Path, number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run_sample.main(command_line(sample, tmp_path, f"--estimate={number}"))
    assert stop.value.code == 2
    assert "--estimate" in capsys.readouterr().err


def test_several_processes_are_refused(
    sample: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(sample, tmp_path / "work", "--estimate") == 2
    assert "start it without torchrun" in capsys.readouterr().err
