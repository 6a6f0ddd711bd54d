"""Records of what made an output."""

import json
from pathlib import Path

import numpy as np
import pytest

from misc.errors import UserError
from misc.provenance import (
    Record,
    check_record,
    read_facts,
    read_lists,
    read_record,
    record_path,
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


def test_nothing_differs_from_what_is_not_recorded() -> None:
    assert RECORD.differences(None) == []


@pytest.mark.parametrize("text", ["[]", "{}", '{"facts": [], "lists": 1}'])
def test_damage_to_what_is_for_the_reader_alone_does_no_harm(tmp_path: Path, text: str) -> None:
    assert (read_facts(tmp_path), read_lists(tmp_path)) == ({}, {})
    (tmp_path / "made_by.json").write_text(text)
    assert (read_facts(tmp_path), read_lists(tmp_path)) == ({}, {})


def test_what_json_cannot_hold_is_no_part_of_a_record() -> None:
    with pytest.raises(TypeError, match="object has no JSON form"):
        Record("s", {"a": object()}).content()
