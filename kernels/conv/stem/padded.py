"""Convolution forward with few channels, as of an image, through a copy with 4 channels a pixel and
with the padding in it: a row of the window is an aligned run of memory, and needs no bounds.

    y[n, oh, ow, o] = b[o] + sum_{kh, i} x4[n, oh*SH + kh*DH, ow*SW*4 + i] * w4[o, kh, i]
        where x4 is [N, H, W * 4], and i runs over KW*4 elements, padded to SPAN

and what the epilogue makes of it.  A program owns BLOCK_N output channels, whose weights it keeps
in shared memory, and walks over blocks of BLOCK_M pixels; loads of later blocks are under way while
a block is stored.  Statistics are sums about the first block's mean over all that a program walks
over.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._common import index_type, unravel
from ..._launch import INTERPRETED, INTERPRETED_BLOCK, launch
from ...norm.stats import about_mean, store_statistics
from ..epilogue import channel_terms, store_tile
from ..family import Call, Family, until_measured
from ..problem import Problem
from .rows import LEAST_BLOCK, declines

CHANNELS = 4  # of a copy's pixels: 8 bytes in half precision
MOST_WEIGHTS = 2**14  # of a block of output channels: they stay in shared memory
PROGRAMS = 132  # for each that a multiprocessor holds


@triton.jit(do_not_specialize=("H", "W", "PH", "PW", "numel"))
def _stem_copy_kernel(
    x_ptr, out_ptr, H, W, TO_H, TO_W, PH, PW, numel,  # x [N, H, W, C], out [N, TO_H, TO_W, 4]
    C: tl.constexpr, CHANNELS: tl.constexpr, INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    start = tl.cast(tl.program_id(0), INDEX) * BLOCK
    image, row, column = unravel(start, BLOCK, TO_H, TO_W)
    h, w = row - PH, column - PW
    inside = (h >= 0) & (h < H) & (w >= 0) & (w < W)
    p = start + tl.arange(0, BLOCK)
    c = tl.arange(0, CHANNELS)
    offs = ((tl.cast(image, INDEX) * H + h) * W + w) * C
    there = (inside & (p < numel))[:, None] & (c < C)[None, :]
    x = tl.load(x_ptr + (offs[:, None] + c[None, :]), mask=there, other=0.0)
    tl.store(out_ptr + (p[:, None] * CHANNELS + c[None, :]), x, mask=(p < numel)[:, None])


def copied(x: Tensor, rows: int, columns: int, above: int, left: int) -> Tensor:
    """x [N, C, H, W] as [N, rows, columns, 4] in memory, with zeros around it and in more channels;
    what is beyond the last row and column is cut off."""
    N, C, H, W = x.shape
    out = torch.empty((N, rows, columns, CHANNELS), dtype=x.dtype, device=x.device)
    pixels, block = N * rows * columns, 2**16 if INTERPRETED else 512
    launch(
        _stem_copy_kernel, triton.cdiv(pixels, block),
        x, out, H, W, rows, columns, above, left, pixels,
        C, CHANNELS, index_type(x, out), block,
        out=out,
    )  # fmt: skip
    return out


@triton.jit
def _products(
    x_ptr, w_tiles, m0, pixels, OH, OW, H, W,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, DH: tl.constexpr,
    SPAN: tl.constexpr, CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Sums [BLOCK_N, BLOCK_M] of pixels m0 and on."""
    image, oh, ow = unravel(m0, BLOCK_M, OH, OW)
    m, i = m0 + tl.arange(0, BLOCK_M), tl.arange(0, SPAN)
    pitch = tl.cast(W * CHANNELS, INDEX)
    first = (image * H + oh * SH) * pitch + ow * (SW * CHANNELS)
    x_tile_ptr = x_ptr + (first[:, None] + i[None, :])
    # beside the window not even a NaN may count
    inside = (m < pixels)[:, None] & (i < KW * CHANNELS)[None, :]
    acc = tl.zeros((BLOCK_N, BLOCK_M), ACC)
    for kh in tl.static_range(KH):
        x_tile = tl.load(x_tile_ptr + kh * DH * pitch, mask=inside, other=0.0)
        acc = tl.dot(w_tiles[kh], x_tile.T, acc, input_precision=PRECISION, out_dtype=ACC)
    return acc


