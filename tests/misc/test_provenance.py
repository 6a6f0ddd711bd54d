"""Records of what made an output."""

import json
from pathlib import Path

import numpy as np
import pytest

from misc.errors import UserError
from misc.files import read_json
from misc.provenance import (
    Record,
    check_record,
    check_removal,
    keep_file,
    prepare_output,
    read_record,
    record_path,
    remove_file,
    seal_record,
    write_record,
)

RECORD = Record("make_cam", {"scales": [1.0, 0.5], "fusion": "cnn"}, {"train_list": "aa", "w": "b"})
IDS = ("a", "sub/b")
OTHER = Record("make_cam", {"scales": [1.0], "fusion": "cnn"}, {"train_list": "cc", "w": "b"})


def test_fingerprint_depends_on_content_only() -> None:
    same = Record(
        "make_cam",
        {"fusion": "cnn", "scales": (np.float64(1.0), 0.5)},
        {"w": "b", "train_list": "aa"},
    )
    assert same.fingerprint == RECORD.fingerprint
    changed = [OTHER, Record("x", RECORD.arguments, RECORD.inputs), Record("make_cam")]
    assert len({record.fingerprint for record in [RECORD, *changed]}) == 4


def test_folder_and_file_records(tmp_path: Path) -> None:
    assert record_path(tmp_path) == tmp_path / "made_by.json"
    assert record_path(tmp_path / "x.pth") == tmp_path / "x.pth.json"
    for target in (tmp_path, tmp_path / "x.pth"):
        assert read_record(target) is None
        write_record(target, RECORD, {"train": {"name": "train", "count": 3, "sha256": "aa"}})
        assert read_record(target).fingerprint == RECORD.fingerprint


def test_record_tells_the_reader_more(tmp_path: Path) -> None:
    write_record(tmp_path, RECORD, {"train": {"count": 3}})
    content = json.loads((tmp_path / "made_by.json").read_text())
    assert content["lists"]["train"]["count"] == 3
    assert content["facts"]["versions"]["torch"]
    assert content["fingerprint"] == RECORD.fingerprint
    assert {"created", "command"} <= content.keys()


def test_equal_input_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_record(tmp_path, RECORD)
    check_record(tmp_path, RECORD)
    assert capsys.readouterr().out == ""


def test_other_input_is_refused_with_both_values(tmp_path: Path) -> None:
    write_record(tmp_path, OTHER)
    with pytest.raises(UserError) as raised:
        check_record(tmp_path, RECORD)
    message = str(raised.value)
    assert "scales is [1.0, 0.5] now and was [1.0]" in message
    assert "input train_list is aa now and was cc" in message
    assert "fusion" not in message
    assert "--force" in message


def test_absent_argument_is_a_difference(tmp_path: Path) -> None:
    write_record(tmp_path, Record("make_cam", {"scales": [1.0, 0.5]}, RECORD.inputs))
    with pytest.raises(UserError, match=r"fusion is cnn now and was \(absent\)"):
        check_record(tmp_path, RECORD)


def test_force_uses_other_input_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_record(tmp_path, OTHER)
    check_record(tmp_path, RECORD, force=True)
    assert "scales is [1.0, 0.5] now" in capsys.readouterr().out


def test_input_without_record_is_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_record(tmp_path, RECORD)
    assert "no record" in capsys.readouterr().out


def test_broken_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "made_by.json").write_text('{"step": 1}')
    with pytest.raises(UserError, match=r"made_by\.json is not a record .* of unknown origin"):
        check_record(tmp_path, RECORD)


