"""`result/report.html` of a run: what it shows, what it leaves out, and what goes wrong."""

import html
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from pipeline import TRAIN_IDS, copy_of, log_of, metrics, output, run, write_list

from misc.page.document import Chart, Facts, Table
from step import make_report
from step.page.sections import duration, split_arguments, summary


def report(work: Path) -> str:
    """The page of a work folder."""
    return (work / "result" / "report.html").read_text(encoding="utf-8")


def words(text: str) -> str:
    """What a reader sees of HTML, in one line."""
    without = re.sub(r"<(style|script)>.*?</\1>", " ", text, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", without)).split())


def shown_ids(text: str) -> list[str]:
    """Ids of the pictures in the gallery, in order."""
    return re.findall(r'data-name="([^"]*)"', text)


def alone(sample: Path, work: Path, *more: str) -> int:
    """Run step.make_report."""
    return make_report.main(["--voc12_root", str(sample), "--work_dir", str(work), *more])


@pytest.fixture
def work(finished: Path, tmp_path: Path) -> Path:
    """A finished run to spoil, without the page."""
    return copy_of(finished, tmp_path / "work", without=["report.html"])


def test_every_run_ends_with_the_page(finished: Path) -> None:
    text, content = report(finished), metrics(finished)
    seen = words(text)
    assert sorted(shown_ids(text)) == list(TRAIN_IDS)
    for key, title in (("seed_miou", "seed mIoU"), ("mask_miou", "mask mIoU")):
        assert f"{title} {content[key]:.1f} %" in seen
    bird = [content["steps"]["eval_sem_seg"][kind]["bird"] for kind in ("precision", "recall")]
    seed, mask = (content["per_class"][kind]["bird"] for kind in ("seed", "mask"))
    assert "bird " + " ".join(f"{value:.1f}" for value in (seed, mask, *bird)) in seen
    assert "aeroplane -" not in seen  # a class without any pixel
    losses = [epoch["cnn"] for epoch in content["steps"]["train_cam"]["epochs"]]
    assert f"cnn {losses[0]:.3g} to {losses[-1]:.3g}" in seen
    seconds, peak = (
        content["seconds"]["train_irn"],
        content["peak_memory_bytes"]["train_irn"]["cpu"],
    )
    assert f"train_irn {seconds:.1f} {peak / 2**30:.2f}" in seen
    assert content["commit"] in seen and f"torch {content['versions']['torch']}" in seen
    assert content["command"] in seen
    last = log_of(finished).splitlines()[-1]
    assert f"to look at: {finished / 'result' / 'report.html'}, 6 of 6 pictures" in last


def test_arguments_that_differ_come_before_the_others(finished: Path) -> None:
    unusual, usual = split_arguments(metrics(finished)["arguments"])
    assert unusual["cam_crop_size"] == 48 and unusual["voc12_root"] and unusual["work_dir"]
    assert usual["beta"] == 10 and usual["cam_out_dir"]  # below --work_dir as by default
    assert not unusual.keys() & {"class_names", "num_classes", "beta"}
    seen = words(report(finished))
    first, folded = seen.index("Arguments that differ"), seen.index("arguments at their defaults")
    assert first < seen.index("cam_crop_size 48") < folded < seen.index("beta 10")


def test_alone_the_page_is_the_same_whatever_the_number_of_workers(
    sample: Path, work: Path, finished: Path
) -> None:
    pages = []
    for workers in ("0", "2"):
        assert alone(sample, work, "--num_workers", workers) == 0
        pages.append(re.sub(r"written [\d: -]+", "", report(work)))
    assert pages[0] == pages[1]
    assert pages[0].count("data:image") == report(finished).count("data:image")


def test_pictures_beyond_the_number_are_listed(sample: Path, work: Path) -> None:
    assert alone(sample, work, "--num", "2") == 0
    text = report(work)
    assert sorted(shown_ids(text)) == [TRAIN_IDS[0], TRAIN_IDS[-1]]
    rest = ", ".join(TRAIN_IDS[1:-1])
    assert f"4 pictures are not shown (--report_num) {rest}" in words(text)


def test_pictures_without_outputs_are_listed(sample: Path, work: Path) -> None:
    for kind in ("cam", "ir_label", "edge", "sem_seg", "ins_seg"):
        output(work, kind, TRAIN_IDS[2]).unlink()
    assert alone(sample, work) == 0
    assert TRAIN_IDS[2] not in shown_ids(report(work))
    assert f"1 pictures have no outputs {TRAIN_IDS[2]}" in words(report(work))


def test_outputs_older_than_their_cam_are_left_out(sample: Path, work: Path) -> None:
    name = TRAIN_IDS[1]
    mask, made = output(work, "sem_seg", name), output(work, "cam", name).stat().st_mtime_ns
    os.utime(mask, ns=(made - 1, made - 1))
    assert alone(sample, work) == 0
    text = report(work)
    assert f'alt="mask of {name}"' not in text and f'alt="CAM of {name}"' in text
    assert f'alt="mask of {TRAIN_IDS[0]}"' in text


def test_outputs_of_a_replaced_picture_are_left_out(
    sample: Path, work: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(sample, tmp_path / "voc"))
    photo = root / "JPEGImages" / f"{TRAIN_IDS[0]}.jpg"
    photo.write_bytes(photo.read_bytes() + b"\0")
    assert alone(root, work) == 0
    found = re.findall(rf'alt="(\w+) of {TRAIN_IDS[0]}"', report(work))
    assert found == ["truth"]


def test_list_classes_and_folders_come_from_the_run(
    sample: Path, work: Path, tmp_path: Path
) -> None:
    few = write_list(tmp_path / "few.txt", TRAIN_IDS[:2])
    moved = (work / "result" / "sem_seg").rename(work / "masks")
    path = work / "result" / "metrics.json"
    content = json.loads(path.read_text())
    base = content["arguments"]["work_dir"]
    content["arguments"] |= {"infer_list": str(few), "sem_seg_out_dir": f"{base}/{moved.name}"}
    path.write_text(json.dumps(content))
    assert alone(sample, work) == 0
    assert sorted(shown_ids(report(work))) == list(TRAIN_IDS[:2])
    assert 'alt="mask of' in report(work)


def test_without_metrics_there_are_pictures_alone(sample: Path, work: Path) -> None:
    (work / "result" / "metrics.json").unlink()
    assert alone(sample, work) == 0
    assert "nothing is known about the run" in words(report(work))
    assert len(shown_ids(report(work))) == len(TRAIN_IDS)


def test_scores_of_other_data_are_left_out(
    sample: Path, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert alone(Path(shutil.copytree(sample, tmp_path / "voc")), work) == 0
    assert "is of another voc12_root, so its scores are left out" in capsys.readouterr().out
    assert "seed mIoU" not in words(report(work))


def test_no_page_with_number_zero(sample: Path, work: Path) -> None:
    assert run(sample, work, "--steps", "eval_cam", report_num=0) == 0
    assert not (work / "result" / "report.html").exists()


def test_what_the_page_cannot_show_spoils_no_run(
    sample: Path, work: Path, capsys: pytest.CaptureFixture
) -> None:
    output(work, "edge", TRAIN_IDS[0]).write_bytes(b"no picture")
    assert run(sample, work, "--steps", "eval_cam", report_num=6) == 0
    said = capsys.readouterr().out
    assert "report.html was not written (UserError: " in said
    assert f"{TRAIN_IDS[0]}.png cannot be read as a picture" in said
    assert f"python -m step.make_report --voc12_root {sample} --work_dir {work}" in said
    assert "seed_miou" in metrics(work)
    assert alone(sample, work) == 2
    assert "cannot be read as a picture" in capsys.readouterr().err


def test_a_run_without_pictures_still_has_a_page(sample: Path, tmp_path: Path) -> None:
    options = {"cam_num_epoches": 1, "infer_list": tmp_path / "later.txt"}
    assert run(sample, tmp_path, "--steps", "train_cam", report_num=6, **options) == 0
    assert "Classification losses" in words(report(tmp_path))
    assert "later.txt" in words(report(tmp_path))


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--list", "nowhere.txt"], "nowhere.txt"),
        (["--classes", "nowhere.txt"], "nowhere.txt does not exist"),
        (["--classes", "{few}"], "classes are named; give the list it was made with by --classes"),
        (["--output", "{work}/result"], "a folder is where a file is needed"),
        (["--work_dir", "{work}/new"], "new/result does not exist; name the folder of a run"),
        (["--voc12_root", "~no-such-user"], "there is no user no-such-user here"),
    ],
)
def test_wrong_input_is_one_sentence(
    sample: Path, work: Path, capsys: pytest.CaptureFixture, more: list[str], sentence: str
) -> None:
    few = write_list(work / "few.txt", ["aeroplane"])
    assert alone(sample, work, *(text.format(few=few, work=work) for text in more)) == 2
    *bars, error = capsys.readouterr().err.splitlines()
    assert sentence in error and not [line for line in bars if "%" not in line]


