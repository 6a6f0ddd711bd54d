"""Pickled data without unpickling: an interpreter that can make data and nothing else.

A pickle is a program that may import and call anything. This reads its instructions one by one
(`pickletools.genops` takes them apart) and carries out those that build None, booleans, numbers,
text, bytes, lists, tuples, dictionaries, numpy arrays and numbers, and tensors. Everything else is
refused before anything has happened. Arrays and tensors are made here from their bytes; neither
numpy's nor torch's own unpickling code ever sees them.
"""

import io
import math
import pickletools
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from misc.formats.pickled_arrays import (
    PickledArray,
    PickledDtype,
    RefusedPickle,
    checked_shape,
    from_buffer,
    plain_bytes,
    scalar,
)

MAX_OPERATIONS = 20_000_000
"""Instructions of one pickle; the image labels of COCO need some three million."""
MAX_GROWTH = 8
"""How many times the size of the file its arrays may take: they could refer to the same bytes."""
MAX_DEPTH = 32

_KEY_TYPES = (str, int, float, bool, bytes)
_TORCH_MAGIC, _TORCH_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_STORAGES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "b1",
}
_BROKEN = (
    ValueError,  # also wrong UTF-8
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    EOFError,
    OverflowError,
    MemoryError,
    RecursionError,
    struct.error,
)


@dataclass(frozen=True, slots=True)
class _Name:
    """Something that a pickle may refer to by name, and perhaps call."""

    call: Callable[..., Any] | None = None
    storage: str | None = None


class _Mark:
    """Where on the stack the items of a list, tuple or dictionary begin."""


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise RefusedPickle(f"it encodes text as {encoding[:20]!r}")
    return text.encode("latin-1")


class _Storage:
    """Numbers of a tensor: announced by the inner pickle, their bytes come after it."""

    def __init__(self, kind: _Name, key: str, count: int, view: Any) -> None:
        if kind.storage is None or view is not None:
            raise RefusedPickle("it has a tensor of an unknown kind")
        self.dtype, self.key, self.count = np.dtype(kind.storage).newbyteorder("<"), key, count


def _storage(content: bytes) -> np.ndarray:
    """The numbers of what `torch.save` wrote about one storage in its format before 1.6."""
    stream = io.BytesIO(plain_bytes(content))
    magic, protocol, system = (_Interpreter({}).run(stream) for _ in range(3))
    if (magic, protocol) != (_TORCH_MAGIC, _TORCH_PROTOCOL) or not system["little_endian"]:
        raise RefusedPickle("it has a tensor in an unknown format")
    storage = _Interpreter(_STORAGE_NAMES, _announced).run(stream)
    keys = _Interpreter({}).run(stream)
    (count,) = struct.unpack("<q", stream.read(8))
    numbers = stream.read()
    known = isinstance(storage, _Storage) and keys == [storage.key]
    if not known or not storage.count == count == len(numbers) / storage.dtype.itemsize:
        raise RefusedPickle("it has a tensor whose numbers do not fit")
    return np.frombuffer(numbers, storage.dtype)


def _announced(identity: Any) -> _Storage:
    what, kind, key, _, count, view = identity
    if what != "storage":
        raise RefusedPickle("it refers to something outside the file")
    return _Storage(kind, key, count, view)


def _tensor(storage: np.ndarray, offset: int, size: Any, stride: Any, *_: Any) -> np.ndarray:
    """An array with the numbers of a tensor."""
    size = checked_shape(size)
    if not isinstance(storage, np.ndarray) or math.prod(size) > storage.size:
        raise RefusedPickle("it has a tensor that is larger than its numbers")
    if math.prod(size) == 0:
        return np.empty(size, storage.dtype)
    first, *steps = (storage.itemsize * step for step in (offset, *stride))
    return np.ndarray(size, storage.dtype, storage, first, steps).copy()


def _nothing() -> bytes:
    return b""


