"""How idle threads wait: asleep. Importing this before torch is what sets it.

By default the OpenMP threads of torch spin while they wait for each other. Beside any other busy
process two of them then take turns on one core, and a training step takes many times as long. What
the user has set in the environment is left alone. Processes that are started inherit it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

_SLEEPING_WAIT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
}  # libgomp reads them at start
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

if not any(name in os.environ for name in _SLEEPING_WAIT):
    os.environ.update(_SLEEPING_WAIT)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Let processes that are started inside the block work with one thread each."""
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(_ONE_THREAD)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
