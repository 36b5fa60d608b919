"""One pass of a convolution, as the kernel families read it: all that their choice depends on."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton.language as tl

from .._common import accumulator, index_type
from .._launch import INTERPRETED, device_capability
from .geometry import Geometry


class Problem(NamedTuple):
    work: str  # "forward", "dgrad" or "wgrad"
    x: tuple[int, ...]  # [N, C, H, W]
    w: tuple[int, ...]  # [CO, CG, KH, KW]
    y: tuple[int, ...]  # [N, CO, OH, OW]
    geometry: Geometry
    dtype: torch.dtype
    precision: str  # of products, as tl.dot names it
    index: tl.dtype  # holds every offset into x, w and y
    capability: tuple[int, int] | None  # of the GPU; None in the interpreter
    gpu: str = ""  # its name
    statistics: bool = False  # of the result, too

    def __str__(self) -> str:
        g = self.geometry
        padding = g.before if g.before == g.after else f"{g.before} and {g.after}"
        return (
            f"{self.work} of x {list(self.x)}, w {list(self.w)}, y {list(self.y)}, stride "
            f"{g.stride}, padding {padding}, dilation {g.dilation}, groups {g.groups}, "
            f"{str(self.dtype).removeprefix('torch.')}{', with statistics' * self.statistics}"
        )

    @property
    def acc(self) -> tl.dtype:
        return accumulator(self.dtype)

    @property
    def channels(self) -> tuple[int, int]:
        """Of a group, in and out."""
        return self.w[1], self.w[0] // self.geometry.groups

    def index_of(self, most: int) -> tl.dtype:
        """Holds every number up to `most`, too."""
        return tl.int64 if self.index == tl.int64 else index_type(most=most)

    @property
    def numbers(self) -> dict[str, torch.dtype | tl.dtype | str]:
        """The constants of every kernel that multiplies."""
        return {"PRECISION": self.precision, "ACC": self.acc, "INDEX": self.index}


def problem(device: torch.device, *what: Any) -> Problem:
    """problem_on() the GPU `device`, or in the interpreter."""
    return problem_on(
        None if INTERPRETED else device_capability(device), device_name(device), *what
    )


def problem_on(
    capability: tuple[int, int] | None,
    gpu: str,
    work: str,
    x: Sequence[int],
    w: Sequence[int],
    y: Sequence[int],
    g: Geometry,
    dtype: torch.dtype,
    precision: str,
    statistics: bool = False,
) -> Problem:
    index = index_type(most=max(math.prod(x), math.prod(w), math.prod(y)))
    shapes = tuple(x), tuple(w), tuple(y)
    return Problem(work, *shapes, g, dtype, precision, index, capability, gpu, statistics)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else ""