_NAMES: dict[tuple[str, str], _Name] = {
    ("numpy", "ndarray"): _Name(),
    ("numpy", "dtype"): _Name(PickledDtype),
    ("_codecs", "encode"): _Name(_encode),  # bytes in protocols 0 to 2
    ("__builtin__", "bytes"): _Name(_nothing),
    ("builtins", "bytes"): _Name(_nothing),
    ("collections", "OrderedDict"): _Name(dict),  # the hooks of a tensor: none
    ("torch._utils", "_rebuild_tensor"): _Name(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Name(_tensor),
    ("torch.storage", "_load_from_bytes"): _Name(_storage),
}
for _core in ("numpy.core", "numpy._core"):  # before and since numpy 2
    _NAMES[f"{_core}.multiarray", "_reconstruct"] = _Name(PickledArray)
    _NAMES[f"{_core}.multiarray", "scalar"] = _Name(scalar)
    _NAMES[f"{_core}.numeric", "_frombuffer"] = _Name(from_buffer)
_STORAGE_NAMES = {
    (module, name): _Name(storage=code)
    for module in ("torch", "torch.cuda")
    for name, code in _STORAGES.items()
}


@dataclass(slots=True)
class _Interpreter:
    """Carries out the instructions of one pickle.

    Attributes:
        names: what the pickle may refer to by module and name.
        outside: makes what a pickle of torch says of its storages; None if it must not say any.
        budget: bytes that arrays may still take.
    """

    names: Mapping[tuple[str, str], _Name]
    outside: Callable[[Any], Any] | None = None
    budget: int = 0
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def run(self, stream: io.BytesIO) -> Any:
        """The object of the pickle that begins here; the stream is then behind it."""
        for number, (code, argument, _) in enumerate(pickletools.genops(stream)):
            if number > MAX_OPERATIONS:
                raise RefusedPickle(f"it has more than {MAX_OPERATIONS} instructions")
            self.step(code.name, argument)
        return _plain(self.stack.pop(), {})

    def step(self, name: str, argument: Any) -> None:
        """Carry out one instruction."""
        if name in _VALUES:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _PUTS:
            self.memo[len(self.memo) if argument is None else argument] = self.stack[-1]
        elif name in _GETS:
            self.stack.append(self.memo[argument])
        elif name in _HANDLERS:
            _HANDLERS[name](self, argument)
        elif name not in _IGNORED:
            raise RefusedPickle(f"it has the instruction {name}, which plain data does not need")

    def items(self) -> list[Any]:
        """Take everything above the last mark off the stack, the mark as well."""
        places = (i for i in reversed(range(len(self.stack))) if self.stack[i] is _Mark)
        if (place := next(places, None)) is None:
            raise RefusedPickle("it is broken")
        taken = self.stack[place + 1 :]
        del self.stack[place:]
        return taken

    def tuple_of(self, count: int) -> None:
        """Replace the last items by a tuple of them."""
        if len(self.stack) < count:
            raise RefusedPickle("it is broken")
        self.stack[len(self.stack) - count :] = [tuple(self.stack[len(self.stack) - count :])]

    def extend(self, items: Sequence[Any]) -> None:
        """Add items to the list on the stack."""
        if type(self.stack[-1]) is not list:
            raise RefusedPickle("it adds items to something that is no list")
        self.stack[-1].extend(items)

    def update(self, items: Sequence[Any]) -> None:
        """Add keys and values to the dictionary on the stack."""
        if type(self.stack[-1]) is not dict or len(items) % 2:
            raise RefusedPickle("it adds items to something that is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, _KEY_TYPES):
                raise RefusedPickle(f"it has a key of type {type(key).__name__}")
            self.stack[-1][key] = value

    def refer(self, module: Any, name: Any) -> None:
        """Put something known by name on the stack."""
        known = self.names.get((module, name)) if isinstance(module, str) else None
        if known is None:
            raise RefusedPickle(f"it asks for {module}.{name}"[:80])
        self.stack.append(known)

    def call(self) -> None:
        """Call what is known by name with the tuple on the stack."""
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Name) or function.call is None or type(arguments) is not tuple:
            raise RefusedPickle("it calls something that is no known function")
        if function.call is dict and arguments:
            raise RefusedPickle("it makes a dictionary of something else")
        for argument in arguments:  # what is read again and again costs time each time
            self.spend(argument if isinstance(argument, bytes) else None)
        self.stack.append(function.call(*arguments))
        self.spend(self.stack[-1])

    def build(self) -> None:
        """Give an array or its type the content on the stack."""
        state = self.stack.pop()
        if not isinstance(self.stack[-1], PickledArray | PickledDtype):
            raise RefusedPickle("it sets attributes of something that is no array")
        self.stack[-1].build(state)
        self.spend(getattr(self.stack[-1], "value", None))

    def spend(self, made: Any) -> None:
        """Count the bytes of what was made."""
        if isinstance(made, np.ndarray):
            self.budget -= made.nbytes
        elif isinstance(made, bytes):
            self.budget -= len(made)
        elif isinstance(made, str):
            self.budget -= _LARGEST_CHARACTER * len(made)
        if self.budget < 0:
            raise RefusedPickle("its contents are many times larger than the file")

    def identify(self) -> None:
        """Replace what a pickle of torch says of a storage by that storage."""
        if self.outside is None:
            raise RefusedPickle("it refers to something outside the file")
        self.stack.append(self.outside(self.stack.pop()))


_LARGEST_CHARACTER = 4  # bytes
_IGNORED = frozenset(("PROTO", "FRAME", "STOP"))
_INTEGERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4")
_STRINGS = ("STRING", "BINSTRING", "SHORT_BINSTRING")
_TEXTS = ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
_BYTES = ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
_VALUES = frozenset((*_INTEGERS, "FLOAT", "BINFLOAT", *_STRINGS, *_TEXTS, *_BYTES))
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "MARK": lambda: _Mark,
}
_PUTS = frozenset(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"))
_GETS = frozenset(("GET", "BINGET", "LONG_BINGET"))


def _set_item(machine: _Interpreter) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    machine.update((key, value))


def _make_dict(machine: _Interpreter) -> None:
    items = machine.items()
    machine.stack.append({})
    machine.update(items)


def _stack_global(machine: _Interpreter) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    machine.refer(module, name)


_HANDLERS: dict[str, Callable[[_Interpreter, Any], Any]] = {
    "APPEND": lambda machine, _: machine.extend([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.items()),
    "LIST": lambda machine, _: machine.stack.append(machine.items()),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.items())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "DICT": lambda machine, _: _make_dict(machine),
    "SETITEM": lambda machine, _: _set_item(machine),
    "SETITEMS": lambda machine, _: machine.update(machine.items()),
    "POP": lambda machine, _: machine.stack.pop(),
    "POP_MARK": lambda machine, _: machine.items(),
    "GLOBAL": lambda machine, names: machine.refer(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: _stack_global(machine),
    "REDUCE": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.build(),
    "BINPERSID": lambda machine, _: machine.identify(),
}


def loads(content: bytes) -> Any:
    """The data of a pickle of any protocol.

    Args:
        content: the whole pickle.

    Returns:
        None, bool, int, float, str, bytes, list, tuple, dict or numpy array, also within each
        other. Tensors become arrays, numpy's numbers those of Python.

    Raises:
        RefusedPickle: the pickle is broken, or asks for more than data.
    """
    try:
        return _Interpreter(_NAMES, budget=MAX_GROWTH * len(content)).run(io.BytesIO(content))
    except RefusedPickle:
        raise
    except _BROKEN as error:
        raise RefusedPickle(f"it is broken ({type(error).__name__}: {error})"[:120]) from None


def _plain(value: Any, done: dict[int, Any], depth: int = 0) -> Any:
    """Replace arrays in the making; every object once, however often it is referred to."""
    if depth > MAX_DEPTH:
        raise RefusedPickle(f"it is nested more than {MAX_DEPTH} deep")
    if isinstance(value, PickledArray):
        return _plain(value.value, done, depth + 1)
    if isinstance(value, _Name | PickledDtype) or value is _Mark:
        raise RefusedPickle("it ends with something that is no data")
    if not isinstance(value, list | tuple | dict):
        return value
    if id(value) not in done:
        if isinstance(value, dict):
            plain: Any = {k: _plain(v, done, depth + 1) for k, v in value.items()}
        else:
            plain = type(value)(_plain(item, done, depth + 1) for item in value)
        done[id(value)] = plain
    return done[id(value)]
