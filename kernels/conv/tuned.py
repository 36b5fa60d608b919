"""What tuning found fastest on this machine's GPUs, by coarse keys, in the user's cache folder."""

import functools
import json
import math
import os
import threading
import warnings
from pathlib import Path
from typing import NamedTuple

from .problem import Problem

VERSION = 2  # of the file's form and of the keys

_lock = threading.Lock()  # of who adds to the file


class Tuned(NamedTuple):
    family: str
    config: tuple


def path() -> Path:
    """The file; the environment's TRITONCONV_CACHE names another folder for it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("TRITONCONV_CACHE") or cache / "tritonconv") / "tuned.json"


def key(p: Problem) -> str:
    """What problems share that are tuned as one: sizes count by their power of two."""
    g, (CG, COG) = p.geometry, p.channels
    pixels = math.prod(p.y) // p.y[1]
    return (
        f"{p.work} {8 * p.dtype.itemsize}-bit {p.precision} taps {p.w[2]}x{p.w[3]} "
        f"stride {g.stride[0]}x{g.stride[1]} {'groups of' if g.groups > 1 else 'channels'} "
        f"{_power(CG)}-{_power(COG)} pixels {_power(pixels)}{' with statistics' * p.statistics}"
    )


def _power(n: int) -> int:
    return 1 << (n.bit_length() - 1)


@functools.cache
def table() -> dict[str, dict[str, Tuned]]:
    """By the GPU's name and key.  Empty, with a warning, where the file cannot be read."""
    try:
        content = json.loads(path().read_text())
        if content["version"] != VERSION:
            return {}
        return {
            gpu: {key: Tuned(name, tuple(config)) for key, (name, config) in found.items()}
            for gpu, found in content["gpus"].items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        warnings.warn(
            f"tritonconv: {path()} is not a table of tuned kernels ({error!r}); the heuristics "
            "serve; delete it, or run python -m tritonconv.tune again",
            stacklevel=2,
        )
        return {}


def lookup(p: Problem) -> Tuned | None:
    return of(table().get(p.gpu, {}), p)


def of(found: dict[str, Tuned], p: Problem) -> Tuned | None:
    """For p among what was found; with statistics, or else what is best without."""
    entry = found.get(key(p))
    return found.get(key(p._replace(statistics=False))) if entry is None else entry


def add(gpu: str, found: dict[str, Tuned]) -> None:
    """Writes found for the GPU into the file, beside what it has."""
    with _lock:
        merged = table() | {gpu: table().get(gpu, {}) | found}
        file = path()
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_suffix(f".{os.getpid()}")
        new.write_text(json.dumps({"version": VERSION, "gpus": merged}, indent=1) + "\n")
        new.replace(file)  # at once, for others may read
        table.cache_clear()
