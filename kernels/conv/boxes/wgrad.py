"""Gradient of a convolution with respect to its weights: shifted rows of pixels.

    dw[o, kh, kw, c] = sum_{n, oh, ow} dy[n, oh, ow, o] * x[n, h, w, c]
        where h = oh*SH - PH + kh*DH, w = ow*SW - PW + kw*DW

A program owns BLOCK_M output channels by BLOCK_N input channels of one tap, and walks BLOCK_K
pixels at a time: one pixel of many images, or, with few images, a piece of a row.  Those of x lie
some way off, with zeros beyond the image; of stride S, every S-th is read in a view of x as
[N, H/S, S, W/S, S*C].  The reduction is split between programs where the outputs alone are too few:
partial sums go to a workspace and are added in fixed order.

Beyond dy's edges zeros multiply what x has there: what is not finite in x near its own edges makes
NaN of other taps of its channel than of those that see it.
"""

import math

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ... import _split
from .. import tma
from ..family import Call, Family
from ..general.tiles import Tile
from ..problem import Problem
from .walk import declines_stride, strided


@triton.jit
def _load_pixels(desc, n, h, w, c, ACROSS: tl.constexpr, SHAPE: tl.constexpr):
    """Sides of 1 before the last two cost nothing: the box is a matrix as it is."""
    tile = desc.load([h, w, n, c]) if ACROSS else desc.load([n, h, w, c])
    return tile.reshape(SHAPE)


@triton.jit
def _load_strided(desc, n, h, left, w, c, ACROSS: tl.constexpr, SHAPE: tl.constexpr):
    tile = desc.load([h, left, w, n, c]) if ACROSS else desc.load([n, h, left, w, c])
    return tile.reshape(SHAPE)


COUNTS = ("units_c", "units_co", "taps", "boxes", "boxes_a_split")


