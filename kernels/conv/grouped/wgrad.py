"""Gradient of a convolution with few channels a group with respect to its weights.

    dw[o, kh, kw, c] = sum_{n, oh, ow} dy[n, oh, ow, o] * x[n, h, w, c]
        where h = oh*SH - PH + kh*DH, w = ow*SW - PW + kw*DW, and c is of o's group

A program owns ROWS rows of the window for BUNDLE neighbouring groups, multiplies all their channels
with each other and stores the groups' blocks.  It walks a share of the boxes of
[BOX_N, BOX_H, BOX_W] output pixels; the shares' sums are added in fixed order.
"""

import math

import triton
import triton.language as tl

from ... import _split
from ..box import box_of, first_box, next_box
from ..family import Call, Family
from ..problem import Problem
from .bundles import Bundle, bundles, constants, declines, serving
from .taps import bundle_channels

SIZES = ("N", "H", "W", "OH", "OW", "boxes_h", "boxes_w", "boxes", "boxes_a_split")
# Of a window, by element size in bytes: a program holds the sums of a row.
MOST_COLUMNS = {2: 7, 4: 3, 8: 3}
PROGRAMS = 528  # four for each multiprocessor of an H100, which hide each other's loads
WARPS = 1320  # and ten of their warps at least


@triton.jit(do_not_specialize=SIZES)
def _conv2d_grouped_wgrad_kernel(
    dy_ptr, x_ptr, dw_ptr,  # dy [N, OH, OW, CO], x [N, H, W, C], dw [splits, CO, KH, KW, CG]
    N, H, W, OH, OW, boxes_h, boxes_w, boxes, boxes_a_split,
    KH: tl.constexpr, KW: tl.constexpr,
    SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr,
    GROUPS: tl.constexpr, CG: tl.constexpr, COG: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BUNDLE: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr,
    BOX_N: tl.constexpr, BOX_H: tl.constexpr, BOX_W: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    bundles = tl.cdiv(GROUPS, BUNDLE)
    group = program % bundles * BUNDLE
    program = program // bundles
    tiles_h = tl.cdiv(KH, ROWS)
    kh0, split = program % tiles_h * ROWS, program // tiles_h
    c, c_inside = bundle_channels(group, GROUPS, BUNDLE, CG, BLOCK_C)
    o, o_inside = bundle_channels(group, GROUPS, BUNDLE, COG, BLOCK_O)
    C, CO = tl.cast(CG * GROUPS, INDEX), tl.cast(COG * GROUPS, INDEX)

    box = split * boxes_a_split
    trips = tl.minimum(boxes - box, boxes_a_split)
    tl.assume(trips > 0)
    n0, oh0, ow0 = first_box(box, boxes_h, boxes_w, BOX_N, BOX_H, BOX_W)
    p = tl.arange(0, BOX_N * BOX_H * BOX_W)
    n, h, w = p // (BOX_H * BOX_W), p // BOX_W % BOX_H, p % BOX_W
    image = tl.cast(n0 + n, INDEX)
    oh, ow = oh0 + h, ow0 + w
    dy_tile_ptr = dy_ptr + (
        (((image * OH + oh) * OW + ow) * CO)[None, :] + (group * COG + o)[:, None]
    )
    x_tile_ptr = x_ptr + (
        (((image * H + oh * SH - PH + kh0 * DH) * W + ow * SW - PW) * C)[:, None]
        + (group * CG + c)[None, :]
    )
    span_h, span_w = boxes_h * BOX_H, boxes_w * BOX_W

    acc = (tl.zeros((BLOCK_O, BLOCK_C), ACC),) * (ROWS * KW)
    dy_off, x_off = C * 0, C * 0  # zeros of the index type
    for _ in tl.range(0, trips, num_stages=STAGES):
        oh, ow = oh0 + h, ow0 + w
        inside = (oh < OH) & (ow < OW) & (n0 + n < N)
        dy_tile = tl.load(dy_tile_ptr + dy_off, mask=inside[None, :] & o_inside[:, None], other=0.0)
        # all loads before the products, so that one wait is for them all
        x_tiles, more = (), ()
        for tap in tl.static_range(ROWS * KW):
            x_h, x_w = oh * SH - PH + (kh0 + tap // KW) * DH, ow * SW - PW + tap % KW * DW
            # one comparison each: what is negative is large without its sign
            hit = (x_h.to(tl.uint32, bitcast=True) < H) & (x_w.to(tl.uint32, bitcast=True) < W)
            x_tiles += (
                tl.load(
                    x_tile_ptr + (x_off + tap // KW * DH * W * C + tap % KW * DW * C),
                    mask=(hit & inside)[:, None] & c_inside[None, :],
                    other=0.0,
                ),
            )
        for tap in tl.static_range(ROWS * KW):
            more += (
                tl.dot(dy_tile, x_tiles[tap], acc[tap], input_precision=PRECISION, out_dtype=ACC),
            )
        acc = more

        n0, oh0, ow0, row_done, image_done = next_box(
            n0, oh0, ow0, span_h, span_w, BOX_N, BOX_H, BOX_W
        )  # fmt: skip
        dy_off += BOX_W * CO + tl.where(row_done, (BOX_H * OW - span_w) * CO, 0)
        dy_off += tl.where(image_done, (BOX_N * OH - span_h) * OW * CO, 0)
        x_off += BOX_W * SW * C + tl.where(row_done, (BOX_H * SH * W - span_w * SW) * C, 0)
        x_off += tl.where(image_done, (BOX_N * H - span_h * SH) * W * C, 0)

    row = tl.cast(split, INDEX) * CO + group * COG + o
    same_group = (o // COG)[:, None] == (c // CG)[None, :]
    for tap in tl.static_range(ROWS * KW):
        kh = kh0 + tap // KW
        column = (kh * KW + tap % KW) * CG + c % CG
        tl.store(
            dw_ptr + (row[:, None] * (KH * KW * CG) + column[None, :]),
            acc[tap],
            mask=same_group & o_inside[:, None] & c_inside[None, :] & (kh < KH),
        )


def _declines(p: Problem) -> str | None:
    most = MOST_COLUMNS[p.dtype.itemsize]
    if p.w[3] > most:
        return f"it takes windows of at most {most} columns in {p.dtype}"
    return declines(p)


def _configs(p: Problem) -> tuple[Bundle, ...]:
    N, _, OH, OW = p.y
    found = serving(p, N * triton.next_power_of_2(OH) * triton.next_power_of_2(OW))
    if p.capability is not None and p.dtype.itemsize == 2 and max(p.channels) == 8:
        return tuple(sorted(found, key=lambda b: (-b.width, b.stages)))  # measured on an H200
    return found


def _prepare(p: Problem, bundle: Bundle) -> Call:
    (_, _, H, W), (_, _, KH, KW), (N, _, OH, OW) = p.x, p.w, p.y
    box = box_of(bundle.m, (N, OH, OW))
    boxes_n, boxes_h, boxes_w = map(triton.cdiv, (N, OH, OW), box)
    boxes = boxes_n * boxes_h * boxes_w
    rows = min(max(bundle.taps // KW, 1), KH)
    programs = bundles(p, bundle) * triton.cdiv(KH, rows)
    wanted = max(PROGRAMS, WARPS // bundle.warps)
    splits, boxes_a_split = _split.shares(programs, boxes, boxes, wanted)
    return Call(
        _conv2d_grouped_wgrad_kernel,
        programs * splits,
        (N, H, W, OH, OW, boxes_h, boxes_w, boxes, boxes_a_split),
        {
            **constants(p, bundle),
            "ROWS": rows,
            **dict(zip(("BOX_N", "BOX_H", "BOX_W"), box, strict=True)),
            "INDEX": p.index_of(splits * math.prod(p.w)),
        },
        parts=splits,
    )


WGRAD = Family("grouped", _declines, _configs, _prepare)
