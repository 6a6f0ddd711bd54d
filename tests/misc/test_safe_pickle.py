"""Pickles are read as data or refused; nothing in them ever runs."""

import io
import pickle
import random
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from old_numpy_files import CLS_LABELS_NPY, PICKLES

from misc.errors import UserError
from misc.formats import npy_files
from misc.formats.npy_files import read_npy, read_npz
from misc.formats.pickled_arrays import RefusedPickle
from misc.formats.safe_pickle import loads

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
MEBIBYTE = 2**20


def equal(one: Any, other: Any) -> bool:
    """Same values, types, shapes and number types, at any depth."""
    if isinstance(one, np.ndarray):
        same = isinstance(other, np.ndarray) and one.dtype == other.dtype
        return same and one.shape == other.shape and bool((one == other).all())
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


# ------------------------------------------------------------------------------------ what is read


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_data_comes_back(protocol: int) -> None:
    shared = [1, 2.5]
    data = {
        "text": "Straße",
        b"bytes": b"\x00\xff",
        3: [None, True, False, -7, 10**30, 1e300],
        "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        "shared": [shared, shared],
        "empty": [{}, [], "", b""],
        "many": list(range(1500)),
    }
    assert equal(loads(pickle.dumps(data, protocol)), data)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", ["?", "i1", "<i2", ">i4", "u8", "f2", ">f4", "f8", "U3", "S2"])
def test_arrays_of_numbers_and_text_come_back(protocol: int, kind: str) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(kind)
    cases = [
        array,
        array.T,
        array[:, ::2],
        array[:0],
        array[:1, :1, :1].reshape(()),
        np.asarray(array),
    ]
    found = loads(pickle.dumps(cases, protocol))
    for one, expected in zip(found, cases, strict=True):
        assert np.array_equal(one, expected) and one.shape == expected.shape
        assert one.dtype == expected.dtype


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_numbers_of_numpy_become_those_of_python(protocol: int) -> None:
    data = {np.int32(5): np.float32(0.5), np.str_("id"): np.bool_(True)}
    assert equal(loads(pickle.dumps(data, protocol)), {5: 0.5, "id": True})


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int64", "uint8", "bool"])
def test_tensors_become_arrays(protocol: int, dtype: str) -> None:
    tensor = torch.arange(24).reshape(4, 6).to(getattr(torch, dtype))
    cases = [tensor, tensor.t(), tensor[1:, ::2], tensor[:0], tensor[2, 3]]
    found = loads(pickle.dumps(cases, protocol))
    for one, expected in zip(found, cases, strict=True):
        assert equal(one, expected.numpy())


@pytest.mark.parametrize("protocol", PICKLES)
def test_files_of_old_numpy_are_read(protocol: int) -> None:
    cam = np.array([[[0, 1], [2, 3]]], np.float16)
    expected = {"keys": np.array([3, 14]), "cam": cam, "n": 0.5}
    assert b"numpy.core.multiarray" in PICKLES[protocol]
    assert equal(loads(PICKLES[protocol]), expected)


def test_text_of_python_2_is_read_as_latin_1() -> None:
    assert loads(b"\x80\x02}U\x02idU\x02\xe9!s.") == {"id": "é!"}


# ------------------------------------------------------------------------------------------- bombs


class _Calls:
    """Calls something when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.answer = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple:
        return self.answer


class _Remembers:
    """A class of one's own with attributes."""

    def __init__(self) -> None:
        self.name = "value"


def _nested_objects() -> np.ndarray:
    inner = np.empty(2, object)
    inner[:] = [1, "two"]
    return inner