@pytest.mark.parametrize("number", ["0", "-3", "all"])
@pytest.mark.parametrize("option", ["--num", "--num_workers"])
def test_numbers_are_checked(
    sample: Path, work: Path, capsys: pytest.CaptureFixture, option: str, number: str
) -> None:
    if (option, number) == ("--num_workers", "0"):
        return
    with pytest.raises(SystemExit, match="2"):
        alone(sample, work, option, number)
    assert number in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        {"steps": []},
        {"steps": {"train_cam": 5}},
        {"steps": {"train_cam": {"epochs": [1]}}},
        {"steps": {"eval_cam": {"iou": 3}}},
        {"arguments": {}},
        {"seconds": {"train_cam": "long"}},
        {"peak_memory_bytes": {"train_cam": 3}},
        {"versions": 3},
        {"host": None},
        {"seed_miou": "high"},
    ],
)
def test_metrics_of_another_kind_are_named(
    sample: Path, work: Path, capsys: pytest.CaptureFixture, change: dict
) -> None:
    path = work / "result" / "metrics.json"
    content = json.loads(path.read_text())
    if "arguments" not in change:
        change = {"arguments": content["arguments"], **change}
    path.write_text(json.dumps({**content, **change}))
    status, error = alone(sample, work), capsys.readouterr().err
    if change.get("arguments") == {}:  # as of other data
        assert status == 0
        return
    assert status == 2
    assert f"{path} is not what this program writes" in error and error.count("\n") == 1


