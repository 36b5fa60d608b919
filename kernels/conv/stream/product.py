"""1x1 convolution of stride 1, and its gradient with respect to its input, for short sums.

    y[p, o] = sum_c x[p, c] * w[o, c]        dx[p, c] = sum_o dy[p, o] * w[o, c]

and what the epilogue makes of them.  Memory bounds these: a program keeps the weights of BLOCK_N
channels and walks over blocks of BLOCK_M pixels, each a product in one step, so that the next
blocks' loads are under way while this one is stored.  Statistics are sums over all that a program
walks over, about its first block's mean.

x may be z = act(normalised c), and made of c on the way: each block is normalised between its load
and its product.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ...norm.activation import activated
from ...norm.normalise import coefficients, vector
from ...norm.stats import store_sums
from .. import tma
from ..epilogue import channel_terms, store_and_add, store_tile
from ..family import Call, Family, until_measured
from ..gemm.product import declines as gemm_declines
from ..gemm.product import shape
from ..problem import Problem


@triton.jit(do_not_specialize=("pixels", "units", "walkers"))
def _conv2d_stream_kernel(
    x_desc, w_desc, y_ptr,  # source [P, K], w as below, result [P, C]
    pixels, units, walkers,
    b_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, residual_ptr, gate_ptr, partial_ptr,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr, W_ALONG_K: tl.constexpr, UNIT: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """W_ALONG_K: w is [C, K], otherwise [K, C]; a block holds all of K."""
    C = units * UNIT
    tiles_c = tl.cdiv(C, BLOCK_N)
    walker, c0 = tl.program_id(0) // tiles_c, tl.program_id(0) % tiles_c * BLOCK_N
    c = c0 + tl.arange(0, BLOCK_N)
    terms = channel_terms(b_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, c, c < C, EPS, ACC)
    w_tile = w_desc.load([c0, 0]) if W_ALONG_K else w_desc.load([0, c0]).T

    total = tl.zeros((BLOCK_N,), ACC)
    near, squares, count = total, total, 0
    share = 1.0 / tl.cdiv(pixels, walkers)
    first = walker * BLOCK_M
    if partial_ptr is not None:
        x_tile = x_desc.load([first, 0])
        acc = tl.dot(w_tile, x_tile.T, input_precision=PRECISION, out_dtype=ACC)
        # beyond the last pixel there are zeros
        near = tl.sum(acc, axis=1) / tl.minimum(pixels - first, BLOCK_M).to(ACC) + terms[0]

    for m0 in tl.range(first, pixels, walkers * BLOCK_M, num_stages=STAGES):
        x_tile = x_desc.load([m0, 0])
        acc = tl.dot(w_tile, x_tile.T, input_precision=PRECISION, out_dtype=ACC)
        m = tl.cast(m0, INDEX) + tl.arange(0, BLOCK_M)
        offs = m[:, None] * C + c[None, :]
        if partial_ptr is not None:
            near, total, squares, count = store_and_add(
                acc, terms[0], y_ptr, offs, m < pixels, c < C, b_ptr,
                near, total, squares, count, tl.minimum(pixels - m0, BLOCK_M), share, False, ACC,
            )  # fmt: skip
        else:
            store_tile(
                acc.T, terms, y_ptr, offs, (m < pixels)[:, None] & (c < C)[None, :],
                b_ptr, mean_ptr, residual_ptr, gate_ptr, ACTIVATION, ACC,
            )  # fmt: skip

    if partial_ptr is not None:
        store_sums(partial_ptr, walker, c, C, c < C, near, total, squares, count, share)


@triton.jit
def _product_of_normalised(
    c_desc, w_tiles, terms, m0,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PARTS_K: tl.constexpr,
):  # fmt: skip
    """Of output channels [BLOCK_N] by pixels from m0 on [BLOCK_M]; BLOCK_K channels at a time."""
    acc = tl.zeros((BLOCK_N, BLOCK_M), ACC)
    for i in tl.static_range(PARTS_K):
        c_tile = c_desc.load([m0, i * BLOCK_K])
        mean, _, scale, shift = terms[i]
        z = (c_tile.to(ACC) - mean[None, :]) * scale[None, :] + shift[None, :]
        z = activated(z, ACTIVATION).to(c_tile.dtype)
        acc = tl.dot(w_tiles[i], z.T, acc, input_precision=PRECISION, out_dtype=ACC)
    return acc


@triton.jit(do_not_specialize=("pixels", "K", "units", "walkers"))
def _conv2d_stream_normalised_kernel(
    c_desc, w_desc, y_ptr,  # c [P, K], w [C, K], y [P, C]
    pixels, K, units, walkers,
    mean_ptr, var_ptr, scale_ptr, shift_ptr, b_ptr, partial_ptr,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr, UNIT: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PARTS_K: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """With statistics."""
    C = units * UNIT
    tiles_c = tl.cdiv(C, BLOCK_N)
    walker, c0 = tl.program_id(0) // tiles_c, tl.program_id(0) % tiles_c * BLOCK_N
    c = c0 + tl.arange(0, BLOCK_N)
    bias = vector(b_ptr, c, c < C, 0.0, ACC)
    w_tiles, terms = (), ()
    for i in tl.static_range(PARTS_K):
        w_tiles += (w_desc.load([c0, i * BLOCK_K]),)
        k = i * BLOCK_K + tl.arange(0, BLOCK_K)
        terms += (coefficients(mean_ptr, var_ptr, scale_ptr, shift_ptr, k, k < K, EPS, ACC),)

    first = walker * BLOCK_M
    acc = _product_of_normalised(
        c_desc, w_tiles, terms, first, ACTIVATION, PRECISION, ACC,
        BLOCK_M, BLOCK_N, BLOCK_K, PARTS_K,
    )  # fmt: skip
    inside = first + tl.arange(0, BLOCK_M) < pixels
    n = tl.minimum(pixels - first, BLOCK_M).to(ACC)
    near = tl.sum(tl.where(inside[None, :], acc, 0.0), axis=1) / n + bias
    total = tl.zeros((BLOCK_N,), ACC)
    squares, count = total, 0
    share = 1.0 / tl.cdiv(pixels, walkers)
    for m0 in tl.range(first, pixels, walkers * BLOCK_M, num_stages=STAGES):
        acc = _product_of_normalised(
            c_desc, w_tiles, terms, m0, ACTIVATION, PRECISION, ACC,
            BLOCK_M, BLOCK_N, BLOCK_K, PARTS_K,
        )  # fmt: skip
        m = tl.cast(m0, INDEX) + tl.arange(0, BLOCK_M)
        near, total, squares, count = store_and_add(
            acc, bias, y_ptr, m[:, None] * C + c[None, :], m < pixels, c < C, b_ptr,
            near, total, squares, count, tl.minimum(pixels - m0, BLOCK_M), share, False, ACC,
        )  # fmt: skip
    store_sums(partial_ptr, walker, c, C, c < C, near, total, squares, count, share)


class Walk(NamedTuple):
    m: int  # pixels
    n: int  # channels
    warps: int
    resident: int  # programs that a multiprocessor holds


# By element size in bytes.
WALKS = {
    2: (
        Walk(64, 64, 4, 4),
        Walk(128, 64, 4, 3),
        Walk(64, 128, 4, 3),
    ),
    4: (Walk(64, 64, 4, 3),),
}
MOST_BYTES = 512  # of a pixel
LEAST_K = 16  # elements of a matrix instruction
RING = 2**15  # bytes of pixels that a program has under way, in 2 to MOST_STAGES blocks
MOST_STAGES = 4
NORMALISED = 64  # channels of a block that are normalised at a time: a thread has 32 values


def _declines(p: Problem) -> str | None:
    _, _, k = shape(p)
    most = MOST_BYTES // p.dtype.itemsize
    if k > most:
        return f"it sums over at most {most} channels"
    return gemm_declines(p)


def _prepare(p: Problem, walk: Walk) -> Call:
    pixels, C, K = shape(p)
    block_k = max(triton.next_power_of_2(K), LEAST_K)
    of_x = tma.descriptor((pixels, K), (walk.m, block_k))
    along_k, of_w = tma.weights(p, 1, C, K, (walk.n, block_k))

    def operands(x: Tensor, w: Tensor) -> tuple[TensorDescriptor, TensorDescriptor]:
        return of_x(x), of_w(w)

    walkers, constants = _walk(p, walk, block_k)
    return Call(
        _conv2d_stream_kernel,
        walkers * triton.cdiv(C, walk.n),
        (pixels, C // tma.unit(p), walkers),
        {"W_ALONG_K": along_k, **constants},
        parts=walkers,
        operands=operands,
    )


def _prepare_normalised(p: Problem, walk: Walk) -> Call:
    """Forward with statistics, whose x is normalised on the way."""
    pixels, C, K = shape(p)
    whole = max(triton.next_power_of_2(K), LEAST_K)
    block_k = min(whole, NORMALISED)
    of_c = tma.descriptor((pixels, K), (walk.m, block_k))
    _, of_w = tma.weights(p, 1, C, K, (walk.n, block_k))

    def operands(c: Tensor, w: Tensor) -> tuple[TensorDescriptor, TensorDescriptor]:
        return of_c(c), of_w(w)

    walkers, constants = _walk(p, walk, whole)
    return Call(
        _conv2d_stream_normalised_kernel,
        walkers * triton.cdiv(C, walk.n),
        (pixels, K, C // tma.unit(p), walkers),
        {**constants, "BLOCK_K": block_k, "PARTS_K": whole // block_k},
        parts=walkers,
        operands=operands,
    )


def _walk(p: Problem, walk: Walk, block_k: int) -> tuple[int, dict[str, Any]]:
    """How many programs share the pixels of a block of channels, and a kernel's constants."""
    pixels, C, _ = shape(p)
    stages = min(max(RING // (walk.m * block_k * p.dtype.itemsize), 2), MOST_STAGES)
    most = max(tma.PROGRAMS * walk.resident // triton.cdiv(C, walk.n), 1)
    constants = {
        **{"UNIT": tma.unit(p), **p.numbers},
        **{"BLOCK_M": walk.m, "BLOCK_N": walk.n, "STAGES": stages},
        "num_warps": walk.warps,
    }
    return min(triton.cdiv(pixels, walk.m), most), constants


def _configs(p: Problem) -> tuple[Walk, ...]:
    if p.capability is None:
        pixels, C, _ = shape(p)
        m, n = (triton.next_power_of_2(size) for size in (pixels, C))
        return (Walk(min(m, 128), min(n, 256), 1, 1),)
    return WALKS[p.dtype.itemsize]


FORWARD = Family(
    "stream", _declines, _configs, _prepare, until_measured, normalised=_prepare_normalised
)
DGRAD = Family("stream", _declines, _configs, _prepare, until_measured)
