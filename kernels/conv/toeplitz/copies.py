"""Images by channels, whose rows lie together: as the tensor memory accelerator reads them.

    out[n, c, row, column] = x[n, row, column, c], or zero beyond x's rows and columns

A program owns BLOCK_P pixels of an image by BLOCK_C channels, and turns them around.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._common import index_type, unit, units
from ..._launch import INTERPRETED, INTERPRETED_BLOCK, launch
from .view import ALIGNED, Plane

BLOCK = 64  # pixels, and channels


@triton.jit(
    do_not_specialize=(
        "rows",
        "columns",
        "row_step",
        "column_step",
        "to_rows",
        "to_units",
        "blocks",
    )
)
def _toeplitz_copy_kernel(
    x_ptr, out_ptr,  # x [N, rows * columns, C], out [N, C, to_rows, to_columns]
    C, rows, columns, row_step, column_step, to_rows, to_units, blocks,
    INDEX: tl.constexpr, UNIT: tl.constexpr, ALIGNED: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    C = units(C, UNIT)
    to_columns = to_units * ALIGNED
    program = tl.program_id(0)
    tiles_c = tl.cdiv(C, BLOCK_C)
    c = program % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)
    program = program // tiles_c
    n = tl.cast(program // blocks, INDEX)
    p = program % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    row, column = p // to_columns, p % to_columns
    inside = (row < rows) & (column < columns)
    pixel = n * (rows * columns) + row * row_step + column * column_step
    x = tl.load(
        x_ptr + (pixel[:, None] * C + c[None, :]),
        mask=inside[:, None] & (c < C)[None, :],
        other=0.0,
    )
    there = (c < C)[:, None] & (p < to_rows * to_columns)[None, :]
    offs = (n * C + c)[:, None] * (to_rows * to_columns) + p[None, :]
    tl.store(out_ptr + offs, x.T, mask=there)


def block_sizes(C: int, pixels: int) -> tuple[int, int]:
    """BLOCK_P and BLOCK_C, for `pixels` pixels of an image."""
    c = min(triton.next_power_of_2(C), BLOCK)
    most = INTERPRETED_BLOCK // c if INTERPRETED else max(BLOCK * BLOCK // c, BLOCK)
    return min(most, max(triton.next_power_of_2(pixels), 16)), c


def by_channels(x: Tensor, plane: Plane, rows: int, columns: int) -> Tensor:
    """x [N, H, W, C] in memory, whose plane is given, as [N, C, rows, columns]; these are at least
    the plane's, and columns ALIGNED."""
    N, C = x.shape[:2]
    out = torch.empty((N, C, rows, columns), dtype=x.dtype, device=x.device)
    block_p, block_c = block_sizes(C, rows * columns)
    blocks = triton.cdiv(rows * columns, block_p)
    launch(
        _toeplitz_copy_kernel, N * blocks * triton.cdiv(C, block_c),
        x, out, C, *plane, rows, columns // ALIGNED, blocks,
        index_type(x, out), unit(C), ALIGNED, block_p, block_c,
        out=out,
    )  # fmt: skip
    return out
