"""1x1 convolution of stride 1, and its gradient with respect to its input: matrix products.

    y[p, o] = sum_c x[p, c] * w[o, c]        dx[p, c] = sum_o dy[p, o] * w[o, c]

and what the epilogue makes of them.  A program owns BLOCK_M pixels by BLOCK_N channels, which it
computes transposed: the epilogue's vectors then take a few registers instead of most.  With
statistics it walks over several such blocks of pixels, of all of which it leaves one part.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ...norm.normalise import coefficients, vector
from ...norm.stats import store_sums
from .. import tma
from ..epilogue import (
    add_to_sums,
    channel_terms,
    pieces,
    room,
    store_and_add,
    store_tile,
    store_undone,
)
from ..family import Call, Family
from ..general.tiles import Tile
from ..problem import Problem


@triton.jit
def _product(
    x_desc, w_desc, m0, c0, K, W_ALONG_K: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Of channels from c0 on [BLOCK_N] by pixels from m0 on [BLOCK_M]."""
    acc = tl.zeros((BLOCK_N, BLOCK_M), ACC)
    tl.assume(K > 0)
    for k in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        x_tile = x_desc.load([m0, k])
        w_tile = w_desc.load([c0, k]) if W_ALONG_K else w_desc.load([k, c0]).T
        acc = tl.dot(w_tile, x_tile.T, acc, input_precision=PRECISION, out_dtype=ACC)
    return acc


@triton.jit(do_not_specialize=("pixels", "K", "units", "walkers"))
def _conv2d_gemm_kernel(
    x_desc, w_desc, y_ptr,  # source [P, K], w as below, result [P, C]
    pixels, K, units, walkers,
    b_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, residual_ptr, gate_ptr, partial_ptr,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr, W_ALONG_K: tl.constexpr, UNIT: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
    PIECES: tl.constexpr,
):  # fmt: skip
    """W_ALONG_K: w is [C, K], otherwise [K, C]."""
    program = tl.program_id(0)
    C = units * UNIT
    tiles_c = tl.cdiv(C, BLOCK_N)
    part = program // tiles_c
    first, c0 = part * BLOCK_M, program % tiles_c * BLOCK_N
    c = c0 + tl.arange(0, BLOCK_N)
    PIECE: tl.constexpr = BLOCK_M // PIECES
    if partial_ptr is None:
        acc = _product(
            x_desc, w_desc, first, c0, K, W_ALONG_K, PRECISION, ACC,
            BLOCK_M, BLOCK_N, BLOCK_K, STAGES,
        )  # fmt: skip
        acc = pieces(acc, PIECES)
        terms = channel_terms(b_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, c, c < C, EPS, ACC)
        for i in tl.static_range(PIECES):
            m = tl.cast(first + i * PIECE, INDEX) + tl.arange(0, PIECE)
            store_tile(
                acc[i].T, terms, y_ptr, m[:, None] * C + c[None, :],
                (m < pixels)[:, None] & (c < C)[None, :],
                b_ptr, mean_ptr, residual_ptr, gate_ptr, ACTIVATION, ACC,
            )  # fmt: skip
    else:
        bias = vector(b_ptr, c, c < C, 0.0, ACC)
        total = tl.zeros((BLOCK_N,), ACC)
        near, squares, count = total, total, 0
        share = 1.0 / tl.cdiv(pixels, walkers)
        for m0 in range(first, pixels, walkers * BLOCK_M):
            acc = _product(
                x_desc, w_desc, m0, c0, K, W_ALONG_K, PRECISION, ACC,
                BLOCK_M, BLOCK_N, BLOCK_K, STAGES,
            )  # fmt: skip
            acc = pieces(acc, PIECES)
            for i in tl.static_range(PIECES):
                p0 = m0 + i * PIECE
                m = tl.cast(p0, INDEX) + tl.arange(0, PIECE)
                near, total, squares, count = store_and_add(
                    acc[i], bias, y_ptr, m[:, None] * C + c[None, :], m < pixels, c < C, b_ptr,
                    near, total, squares, count, tl.minimum(tl.maximum(pixels - p0, 0), PIECE),
                    share, i == 0, ACC,
                )  # fmt: skip
        store_sums(partial_ptr, part, c, C, c < C, near, total, squares, count, share)


