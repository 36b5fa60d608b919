"""Grouped convolution of stride 1 or 2, and its gradient with respect to its input, of stride 1, as
a walk down rows, by the tensor memory accelerator.

    y[n, oh, ow, o] = sum_{kh, kw, c}
        x[n, oh*SH - PH + kh, ow*SW - PW + kw*DW, c] * w[o, kh, kw, c]
    dx[n, h, w, c] = sum_{kh, kw, o} dy[n, h + PH - kh, w + PW - kw*DW, o] * w[o, kh, kw, c]
        where c is of o's group

and what the epilogue makes of them.  The second is the first with the window turned around, and
with a group's channels exchanged: below, a source of IN channels a group makes a result of OUT.

A program owns the channels of BUNDLE neighbouring groups, whose weights it keeps in shared memory:
of each tap a tile with the groups' blocks on its diagonal and zeros beside them.  It walks down one
strip of the result after another: BOX_W columns of BOX_N images, each COLUMNS-th, and those beside
them.  In a step it loads SH rows of the source, once for each column of it that windows see, and
adds them to the ROWS rows of the result that they reach; the first of these is then complete.
Statistics are sums about the first row's mean over all that a program walks over.

Of zeros beside the blocks, what is not finite makes NaN in every group of the bundle: a program
that finds some walks once more, and multiplies each group by itself.
"""

import math
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..._launch import INTERPRETED_BLOCK
from ...norm.stats import store_sums
from .. import tma
from ..epilogue import channel_terms, store_tile
from ..family import Call, Family
from ..problem import Problem
from .bundles import MOST_CHANNELS
from .taps import spoiled