def _finish(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("done")


def test_new_output_folder_gets_a_record(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "cam"
    assert prepare_output(folder, RECORD, ".npz", IDS) == 0
    assert read_record(folder).fingerprint == RECORD.fingerprint


def test_repeated_run_keeps_finished_outputs(tmp_path: Path) -> None:
    prepare_output(tmp_path, RECORD, ".npz", IDS)
    _finish(tmp_path, "a.npz", "sub/b.npz", ".tmp-1-c.npz")
    assert prepare_output(tmp_path, RECORD, ".npz", IDS) == 2
    assert (tmp_path / "a.npz").exists()


def test_json_outputs_are_not_confused_with_the_record(tmp_path: Path) -> None:
    prepare_output(tmp_path, RECORD, ".json", IDS)
    assert prepare_output(tmp_path, RECORD, ".json", IDS) == 0


def test_overwrite_removes_the_outputs_of_the_list_and_nothing_else(tmp_path: Path) -> None:
    prepare_output(tmp_path, RECORD, ".npz", IDS)
    others = ("val.npz", "deeper/down/c.npz", "notes.txt", "a.png")
    _finish(tmp_path, "a.npz", "sub/b.npz")
    for name in others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        _finish(tmp_path, name)
    assert prepare_output(tmp_path, RECORD, ".npz", IDS, overwrite=True) == 2
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"made_by.json", *others}


def test_overwrite_with_other_arguments_needs_the_folder_for_itself(tmp_path: Path) -> None:
    prepare_output(tmp_path, OTHER, ".npz", IDS)
    _finish(tmp_path, "a.npz", "val.npz")
    with pytest.raises(UserError, match=r"also holds 1 files of other lists, such as val\.npz"):
        prepare_output(tmp_path, RECORD, ".npz", IDS, overwrite=True)
    assert (tmp_path / "a.npz").exists()
    (tmp_path / "val.npz").unlink()
    assert prepare_output(tmp_path, RECORD, ".npz", IDS, overwrite=True) == 0
    assert not (tmp_path / "a.npz").exists()
    assert read_record(tmp_path).fingerprint == RECORD.fingerprint


def test_overwrite_leaves_folders_of_others_alone(tmp_path: Path) -> None:
    _finish(tmp_path, "a.npz")
    with pytest.raises(UserError, match=r"a\.npz would be replaced, but .* has no record"):
        prepare_output(tmp_path, RECORD, ".npz", IDS, overwrite=True)
    write_record(tmp_path, Record("another_step"))
    with pytest.raises(UserError, match=r"a\.npz would be replaced, but .* is of another_step"):
        prepare_output(tmp_path, RECORD, ".npz", IDS, overwrite=True)
    assert (tmp_path / "a.npz").exists()


def test_outputs_of_other_arguments_stop_the_step(tmp_path: Path) -> None:
    prepare_output(tmp_path, OTHER, ".npz", IDS)
    _finish(tmp_path, "a.npz")
    with pytest.raises(UserError, match=r"scales is .*--overwrite.*--force.*--cam_out_dir"):
        prepare_output(tmp_path, RECORD, ".npz", IDS, option="--cam_out_dir")
    assert prepare_output(tmp_path, RECORD, ".npz", IDS, force=True) == 1
    mixed = read_record(tmp_path)
    assert mixed.inputs["mixed_with"] == OTHER.fingerprint
    for record in (RECORD, OTHER):  # nobody trusts a mixed folder without --force
        with pytest.raises(UserError, match="mixed_with"):
            prepare_output(tmp_path, record, ".npz", IDS)


def test_lists_that_a_folder_serves_add_up(tmp_path: Path) -> None:
    for name in ("train", "val"):
        prepare_output(tmp_path, RECORD, ".npz", IDS, lists={name: {"count": 1}})
        _finish(tmp_path, f"{name}.npz")
    assert set(read_json(tmp_path / "made_by.json")["lists"]) == {"train", "val"}


def test_a_record_with_damaged_lists_is_mended(tmp_path: Path) -> None:
    prepare_output(tmp_path, RECORD, ".npz", IDS)
    _finish(tmp_path, "a.npz")
    content = {**read_json(tmp_path / "made_by.json"), "lists": []}
    (tmp_path / "made_by.json").write_text(json.dumps(content))
    assert prepare_output(tmp_path, RECORD, ".npz", IDS, lists={"train": {"count": 1}}) == 1
    assert set(read_json(tmp_path / "made_by.json")["lists"]) == {"train"}


@pytest.mark.parametrize("force", [False, True])
def test_outputs_of_unknown_origin_stop_the_step(tmp_path: Path, force: bool) -> None:
    _finish(tmp_path, "a.npz")
    with pytest.raises(UserError, match="no record of what made them and are left alone") as error:
        prepare_output(tmp_path, RECORD, ".npz", IDS, force=force)
    assert "--overwrite" not in str(error.value)
    assert (tmp_path / "a.npz").exists()


def test_outputs_of_other_lists_are_not_promised_to_be_redone(tmp_path: Path) -> None:
    prepare_output(tmp_path, OTHER, ".npz", IDS)
    _finish(tmp_path, "a.npz", "val.npz")
    with pytest.raises(UserError, match="--overwrite once 1 files of other lists are moved away"):
        prepare_output(tmp_path, RECORD, ".npz", IDS)


def test_an_empty_folder_of_other_arguments_is_free(tmp_path: Path) -> None:
    prepare_output(tmp_path, OTHER, ".npz", IDS)
    assert prepare_output(tmp_path, RECORD, ".npz", IDS) == 0
    assert read_record(tmp_path).fingerprint == RECORD.fingerprint


def test_a_finished_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    assert not keep_file(path, RECORD)
    write_record(path, RECORD)
    assert not keep_file(path, RECORD)
    path.write_text("weights")
    assert keep_file(path, RECORD)
    with pytest.raises(UserError, match=r"x\.pth does not come from .*scales is"):
        keep_file(path, OTHER)
    assert keep_file(path, OTHER, force=True)


def test_a_file_without_record_is_not_offered_to_be_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    path.write_text("the user's own")
    with pytest.raises(UserError, match=r"no record of what made it\. Keep it with --force") as e:
        keep_file(path, RECORD)
    assert "--overwrite" not in str(e.value)
    assert check_removal(path, "make_cam", "--weights").startswith(f"{path} would be replaced")
    write_record(path, RECORD)
    assert check_removal(path, "make_cam", "--weights") is None
    assert remove_file(path) == 1
    assert list(tmp_path.iterdir()) == []


def test_commands_without_steps_say_how_they_redo_things(tmp_path: Path) -> None:
    path, redo = tmp_path / "x.pth", "train --overwrite"
    prepare_output(tmp_path / "out", OTHER, ".npz", IDS, redo=redo)
    _finish(tmp_path / "out", "a.npz")
    write_record(path, OTHER)
    path.write_text("weights")
    attempts = (
        lambda: prepare_output(tmp_path / "out", RECORD, ".npz", IDS, redo=redo, option="EXP.ID"),
        lambda: keep_file(path, RECORD, redo=redo, option="EXP.ID"),
        lambda: check_record(path, RECORD, redo=redo),
    )
    for attempt in attempts:
        with pytest.raises(UserError, match=r"scales is .* Redo it with train --overwrite, ") as e:
            attempt()
        assert "--from_step" not in str(e.value) and "--force" not in str(e.value)


def test_values_that_differ_late_are_shown_whole(tmp_path: Path) -> None:
    long = "x" * 60
    now, before = (Record("s", {"a": f"{long}{end}"}) for end in "12")
    assert now.differences(before) == [f"a is {long}1 now and was {long}2"]
    (shortened,) = Record("s", {"a": f"1{long}"}).differences(Record("s", {"a": f"2{long}"}))
    assert len(shortened) < 110


def test_a_sealed_record_vouches_for_its_own_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    write_record(path, RECORD)
    path.write_text("trained here")
    seal_record(path)
    assert read_record(path).fingerprint == RECORD.fingerprint
    path.unlink()
    path.write_text("from elsewhere")
    assert read_record(path) is None
