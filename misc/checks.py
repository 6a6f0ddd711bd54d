"""May we start? Problems are collected as sentences and told all at once.

Each is `kind: what, where and remedy`. A check is a function that returns the problems that it
finds; what the trees check stands in `step.checks` and in the preflight of each.
"""

import itertools
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from misc.errors import UserError
from misc.progress import progress

T = TypeVar("T")
Result = TypeVar("Result")

MAX_SHOWN = 20
MAX_THREADS = 8


def require_no_problems(problems: Sequence[str]) -> None:
    """Refuse to go on with bad data.

    Raises:
        UserError: there are problems; the message counts them by kind and shows the first few.
    """
    if not problems:
        return
    kinds: dict[str, list[str]] = defaultdict(list)
    for problem in problems:
        kind, _, detail = problem.partition(": ")
        kinds[kind].append(detail)
    shown = max(1, MAX_SHOWN // len(kinds))
    numbers = itertools.count(1)
    lines = [f"Nothing was started, {len(problems)} problem{'s' if len(problems) > 1 else ''}:"]
    for kind, details in kinds.items():
        lines.append(f"{kind} ({len(details)}):")
        lines += [f"  {next(numbers)}. {detail}" for detail in details[:shown]]
        if len(details) > shown:
            lines.append(f"  .. and {len(details) - shown} more")
    raise UserError("\n".join(lines))


def attempt(kind: str, function: Callable[[], Result], problems: list[str]) -> Result | None:
    """What a function returns; a UserError becomes a problem of this kind, and None is returned."""
    try:
        return function()
    except UserError as error:
        text = f"{kind}: {error}"
        problems += [text] if text not in problems else []
        return None


def problems_of_each(check: Callable[[T], Iterable[str]], items: Sequence[T]) -> list[str]:
    """The problems that a check finds in each of many items; looks at several at a time."""
    workers = min(MAX_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        found = progress(pool.map(check, items), "checking the data", total=len(items))
        return list(itertools.chain.from_iterable(found))