@triton.jit
def _groups(i, first, GROUPS: tl.constexpr, BUNDLE: tl.constexpr, CHANNELS: tl.constexpr):
    """Of which of a bundle's groups channel i is, of CHANNELS each; -1 of none."""
    inside = (i >= 0) & (i < tl.minimum(GROUPS - first, BUNDLE) * CHANNELS)
    return tl.where(inside, i // CHANNELS, -1)


@triton.jit
def _weights(
    w_ptr, tap, first, skipped,  # w [CO, taps, CG]
    GROUPS: tl.constexpr, BUNDLE: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr,
    TAPS: tl.constexpr, TRANSPOSED: tl.constexpr, INDEX: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """A tap's tile [source's channels, result's channels], of the groups from `first` on.

    Of the source's, so many are skipped.
    """
    k, n = tl.arange(0, WIDTH) - skipped, tl.arange(0, WIDTH)
    k_group = _groups(k, first, GROUPS, BUNDLE, IN)
    n_group = _groups(n, first, GROUPS, BUNDLE, OUT)
    inside = (k_group[:, None] == n_group[None, :]) & (n_group >= 0)[None, :]
    if TRANSPOSED:  # w [source's channels, taps, result's of a group]
        row = tl.cast(first * IN + k, INDEX) * TAPS + (TAPS - 1 - tap)
        return tl.load(w_ptr + (row[:, None] * OUT + (n % OUT)[None, :]), mask=inside, other=0.0)
    else:
        row = tl.cast(first * OUT + n, INDEX) * TAPS + tap
        offs = row[:, None] * IN + (k - k_group * IN)[None, :]
        return tl.load(w_ptr + offs, mask=inside.T, other=0.0).T


@triton.jit
def _place(row, period, strips_w, BOX_N: tl.constexpr, BOX_W: tl.constexpr):
    """Of a row of all strips, one after another: which it is of its own, and where that begins."""
    row += 2 * period  # a walk may start above the first
    strip = row // period - 2 + 2 * strips_w
    return row % period, (strip // strips_w - 2) * BOX_N, strip % strips_w * BOX_W


@triton.jit
def _next(h, n0, w0, period, span_w, BOX_N: tl.constexpr, BOX_W: tl.constexpr):
    """The same of the row after this one."""
    h += 1
    strip_done = h == period
    h = tl.where(strip_done, 0, h)
    w0 += tl.where(strip_done, BOX_W, 0)
    images_done = w0 == span_w
    w0 = tl.where(images_done, 0, w0)
    n0 += tl.where(images_done, BOX_N, 0)
    return h, n0, w0


@triton.jit
def _load(
    x_desc, n0, h, down, w0, right, k, K: tl.constexpr, SH: tl.constexpr, PITCH: tl.constexpr,
    PIXELS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Each PITCH-th pixel of row h * SH + down, from w0 * PITCH + right on.

    x as [N, H / SH, SH, W / PITCH, PITCH * K], without SH where that is 1.
    """
    if PITCH > 1:
        beside = (right % PITCH + PITCH) % PITCH  # of what is negative, too
        w0 += (right - beside) // PITCH
        k += beside * K
    else:
        w0 += right
    if SH > 1:
        below = (down % SH + SH) % SH
        return x_desc.load([n0, h + (down - below) // SH, below, w0, k]).reshape(PIXELS, WIDTH)
    else:
        return x_desc.load([n0, h + down, w0, k]).reshape(PIXELS, WIDTH)


@triton.jit
def _add(
    total, x_tile, w_tiles, DOWN: tl.constexpr, RIGHT: tl.constexpr, KH: tl.constexpr,
    KW: tl.constexpr, DW: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """total, and what pixels add to it that lie so far down and right of where windows begin."""
    if DOWN >= 0 and DOWN < KH and RIGHT >= 0 and RIGHT % DW == 0 and RIGHT // DW < KW:
        w_tile = w_tiles[DOWN * KW + RIGHT // DW]
        return tl.dot(x_tile, w_tile, total, input_precision=PRECISION, out_dtype=ACC)
    else:
        return total


@triton.jit
def _row_sums(x):
    """x [M, N], with rows added up that a thread has of a product: [M / 16, 8, N]."""
    return tl.sum(x.reshape(x.shape[0] // 16, 2, 8, x.shape[1]), axis=1)


@triton.jit
def _finish_row(
    acc, sums, y_ptr, stored, oh, n0, w0, N, OH, OW, c, C, channels, terms, share,
    b_ptr, mean_ptr, residual_ptr, gate_ptr, partial_ptr, ACTIVATION: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr,
    BOX_N: tl.constexpr, BOX_W: tl.constexpr, WHOLE: tl.constexpr,
    COLUMNS: tl.constexpr, COLUMN: tl.constexpr,
):  # fmt: skip
    """Stores a row of the result, acc [BOX_N * BOX_W, channels], and gives sums with it added."""
    p = tl.arange(0, BOX_N * BOX_W)
    n, ow = n0 + p // BOX_W, (w0 + p % BOX_W) * COLUMNS
    stored &= oh < OH
    rows = stored & (p < BOX_N * BOX_W)
    if not WHOLE:
        rows &= (n < N) & (ow + COLUMN < OW)
    offs = ((tl.cast(n, INDEX) * OH + oh) * OW + ow)[:, None] * C + (COLUMN * C + c)[None, :]
    y = store_tile(
        acc, terms, y_ptr, offs, rows[:, None] & channels[None, :],
        b_ptr, mean_ptr, residual_ptr, gate_ptr, ACTIVATION, ACC,
    )  # fmt: skip
    if partial_ptr is not None:
        near, total, squares, count = sums
        columns = tl.minimum((OW - COLUMN + COLUMNS - 1) // COLUMNS - w0, BOX_W)
        more = tl.maximum(tl.minimum(N - n0, BOX_N), 0) * tl.maximum(columns, 0)
        more = tl.where(stored, more, 0)
        if stored:
            if COLUMN == 0 and count == 0:
                near = tl.sum(tl.where(rows[:, None], y, 0.0), axis=0) / tl.maximum(more, 1).to(ACC)
            offset = y - near[None, :]
            if not WHOLE:
                offset = tl.where(rows[:, None], offset, 0.0)
            total += _row_sums(offset) * share
            squares += _row_sums(offset * offset) * share
        sums = near, total, squares, count + more
    return sums


@triton.jit
def _group_by_group(
    x_desc, w_ptr, n0, h, down, w0, right, DW, first, k0,
    GROUPS: tl.constexpr, BUNDLE: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    SH: tl.constexpr, PITCH: tl.constexpr, PIXELS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """A row of the result, where something is not finite; windows begin where _load would."""
    skipped = first * IN - k0
    k_group = _groups(tl.arange(0, WIDTH) - skipped, first, GROUPS, BUNDLE, IN)
    n_group = _groups(tl.arange(0, WIDTH), first, GROUPS, BUNDLE, OUT)
    row = tl.zeros((PIXELS, WIDTH), ACC)
    for tap in tl.range(0, KH * KW, num_stages=1):
        x_tile = _load(
            x_desc, n0, h, down + tap // KW, w0, right + tap % KW * DW, k0, GROUPS * IN, SH, PITCH,
            PIXELS, WIDTH,
        )  # fmt: skip
        w_tile = _weights(
            w_ptr, tap, first, skipped, GROUPS, BUNDLE, IN, OUT, KH * KW, TRANSPOSED, INDEX, WIDTH
        )
        for group in tl.range(0, BUNDLE, num_stages=1):
            own = tl.where((k_group == group)[None, :], x_tile, 0.0)
            product = tl.dot(own, w_tile, input_precision=PRECISION, out_dtype=ACC)
            row += tl.where((n_group == group)[None, :], product, 0.0)
    return row


@triton.jit(
    do_not_specialize=("N", "OH", "OW", "period", "strips_w", "rows", "rows_a_walk", "lead")
)
def _conv2d_rows_kernel(
    x_desc, w_ptr, y_ptr,  # source [N, H, W, GROUPS * IN], result [N, OH, OW, GROUPS * OUT]
    N, OH, OW, period, strips_w, rows, rows_a_walk, lead,
    b_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, residual_ptr, gate_ptr, partial_ptr,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr, TRANSPOSED: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, DW: tl.constexpr,
    GROUPS: tl.constexpr, BUNDLE: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr,
    UNIT: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    WIDTH: tl.constexpr, BOX_N: tl.constexpr, BOX_W: tl.constexpr, COLUMNS: tl.constexpr,
    WHOLE: tl.constexpr, TIGHT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """period: steps down a strip.  lead: those of a walk before what a strip's first row takes.
    TIGHT: no rows of zeros are between strips.
    """
    PIXELS: tl.constexpr = BOX_N * BOX_W
    # SH rows of the source reach from so many rows of the result below to so many above
    AHEAD: tl.constexpr = (SH - 1 + PH) // SH
    LAG: tl.constexpr = (KH - 1 - PH) // SH
    ROWS: tl.constexpr = AHEAD + 1 + LAG
    bundles = tl.cdiv(GROUPS, BUNDLE)
    walker, first = tl.program_id(0) // bundles, tl.program_id(0) % bundles * BUNDLE
    k0 = first * IN // UNIT * UNIT  # boxes are aligned
    n = tl.arange(0, WIDTH)
    C, c = tl.cast(GROUPS * OUT, INDEX), first * OUT + n
    channels = n < tl.minimum(GROUPS - first, BUNDLE) * OUT
    terms = channel_terms(b_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, c, channels, EPS, ACC)
    w_tiles = ()
    for tap in tl.static_range(KH * KW):
        w_tiles += (
            _weights(
                w_ptr, tap, first, first * IN - k0,
                GROUPS, BUNDLE, IN, OUT, KH * KW, TRANSPOSED, INDEX, WIDTH,
            ),
        )  # fmt: skip

    zeros = tl.zeros((PIXELS, WIDTH), ACC)
    no_sums = tl.sum(zeros, axis=0), _row_sums(zeros), _row_sums(zeros), 0
    share = 1.0 / (rows_a_walk * PIXELS * COLUMNS)
    first_row = walker * rows_a_walk
    own_rows = tl.minimum(rows - first_row, rows_a_walk)
    span_w = strips_w * BOX_W
    h, n0, w0 = _place(first_row - lead, period, strips_w, BOX_N, BOX_W)
    oh, out_n0, out_w0 = _place(first_row - lead - LAG, period, strips_w, BOX_N, BOX_W)
    sums, bad = no_sums, zeros
    acc = (zeros,) * (ROWS - 1) * COLUMNS  # of rows that are open, COLUMNS beside each other
    for step in tl.range(0, lead + LAG + own_rows, num_stages=STAGES):
        before = ()
        for row in tl.static_range(ROWS):
            for column in tl.static_range(COLUMNS):
                if row == 0:
                    before += (zeros,)
                elif TIGHT and row <= AHEAD:  # a strip's first, from the end of the one before
                    before += (tl.where(h == 0, 0.0, acc[(row - 1) * COLUMNS + column]),)
                else:  # not as it is: ptxas would move it while its product is under way
                    before += (acc[(row - 1) * COLUMNS + column] + 0.0,)
        total = before
        for down in tl.static_range(SH):
            for right in tl.static_range(-PW, SW * (COLUMNS - 1) - PW + (KW - 1) * DW + 1):
                x_tile = _load(
                    x_desc, n0, h, down, w0, right, k0, GROUPS * IN, SH, SW * COLUMNS,
                    PIXELS, WIDTH,
                )  # fmt: skip
                more = ()
                for row in tl.static_range(ROWS):
                    for column in tl.static_range(COLUMNS):
                        more += (
                            _add(
                                total[row * COLUMNS + column], x_tile, w_tiles,
                                down + PH - (AHEAD - row) * SH, right + PW - column * SW,
                                KH, KW, DW, PRECISION, ACC,
                            ),
                        )  # fmt: skip
                total = more
        more = ()
        for row in tl.static_range(ROWS):
            for column in tl.static_range(COLUMNS):
                tile = total[row * COLUMNS + column]
                if TIGHT and row > AHEAD:  # the last of the strip before, which end above this one
                    tile = tl.where(h < row - AHEAD, before[row * COLUMNS + column], tile)
                more += (tile,)
        acc = more[: (ROWS - 1) * COLUMNS]

        for column in tl.static_range(COLUMNS):
            tile = more[(ROWS - 1) * COLUMNS + column]
            if partial_ptr is None:
                bad += tile * 0.0
            sums = _finish_row(
                tile, sums, y_ptr, step >= lead + LAG, oh, out_n0, out_w0, N, OH, OW,
                c, C, channels, terms, share, b_ptr, mean_ptr, residual_ptr, gate_ptr, partial_ptr,
                ACTIVATION, ACC, INDEX, BOX_N, BOX_W, WHOLE, COLUMNS, column,
            )  # fmt: skip
        h, n0, w0 = _next(h, n0, w0, period, span_w, BOX_N, BOX_W)
        oh, out_n0, out_w0 = _next(oh, out_n0, out_w0, period, span_w, BOX_N, BOX_W)

    if spoiled(bad if partial_ptr is None else sums[2]):
        sums = no_sums
        oh, n0, w0 = _place(first_row, period, strips_w, BOX_N, BOX_W)
        for _ in tl.range(0, own_rows, num_stages=1):
            for column in tl.static_range(COLUMNS):
                tile = _group_by_group(
                    x_desc, w_ptr, n0, oh, -PH, w0, column * SW - PW, DW, first, k0,
                    GROUPS, BUNDLE, IN, OUT, KH, KW, TRANSPOSED, PRECISION, ACC, INDEX,
                    SH, SW * COLUMNS, PIXELS, WIDTH,
                )  # fmt: skip
                sums = _finish_row(
                    tile, sums, y_ptr, True, oh, n0, w0, N, OH, OW,
                    c, C, channels, terms, share, b_ptr, mean_ptr, residual_ptr, gate_ptr,
                    partial_ptr, ACTIVATION, ACC, INDEX, BOX_N, BOX_W, WHOLE, COLUMNS, column,
                )  # fmt: skip
            oh, n0, w0 = _next(oh, n0, w0, period, span_w, BOX_N, BOX_W)

    if partial_ptr is not None:
        near, total, squares, count = sums
        total, squares = tl.sum(total, axis=1), tl.sum(squares, axis=1)
        total, squares = tl.sum(total, axis=0), tl.sum(squares, axis=0)
        store_sums(partial_ptr, walker, c, C, channels, near, total, squares, count, share)


class Walk(NamedTuple):
    m: int  # pixels of a product
    columns: int  # products beside each other
    warps: int
    stages: int
    resident: int  # programs that a multiprocessor holds, whatever the epilogue


# By channels of a bundle.
WALKS = {
    32: (
        Walk(64, 2, 4, 3, 2),
        Walk(64, 1, 4, 3, 3),
        Walk(64, 1, 4, 3, 4),  # of whole boxes, and without an epilogue
        Walk(128, 1, 4, 2, 2),
    ),
    64: (
        Walk(64, 1, 4, 2, 2),
        Walk(128, 1, 8, 2, 1),
    ),
}
STRIDED = {
    32: (
        Walk(64, 1, 4, 2, 3),
        Walk(64, 1, 4, 3, 2),
    ),
    64: (Walk(64, 1, 4, 2, 1),),
}
MOST_TAPS = 3  # of a window, down and across: a program holds the sums of so many rows
FEW_SUMS = 16  # of a row, in a thread: with no more, it has registers for strips without a gap


def _channels(p: Problem) -> tuple[int, int]:
    """Of a group, in the source and in the result."""
    return p.channels if p.work == "forward" else p.channels[::-1]


def holds(p: Problem, width: int, groups: int, channels: int) -> bool:
    """Whether a box of `width` channels holds such groups: it begins up to 16 bytes before them."""
    unit = tma.unit(p)
    skipped = unit - math.gcd(groups * channels, unit) if groups < p.geometry.groups else 0
    return groups * channels + skipped <= width


def _bundle(p: Problem) -> tuple[int, int]:
    """Its width, and how many groups."""
    ins, outs = _channels(p)
    for width in WALKS:
        for groups in range(width // max(ins, outs), 0, -1):
            if holds(p, width, groups, ins):
                return width, groups
    return max(WALKS), 0


def _declines(p: Problem) -> str | None:
    (KH, KW), (H, W), g = p.w[2:], p.x[2:], p.geometry
    SH, SW = g.stride
    if p.capability is not None and p.capability[0] != 9:
        return "it needs the tensor memory accelerator of sm_90"
    if p.dtype.itemsize > 2 and p.capability is not None:
        return "it multiplies in float16 or bfloat16"
    if g.groups == 1 or max(p.channels) > max(WALKS):
        return f"it takes several groups, of at most {max(WALKS)} channels, in and out"
    if max(KH, KW) > MOST_TAPS or g.dilation[0] > 1:
        return f"it takes windows of at most {MOST_TAPS}x{MOST_TAPS}, whose rows are not dilated"
    if max(SH, SW) > 1 and (p.work == "dgrad" or max(SH, SW) > 2 or SH > KH or SW > KW):
        return "it takes stride 1, or in forward 2, and windows of no less"
    if H % SH or W % SW:
        return "it takes images whose sizes the stride divides"
    if g.before[0] >= KH:
        return "it takes less padding above than the window has rows"
    if any(shape[1] % tma.unit(p) for shape in (p.x, p.y)):
        return f"it takes channels in multiples of {tma.unit(p)}"
    if not _bundle(p)[1]:
        return f"it takes groups that {max(WALKS)} channels hold from each {tma.unit(p)}th on"
    if max(N * H * W for N, _, H, W in (p.x, p.y)) > tma.MOST_PIXELS:
        return f"it takes at most {tma.MOST_PIXELS} pixels"
    return None


def _images(p: Problem) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Source and result."""
    return (p.x, p.y) if p.work == "forward" else (p.y, p.x)


def _box(m: int, N: int, W: int) -> tuple[int, int]:
    """Images and columns: the m pixels of which fewest cover a row of all images, the widest."""
    boxes = [(m // columns, columns) for columns in (2**i for i in range(m.bit_length()))]
    return min(boxes, key=lambda box: (triton.cdiv(N, box[0]) * triton.cdiv(W, box[1]), box[0]))


def _configs(p: Problem) -> tuple[Walk, ...]:
    (_, _, _, W), (N, _, _, OW) = _images(p)
    if p.capability is None:
        m = min(max(triton.next_power_of_2(N * OW), 16), INTERPRETED_BLOCK // _bundle(p)[0])
        return (Walk(m, 1, 1, 1, 1),)
    walks = STRIDED if max(p.geometry.stride) > 1 else WALKS
    return tuple(w for w in walks[_bundle(p)[0]] if W % (p.geometry.stride[1] * w.columns) == 0)


def _prepare(p: Problem, walk: Walk) -> Call:
    (N, K, H, W), (_, _, OH, OW) = _images(p)
    (KH, KW), (SH, SW), (PH, PW) = p.w[2:], p.geometry.stride, p.geometry.before
    (IN, OUT), (_, DW), (width, bundle) = _channels(p), p.geometry.dilation, _bundle(p)
    if p.work == "dgrad":
        PH, PW = KH - 1 - PH, (KW - 1) * DW - PW
    box_n, box_w = _box(walk.m, N, triton.cdiv(OW, walk.columns))
    pitch = SW * walk.columns
    if SH == 1:
        of_x = tma.descriptor((N, H, W // pitch, pitch * K), (box_n, 1, box_w, width))
    else:
        shape = N, H // SH, SH, W // pitch, pitch * K
        of_x = tma.descriptor(shape, (box_n, 1, 1, box_w, width))

    def operands(x: Tensor, w: Tensor) -> tuple[TensorDescriptor, Tensor]:
        return of_x(x), w

    ahead, lag = (SH - 1 + PH) // SH, (KH - 1 - PH) // SH
    tight = walk.m * walk.columns * width <= 32 * walk.warps * FEW_SUMS
    # of zeros, those that end one strip begin the next
    period = max(H // SH, OH, ahead + lag) if tight else max(H // SH + ahead, OH + lag)
    strips_w = triton.cdiv(OW, walk.columns * box_w)
    strips = triton.cdiv(N, box_n) * strips_w
    bundles = triton.cdiv(p.geometry.groups, bundle)
    most = max(tma.PROGRAMS * walk.resident // bundles, 1)
    rows_a_walk, lead = triton.cdiv(strips * period, most), ahead
    whole = triton.cdiv(strips, most) * period
    if whole <= rows_a_walk + lead:  # at the top of strips there is nothing above
        rows_a_walk, lead = whole, 0
    walkers = triton.cdiv(strips * period, rows_a_walk)
    return Call(
        _conv2d_rows_kernel,
        walkers * bundles,
        (N, OH, OW, period, strips_w, strips * period, rows_a_walk, lead),
        {
            **{"TRANSPOSED": p.work == "dgrad", "KH": KH, "KW": KW, "SH": SH, "SW": SW},
            **{"PH": PH, "PW": PW, "DW": DW},
            **{"GROUPS": p.geometry.groups, "BUNDLE": bundle, "IN": IN, "OUT": OUT},
            "UNIT": tma.unit(p),
            **p.numbers,
            **{"WIDTH": width, "BOX_N": box_n, "BOX_W": box_w, "COLUMNS": walk.columns},
            "WHOLE": N % box_n == 0 and OW % (walk.columns * box_w) == 0,
            **{"TIGHT": tight, "STAGES": walk.stages, "num_warps": walk.warps},
        },
        parts=walkers,
        operands=operands,
    )


def _yields(p: Problem) -> bool:
    """To grouped, whose bundles a group fills that half fills one here."""
    return tma.yields(p) or (max(p.channels) <= MOST_CHANNELS < _bundle(p)[0])


FORWARD = Family("rows", _declines, _configs, _prepare, _yields)
DGRAD = Family("rows", _declines, _configs, _prepare, _yields)