@triton.jit(do_not_specialize=("pixels", "OH", "OW", "H", "walkers"))
def _conv2d_padded_stem_kernel(
    x_ptr, w_ptr, y_ptr,  # x4 [N, H, W, 4], w4 [CO, KH, SPAN], y [pixels, CO]
    pixels, OH, OW, H, W, walkers,
    b_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, residual_ptr, gate_ptr, partial_ptr,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr,
    CO: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    SH: tl.constexpr, SW: tl.constexpr, DH: tl.constexpr,
    SPAN: tl.constexpr, CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    tiles_n = tl.cdiv(CO, BLOCK_N)
    walker = tl.program_id(0) // tiles_n
    n = tl.program_id(0) % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    terms = channel_terms(b_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, n, n < CO, EPS, ACC)
    w_offs = n[:, None] * (KH * SPAN) + tl.arange(0, SPAN)[None, :]
    w_tiles = ()
    for kh in tl.static_range(KH):
        w_tiles += (tl.load(w_ptr + (w_offs + kh * SPAN), mask=(n < CO)[:, None], other=0.0),)

    total = tl.zeros((BLOCK_N,), ACC)
    near, squares, count = total, total, 0
    first = walker * BLOCK_M
    if partial_ptr is not None:
        acc = _products(
            x_ptr, w_tiles, tl.cast(first, INDEX), pixels, OH, OW, H, W, KH, KW, SH, SW,
            DH, SPAN, CHANNELS, PRECISION, ACC, INDEX, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        # beyond the last pixel there are zeros
        near = tl.sum(acc, axis=1) / tl.minimum(pixels - first, BLOCK_M).to(ACC) + terms[0]

    for m0 in tl.range(first, pixels, walkers * BLOCK_M, num_stages=STAGES):
        start = tl.cast(m0, INDEX)
        acc = _products(
            x_ptr, w_tiles, start, pixels, OH, OW, H, W, KH, KW, SH, SW,
            DH, SPAN, CHANNELS, PRECISION, ACC, INDEX, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        m = start + tl.arange(0, BLOCK_M)
        offs, inside = m[:, None] * CO + n[None, :], (m < pixels)[:, None] & (n < CO)[None, :]
        if partial_ptr is not None:
            # before they are stored, while a warp holds all of a channel's pixels
            if b_ptr is not None:
                acc += terms[0][:, None]
            y = acc.to(y_ptr.dtype.element_ty)
            offset = tl.where((m < pixels)[None, :], y.to(ACC) - near[:, None], 0.0)
            total += tl.sum(offset, axis=1)
            squares += tl.sum(offset * offset, axis=1)
            count += tl.minimum(pixels - m0, BLOCK_M)
            tl.store(y_ptr + offs, y.T, mask=inside)
        else:
            store_tile(
                acc.T, terms, y_ptr, offs, inside, b_ptr, mean_ptr, residual_ptr, gate_ptr,
                ACTIVATION, ACC,
            )  # fmt: skip

    if partial_ptr is not None:
        share = 1.0 / count.to(ACC)
        rest = total * share
        var = about_mean(squares * share, rest)
        C = tl.cast(CO, INDEX)
        store_statistics(partial_ptr, walker, n, C, n < CO, count.to(ACC), near, rest, var)


class Walk(NamedTuple):
    m: int  # pixels
    n: int  # output channels
    warps: int
    stages: int
    resident: int  # programs that a multiprocessor holds


WALKS = (Walk(64, 64, 4, 2, 2), Walk(128, 64, 4, 2, 1), Walk(64, 32, 4, 2, 4))


def span(p: Problem) -> int:
    """Elements that a row of the window takes."""
    return max(triton.next_power_of_2(p.w[3] * CHANNELS), LEAST_BLOCK)


def padded_sizes(p: Problem) -> tuple[int, int]:
    """Rows and columns of the copy: all that windows reach, and what is read with them."""
    (KH, _), g, (_, _, OH, OW) = p.w[2:], p.geometry, p.y
    rows = (OH - 1) * g.stride[0] + (KH - 1) * g.dilation[0] + 1
    return rows, (OW - 1) * g.stride[1] + span(p) // CHANNELS


def padded_declines(p: Problem) -> str | None:
    if p.dtype.itemsize > 2 and p.capability is not None:
        return "it multiplies in float16 or bfloat16"
    if p.w[2] * span(p) * 64 > MOST_WEIGHTS * 2:
        return "it takes windows of which shared memory holds 64 channels' weights"
    return declines(p)


def _configs(p: Problem) -> tuple[Walk, ...]:
    CO, pixels = p.w[0], p.y[0] * p.y[2] * p.y[3]
    if p.capability is None:
        m, n = (triton.next_power_of_2(size) for size in (pixels, CO))
        return (Walk(min(m, INTERPRETED_BLOCK // 128), min(n, 64), 1, 1, 1),)
    # of other GPUs, some have less shared memory than the largest takes
    walks = [walk for walk in WALKS if walk.m <= 64 or p.capability[0] == 9]
    guess = next((walk for walk in walks if walk.n <= CO), walks[-1])
    return guess, *(walk for walk in walks if walk != guess)


def _prepare(p: Problem, walk: Walk) -> Call:
    (N, CO, OH, OW), (KH, KW), g = p.y, p.w[2:], p.geometry
    pixels, (rows, columns) = N * OH * OW, padded_sizes(p)
    tiles_n = triton.cdiv(CO, walk.n)
    walkers = min(triton.cdiv(pixels, walk.m), max(PROGRAMS * walk.resident // tiles_n, 1))

    def operands(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        return copied(x, rows, columns, *g.before), copied(w, KH, span(p) // CHANNELS, 0, 0)

    return Call(
        _conv2d_padded_stem_kernel,
        walkers * tiles_n,
        (pixels, OH, OW, rows, columns, walkers),
        {
            **{"CO": CO, "KH": KH, "KW": KW, "SH": g.stride[0], "SW": g.stride[1]},
            **{"DH": g.dilation[0], "SPAN": span(p), "CHANNELS": CHANNELS},
            **p.numbers,
            "INDEX": p.index_of(N * rows * columns * CHANNELS),
            **{"BLOCK_M": walk.m, "BLOCK_N": walk.n, "STAGES": walk.stages},
            "num_warps": walk.warps,
        },
        parts=walkers,
        operands=operands,
    )


FORWARD = Family("padded", padded_declines, _configs, _prepare, until_measured)
