"""Work that nothing waits for: put off, where somebody collects it, to be done together."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

_pending: ContextVar[list | None] = ContextVar("_pending", default=None)


def put_off(work: Any) -> bool:
    """Whether somebody collects it, and does it later."""
    pending = _pending.get()
    if pending is None:
        return False
    pending.append(work)
    return True


@contextlib.contextmanager
def collecting(pending: list | None) -> Iterator[None]:
    """Collects in pending what this context puts off; where that is None, nothing is put off."""
    before = _pending.set(pending)
    try:
        yield
    finally:
        _pending.reset(before)
