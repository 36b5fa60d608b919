"""Gradient of a depthwise convolution with a large window with respect to its weights: products of
rows of images, on the matrix unit, summed along their diagonals.

    dw[c, r, s] = sum_{k - q = s - before_s} g[c, r][q, k]
        where g[c, r][q, k] = sum_{n, h} dy[n, c, h, q] * x[n, c, h + r - before_r, k]

x and dy are copied by channels, their rows PITCH elements long; ROWS neighbouring ones are read as
one of WIDTH, of which a product has ROWS x ROWS of the above.  A program owns BANDS such products
of one channel, each with rows of x another distance from those of dy, and walks over boxes of
images and rows.  Of images wider than WIDTH it takes WIDTH columns of dy, and one of the chunks of
x that they reach.  PIECES of a product, each of columns of one row of x, have parts of their own of
the result, and so have chunks and splits: these are added in fixed order.

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
from .view import Plane, View, aligned, declines, view, whole, yields

MOST_TAPS = 32  # of a row of the window, that are summed at once
PIECES = 4  # of a product, whose diagonals are summed one after another: all take few registers

SIZES = (
    *("C", "taps_r", "taps_s", "step_r", "step_s", "before_r", "first", "groups", "chunks"),
    *("start", "shift", "across", "along", "blocks_q", "boxes_a_split"),
)


@triton.jit(do_not_specialize=SIZES)
def _conv2d_toeplitz_wgrad_kernel(
    dy_desc, x_desc, dw_ptr,  # dy and x as below, dw [parts, C, KH, KW]
    C, taps_r, taps_s, step_r, step_s, before_r, first, groups, chunks, start, shift,
    across, along, blocks_q, boxes_a_split,
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
    trips = tl.minimum(across * along * blocks_q - box, boxes_a_split)
    tl.assume(trips > 0)
    q0 = box % blocks_q * WIDTH
    k0, h = box // blocks_q % along * BLOCK_K, box // (blocks_q * along)

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
        done = k0 == along * BLOCK_K
        k0 = tl.where(done, 0, k0)
        h += done.to(tl.int32)

    PIECE: tl.constexpr = WIDTH // PIECES
    row, column = tl.arange(0, ROWS), tl.arange(0, ROWS * PIECE) % PIECE
    for b in tl.static_range(BANDS):
        piece = pieces(acc[b], PIECES)
        for i in tl.static_range(PIECES):
            # a row of x, of which this has columns, beside each row of dy
            r = (d0 + b) * ROWS + i * PIECE // PITCH - row + before_r
            lines = piece[i].reshape(ROWS, PITCH, PIECE).permute(1, 0, 2)
            lines = lines.reshape(PITCH, ROWS * PIECE)
            k = (i * PIECE + column) % PITCH + chunk * WIDTH
            part = (tl.cast(split, INDEX) * chunks + chunk) * PIECES + i
            offs = (part * C + c) * (taps_r * taps_s) + r * step_r
            for s0 in range(0, taps_s, TAPS):
                s = s0 + tl.arange(0, TAPS)
                q = k[None, :] + shift - s[:, None]
                inside = (q >= 0) & (q < PITCH)
                diagonals = tl.gather(lines, tl.where(inside, q, 0), axis=0)
                diagonals = tl.where(inside, diagonals, 0.0).reshape(TAPS, ROWS, PIECE)
                tl.store(
                    dw_ptr + (offs[None, :] + (s * step_s)[:, None]),
                    tl.sum(diagonals, axis=2),
                    mask=((r >= 0) & (r < taps_r))[None, :] & (s < taps_s)[:, None],
                )


class Product(NamedTuple):
    width: int  # elements of a row of x and of dy
    bands: int
    k: int  # images and rows
    warps: int
    stages: int
    resident: int  # programs that a multiprocessor holds


# and how long a loop takes, for what it multiplies: the smaller, the more it reads
PRODUCTS = {
    Product(128, 2, 64, 8, 3, 1): 1.1,
    Product(128, 1, 64, 8, 3, 2): 1.2,
    Product(64, 4, 64, 4, 2, 2): 1.6,
}
DIAGONALS = 320  # of k: so many products take as long, of which a second program hides half


class Walk(NamedTuple):
    """Which rows, columns and distances the programs of a product take."""

    rows: int  # of an image, that are read as one
    pitch: int
    columns: tuple[int, int]  # of the copies of x and dy
    chunks: int
    start: int  # the first column of x, beside dy's
    first: int  # distance
    groups: int  # of distances
    bands: int  # distances in each
    k: int
    of_images: bool
    boxes: tuple[int, int, int]  # across k, along it, and of columns


def _walk(p: Problem, v: View, product: Product) -> Walk:
    width, (taps_r, taps_s), (before_r, before_s) = product.width, v.taps, v.before
    longest = max(v.source.columns, v.result.columns)
    if longest <= width:
        pitch = max(triton.next_power_of_2(longest), width // PIECES)  # of one row each
        rows, chunks, start, columns = width // pitch, 1, 0, (width, width)
    else:
        rows, pitch, start = 1, width, aligned(-before_s)
        chunks = triton.cdiv(width + taps_s - 1 - before_s - start, width)
        columns = whole(v.source.columns), whole(v.result.columns)
    # row i*rows + j of dy meets row (i + d)*rows + j' of x
    first = -((before_r + rows - 1) // rows)
    distances = (taps_r - 1 - before_r + rows - 1) // rows - first + 1
    groups = triton.cdiv(distances, product.bands)
    heights = triton.cdiv(v.result.rows, rows)
    k, of_images = _along(product.k, p.x[0], heights)
    across, along = (heights, p.x[0]) if of_images else (p.x[0], heights)
    boxes = across, triton.cdiv(along, k), triton.cdiv(v.result.columns, width)
    return Walk(
        *(rows, pitch, columns, chunks, start, first, groups, triton.cdiv(distances, groups)),
        *(k, of_images, boxes),
    )


def _along(most: int, images: int, rows: int) -> tuple[int, bool]:
    """How many images of one row, or rows of one image, make a box; and whether images do."""
    boxes = [(k, of_images) for k in (64, 32, 16) if k <= most for of_images in (True, False)]

    def cost(box: tuple[int, bool]) -> tuple[int, int]:
        k, of_images = box
        padded = whole(images, k) * rows if of_images else images * whole(rows, k)
        return padded, -k

    return min(boxes, key=cost)


def _configs(p: Problem) -> tuple[Product, ...]:
    """Those that are predicted to take least time first."""
    if p.capability is None:
        return (Product(64, 2, 64, 1, 1, 1),)
    v = view(p)

    def cost(product: Product) -> float:
        walk = _walk(p, v, product)
        outputs = walk.chunks * walk.groups * walk.bands * product.width**2
        long = math.prod(walk.boxes) * walk.k * PRODUCTS[product]
        return outputs * (long + DIAGONALS / product.resident)

    return tuple(sorted(PRODUCTS, key=cost))


def _prepare(p: Problem, product: Product) -> Call:
    v, (N, C), width = view(p), p.x[:2], product.width
    walk = _walk(p, v, product)
    x_rows, dy_rows = (triton.cdiv(plane.rows, walk.rows) for plane in (v.source, v.result))
    programs, boxes = C * walk.groups * walk.chunks, math.prod(walk.boxes)
    splits, boxes_a_split = _split.shares(programs, boxes, boxes, tma.PROGRAMS * product.resident)
    block, order = (1, 1, walk.k, width), (1, 2, 0, 3) if walk.of_images else (1, 0, 2, 3)
    of_x = tma.descriptor((N, C, x_rows, walk.columns[0]), block, order)
    of_dy = tma.descriptor((N, C, dy_rows, walk.columns[1]), block, order)

    def copied(t: Tensor, plane: Plane, rows: int, columns: int) -> Tensor:
        return by_channels(t, plane, rows * walk.rows, columns // walk.rows)

    def operands(dy: Tensor, x: Tensor) -> tuple[TensorDescriptor, TensorDescriptor]:
        x = copied(x, v.source, x_rows, walk.columns[0])
        return of_dy(copied(dy, v.result, dy_rows, walk.columns[1])), of_x(x)

    parts = splits * walk.chunks * PIECES
    return Call(
        _conv2d_toeplitz_wgrad_kernel,
        programs * splits,
        (
            *(C, *v.taps, *v.w_steps[1:], v.before[0], walk.first, walk.groups, walk.chunks),
            *(walk.start, walk.start + v.before[1], *walk.boxes, boxes_a_split),
        ),
        {
            **p.numbers,
            "INDEX": p.index_of(parts * math.prod(p.w)),
            **{"BANDS": walk.bands, "ROWS": walk.rows, "PITCH": walk.pitch, "WIDTH": width},
            "TAPS": min(triton.next_power_of_2(v.taps[1]), MOST_TAPS),
            **{"PIECES": PIECES, "OF_IMAGES": walk.of_images},
            **{"BLOCK_K": walk.k, "STAGES": product.stages, "num_warps": product.warps},
            # half of all for each of two
            **({"maxnreg": 128} if (product.warps, product.resident) == (8, 2) else {}),
        },
        parts=parts,
        operands=operands,
    )


WGRAD = Family("toeplitz", declines, _configs, _prepare, yields)
