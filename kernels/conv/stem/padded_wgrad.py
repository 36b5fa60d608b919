"""Gradient of a convolution with few channels with respect to its weights, through a copy of x with
4 channels a pixel and with the padding in it.

    dw4[o, kh, i] = sum_{n, oh, ow} dy[n, oh, ow, o] * x4[n, oh*SH + kh*DH, ow*SW*4 + i]
        where x4 is [N, H, W * 4], and i runs over KW*4 elements, padded to SPAN

A program owns BLOCK_N output channels by TAPS rows of the window, and walks a share of the pixels,
BLOCK_M at a time; the shares' sums are added in fixed order.
"""

import math
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ... import _split
from ..._common import unravel
from ..._launch import INTERPRETED_BLOCK
from ..family import Call, Family, until_measured
from ..problem import Problem
from .padded import CHANNELS, PROGRAMS, copied, padded_declines, padded_sizes, span


@triton.jit(do_not_specialize=("pixels", "blocks", "blocks_a_split", "OH", "OW", "H"))
def _conv2d_padded_stem_wgrad_kernel(
    dy_ptr, x_ptr, dw_ptr,  # dy [pixels, CO], x4 [N, H, W, 4], dw [splits, CO, KH, KW, C]
    pixels, blocks, blocks_a_split, OH, OW, H, W,
    C: tl.constexpr, CO: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    SH: tl.constexpr, SW: tl.constexpr, DH: tl.constexpr,
    SPAN: tl.constexpr, CHANNELS: tl.constexpr, TAPS: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    tiles_n, tiles_h = tl.cdiv(CO, BLOCK_N), tl.cdiv(KH, TAPS)
    o = program % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    program = program // tiles_n
    kh0, split = program % tiles_h * TAPS, program // tiles_h
    block = split * blocks_a_split
    trips = tl.minimum(blocks - block, blocks_a_split)
    tl.assume(trips > 0)

    i = tl.arange(0, SPAN)
    pitch = tl.cast(W * CHANNELS, INDEX)
    acc = (tl.zeros((BLOCK_N, SPAN), ACC),) * TAPS
    for trip in tl.range(0, trips, num_stages=STAGES):
        start = tl.cast(block + trip, INDEX) * BLOCK_M
        image, oh, ow = unravel(start, BLOCK_M, OH, OW)
        m = start + tl.arange(0, BLOCK_M)
        first = (image * H + oh * SH + kh0 * DH) * pitch + ow * (SW * CHANNELS)
        x_tile_ptr = x_ptr + (first[:, None] + i[None, :])
        # beside the window not even a NaN may count
        inside = (m < pixels)[:, None] & (i < KW * CHANNELS)[None, :]
        dy_tile = tl.load(
            dy_ptr + (m[:, None] * CO + o[None, :]),
            mask=(m < pixels)[:, None] & (o < CO)[None, :],
            other=0.0,
        )
        more = ()
        for tap in tl.static_range(TAPS):
            x_tile = tl.load(
                x_tile_ptr + tap * DH * pitch, mask=inside & (kh0 + tap < KH), other=0.0
            )
            more += (tl.dot(dy_tile.T, x_tile, acc[tap], input_precision=PRECISION, out_dtype=ACC),)
        acc = more

    row = tl.cast(split, INDEX) * CO + o
    kw, c = i // CHANNELS, i % CHANNELS
    for tap in tl.static_range(TAPS):
        kh = kh0 + tap
        tl.store(
            dw_ptr + (row[:, None] * (KH * KW * C) + ((kh * KW + kw) * C + c)[None, :]),
            acc[tap],
            mask=(o < CO)[:, None] & ((kw < KW) & (c < C))[None, :] & (kh < KH),
        )


class Share(NamedTuple):
    m: int  # pixels
    n: int  # output channels
    taps: int  # rows of the window
    warps: int
    stages: int
    resident: int  # programs that a multiprocessor holds


SHARES = (Share(64, 64, 7, 4, 2, 3), Share(64, 64, 4, 4, 2, 4), Share(64, 32, 7, 4, 2, 3))


def _configs(p: Problem) -> tuple[Share, ...]:
    CO, pixels = p.w[0], p.y[0] * p.y[2] * p.y[3]
    if p.capability is None:
        m, n = (triton.next_power_of_2(size) for size in (pixels, CO))
        return (Share(min(m, INTERPRETED_BLOCK // 128), min(n, 64), 3, 1, 1, 1),)
    guess = next((share for share in SHARES if share.n <= CO), SHARES[-1])
    found = (guess, *(share for share in SHARES if share != guess))
    # rows of the window whose sums fit into registers
    most = max((256 if p.capability[0] >= 9 else 128) // span(p), 1)
    return tuple(dict.fromkeys(s._replace(taps=min(s.taps, p.w[2], most)) for s in found))


def _prepare(p: Problem, share: Share) -> Call:
    (N, CO, OH, OW), (_, C, KH, KW), g = p.y, p.w, p.geometry
    pixels, (rows, columns) = N * OH * OW, padded_sizes(p)
    programs = triton.cdiv(CO, share.n) * triton.cdiv(KH, share.taps)
    blocks = triton.cdiv(pixels, share.m)
    splits, blocks_a_split = _split.shares(programs, blocks, blocks, PROGRAMS * share.resident)

    def operands(dy: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return dy, copied(x, rows, columns, *g.before)

    return Call(
        _conv2d_padded_stem_wgrad_kernel,
        programs * splits,
        (pixels, blocks, blocks_a_split, OH, OW, rows, columns),
        {
            **{"C": C, "CO": CO, "KH": KH, "KW": KW, "SH": g.stride[0], "SW": g.stride[1]},
            **{"DH": g.dilation[0], "SPAN": span(p), "CHANNELS": CHANNELS, "TAPS": share.taps},
            **p.numbers,
            "INDEX": p.index_of(max(N * rows * columns * CHANNELS, splits * math.prod(p.w))),
            **{"BLOCK_M": share.m, "BLOCK_N": share.n, "STAGES": share.stages},
            "num_warps": share.warps,
        },
        parts=splits,
        operands=operands,
    )


WGRAD = Family("padded", padded_declines, _configs, _prepare, until_measured)
