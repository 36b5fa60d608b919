"""Depthwise convolution with a large window, and its gradient with respect to its input: rows of
images times bands of weights, on the matrix unit.

    y[n, c, i*ROWS + j, q] = sum_{d, k} x[n, c, i*ROWS + d, k] * band[c, d - j + before_r][q, k]
        where band[c, r][q, k] = w[c, r, k - q + before_s], or zero beyond the window

x is copied by channels, and the bands are written out once.  A program owns, of one channel, ROWS
neighbouring rows of COLUMNS columns in each of BLOCK_M places: a box of images by every ROWS-th
row.  In each step the bands of ROWS neighbouring taps make all of these from one row of x in each
place.  Of images wider than COLUMNS it reads the columns alone that these reach.

Another pass makes the result of the sums.  They are in its dtype where it only moves them, and else
in float32: what is stored has been rounded once.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._common import index_type
from ..._launch import INTERPRETED, INTERPRETED_BLOCK, launch
from .. import tma
from ..family import Call, Family
from ..problem import Problem
from .copies import by_channels
from .finish import _toeplitz_finish_kernel, finishing
from .view import ALIGNED, View, aligned, box_of, view, whole, yields
from .view import declines as view_declines

MOST_COLUMNS = 64  # of the result in a program: wider bands are emptier
MOST_BANDS = 2**27  # elements
STEPS = {64: 1.0, 32: 1.15, 16: 1.5}  # of K: what copies of shorter rows cost more, about


@triton.jit(
    do_not_specialize=(
        *("rows", "taps_r", "taps_s", "first", "step_r", "step_s", "chunks", "before_s"),
    )
)
def _toeplitz_bands_kernel(
    w_ptr, bands_ptr, rows,  # w [C, KH, KW], bands [C, taps_r, COLUMNS, chunks * BLOCK_K]
    taps_r, taps_s, first, step_r, step_s, chunks, before_s,
    INDEX: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.cast(tl.program_id(0), INDEX) * BLOCK + tl.arange(0, BLOCK)
    k = (row % chunks * BLOCK_K)[:, None] + tl.arange(0, BLOCK_K)[None, :]
    q, band = row // chunks % COLUMNS, row // (chunks * COLUMNS)
    c, r = band // taps_r, band % taps_r
    s = k - q[:, None] + before_s
    offs = (c * (taps_r * taps_s) + first + r * step_r)[:, None] + s * step_s
    there = (row < rows)[:, None] & (s >= 0) & (s < taps_s)
    w = tl.load(w_ptr + offs, mask=there, other=0.0)
    offs = row[:, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    tl.store(bands_ptr + offs, w, mask=(row < rows)[:, None])


SIZES = (
    *("N", "C", "rows", "row_units", "first", "trips", "band", "start"),
    *("blocks_q", "boxes_i", "boxes", "K"),
)


@triton.jit(do_not_specialize=SIZES)
def _conv2d_toeplitz_kernel(
    x_desc, bands_desc, sums_ptr,  # x [C, N, I, ROWS, columns], bands as above
    N, C, rows, row_units, first, trips, band, start, blocks_q, boxes_i, boxes, K,
    PRECISION: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr, ALIGNED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, IMAGES: tl.constexpr, HEIGHT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """sums [N, C, rows, columns].  d runs from `first` on, with ROWS bands from `band` on."""
    program = tl.program_id(0)
    q0 = program % blocks_q * COLUMNS
    program = program // blocks_q
    c, box = program // boxes, program % boxes
    n0, i0 = box // boxes_i * IMAGES, box % boxes_i * HEIGHT

    acc = tl.zeros((BLOCK_N, BLOCK_M), ACC)
    tl.assume(trips > 0)
    d, k = first, 0
    for _ in tl.range(0, trips, num_stages=STAGES):
        far = d & -ROWS  # of the quotient rounded down
        x_tile = x_desc.load([c, n0, i0 + far // ROWS, d - far, q0 + start + k])
        x_tile = x_tile.reshape(BLOCK_M, BLOCK_K)
        bands = bands_desc.load([c, (d - first + band) * COLUMNS, k]).reshape(BLOCK_N, BLOCK_K)
        acc = tl.dot(bands, x_tile.T, acc, input_precision=PRECISION, out_dtype=ACC)
        k += BLOCK_K
        row_done = k == K
        k = tl.where(row_done, 0, k)
        d += row_done.to(tl.int32)

    m, a = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    n, i = n0 + m // HEIGHT, i0 + m % HEIGHT
    # of ascending taps, the first makes the last row
    row = (i * ROWS)[:, None] + (ROWS - 1 - a // COLUMNS)[None, :]
    column, columns = q0 + a % COLUMNS, row_units * ALIGNED
    image = (tl.cast(n, INDEX) * C + c) * (rows * columns)
    inside = (n < N)[:, None] & (row < rows) & (column < columns)[None, :]
    sums = acc.to(sums_ptr.dtype.element_ty).T
    tl.store(sums_ptr + (image[:, None] + row * columns + column[None, :]), sums, mask=inside)


class Band(NamedTuple):
    """Along a row: blocks of so many columns of the result, each of `k` columns of the source, of
    which a step takes `step`; the first of them lies `start` beside the first of the result."""

    columns: int
    k: int
    step: int
    start: int


def band_of(v: View, n: int) -> Band:
    """What takes the fewest products in programs of n rows and columns."""

    def bands() -> Iterator[tuple[float, Band]]:
        wanted = max(min(triton.next_power_of_2(v.result.columns), MOST_COLUMNS), 16)
        for columns in (64, 32, 16):
            if columns > wanted:
                continue
            start, end = aligned(-v.before[1]), columns + v.taps[1] - 1 - v.before[1]
            if columns >= v.result.columns:  # no column beyond the image
                start, end = max(start, 0), min(end, v.source.columns)
            blocks = triton.cdiv(v.result.columns, columns)
            products = blocks * columns * (v.taps[0] + n // columns - 1)
            for step, price in STEPS.items():
                k = whole(max(end - start, 1), step)
                yield price * products * k, Band(columns, k, step, start)

    return min(bands(), key=lambda found: found[0])[1]


class Tile(NamedTuple):
    m: int  # images and rows
    n: int  # neighbouring rows, and columns
    warps: int
    stages: int  # of 64 columns; of fewer, more


TILES = Tile(256, 128, 8, 3), Tile(128, 128, 8, 3), Tile(64, 128, 4, 3)
MOST_STAGES = 6


class Boxes(NamedTuple):
    """Which rows of the result, and of the source, the programs of a tile take."""

    band: Band
    rows: int  # neighbouring ones of a program
    box: tuple[int, int]  # images, and rows beside these
    boxes: tuple[int, int]
    first: int
    steps: int  # rows of the source


def boxes_of(p: Problem, v: View, tile: Tile) -> Boxes:
    band = band_of(v, tile.n)
    rows = tile.n // band.columns
    groups = triton.cdiv(v.result.rows, rows)
    box = box_of(tile.m, p.x[0], groups)
    boxes = triton.cdiv(p.x[0], box[0]), triton.cdiv(groups, box[1])
    # rows that no window of the image reaches are left out
    first = max(-v.before[0], -(groups - 1) * rows)
    last = min(rows - 1 + v.taps[0] - 1 - v.before[0], v.source.rows - 1)
    return Boxes(band, rows, box, boxes, first, max(last - first + 1, 1))


def bands(w: Tensor, v: View, band: Band) -> Tensor:
    """[C, taps, columns, k], of w [C, KH, KW] in memory."""
    C, rows = w.shape[0], v.taps[0] * band.columns
    out = torch.empty((C, v.taps[0], band.columns, band.k), dtype=w.dtype, device=w.device)
    chunks = band.k // band.step
    block = (INTERPRETED_BLOCK if INTERPRETED else 4096) // band.step
    launch(
        _toeplitz_bands_kernel, triton.cdiv(C * rows * chunks, block),
        w, out, C * rows * chunks, *v.taps, *v.w_steps, chunks, band.start + v.before[1],
        index_type(out), band.columns, band.step, block,
        out=out,
    )  # fmt: skip
    return out


def _declines(p: Problem) -> str | None:
    if reason := view_declines(p):
        return reason
    v = view(p)
    band = band_of(v, max(tile.n for tile in TILES))
    if p.x[1] * v.taps[0] * band.columns * band.k > MOST_BANDS:
        return f"it takes bands of at most {MOST_BANDS} elements"
    return None


def _prepare(p: Problem, tile: Tile) -> Call:
    v, (N, C) = view(p), p.x[:2]
    band, rows, box, boxes, first, steps = boxes_of(p, v, tile)
    source_rows, source_columns = whole(v.source.rows, rows), whole(v.source.columns)
    columns = whole(v.result.columns)
    of_x = tma.descriptor(
        (N, C, source_rows // rows, rows, source_columns), (1, *box, 1, band.step), (1, 0, 2, 3, 4)
    )
    # of a single dimension beside the channel, for then a product reads them where they are
    of_bands = tma.descriptor((C, v.taps[0] * band.columns, band.k), (1, tile.n, band.step))
    blocks_q = triton.cdiv(v.result.columns, band.columns)
    programs, parts, sizes, constants = finishing(p, v)

    def sums(x: Tensor, w: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        out = torch.empty((N, C, v.result.rows, columns), dtype=dtype, device=x.device)
        x_desc = of_x(by_channels(x, v.source, source_rows, source_columns))
        launch(
            _conv2d_toeplitz_kernel, C * boxes[0] * boxes[1] * blocks_q,
            x_desc, of_bands(bands(w, v, band)), out,
            N, C, v.result.rows, columns // ALIGNED, first, steps * (band.k // band.step),
            first + v.before[0] - (rows - 1), band.start, blocks_q, boxes[1], boxes[0] * boxes[1],
            band.k, p.precision, p.acc, index_type(out), ALIGNED, rows, band.columns, *box,
            tile.m, tile.n, band.step, min(tile.stages * 64 // band.step, MOST_STAGES),
            num_warps=tile.warps, out=out,
        )  # fmt: skip
        return out, x, w

    return Call(_toeplitz_finish_kernel, programs, sizes, constants, parts, sums=sums)


def _configs(p: Problem) -> tuple[Tile, ...]:
    """The one that reads least first, if it makes enough programs."""
    v, (N, C) = view(p), p.x[:2]
    if p.capability is None:
        return (Tile(min(triton.next_power_of_2(N * v.result.rows), 1024), 64, 1, 1),)

    def cost(tile: Tile) -> tuple[bool, int]:
        band, _, _, boxes, _, steps = boxes_of(p, v, tile)
        programs = C * boxes[0] * boxes[1] * triton.cdiv(v.result.columns, band.columns)
        return programs < tma.PROGRAMS, programs * steps * band.k * (tile.m + tile.n)

    return tuple(sorted(TILES, key=cost))


FORWARD = Family("toeplitz", _declines, _configs, _prepare, yields)
DGRAD = Family("toeplitz", _declines, _configs, _prepare, yields)
