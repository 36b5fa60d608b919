"""Boxes of pixels that cover images, and the walk over them, which wgrad's kernels share."""

import functools
import itertools

import triton
import triton.language as tl

Box = tuple[int, int, int]  # images, rows, columns


# Rows and columns preferred among equals: sizes of images share a kernel by them.
SQUARES = (8, 8), (2, 2), (1, 1)


@functools.cache
def box_of(pixels: int, images: Box, halo: tuple[int, int] = (0, 0)) -> Box:
    """The box of `pixels` pixels, sides powers of two, of which fewest cover the images.

    Of these a square, and the one that reads least with a halo of so many more rows and columns.
    """
    sides = [2**i for i in range(pixels.bit_length())]
    boxes = [
        (pixels // (rows * columns), rows, columns)
        for rows, columns in itertools.product(sides, sides)
        if rows * columns <= pixels
    ]

    def costs(box: Box) -> tuple[int, bool, int, int]:
        n, h, w = map(triton.cdiv, images, box)
        reads = box[0] * (box[1] + halo[0]) * (box[2] + halo[1])
        return n * h * w, box[1:] not in SQUARES, reads, box[0]

    return min(boxes, key=costs)


@triton.jit
def first_box(
    box, boxes_h, boxes_w, BOX_N: tl.constexpr, BOX_H: tl.constexpr, BOX_W: tl.constexpr
):  # fmt: skip
    """Image, row and column where a box begins."""
    n0 = box // (boxes_w * boxes_h) * BOX_N
    return n0, box // boxes_w % boxes_h * BOX_H, box % boxes_w * BOX_W


@triton.jit
def next_box(
    n0, h0, w0, span_h, span_w, BOX_N: tl.constexpr, BOX_H: tl.constexpr, BOX_W: tl.constexpr
):  # fmt: skip
    """Where the box after this one begins, and whether it is the first of a row, of an image.

    span_h, span_w: rows and columns that the boxes of an image cover.
    """
    w0 += BOX_W
    row_done = w0 == span_w
    w0 = tl.where(row_done, 0, w0)
    h0 += tl.where(row_done, BOX_H, 0)
    image_done = h0 == span_h
    h0 = tl.where(image_done, 0, h0)
    n0 += tl.where(image_done, BOX_N, 0)
    return n0, h0, w0, row_done, image_done
