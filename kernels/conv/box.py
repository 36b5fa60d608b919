"""Boxes of pixels that cover images."""

import functools
import itertools

import triton

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
