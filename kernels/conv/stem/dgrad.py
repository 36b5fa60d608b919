"""Gradient of a convolution with few input channels with respect to its input: whole cells of it.

    dx[n, i*SH + a, j*SW + b, c] = sum_{di, dj, o} dy[n, i + di, j + dj, o] * w[o, kh, kw, c]
        where kh = a + PH - di*SH and kw = b + PW - dj*SW are inside the window

and what the epilogue makes of it.  A program owns BLOCK_M cells (n, i, j) of SH*SW pixels: all
their channels are the columns of one product, so that each value of dy is multiplied at once for
all pixels of a cell that it reaches.  Weights are laid out for that by a kernel of their own.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._common import unravel
from ..._launch import INTERPRETED, INTERPRETED_BLOCK, launch
from ..epilogue import channel_terms, store_tile
from ..family import Call, Family
from ..general.tiles import Tile
from ..grouped.taps import spoiled
from ..problem import Problem
from .rows import LEAST_BLOCK, MOST_CHANNELS

MOST_COLUMNS = 64  # values of a cell
MOST_PLACES = 32  # of dy that a cell sees: one bit each


@triton.jit(do_not_specialize=("numel",))
def _stem_cells_kernel(
    w_ptr, out_ptr, numel,  # w [CO, KH, KW, C], out [PLACES_H, PLACES_W, COLUMNS, CO]
    CO: tl.constexpr, C: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    FIRST_H: tl.constexpr, FIRST_W: tl.constexpr, PLACES_W: tl.constexpr,
    COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    o, n, place = k % CO, k // CO % COLUMNS, k // (CO * COLUMNS)
    c, b, a = n % C, n // C % SW, n // (C * SW)
    kh = a + PH - (place // PLACES_W + FIRST_H) * SH
    kw = b + PW - (place % PLACES_W + FIRST_W) * SW
    inside = (k < numel) & (a < SH) & (kh >= 0) & (kh < KH) & (kw >= 0) & (kw < KW)
    w = tl.load(w_ptr + (((o * KH + kh) * KW + kw) * C + c), mask=inside, other=0.0)
    tl.store(out_ptr + k, w, mask=k < numel)


@triton.jit(do_not_specialize=("N", "H", "W", "OH", "OW", "rows", "columns", "trips"))
def _conv2d_stem_dgrad_kernel(
    dy_ptr, w_ptr, dx_ptr,  # dy [N, OH, OW, CO], w as above, dx [N, H, W, C]
    N, H, W, OH, OW, rows, columns,  # of cells
    trips,  # the number of places times steps down dy's channels: told, it would unroll them all
    b_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, residual_ptr, gate_ptr, partial_ptr,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr,
    C: tl.constexpr, CO: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    FIRST_H: tl.constexpr, FIRST_W: tl.constexpr,  # where the places of dy that a cell sees begin
    PLACES_H: tl.constexpr, PLACES_W: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    start = tl.cast(tl.program_id(0), INDEX) * BLOCK_M
    image, i, j = unravel(start, BLOCK_M, rows, columns)
    cells = start + tl.arange(0, BLOCK_M) < N * rows * columns
    n, k = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    i0, j0 = i + FIRST_H, j + FIRST_W
    bits = tl.zeros((BLOCK_M,), tl.int32)
    for bit in tl.static_range(PLACES_H * PLACES_W):
        oh, ow = i0 + bit // PLACES_W, j0 + bit % PLACES_W
        bits |= (cells & (oh >= 0) & (oh < OH) & (ow >= 0) & (ow < OW)).to(tl.int32) << bit

    pixel = tl.cast(CO, INDEX)
    dy_tile_ptr = dy_ptr + (((image * OH + i0) * OW + j0) * pixel)[:, None] + k[None, :]
    w_tile_ptr = w_ptr + (n[:, None] * CO + k[None, :])
    steps = tl.cdiv(CO, BLOCK_K)
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for step in tl.range(0, trips, num_stages=STAGES):
        place, k0 = step // steps, step % steps * BLOCK_K
        off, left = (place // PLACES_W * OW + place % PLACES_W) * pixel + k0, (k < CO - k0)[None, :]
        seen = ((bits >> place) & 1 != 0)[:, None] & left
        dy_tile = tl.load(dy_tile_ptr + off, mask=seen, other=0.0)
        w_tile = tl.load(w_tile_ptr + (place * (BLOCK_N * CO) + k0), mask=left, other=0.0)
        acc = tl.dot(dy_tile, w_tile.T, acc, input_precision=PRECISION, out_dtype=ACC)
    c, b, a = n % C, n // C % SW, n // (C * SW)
    if spoiled(acc):
        # once more without the products for taps that there are not, which make NaN of what is not
        # finite in dy
        acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
        for step in range(0, trips):
            place, k0 = step // steps, step % steps * BLOCK_K
            off = (place // PLACES_W * OW + place % PLACES_W) * pixel + k0
            left = (k < CO - k0)[None, :]
            seen = ((bits >> place) & 1 != 0)[:, None] & left
            dy_tile = tl.load(dy_tile_ptr + off, mask=seen, other=0.0)
            w_tile = tl.load(w_tile_ptr + (place * (BLOCK_N * CO) + k0), mask=left, other=0.0)
            more = tl.dot(dy_tile, w_tile.T, acc, input_precision=PRECISION, out_dtype=ACC)
            kh = a + PH - (place // PLACES_W + FIRST_H) * SH
            kw = b + PW - (place % PLACES_W + FIRST_W) * SW
            taps = (kh >= 0) & (kh < KH) & (kw >= 0) & (kw < KW)
            acc = tl.where(taps[None, :], more, acc)

    h, w = (i * SH)[:, None] + a[None, :], (j * SW)[:, None] + b[None, :]
    terms = channel_terms(b_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, c, a < SH, EPS, ACC)
    store_tile(
        acc, terms, dx_ptr, ((image[:, None] * H + h) * W + w) * tl.cast(C, INDEX) + c[None, :],
        cells[:, None] & (a < SH)[None, :] & (h < H) & (w < W),
        b_ptr, mean_ptr, residual_ptr, gate_ptr, ACTIVATION, ACC,
    )  # fmt: skip


MOST_SUMS = 1024  # of a warp, beside all that a second pass takes

# By element size in bytes: m cells, k of dy's channels.
CELLS = {
    2: (Tile(128, 0, 64, 4, 3), Tile(128, 0, 64, 8, 3), Tile(64, 0, 64, 4, 3)),
    4: (Tile(64, 0, 32, 4, 2), Tile(128, 0, 16, 4, 2)),
    8: (Tile(32, 0, 16, 4, 1),),
}


def _declines(p: Problem) -> str | None:
    if p.geometry.groups > 1 or p.x[1] > MOST_CHANNELS:
        return f"it takes at most {MOST_CHANNELS} channels, in one group"
    if p.geometry.dilation != (1, 1):
        return "it takes windows that are not dilated"
    if p.x[1] * p.geometry.stride[0] * p.geometry.stride[1] > MOST_COLUMNS:
        return f"it takes strides that make cells of at most {MOST_COLUMNS} values"
    (_, high), (_, wide) = places(p)
    if high * wide > MOST_PLACES:
        return f"it takes windows of which a cell sees at most {MOST_PLACES} places"
    if p.statistics:
        return "it takes no statistics"
    return None


def places(p: Problem) -> list[tuple[int, int]]:
    """By axis: where the places of dy begin that a cell sees, from its own, and their number."""
    g = p.geometry
    axes = zip(p.w[2:], g.stride, g.before, strict=True)
    found = ((-((taps - 1 - before) // s), (s - 1 + before) // s) for taps, s, before in axes)
    return [(first, last - first + 1) for first, last in found]


def _configs(p: Problem) -> tuple[Tile, ...]:
    n = max(
        triton.next_power_of_2(p.x[1] * p.geometry.stride[0] * p.geometry.stride[1]), LEAST_BLOCK
    )
    if p.capability is None:
        k = max(min(triton.next_power_of_2(p.w[0]), 128), 16)
        cells = triton.next_power_of_2(p.x[0] * p.x[2] * p.x[3])
        return (Tile(min(cells, INTERPRETED_BLOCK // k), n, k, 1, 1),)
    tiles = (tile._replace(n=n) for tile in CELLS[p.dtype.itemsize])
    return tuple(t for t in tiles if t.m * t.n <= MOST_SUMS * t.warps)


def _prepare(p: Problem, tile: Tile) -> Call:
    (N, C, H, W), (CO, _, KH, KW), (_, _, OH, OW), g = p.x, p.w, p.y, p.geometry
    (SH, SW), (PH, PW) = g.stride, g.before
    (first_h, high), (first_w, wide) = places(p)
    rows, columns = triton.cdiv(H, SH), triton.cdiv(W, SW)
    parts = triton.cdiv(N * rows * columns, tile.m)

    def operands(dy: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        out = torch.empty((high, wide, tile.n, CO), dtype=w.dtype, device=w.device)
        block = INTERPRETED_BLOCK if INTERPRETED else 1024
        launch(
            _stem_cells_kernel, triton.cdiv(out.numel(), block),
            w, out, out.numel(), CO, C, KH, KW, SH, SW, PH, PW, first_h, first_w, wide,
            tile.n, block, out=out,
        )  # fmt: skip
        return dy, out

    return Call(
        _conv2d_stem_dgrad_kernel,
        parts,
        (N, H, W, OH, OW, rows, columns, high * wide * triton.cdiv(CO, tile.k)),
        {
            **{"C": C, "CO": CO, "KH": KH, "KW": KW, "SH": SH, "SW": SW, "PH": PH, "PW": PW},
            **{"FIRST_H": first_h, "FIRST_W": first_w, "PLACES_H": high, "PLACES_W": wide},
            **p.numbers,
            **tile.constants,
        },
        parts=parts,
        operands=operands,
    )


DGRAD = Family("cells", _declines, _configs, _prepare)