TRACE = "/nonexistent/trace"
BOMBS = {
    "os.system": _Calls(__import__("os").system, f"touch {TRACE}"),
    "eval": _Calls(eval, "print('run')"),
    "exec": _Calls(exec, "raise SystemExit"),
    "getattr": _Calls(getattr, "text", "join"),
    "open": _Calls(open, TRACE, "w"),
    "an import": _Calls(__import__, "antigravity"),
    "a class": _Remembers(),
    "state of an array": _Calls(np.ndarray, (2,), state={"shape": (9,)}),
    "state of text": _Calls(str, "x", state={"__class__": 1}),
    "an encoding": _Calls(__import__("_codecs").encode, "x", "rot13"),
    "a set": {1, 2},
    "a complex number": 1j,
    "an array of objects": _nested_objects(),
    "objects inside": {"cam": [_nested_objects()]},
    "fields": np.zeros(2, [("a", "f4"), ("b", "i8")]),
    "dates": np.array(["2020-01-01"], "M8[D]"),
    "a parameter": torch.nn.Parameter(torch.zeros(2)),
    "a function": len,
    "a key": {(1, 2): 3},
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", BOMBS)
def test_anything_but_data_is_refused_before_it_runs(
    name: str, protocol: int, capsys: pytest.CaptureFixture
) -> None:
    hidden = {"cam": np.ones(3), "more": [BOMBS[name]]}
    for content in (BOMBS[name], hidden):
        with pytest.raises(RefusedPickle, match=r"^it "):
            loads(pickle.dumps(content, protocol))
    assert capsys.readouterr().out == ""


RAW_BOMBS = {
    "a call by name": b"cos\nsystem\n(S'true'\ntR.",
    "a call by INST": b"(S'true'\nios\nsystem\n.",
    "a call by OBJ": b"(cos\nsystem\nS'true'\no.",
    "a class by NEWOBJ": b"\x80\x02cnumpy\nndarray\n)\x81.",
    "an extension": b"\x80\x02\x82\x01.",
    "something outside": b"Pmodule\n.",
    "something outside by number": b"K\x01Q.",
    "a buffer outside": b"\x80\x05\x97.",
    "attributes of a dictionary": b"\x80\x02}}U\x01ak\x01sb.",
    "attributes of a function": b"c_codecs\nencode\n}(S'__doc__'\nS'x'\nub.",
    "dotted names": b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__base__\x93.",
    "a call of a result": b"cnumpy\ndtype\n(S'f4'\ntR)R.",
    "items for a tuple": b")K\x01a.",
    "a list of itself": b"\x80\x02]q\x00h\x00a.",
    "a type with fields": b"cnumpy\ndtype\n(S'f4'\ntR(I3\nS'<'\nN(S'a'\ntNI4\nI4\nI0\ntb.",
    "an array of a type with fields": b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'f4'\ntR"
    + b"(I3\nS'<'\nN(S'a'\ntNI4\nI4\nI0\ntbS'1234'\ntR.",
    "a mark": b"(q\x00h\x00.",
    "an empty stack": b".",
    "nothing": b"",
    "no end": b"K\x01",
    "an unknown instruction": b"\xff.",
    "an unknown memory": b"h\x07.",
    "text cut short": b"X\xff\xff\xff\x7fabc.",
    "a number of many digits": b"I" + b"9" * 6000 + b"\n.",
    "nested deep": b"]" * 100_000 + b"a" * 99_999 + b".",
}


@pytest.mark.parametrize("name", RAW_BOMBS)
def test_instructions_beyond_data_are_refused(name: str) -> None:
    with pytest.raises(RefusedPickle, match=r"^it "):
        loads(RAW_BOMBS[name])


def test_an_array_of_objects_that_holds_itself_is_refused() -> None:
    array = np.empty((), object)
    array[()] = [array]
    with pytest.raises(RefusedPickle, match="nested"):
        loads(pickle.dumps(array, 4))


def array_pickle(shape: str, data: bytes) -> bytes:
    """A pickled float32 array with any shape and bytes, written by hand."""
    dtype = b"cnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb"
    state = b"(I1\n" + shape.encode() + dtype + b"I0\n" + b"B" + len(data).to_bytes(4, "little")
    head = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    return head + state + data + b"tb."


def test_the_array_written_by_hand_is_read() -> None:
    found = loads(array_pickle("(I2\nI1\nt", np.array([1.5, -2], "<f4").tobytes()))
    assert found.tolist() == [[1.5], [-2]]


def peak_memory(function: Any) -> int:
    """Most bytes allocated while a function that refuses something runs."""
    tracemalloc.start()
    try:
        with pytest.raises((RefusedPickle, UserError)):
            function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


TINY_GIANTS = {
    "an array of terabytes": array_pickle("(L1099511627776L\nt", b"1234"),
    "an array without bytes": array_pickle("(I1000000\nI1000000\nt", b""),
    "a negative length": array_pickle("(I-1\nI-1\nt", b"1234"),
    "axes without number": array_pickle("(" + "I1\n" * 100 + "t", b"1234"),
    "memory of gigabytes": b"K\x01r\xff\xff\xff\xff\x81.",
    "text of terabytes": b"\x80\x04\x8d" + (2**42).to_bytes(8, "little") + b"x.",
    "bytes of terabytes": b"\x80\x04\x8e" + (2**42).to_bytes(8, "little") + b"x.",
    "a bytearray of terabytes": b"\x80\x05\x96" + (2**42).to_bytes(8, "little") + b"x.",
    "text of a wide type": b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'U99999'\ntR"
    + b"S''\ntR.",
    "the same bytes again and again": b"\x80\x03B"
    + (10_000).to_bytes(4, "little")
    + bytes(10_000)
    + b"q\x00c_codecs\nencode\nq\x010X\x10'\x00\x00"
    + b"x" * 10_000
    + b"q\x02X\x06\x00\x00\x00latin1q\x03]("
    + b"h\x01h\x02h\x03\x86R" * 20_000
    + b"e.",
    "lists of lists of lists": b"\x80\x02]q\x00"
    + b"".join(
        b"](" + b"h" + bytes([number]) + b"h" + bytes([number]) + b"eq" + bytes([number + 1])
        for number in range(60)
    )
    + b"\x81.",
}


@pytest.mark.parametrize("name", TINY_GIANTS)
def test_small_files_take_little_memory(name: str) -> None:
    assert peak_memory(lambda: loads(TINY_GIANTS[name])) < 20 * MEBIBYTE


def test_text_that_is_made_again_and_again_is_refused() -> None:
    """8 bytes of file for 80 kB of text each time."""
    head = b"\x80\x02cnumpy.core.multiarray\nscalar\nq\x00cnumpy\ndtype\nX\x06\x00\x00\x00U20000"
    head += b"\x85Rq\x01X" + (80_000).to_bytes(4, "little") + b"A\x00\x00\x00" * 20_000
    head += b"q\x02c_codecs\nencode\nh\x02X\x06\x00\x00\x00latin1\x86Rq\x03]("
    with pytest.raises(RefusedPickle, match="many times larger than the file"):
        loads(head + b"h\x00h\x01h\x03\x86R" * 5_000 + b"e.")


def test_objects_referred_to_many_times_are_looked_at_once() -> None:
    """2 to the power of 28 paths lead to the innermost list."""
    nested: list = [1]
    for _ in range(28):
        nested = [nested, nested]
    found = loads(pickle.dumps(nested, 2))
    while len(found) == 2:
        assert found[0] is found[1]
        found = found[0]
    assert found == [1]


def test_tensors_that_repeat_their_numbers_are_refused() -> None:
    """One number stands for terabytes of them."""
    expanded = pickle.dumps(torch.zeros(1).expand(1_000_000, 1_000_000), 2)
    assert len(expanded) < 1000
    assert peak_memory(lambda: loads(expanded)) < MEBIBYTE


def tensor_pickle(change: bytes, to: bytes) -> bytes:
    """A pickled tensor of 8 numbers in which some bytes are others."""
    content = pickle.dumps(torch.arange(8, dtype=torch.float32), 2)
    assert content.count(change) >= 1
    return content.replace(change, to)


@pytest.mark.parametrize(
    ("change", "to"),
    [
        (b"K\x08\x85", b"K\x09\x85"),  # nine numbers of eight
        (b"K\x00K\x08\x85", b"K\x01K\x08\x85"),  # from the second on
        (b"K\x01\x85", b"K\x02\x85"),  # every other one
        (b"storage", b"somebad"),
        (b"FloatStorage", b"OtherStorage"),
        (b"_rebuild_tensor_v2", b"_rebuild_tensor_v9"),
        (b"little_endian", b"little_others"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change: bytes, to: bytes) -> None:
    with pytest.raises(RefusedPickle, match=r"^it "):
        loads(tensor_pickle(change, to))


# ------------------------------------------------------------------------------------------- files


def npy(content: Any) -> bytes:
    """What `numpy.save` writes."""
    stream = io.BytesIO()
    np.save(stream, content, allow_pickle=True)
    return stream.getvalue()


def header_only(text: str, data: bytes = b"") -> bytes:
    """An npy file with any header."""
    line = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(line).to_bytes(2, "little") + line + data


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("kind", ["f2", ">f4", "f8", "u1", "?"])
def test_arrays_and_dictionaries_are_read_from_npy(tmp_path: Path, kind: str) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(kind)
    for stored in (array, np.asfortranarray(array), array[:0], {"cam": array, 3: "x"}):
        assert equal(read_npy(written(tmp_path / "a.npy", npy(stored))), stored)


def test_npz_is_read_compressed_or_not(tmp_path: Path) -> None:
    arrays = {"keys": np.array([1, 2]), "high_res": np.ones((2, 3, 4), np.float16)}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)
        assert equal(read_npz(tmp_path / "a.npz"), arrays)


def test_labels_of_old_numpy_are_read(tmp_path: Path) -> None:
    found = read_npy(written(tmp_path / "cls_labels.npy", CLS_LABELS_NPY))
    classes = {key: np.flatnonzero(vector).tolist() for key, vector in found.items()}
    assert classes == {2007000032: [0, 14], 2007000039: [19], "2007_000032": [7]}


BAD_FILES = {
    "a call": npy({"keys": _Calls(eval, "1")}),
    "objects": npy(_nested_objects()),
    "objects with fields": npy(np.zeros((), [("a", "O")])),
    "complex numbers": npy(np.ones(2, complex)),
    "text": npy(np.array(["a", "b"])),
    "a claim of terabytes": header_only(
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511,1000000)}"
    ),
    "a negative shape": header_only(
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -1)}", b"1234"
    ),
    "no header": b"\x93NUMPY\x01\x00\x05\x00hello",
    "a header that runs": header_only(
        "{'descr': __import__('os'), 'fortran_order': False, 'shape': ()}"
    ),
    "a header without end": header_only("{'descr': ((((((((((((((((((((", b""),
    "another version": b"\x93NUMPY\x09\x00\x05\x00hello",
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "nothing": b"",
    "more bytes than numbers": npy(np.ones(3)) + b"x",
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_named_in_one_sentence(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / "bad.npy", BAD_FILES[name])
    with pytest.raises(UserError, match=r"bad\.npy is not read: it ") as error:
        read_npy(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    for read in (read_npy, read_npz):
        with pytest.raises(UserError, match="cannot be read"):
            read(tmp_path / "none.npy")
        with pytest.raises(UserError, match="cannot be read"):
            read(tmp_path)


def test_npz_that_unpacks_to_too_much_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "a.npz", cam=np.zeros((64, 1024, 256), np.uint8))
    assert (tmp_path / "a.npz").stat().st_size < 64 * 1024
    monkeypatch.setattr(npy_files, "MAX_BYTES", MEBIBYTE)
    assert peak_memory(lambda: read_npz(tmp_path / "a.npz")) < MEBIBYTE


