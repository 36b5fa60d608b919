"""Files that are there whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path, keep: int = 1) -> Iterator[Path]:
    """A temporary path to write to, moved onto `path` when the block ends without an error.

    With keep above 1, what was at `path` before stays beside it, as NAME-1, and what was there as
    NAME-2, up to NAME-(keep - 1).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")  # writers choose formats by suffix
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # or a crash of the machine may leave the name without content
        _shift(path, keep)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def earlier(path: Path, number: int) -> Path:
    """Where what was at path before the last `number` replacements is kept."""
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


def _shift(path: Path, keep: int) -> None:
    for number in range(keep - 1, 1, -1):
        if earlier(path, number - 1).exists():
            os.replace(earlier(path, number - 1), earlier(path, number))
    if keep > 1 and path.exists():
        link = path.with_name(f".{os.getpid()}-{earlier(path, 1).name}")
        try:
            os.link(path, link)  # path is there at every moment
            os.replace(link, earlier(path, 1))
        finally:
            link.unlink(missing_ok=True)
