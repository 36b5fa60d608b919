"""What was measured fastest on GPUs: a file for each, which `python -m benchmarks choose` writes.

{"gpu": its name, "capability": [9, 0], "triton": ..., "date": ..., "commit": ...,
 "choices": {key: {"family", "config", "us", "x", "w", "geometry"}}}

x, w and geometry are those of the largest problem of a key that was measured.
"""

import functools
import json
from pathlib import Path
from typing import NamedTuple

from ..problem import Problem
from ..tuned import Tuned, of

FOLDER = Path(__file__).parent


class Table(NamedTuple):
    gpu: str
    capability: tuple[int, int]
    choices: dict[str, Tuned]


@functools.cache
def tables() -> tuple[Table, ...]:
    contents = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]
    return tuple(
        Table(
            content["gpu"],
            tuple(content["capability"]),
            {k: Tuned(c["family"], tuple(c["config"])) for k, c in content["choices"].items()},
        )
        for content in contents
    )


def lookup(p: Problem) -> Tuned | None:
    """The choice for p's GPU, or for one of its architecture: of several, the one whose name has
    most words of its."""
    alike = [table for table in tables() if table.capability == p.capability]
    if not alike:
        return None
    words = set(p.gpu.split())
    nearest = max(alike, key=lambda table: len(words & set(table.gpu.split())))
    return of(nearest.choices, p)
