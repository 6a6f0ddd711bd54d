"""Outputs that are kept, refused or removed."""

import json
from pathlib import Path

import pytest

from misc.errors import UserError
from misc.files import read_json
from misc.outputs import (
    check_removal,
    keep_file,
    prepare_output,
    remove_file,
    require_outputs,
    require_own,
)
from misc.provenance import (
    Record,
    check_record,
    read_record,
    record_path,
    write_record,
)

RECORD = Record("make_cam", {"scales": [1.0, 0.5], "fusion": "cnn"}, {"train_list": "aa", "w": "b"})
IDS = ("a", "sub/b")
OTHER = Record("make_cam", {"scales": [1.0], "fusion": "cnn"}, {"train_list": "cc", "w": "b"})


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


def test_a_removed_file_leaves_nothing_of_its_own(tmp_path: Path) -> None:
    path, other = tmp_path / "x.pth", tmp_path / "y.pth"
    leftovers = [one.with_name(f".tmp-{32 * 'a'}-{one.name}") for one in (path, other)]
    for one in (path, other, *leftovers):
        one.write_text("weights")
    for one in (path, other):
        write_record(one, RECORD)
    assert remove_file(path) == 1
    assert set(tmp_path.iterdir()) == {other, record_path(other), leftovers[1]}
    write_record(path, RECORD)  # by a run that was killed before it wrote the file
    assert remove_file(path) == 0
    assert not record_path(path).exists()


def test_missing_outputs_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    _finish(tmp_path, "sub/b.npz")
    require_outputs(tmp_path, ".npz", IDS[1:], "make_cam")
    with pytest.raises(UserError) as caught:
        require_outputs(tmp_path, ".npz", (*IDS, "c"), "make_cam")
    assert str(caught.value) == (
        f"2 of 3 files are missing in {tmp_path}, the first is a.npz; run step make_cam for this "
        "list."
    )


def test_files_of_others_are_not_replaced(tmp_path: Path) -> None:
    own, mine, absent = (tmp_path / name for name in ("own.pth", "mine.pth", "absent.pth"))
    write_record(own, RECORD)
    _finish(tmp_path, own.name, mine.name)
    require_own([absent, own], "what made it", "move it away")
    with pytest.raises(UserError) as caught:
        require_own([absent, own, mine], "what made it", "move it away")
    assert str(caught.value) == (
        f"{mine} has no record of what made it, so it is not replaced: move it away."
    )
