"""Ctrl-C, and SIGTERM, as schedulers send it: noted, for a loop to end between two steps."""

import contextlib
import signal
from collections.abc import Iterator


class StoppedError(Exception):
    """A signal ended the training; the command's exit status is 128 and the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


class Noted:
    number = 0  # of the signal that came, 0 before one does


@contextlib.contextmanager
def noted() -> Iterator[Noted]:
    """Within the block the first signal is noted; a second Ctrl-C raises KeyboardInterrupt."""
    seen = Noted()

    def handle(number: int, _) -> None:
        if seen.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        seen.number = number

    before = {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
