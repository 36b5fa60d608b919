"""What is remembered, of a bounded number."""

import threading
from typing import Any


class Remembered(dict):
    """What is bounded: the oldest goes where a new one comes."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.lock = most, threading.Lock()

    def add(self, key: tuple, value: Any) -> Any:
        with self.lock:
            while len(self) >= self.most:
                del self[next(iter(self))]
            self[key] = value
        return value
