"""Gradient of a grouped convolution of stride 1 with respect to its weights: shifted pixels, by the
tensor memory accelerator.

    dw[o, kh, kw, c] = sum_{n, oh, ow} dy[n, oh, ow, o] * x[n, oh - PH + kh*DH, ow - PW + kw*DW, c]
        where c is of o's group

A program owns one row of the window for BUNDLE neighbouring groups, whose channels it multiplies
all with each other, and stores the groups' blocks.  It walks one pixel of BLOCK_K images at a time,
with the KW pixels of x that the row sees from there: zeros beyond the image.  The reduction is
split between programs: partial sums go to a workspace and are added in fixed order.

Beyond dy's edges zeros multiply what x has there: what is not finite in x near its own edges makes
NaN of other taps of its channel than of those that see it.
"""

import math
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ... import _split
from .. import tma
from ..family import Call, Family
from ..problem import Problem
from .bundles import MOST_CHANNELS
from .rows import holds

WIDTH = 64  # channels of a bundle, in and out: rows of 128 bytes, and an instruction's output
MOST_COLUMNS = 5  # of a window: a program holds the sums of a row


@triton.jit(
    do_not_specialize=("OH", "OW", "KH", "PH", "PW", "DH", "DW", "GROUPS", "boxes", "boxes_a_split")
)
def _conv2d_rows_wgrad_kernel(
    dy_desc, x_desc, dw_ptr,  # dy [OH, OW, N, CO], x [H, W, N, C], dw [splits, CO, KH, KW, CG]
    OH, OW, KH, PH, PW, DH, DW, GROUPS, boxes, boxes_a_split,
    KW: tl.constexpr, CG: tl.constexpr, COG: tl.constexpr, BUNDLE: tl.constexpr,
    UNIT: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    bundles = tl.cdiv(GROUPS, BUNDLE)
    group = program % bundles * BUNDLE
    program = program // bundles
    kh, split = program % KH, program // KH
    box = split * boxes_a_split
    trips = tl.minimum(boxes - box, boxes_a_split)
    tl.assume(trips > 0)
    ow, oh = box % OW, box // OW % OH
    n = box // (OW * OH) * BLOCK_K
    # boxes are aligned
    c0, o0 = group * CG // UNIT * UNIT, group * COG // UNIT * UNIT

    acc = (tl.zeros((WIDTH, WIDTH), ACC),) * KW
    for _ in tl.range(0, trips, num_stages=STAGES):
        dy_tile = dy_desc.load([oh, ow, n, o0]).reshape(BLOCK_K, WIDTH)
        more = ()
        for kw in tl.static_range(KW):
            x_tile = x_desc.load([oh - PH + kh * DH, ow - PW + kw * DW, n, c0])
            x_tile = x_tile.reshape(BLOCK_K, WIDTH)
            more += (tl.dot(dy_tile.T, x_tile, acc[kw], input_precision=PRECISION, out_dtype=ACC),)
        acc = more

        ow += 1
        row_done = ow == OW
        ow = tl.where(row_done, 0, ow)
        oh += row_done.to(tl.int32)
        image_done = oh == OH
        oh = tl.where(image_done, 0, oh)
        n += tl.where(image_done, BLOCK_K, 0)

    o, c = o0 + tl.arange(0, WIDTH), c0 + tl.arange(0, WIDTH)
    last = tl.minimum(GROUPS, group + BUNDLE)
    mask = (o // COG)[:, None] == (c // CG)[None, :]
    mask &= ((o >= group * COG) & (o < last * COG))[:, None]
    row = tl.cast(split, INDEX) * (GROUPS * COG) + o
    for kw in tl.static_range(KW):
        column = (kh * KW + kw) * CG + c % CG
        tl.store(dw_ptr + (row[:, None] * (KH * KW * CG) + column[None, :]), acc[kw], mask=mask)


class Rows(NamedTuple):
    k: int  # images
    warps: int
    stages: int
    resident: int  # programs that a multiprocessor holds


ROWS = (Rows(64, 4, 2, 3), Rows(32, 4, 3, 3), Rows(64, 4, 3, 2))


def _bundle(p: Problem) -> int:
    """How many groups, a power of two: zero, where a box does not hold one."""
    most = min(WIDTH // max(p.channels), triton.next_power_of_2(p.geometry.groups))
    fitting = (
        n
        for n in (2**i for i in range(most.bit_length()))
        if all(holds(p, WIDTH, n, channels) for channels in p.channels)
    )
    return max(fitting, default=0)


def _declines(p: Problem) -> str | None:
    if p.geometry.groups == 1 or max(p.channels) > WIDTH:
        return f"it takes several groups, of at most {WIDTH} channels, in and out"
    if p.geometry.stride != (1, 1):
        return "it takes stride 1"
    if p.w[3] > MOST_COLUMNS:
        return f"it takes windows of at most {MOST_COLUMNS} columns"
    if p.dtype.itemsize > 2 and p.capability is not None:
        return "it multiplies in float16 or bfloat16"
    if not _bundle(p):
        return f"it takes groups that {WIDTH} channels hold from each {tma.unit(p)}th on"
    whole = p.geometry._replace(groups=1)
    return tma.declines(p._replace(w=(p.w[0], p.x[1], *p.w[2:]), geometry=whole))


def _configs(p: Problem) -> tuple[Rows, ...]:
    if p.capability is None:
        return (Rows(min(triton.next_power_of_2(p.x[0]), 256), 1, 1, 1),)
    return ROWS


def _prepare(p: Problem, rows: Rows) -> Call:
    (N, C, H, W), (CO, CG, KH, KW), (_, _, OH, OW), g = p.x, p.w, p.y, p.geometry
    programs = triton.cdiv(g.groups, _bundle(p)) * KH
    boxes = triton.cdiv(N, rows.k) * OH * OW
    wanted = tma.PROGRAMS * rows.resident
    splits, boxes_a_split = _split.shares(programs, boxes, boxes, wanted)
    order = 1, 2, 0, 3  # rows, columns, images, channels
    of_dy = tma.descriptor((N, OH, OW, CO), (1, 1, rows.k, WIDTH), order)
    of_x = tma.descriptor((N, H, W, C), (1, 1, rows.k, WIDTH), order)

    def operands(dy: Tensor, x: Tensor) -> tuple[TensorDescriptor, TensorDescriptor]:
        return of_dy(dy), of_x(x)

    return Call(
        _conv2d_rows_wgrad_kernel,
        programs * splits,
        (OH, OW, KH, *g.before, *g.dilation, g.groups, boxes, boxes_a_split),
        {
            **{"KW": KW, "CG": CG, "COG": p.channels[1], "BUNDLE": _bundle(p)},
            "UNIT": tma.unit(p),
            **p.numbers,
            "INDEX": p.index_of(splits * math.prod(p.w)),
            **{"WIDTH": WIDTH, "BLOCK_K": rows.k, "STAGES": rows.stages},
            "num_warps": rows.warps,
        },
        parts=splits,
        operands=operands,
    )


def _yields(p: Problem) -> bool:
    """Until it is measured, to what takes as many channels a group well; and of few images."""
    few = p.x[0] < min(rows.k for rows in ROWS)
    return tma.yields(p) or max(p.channels) <= MOST_CHANNELS or few


WGRAD = Family("rows", _declines, _configs, _prepare, _yields)
