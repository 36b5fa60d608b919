"""Gradient of a depthwise convolution with a large window with respect to its weights: products of
rows of images, on the matrix unit, summed along their diagonals.

    dw[c, r, s] = sum_{k - q = s - before_s} g[c, r][q, k]
        where g[c, r][q, k] = sum_{n, h} dy[n, c, h, q] * x[n, c, h + r - before_r, k]

x and dy are copied by channels, their rows PITCH elements long; ROWS neighbouring ones are read as
one of WIDTH, of which a product has ROWS x ROWS of the above.  A program owns BANDS such products
of one channel, each with rows of x another distance from those of dy, and walks over boxes of
images and rows.  Of images wider than WIDTH it takes WIDTH columns of dy, and one of the chunks of
x that they reach.  Chunks, and rows of x that were read as one, have parts of their own of the
result, which are added in fixed order, as are those of splits.

Zeros beyond dy's edges multiply what x has there: what is not finite in x makes NaN of other taps
of its channel than of those that see it.
"""

import math
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ... import _split
from .. import tma
from ..epilogue import pieces
from ..family import Call, Family
from ..problem import Problem
from .copies import by_channels
from .view import View, aligned, declines, view, whole, yields

MOST_TAPS = 32  # of a row of the window, that are summed at once
LEAST_PITCH = 16
PIECES = 4  # of a product, whose diagonals are summed one after another: all take few registers

SIZES = (
    *("C", "taps_r", "taps_s", "step_r", "step_s", "before_r", "first", "groups", "chunks"),
    *("start", "shift", "boxes_h", "boxes_k", "blocks_q", "boxes_a_split"),
)


