"""Gradient of a 1x1 convolution of stride 1 with respect to its weights: a matrix product.

    dw[o, c] = sum_p dy[p, o] * x[p, c]

A program owns BLOCK_M output channels by BLOCK_N input channels, and a share of the pixels where
the outputs alone are too few: partial sums go to a workspace and are added in fixed order.
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
from .product import declines

WIDE = Tile(64, 128, 64, 4, 4)  # in half precision


@triton.jit(do_not_specialize=("pixels", "units_c", "units_co", "blocks_a_split"))
def _conv2d_gemm_wgrad_kernel(
    dy_desc, x_desc, dw_ptr,  # dy [P, CO], x [P, C], dw [splits, CO, C]
    pixels, units_c, units_co, blocks_a_split,
    UNIT: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    C, CO = units_c * UNIT, units_co * UNIT
    tiles_c, tiles_co = tl.cdiv(C, BLOCK_N), tl.cdiv(CO, BLOCK_M)
    o0 = program % tiles_co * BLOCK_M
    c0 = program // tiles_co % tiles_c * BLOCK_N
    split = program // (tiles_co * tiles_c)
    p0 = split * blocks_a_split * BLOCK_K
    trips = tl.minimum(tl.cdiv(pixels - p0, BLOCK_K), blocks_a_split)
    tl.assume(trips > 0)

    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for _ in tl.range(0, trips, num_stages=STAGES):
        dy_tile, x_tile = dy_desc.load([p0, o0]), x_desc.load([p0, c0])
        acc = tl.dot(dy_tile.T, x_tile, acc, input_precision=PRECISION, out_dtype=ACC)
        p0 += BLOCK_K

    o, c = o0 + tl.arange(0, BLOCK_M), c0 + tl.arange(0, BLOCK_N)
    row = tl.cast(split, INDEX) * CO + o
    tl.store(
        dw_ptr + (row[:, None] * C + c[None, :]), acc, mask=(o < CO)[:, None] & (c < C)[None, :]
    )


def _shape(p: Problem) -> tuple[int, int, int]:
    """The product's rows, columns and reduction."""
    (N, C, H, W), CO = p.x, p.w[0]
    return CO, C, N * H * W


def _prepare(p: Problem, tile: Tile) -> Call:
    CO, C, pixels = _shape(p)
    programs = triton.cdiv(CO, tile.m) * triton.cdiv(C, tile.n)
    blocks = triton.cdiv(pixels, tile.k)
    splits, blocks_a_split = _split.shares(programs, blocks, blocks)

    of_dy = tma.descriptor((pixels, CO), (tile.k, tile.m))
    of_x = tma.descriptor((pixels, C), (tile.k, tile.n))

    def operands(dy: Tensor, x: Tensor) -> tuple[TensorDescriptor, TensorDescriptor]:
        return of_dy(dy), of_x(x)

    return Call(
        _conv2d_gemm_wgrad_kernel,
        programs * splits,
        (pixels, C // tma.unit(p), CO // tma.unit(p), blocks_a_split),
        {
            "UNIT": tma.unit(p),
            **p.numbers,
            "INDEX": p.index_of(splits * math.prod(p.w)),
            **tile.constants,
        },
        parts=splits,
        operands=operands,
    )


def _configs(p: Problem) -> tuple[Tile, ...]:
    m, n, k = _shape(p)
    # where there are few products, more programs are better than larger ones (measured on an H200)
    few = m * n < 2**16 or n < 128
    if p.capability is not None and p.dtype.itemsize == 2 and not few:
        return WIDE, *tma.serving(p, m, n, k)
    # elsewhere memory bounds it: a tile half empty costs nothing, and spares a kernel
    return tma.serving(p, *((64, 64) if few else (max(m, 128), n)), k)


WGRAD = Family("gemm", declines, _configs, _prepare, tma.yields)
