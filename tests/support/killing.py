"""A process that is killed at a boundary, without one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


class Killed(BaseException):
    """Stands for SIGKILL: nobody catches it."""


@contextmanager
def killed_at(number: int, kind: type, method: str, after: bool) -> Iterator[list[int]]:
    """The `number`-th call of a method ends the process, before or after it has done its work."""
    original = getattr(kind, method)
    calls: list[int] = []

    def dying(self: Any, *args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == number and not after:
            raise Killed
        result = original(self, *args, **options)
        if len(calls) == number:
            raise Killed
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, method, dying)
        yield calls
