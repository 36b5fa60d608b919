"""How a depthwise convolution with a large window is seen as products with Toeplitz matrices.

A row of the window makes of a row of the image a row of the result: a product with a band of the
row's weights.  What is called a row is a column of the image where the window is higher than wide,
for its longer side fills more of a band.
"""

from typing import NamedTuple

import triton

from ..problem import Problem

ALIGNED = 8  # elements: rows are of whole 16 bytes in half precision
MOST_PIXELS = 2**26  # of an image: offsets within one have 32 bits, padded rows included
MEMORY_BOUND = 25  # taps of a window, up to which a walk takes no longer than memory
# From so many on, products are predicted to take less than half of a walk's time: taps of a window,
# and rows of all images, of which few would leave boxes empty.
LEAST_TAPS, LEAST_ROWS = 121, 64


class Plane(NamedTuple):
    """An image's pixels, and how many of them it is from row to row, from column to column."""

    rows: int
    columns: int
    row_step: int
    column_step: int


class View(NamedTuple):
    """What a pass makes of what: of dgrad, a convolution with the window turned around."""

    source: Plane
    result: Plane
    taps: tuple[int, int]
    before: tuple[int, int]  # what is padded, which may be negative
    w_steps: tuple[int, int, int]  # where the first tap lies, and how far apart they lie


def view(p: Problem) -> View:
    (KH, KW), turned = p.w[2:], p.w[2] > p.w[3]

    def turn(pair: tuple[int, int]) -> tuple[int, int]:
        return pair[::-1] if turned else pair

    def plane(shape: tuple[int, ...]) -> Plane:
        return Plane(*turn(shape[2:]), *turn((shape[3], 1)))

    taps, before, (step_r, step_s) = turn((KH, KW)), turn(p.geometry.before), turn((KW, 1))
    if p.work != "dgrad":
        return View(plane(p.x), plane(p.y), taps, before, (0, step_r, step_s))
    before = taps[0] - 1 - before[0], taps[1] - 1 - before[1]
    return View(plane(p.y), plane(p.x), taps, before, (KH * KW - 1, -step_r, -step_s))


def whole(elements: int, unit: int = ALIGNED) -> int:
    """Rounded up to whole units."""
    return -(-elements // unit) * unit


def aligned(column: int) -> int:
    """Where a box may begin that is to have this column."""
    return column // ALIGNED * ALIGNED


def box_of(pixels: int, images: int, rows: int) -> tuple[int, int]:
    """Images and rows, powers of two, of the box of which fewest cover them all; of these, of most
    rows."""
    boxes = [(pixels >> i, 1 << i) for i in range(pixels.bit_length())]
    return min(
        boxes, key=lambda box: (triton.cdiv(images, box[0]) * triton.cdiv(rows, box[1]), box[0])
    )


def declines(p: Problem) -> str | None:
    g = p.geometry
    if p.capability is not None and p.capability[0] != 9:
        return "it needs the tensor memory accelerator of sm_90"
    if p.dtype.itemsize > 2 and p.capability is not None:
        return "it multiplies in float16 or bfloat16"
    if p.channels != (1, 1):
        return "it takes one channel a group, in and out"
    if g.stride != (1, 1) or g.dilation != (1, 1):
        return "it takes stride 1 and dilation 1"
    if max(p.x[2] * p.x[3], p.y[2] * p.y[3]) > MOST_PIXELS:
        return f"it takes images of at most {MOST_PIXELS} pixels"
    if p.w[2] * p.w[3] <= MEMORY_BOUND:
        return f"it takes windows of more than {MEMORY_BOUND} taps"
    return None


def yields(p: Problem) -> bool:
    """In the interpreter; to walks, of smaller windows and fewer rows, until they are measured."""
    few = p.w[2] * p.w[3] < LEAST_TAPS or p.x[0] * view(p).result.rows < LEAST_ROWS
    return p.capability is None or few
