"""From sums by channels to the result: the epilogue, and what is not finite.

    y[n, row, column, c] = what the epilogue makes of sums[n, c, row, column]

A band's zeros make NaN of what is not finite in the source, for a whole row of the image.  A
program whose sums are not all finite takes them anew, tap by tap.  It owns BLOCK_P pixels of an
image by BLOCK_C channels.
"""

import triton
import triton.language as tl

from ..._common import unit, units
from ..epilogue import finish
from ..grouped.taps import spoiled
from ..problem import Problem
from .copies import block_sizes
from .view import ALIGNED, View, whole

SIZES = (
    *("rows", "columns", "row_step", "column_step", "row_units", "blocks"),
    *("x_rows", "x_columns", "x_row_step", "x_column_step"),
    *("taps_r", "taps_s", "before_r", "before_s", "w_first", "w_step_r", "w_step_s"),
)


@triton.jit
def _tap_by_tap(
    acc, x_ptr, w_ptr, n, row, column, c, channels, C, rows, columns, row_step, column_step,
    taps_r, taps_s, before_r, before_s, w_first, w_step_r, w_step_s,
):  # fmt: skip
    """Sums [P, C] of the pixels in row and column [P], in acc's type."""
    acc = tl.zeros_like(acc)
    for tap in range(taps_r * taps_s):
        r, s = tap // taps_s, tap % taps_s
        h, w = row + r - before_r, column + s - before_s
        inside = (h >= 0) & (h < rows) & (w >= 0) & (w < columns)
        pixel = n * (rows * columns) + h * row_step + w * column_step
        there = inside[:, None] & channels[None, :]
        x = tl.load(x_ptr + (pixel[:, None] * C + c[None, :]), mask=there, other=0.0)
        w_offs = c * (taps_r * taps_s) + w_first + r * w_step_r + s * w_step_s
        w_tap = tl.load(w_ptr + w_offs, mask=channels, other=0.0)
        acc = tl.where(there, acc + x.to(acc.dtype) * w_tap.to(acc.dtype)[None, :], acc)
    return acc


@triton.jit(do_not_specialize=SIZES)
def _toeplitz_finish_kernel(
    sums_ptr, x_ptr, w_ptr, y_ptr,  # sums [N, C, rows, row_units * ALIGNED], x and y [N, H, W, C]
    C, rows, columns, row_step, column_step, row_units, blocks,
    x_rows, x_columns, x_row_step, x_column_step,
    taps_r, taps_s, before_r, before_s, w_first, w_step_r, w_step_s,
    b_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, residual_ptr, gate_ptr, partial_ptr,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr, UNIT: tl.constexpr, ALIGNED: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    C = units(C, UNIT)
    row_length = row_units * ALIGNED
    program = tl.program_id(0)
    tiles_c = tl.cdiv(C, BLOCK_C)
    c = program % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)
    channels = c < C
    part = program // tiles_c
    n = tl.cast(part // blocks, INDEX)
    p = part % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    row, column = p // row_length, p % row_length
    inside = (row < rows) & (column < columns)

    offs = (n * C + c)[:, None] * (rows * row_length) + p[None, :]
    there = channels[:, None] & inside[None, :]
    acc = tl.load(sums_ptr + offs, mask=there, other=0.0).T.to(ACC)
    if spoiled(acc):
        acc = _tap_by_tap(
            acc, x_ptr, w_ptr, n, row, column, c, channels, C, x_rows, x_columns, x_row_step,
            x_column_step, taps_r, taps_s, before_r, before_s, w_first, w_step_r, w_step_s,
        )  # fmt: skip
    pixel = n * (rows * columns) + row * row_step + column * column_step
    finish(
        acc, y_ptr, pixel[:, None] * C + c[None, :], inside,
        tl.sum(inside.to(tl.int32), axis=0), c, C, channels, part,
        b_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, residual_ptr, gate_ptr, partial_ptr,
        EPS, ACTIVATION, ACC,
    )  # fmt: skip


def finishing(p: Problem, v: View) -> tuple[int, int, tuple, dict]:
    """Programs, parts of statistics, sizes and constants of the kernel."""
    (N, C), row_length = p.x[:2], whole(v.result.columns)
    block_p, block_c = block_sizes(C, v.result.rows * row_length)
    blocks = triton.cdiv(v.result.rows * row_length, block_p)
    sizes = *v.result, row_length // ALIGNED, blocks, *v.source, *v.taps, *v.before, *v.w_steps
    constants = {
        **{"ACC": p.acc, "INDEX": p.index_of(N * C * v.result.rows * row_length)},
        **{"UNIT": unit(C), "ALIGNED": ALIGNED, "BLOCK_P": block_p, "BLOCK_C": block_c},
    }
    return N * blocks * triton.cdiv(C, block_c), N * blocks, (C, *sizes), constants