@triton.jit(do_not_specialize=SIZES)
def _conv2d_toeplitz_wgrad_kernel(
    dy_desc, x_desc, dw_ptr,  # dy and x as below, dw [parts, C, KH, KW]
    C, taps_r, taps_s, step_r, step_s, before_r, first, groups, chunks, start, shift,
    boxes_h, boxes_k, blocks_q, boxes_a_split,
    PRECISION: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BANDS: tl.constexpr, ROWS: tl.constexpr, PITCH: tl.constexpr, WIDTH: tl.constexpr,
    TAPS: tl.constexpr, PIECES: tl.constexpr, OF_IMAGES: tl.constexpr,
    BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """OF_IMAGES: dy and x are [C, I, N, columns], a box one row of BLOCK_K images; otherwise they
    are [C, N, I, columns], a box BLOCK_K rows of one image."""
    program = tl.program_id(0)
    d0 = first + program % groups * BANDS
    program = program // groups
    chunk = program % chunks
    program = program // chunks
    c, split = program % C, program // C
    box = split * boxes_a_split
    trips = tl.minimum(boxes_h * boxes_k * blocks_q - box, boxes_a_split)
    tl.assume(trips > 0)
    q0 = box % blocks_q * WIDTH
    k0, h = box // blocks_q % boxes_k * BLOCK_K, box // (blocks_q * boxes_k)

    acc = (tl.zeros((WIDTH, WIDTH), ACC),) * BANDS
    for _ in tl.range(0, trips, num_stages=STAGES):
        dy_tile = dy_desc.load([c, h, k0, q0]).reshape(BLOCK_K, WIDTH)
        more = ()
        for b in tl.static_range(BANDS):
            if OF_IMAGES:
                x_tile = x_desc.load([c, h + d0 + b, k0, q0 + start + chunk * WIDTH])
            else:
                x_tile = x_desc.load([c, h, k0 + d0 + b, q0 + start + chunk * WIDTH])
            x_tile = x_tile.reshape(BLOCK_K, WIDTH)
            more += (tl.dot(dy_tile.T, x_tile, acc[b], input_precision=PRECISION, out_dtype=ACC),)
        acc = more

        q0 += WIDTH
        row_done = q0 == blocks_q * WIDTH
        q0 = tl.where(row_done, 0, q0)
        k0 += tl.where(row_done, BLOCK_K, 0)
        done = k0 == boxes_k * BLOCK_K
        k0 = tl.where(done, 0, k0)
        h += done.to(tl.int32)

    PIECE: tl.constexpr = WIDTH // PIECES
    LIES: tl.constexpr = max(PIECE // PITCH, 1)  # rows of x of which a piece has columns
    for b in tl.static_range(BANDS):
        piece = pieces(acc[b], PIECES)
        for i in tl.static_range(PIECES):
            k = (i * PIECE + tl.arange(0, PIECE)) % PITCH + chunk * WIDTH
            j = tl.arange(0, LIES)
            part = ((tl.cast(split, INDEX) * chunks + chunk) * PIECES + i) * LIES + j
            lines = piece[i].reshape(ROWS, PITCH, PIECE)
            row = tl.arange(0, ROWS)
            r = (d0 + b) * ROWS + i * PIECE // PITCH + before_r + j[None, :] - row[:, None]
            offs = (part * C + c)[None, :] * (taps_r * taps_s) + r * step_r
            for s0 in range(0, taps_s, TAPS):
                s = s0 + tl.arange(0, TAPS)
                q = k[None, :] + shift - s[:, None]
                inside = ((q >= 0) & (q < PITCH))[None, :, :]
                q = tl.where(inside, q[None, :, :], 0).broadcast_to(ROWS, TAPS, PIECE)
                diagonals = tl.where(inside, tl.gather(lines, q, axis=1), 0.0)
                sums = tl.sum(diagonals.reshape(ROWS, TAPS, LIES, PIECE // LIES), axis=3)
                tl.store(
                    dw_ptr + (offs[:, None, :] + (s * step_s)[None, :, None]),
                    sums,
                    mask=((r >= 0) & (r < taps_r))[:, None, :] & (s < taps_s)[None, :, None],
                )


class Product(NamedTuple):
    width: int  # elements of a row of x and of dy
    bands: int
    k: int  # images and rows
    warps: int
    stages: int
    resident: int  # programs that a multiprocessor holds


PRODUCTS = Product(128, 2, 64, 8, 3, 1), Product(128, 1, 64, 8, 3, 2), Product(64, 4, 64, 4, 2, 2)
LONG = 16  # boxes that a program walks over, so that it need not share a multiprocessor


def box_of(most: int, images: int, rows: int) -> tuple[int, bool]:
    """How many images of one row, or rows of one image, make a box; and whether images do."""
    boxes = [(k, of_images) for k in (64, 32, 16) if k <= most for of_images in (True, False)]

    def cost(box: tuple[int, bool]) -> tuple[float, int]:
        k, of_images = box
        padded = whole(images, k) * rows if of_images else images * whole(rows, k)
        return padded, -k

    return min(boxes, key=cost)


def _rows(v: View, width: int) -> tuple[int, int]:
    """How many rows of an image make one of width elements, and how long each is."""
    longest = max(v.source.columns, v.result.columns, LEAST_PITCH)
    pitch = min(triton.next_power_of_2(longest), width)
    return (width // pitch, pitch) if pitch >= longest else (1, width)


def _configs(p: Problem) -> tuple[Product, ...]:
    """The one that reads least first, or of few boxes one beside which another may run."""
    if p.capability is None:
        return (Product(64, 2, 64, 1, 1, 1),)
    v, first = view(p), PRODUCTS[0]
    rows = triton.cdiv(v.result.rows, _rows(v, first.width)[0])
    if p.x[0] * rows >= LONG * first.k:
        return PRODUCTS
    return PRODUCTS[1], PRODUCTS[0], *PRODUCTS[2:]


def _prepare(p: Problem, product: Product) -> Call:
    v, (N, C), width = view(p), p.x[:2], product.width
    (taps_r, taps_s), (before_r, before_s), (_, step_r, step_s) = v.taps, v.before, v.w_steps
    rows, pitch = _rows(v, width)
    chunks, start, columns = 1, 0, (width, width)
    if max(v.source.columns, v.result.columns) > width:
        start = aligned(-before_s)
        chunks = triton.cdiv(width + taps_s - 1 - before_s - start, width)
        columns = whole(v.source.columns), whole(v.result.columns)
    x_rows, dy_rows = whole(v.source.rows, rows), whole(v.result.rows, rows)
    blocks_q = triton.cdiv(columns[1], width)

    # row i*rows + j of dy meets row (i + d)*rows + j' of x
    first = -((before_r + rows - 1) // rows)
    distances = (taps_r - 1 - before_r + rows - 1) // rows - first + 1
    groups = triton.cdiv(distances, product.bands)
    bands = triton.cdiv(distances, groups)

    heights = dy_rows // rows
    k, of_images = box_of(product.k, N, heights)
    sizes = (N, heights) if of_images else (heights, N)
    boxes_h, boxes_k = sizes[1], triton.cdiv(sizes[0], k)
    boxes = boxes_h * boxes_k * blocks_q
    programs = C * groups * chunks
    splits, boxes_a_split = _split.shares(programs, boxes, boxes, tma.PROGRAMS * product.resident)
    block, order = (1, 1, k, width), (1, 2, 0, 3) if of_images else (1, 0, 2, 3)
    of_x = tma.descriptor((N, C, x_rows // rows, columns[0]), block, order)
    of_dy = tma.descriptor((N, C, heights, columns[1]), block, order)

    def operands(dy: Tensor, x: Tensor) -> tuple[TensorDescriptor, TensorDescriptor]:
        x = by_channels(x, v.source, x_rows, columns[0] // rows)
        return of_dy(by_channels(dy, v.result, dy_rows, columns[1] // rows)), of_x(x)

    parts = splits * chunks * max(PIECES, rows)
    return Call(
        _conv2d_toeplitz_wgrad_kernel,
        programs * splits,
        (
            *(C, taps_r, taps_s, step_r, step_s, before_r, first, groups, chunks),
            *(start, start + before_s, boxes_h, boxes_k, blocks_q, boxes_a_split),
        ),
        {
            **p.numbers,
            "INDEX": p.index_of(parts * math.prod(p.w)),
            **{"BANDS": bands, "ROWS": rows, "PITCH": pitch, "WIDTH": width},
            "TAPS": min(triton.next_power_of_2(taps_s), MOST_TAPS),
            "PIECES": PIECES,
            **{"OF_IMAGES": of_images, "BLOCK_K": k, "STAGES": product.stages},
            "num_warps": product.warps,
            # half of all for each of two
            **({"maxnreg": 128} if (product.warps, product.resident) == (8, 2) else {}),
        },
        parts=parts,
        operands=operands,
    )


WGRAD = Family("toeplitz", declines, _configs, _prepare, yields)