# --------------------------------------------------------------------------- metrics.json by hand


def test_scores_of_different_pictures_are_different_tables(tmp_path: Path) -> None:
    facts = {"list": "a", "list_sha256": "1", "list_pictures": 9, "pictures": 8}
    seed = {"iou": {"background": 50.0, "cat": None, "dog": 20.0}, "miou": 35.0, **facts}
    mask = {**seed, "precision": {"dog": 40.0}, "recall": {"dog": 60.0}}
    mask |= {"foreground_precision": 40.0, "foreground_recall": 60.0}
    content = {
        "arguments": {"class_names": ["cat", "dog"]},
        "steps": {"eval_cam": seed, "eval_sem_seg": mask},
        "seconds": {"eval_cam": 1.0, "train_cam": 3.0},
        "peak_memory_bytes": {"train_cam": {"cpu": 2**30}, "eval_cam": {"cpu": 2**29}},
        "carried_over": ["train_cam"],
    }
    scores, trainings, origin = summary(content, tmp_path)[1]
    (together,) = scores.blocks
    assert isinstance(together, Table) and together.names == ["background", "dog", "mean"]
    assert [column.title for column in together.columns] == [
        *("seed IoU", "mask IoU"),
        *("mask precision", "mask recall"),
    ]
    assert list(together.columns[2].values) == [None, 40.0, 40.0]
    assert trainings.blocks == [] and trainings.note
    costs = next(block for block in origin.blocks if isinstance(block, Table))
    assert costs.names == ["train_cam", "eval_cam", "all steps"]
    assert list(costs.columns[0].values) == [3, 1, 4]
    assert list(costs.columns[1].values) == [1, 0.5, 1]
    assert "train_cam" in costs.note
    content["steps"]["eval_sem_seg"] = {**mask, "pictures": 7}
    assert [len(one.columns) for one in summary(content, tmp_path)[1][0].blocks] == [1, 3]


def test_losses_that_no_chart_knows_get_one_of_their_own(tmp_path: Path) -> None:
    epochs = [{"cnn": 1.0, "new": 3.0}, {"cnn": 0.5, "new": 2.0}]
    content = {"arguments": {"class_names": []}, "seconds": {}, "peak_memory_bytes": {}}
    content["steps"] = {"train_cam": {"epochs": epochs}}
    charts = summary(content, tmp_path)[1][1].blocks
    assert all(isinstance(chart, Chart) for chart in charts)
    assert [chart.series for chart in charts] == [{"cnn": [1.0, 0.5]}, {"new": [3.0, 2.0]}]
    assert isinstance(summary(content, tmp_path)[1][2].blocks[0], Facts)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(12.4, "12 s"), (423, "7 min 03 s"), (59.6, "1 min 00 s"), (3900, "1 h 05 min")],
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text