@triton.jit(do_not_specialize=("pixels", "K", "units", "walkers"))
def _conv2d_gemm_sums_kernel(
    dy_desc, w_desc, g_ptr,  # dy [P, K], w as above, g, c and z [P, C]
    pixels, K, units, walkers,
    c_ptr, z_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, partial_ptr,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr, W_ALONG_K: tl.constexpr, UNIT: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
    PIECES: tl.constexpr,
):  # fmt: skip
    """dgrad, and all that goes back to c of the batch norm below it."""
    program = tl.program_id(0)
    C = units * UNIT
    tiles_c = tl.cdiv(C, BLOCK_N)
    walker, c0 = program // tiles_c, program % tiles_c * BLOCK_N
    c = c0 + tl.arange(0, BLOCK_N)
    COUNT: tl.constexpr = 2 * PIECES if PIECES > 1 else 1  # more is alive than with statistics
    PIECE: tl.constexpr = BLOCK_M // COUNT
    sums_ptr = partial_ptr + walker * 2 * C
    for m0 in range(walker * BLOCK_M, pixels, walkers * BLOCK_M):
        acc = _product(
            dy_desc, w_desc, m0, c0, K, W_ALONG_K, PRECISION, ACC,
            BLOCK_M, BLOCK_N, BLOCK_K, STAGES,
        )  # fmt: skip
        acc = pieces(acc, COUNT)
        sum_g = tl.zeros((PIECE, BLOCK_N), ACC)
        sum_g_c = sum_g
        for i in tl.static_range(COUNT):
            m = tl.cast(m0 + i * PIECE, INDEX) + tl.arange(0, PIECE)
            mean, _, scale, shift = coefficients(
                mean_ptr, var_ptr, scale_ptr, shift_ptr, c, c < C, EPS, ACC
            )  # fmt: skip
            sum_g, sum_g_c = store_undone(
                acc[i].T, mean, scale, shift, g_ptr, c_ptr, z_ptr,
                m[:, None] * C + c[None, :], (m < pixels)[:, None] & (c < C)[None, :],
                sum_g, sum_g_c, ACTIVATION, ACC,
            )  # fmt: skip
        first = m0 == walker * BLOCK_M
        add_to_sums(sums_ptr, first, sum_g, sum_g_c, c, c < C, C, var_ptr, EPS, ACC)


def declines(p: Problem) -> str | None:
    if p.w[2:] != (1, 1) or any(p.geometry.before) or p.x[2:] != p.y[2:]:
        return "it takes 1x1 kernels of stride 1 without padding"
    return tma.declines(p)


def shape(p: Problem) -> tuple[int, int, int]:
    """The product's rows, columns and reduction."""
    (N, C, H, W), CO = p.x, p.w[0]
    return (N * H * W, CO, C) if p.work == "forward" else (N * H * W, C, CO)


def _prepare(p: Problem, tile: Tile) -> Call:
    pixels, C, K = shape(p)
    tile = tma.of_steps(tile, triton.cdiv(K, tile.k), p.dtype.itemsize)
    of_x = tma.descriptor((pixels, K), (tile.m, tile.k))
    along_k, of_w = tma.weights(p, 1, C, K, (tile.n, tile.k))

    def operands(x: Tensor, w: Tensor) -> tuple[TensorDescriptor, TensorDescriptor]:
        return of_x(x), of_w(w)

    tiles_c = triton.cdiv(C, tile.n)
    walkers = tma.walkers(p, tile, triton.cdiv(pixels, tile.m), tiles_c)
    return Call(
        _conv2d_gemm_kernel,
        walkers * tiles_c,
        (pixels, K, C // tma.unit(p), walkers),
        {
            "W_ALONG_K": along_k,
            "UNIT": tma.unit(p),
            **p.numbers,
            **tile.constants,
            **room(tile, p.statistics),
        },
        parts=walkers,
        operands=operands,
    )


def _configs(p: Problem) -> tuple[Tile, ...]:
    return tma.serving(p, *shape(p))


FORWARD = Family("gemm", declines, _configs, _prepare, tma.yields)
DGRAD = Family("gemm", declines, _configs, _prepare, tma.yields, _conv2d_gemm_sums_kernel)
