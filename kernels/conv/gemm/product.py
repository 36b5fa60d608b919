"""1x1 convolution of stride 1, and its gradient with respect to its input: matrix products.

    y[p, o] = sum_c x[p, c] * w[o, c]        dx[p, c] = sum_o dy[p, o] * w[o, c]

and what the epilogue makes of them.  A program owns BLOCK_M pixels by BLOCK_N channels, which it
computes transposed: the epilogue's vectors then take a few registers instead of most.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .. import tma
from ..epilogue import finish
from ..family import Call, Family
from ..general.tiles import Tile
from ..problem import Problem


@triton.jit(do_not_specialize=("pixels", "K", "units"))
def _conv2d_gemm_kernel(
    x_desc, w_desc, y_ptr,  # source [P, K], w as below, result [P, C]
    pixels, K, units,
    b_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, residual_ptr, gate_ptr, partial_ptr,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr, W_ALONG_K: tl.constexpr, UNIT: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """W_ALONG_K: w is [C, K], otherwise [K, C]."""
    program = tl.program_id(0)
    C = units * UNIT
    tiles_c = tl.cdiv(C, BLOCK_N)
    part = program // tiles_c
    m0, c0 = part * BLOCK_M, program % tiles_c * BLOCK_N

    acc = tl.zeros((BLOCK_N, BLOCK_M), ACC)
    tl.assume(K > 0)
    for k in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        x_tile = x_desc.load([m0, k])
        w_tile = w_desc.load([c0, k]) if W_ALONG_K else w_desc.load([k, c0]).T
        acc = tl.dot(w_tile, x_tile.T, acc, input_precision=PRECISION, out_dtype=ACC)

    m = tl.cast(m0, INDEX) + tl.arange(0, BLOCK_M)
    c = c0 + tl.arange(0, BLOCK_N)
    finish(
        acc.T, y_ptr, m[:, None] * C + c[None, :], m < pixels, tl.minimum(pixels - m0, BLOCK_M),
        c, C, c < C, part,
        b_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, residual_ptr, gate_ptr, partial_ptr,
        EPS, ACTIVATION, ACC,
    )  # fmt: skip


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
    of_x = tma.descriptor((pixels, K), (tile.m, tile.k))
    along_k, of_w = tma.weights(p, 1, C, K, (tile.n, tile.k))

    def operands(x: Tensor, w: Tensor) -> tuple[TensorDescriptor, TensorDescriptor]:
        return of_x(x), of_w(w)

    parts = triton.cdiv(pixels, tile.m)
    return Call(
        _conv2d_gemm_kernel,
        parts * triton.cdiv(C, tile.n),
        (pixels, K, C // tma.unit(p)),
        {"W_ALONG_K": along_k, "UNIT": tma.unit(p), **p.numbers, **tile.constants},
        parts=parts,
        operands=operands,
    )


def _configs(p: Problem) -> tuple[Tile, ...]:
    return tma.serving(p, *shape(p))


FORWARD = Family("gemm", declines, _configs, _prepare, tma.yields)
DGRAD = Family("gemm", declines, _configs, _prepare, tma.yields)
