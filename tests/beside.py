"""Running something beside other threads, for seconds: what is everybody's shows."""

import threading
import time
from collections.abc import Callable


def beside(work: Callable, *others: Callable, seconds: float = 2.0) -> None:
    """Runs work in this thread while each of others runs in its own, again and again."""
    stop, errors = threading.Event(), []

    def again(other: Callable) -> None:
        try:
            while not stop.is_set():
                other()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=again, args=(other,)) for other in others]
    for thread in threads:
        thread.start()
    try:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            work()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
