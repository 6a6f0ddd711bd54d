"""Where code would wait for a GPU, found on a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
# Whose results have a size that the CPU must know, or are numbers of Python.
_WAITING = (
    *(_aten._local_scalar_dense, _aten.nonzero, _aten.masked_select, _aten.equal),
    *(_aten._unique2, _aten.unique_dim, _aten.unique_consecutive),
)
_FETCHING = ("cpu", "numpy", "tolist")


class _Listener(TorchDispatchMode):
    """Notes the names of functions that would wait."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), named: Any = None
    ) -> Any:
        masks = function.overloadpacket is _aten.index and any(
            one is not None and one.dtype == torch.bool for one in arguments[1]
        )
        if masks or function.overloadpacket in _WAITING:
            self.found.append(str(function))
        return function(*arguments, **(named or {}))


@contextmanager
def waits() -> Iterator[list[str]]:
    """What would have waited for a GPU so far, by name, if the tensors were there."""
    found: list[str] = []

    def noting(name: str) -> Any:
        original = getattr(torch.Tensor, name)

        def call(*arguments: Any, **named: Any) -> Any:
            found.append(name)
            return original(*arguments, **named)

        return call

    with pytest.MonkeyPatch.context() as patch, _Listener(found):
        for name in _FETCHING:
            patch.setattr(torch.Tensor, name, noting(name))
        yield found