@triton.jit(do_not_specialize=("OH", "OW", "KW", "PH", "PW", "DH", "DW", *COUNTS))
def _conv2d_boxes_wgrad_kernel(
    dy_desc, x_desc, dw_ptr,  # dy [N, OH, OW, CO], x [N, H, W, C], dw [splits, CO, KH, KW, C]
    OH, OW, units_c, units_co, taps, KW, PH, PW, DH, DW, boxes, boxes_a_split,
    ACROSS: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, UNIT: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """ACROSS: boxes are of many images, and descriptors' dimensions [H, W, N, C]."""
    BOX_N: tl.constexpr = BLOCK_K if ACROSS else 1
    BOX_W: tl.constexpr = 1 if ACROSS else BLOCK_K
    program = tl.program_id(0)
    C, CO = units_c * UNIT, units_co * UNIT
    tiles_c, tiles_co = tl.cdiv(C, BLOCK_N), tl.cdiv(CO, BLOCK_M)
    o0 = program % tiles_co * BLOCK_M
    program = program // tiles_co
    c0 = program % tiles_c * BLOCK_N
    program = program // tiles_c
    tap, split = program % taps, program // taps
    h0, w0 = tap // KW * DH - PH, tap % KW * DW - PW
    # in x's view: rows and columns off, rounded down, and what is left of them
    left_h, first_c = h0 & (SH - 1), (w0 & (SW - 1)) * C + c0
    h0, w0 = (h0 - left_h) // SH, (w0 - (w0 & (SW - 1))) // SW

    box = split * boxes_a_split
    trips = tl.minimum(boxes - box, boxes_a_split)
    tl.assume(trips > 0)
    boxes_w = tl.cdiv(OW, BOX_W)
    ow = box % boxes_w * BOX_W
    oh = box // boxes_w % OH
    n = box // (boxes_w * OH) * BOX_N

    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for _ in tl.range(0, trips, num_stages=STAGES):
        dy_tile = _load_pixels(dy_desc, n, oh, ow, o0, ACROSS, (BLOCK_K, BLOCK_M))
        h, w = h0 + oh, w0 + ow
        if SH * SW == 1:
            x_tile = _load_pixels(x_desc, n, h, w, c0, ACROSS, (BLOCK_K, BLOCK_N))
        else:
            x_tile = _load_strided(
                x_desc, n, h, left_h, w, first_c, ACROSS, (BLOCK_K, BLOCK_N)
            )  # fmt: skip
        acc = tl.dot(dy_tile.T, x_tile, acc, input_precision=PRECISION, out_dtype=ACC)

        ow += BOX_W
        row_done = ow >= OW
        ow = tl.where(row_done, 0, ow)
        oh += row_done.to(tl.int32)
        image_done = oh == OH
        oh = tl.where(image_done, 0, oh)
        n += tl.where(image_done, BOX_N, 0)

    o, c = o0 + tl.arange(0, BLOCK_M), c0 + tl.arange(0, BLOCK_N)
    row = (tl.cast(split, INDEX) * CO + o) * taps + tap
    tl.store(
        dw_ptr + (row[:, None] * C + c[None, :]), acc, mask=(o < CO)[:, None] & (c < C)[None, :]
    )


def _boxes(p: Problem, pixels: int) -> tuple[int, bool]:
    """How many boxes of so many pixels cover the images, and whether they are of many images."""
    N, _, OH, OW = p.y
    across, along = triton.cdiv(N, pixels) * OH * OW, N * OH * triton.cdiv(OW, pixels)
    return min(across, along), across <= along


def _prepare(p: Problem, tile: Tile) -> Call:
    (N, C, H, W), (CO, _, KH, KW), (_, _, OH, OW), g = p.x, p.w, p.y, p.geometry
    programs = triton.cdiv(CO, tile.m) * triton.cdiv(C, tile.n) * KH * KW
    boxes, across = _boxes(p, tile.k)
    splits, boxes_a_split = _split.shares(programs, boxes, boxes)
    order = (1, 2, 0, 3) if across else (0, 1, 2, 3)

    of_dy = tma.descriptor((N, OH, OW, CO), (1, 1, tile.k, tile.m), order)
    if g.stride == (1, 1):
        of_x = tma.descriptor((N, H, W, C), (1, 1, tile.k, tile.n), order)
    else:
        of_x = strided(p, (1, 1, 1, tile.k, tile.n), (1, 2, 3, 0, 4) if across else ())

    def operands(dy: Tensor, x: Tensor) -> tuple[TensorDescriptor, TensorDescriptor]:
        return of_dy(dy), of_x(x)

    return Call(
        _conv2d_boxes_wgrad_kernel,
        programs * splits,
        (
            *(OH, OW, C // tma.unit(p), CO // tma.unit(p), KH * KW, KW, *g.before, *g.dilation),
            *(boxes, boxes_a_split),
        ),
        {
            "ACROSS": across,
            **dict(zip(("SH", "SW"), g.stride, strict=True)),
            "UNIT": tma.unit(p),
            **p.numbers,
            "INDEX": p.index_of(splits * math.prod(p.w)),
            **tile.constants,
        },
        parts=splits,
        operands=operands,
    )


# Of half the pixels a step: for boxes that would be far from full, and where measured faster.
SHORT: tma.Tables = {
    2: (
        Tile(128, 256, 32, 8, 5),
        Tile(128, 128, 32, 4, 6),
        Tile(128, 64, 32, 4, 6),
        Tile(64, 64, 32, 4, 6),
    ),
    4: (
        Tile(128, 128, 16, 8, 5),
        Tile(128, 64, 16, 4, 6),
        Tile(64, 64, 16, 4, 6),
    ),
}


def _configs(p: Problem) -> tuple[Tile, ...]:
    """The largest first, where tiles are too many to split sums and too few to fill the device
    twice (measured on an H200)."""
    (N, C, _, _), (CO, _, KH, KW), (_, _, OH, OW) = p.x, p.w, p.y
    size = CO, C, N * OH * OW
    tiles = tma.serving(p, *size)
    if p.capability is None:
        return tiles
    short = tma.serving(p, *size, SHORT)
    if tma.PROGRAMS < triton.cdiv(CO, 128) * triton.cdiv(C, 128) * KH * KW < 2 * tma.PROGRAMS:
        short = tuple(sorted(short, key=lambda t: -t.m * t.n))
    emptier = _boxes(p, short[0].k)[0] >= 1.5 * _boxes(p, tiles[0].k)[0]
    fast = p.dtype.itemsize == 2 and short[0].m * short[0].n >= tma.LARGE
    return tiles + short if emptier and not fast else short + tiles


def _yields(p: Problem) -> bool:
    """To gathered pixels, where boxes would be little more than half full (measured on an H200);
    of a stride, until it is measured."""
    N, _, OH, OW = p.y
    pixels = _configs(p)[0].k
    if tma.yields(p) or p.geometry.stride != (1, 1):
        return True
    return _boxes(p, pixels)[0] * pixels > 1.8 * N * OH * OW


def _declines(p: Problem) -> str | None:
    return declines_stride(p) or tma.declines(p)


WGRAD = Family("boxes", _declines, _configs, _prepare, _yields)