def damaged(content: bytes, count: int) -> list[bytes]:
    """The file cut short everywhere or nearly, and with single bytes replaced."""
    generator = random.Random(0)
    step = max(1, len(content) // count)
    cut = [content[:length] for length in range(0, len(content), step)]
    changed = []
    for _ in range(count):
        spoilt = bytearray(content)
        spoilt[generator.randrange(len(spoilt))] = generator.randrange(256)
        changed.append(bytes(spoilt))
    return cut + changed


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_damaged_pickles_are_data_or_refused(protocol: int) -> None:
    content = {"keys": torch.tensor([3, 14]), "cam": np.ones((2, 2), np.float16), 7: [None, 1.5]}
    refused = 0
    for spoilt in damaged(pickle.dumps(content, protocol), 700):
        try:
            loads(spoilt)
        except RefusedPickle:
            refused += 1
    assert refused > 700  # all that were cut short, and some others


def test_damaged_files_are_read_or_named_in_one_sentence(tmp_path: Path) -> None:
    np.savez(tmp_path / "good.npz", keys=np.array([1]), cam=np.ones((1, 2, 2)))
    files = {".npy": CLS_LABELS_NPY, ".npz": (tmp_path / "good.npz").read_bytes()}
    for suffix, content in files.items():
        refused = 0
        for spoilt in damaged(content, 120):
            path = written(tmp_path / f"bad{suffix}", spoilt)
            try:
                read_npy(path) if suffix == ".npy" else read_npz(path)
            except UserError as error:
                refused += 1
                assert "bad.np" in str(error) and len(str(error).splitlines()) == 1
        assert refused >= 120  # all that were cut short
