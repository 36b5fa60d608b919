"""Reductions split between programs: into how many parts, and their sum in fixed order.

    out[i] = sum_s partial[s, i]

A program owns BLOCK consecutive elements of out and adds ROWS parts of them at a time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import index_type
from ._launch import INTERPRETED, INTERPRETED_BLOCK, launch

PROGRAMS = 264  # two for each multiprocessor of an H100: fewer leave some idle
LONG_ENOUGH = 8  # steps of the reduction that repay a program's start

# elements and parts of a program that adds partial sums, and its warps: many parts of few elements
# take programs of few elements, to be many; few parts of many elements, long rows of memory
MANY, FEW = (32, 128, 8), (512, 4, 4)


@triton.jit(do_not_specialize=("splits",))
def _add_splits_kernel(
    partial_ptr, out_ptr, numel, splits,  # partial [splits, numel], out [numel]
    INDEX: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    offs = tl.cast(tl.program_id(0), INDEX) * BLOCK + tl.arange(0, BLOCK)
    row = tl.arange(0, ROWS)
    acc = tl.zeros((ROWS, BLOCK), partial_ptr.dtype.element_ty)
    for start in range(0, splits, ROWS):
        split = start + row
        inside = (split < splits)[:, None] & (offs < numel)[None, :]
        split_offs = tl.cast(split, INDEX)[:, None] * numel + offs[None, :]
        acc += tl.load(partial_ptr + split_offs, mask=inside, other=0.0)
    tl.store(out_ptr + offs, tl.sum(acc, axis=0), mask=offs < numel)


def splits(programs: int, steps: int, wanted: int) -> int:
    """Into how many parts to split a reduction of `steps` steps; depends on shapes alone."""
    if INTERPRETED:
        return 1
    return max(min(wanted // programs, steps // LONG_ENOUGH), 1)


def shares(programs: int, units: int, steps: int, wanted: int = PROGRAMS) -> tuple[int, int]:
    """How many shares `units` make in a reduction of `steps` steps, and the units in each.

    programs: what one share takes; wanted: how many are to run in all.
    """
    share = triton.cdiv(units, splits(programs, steps, wanted))
    return triton.cdiv(units, share), share


@triton.jit
def pixel_share(pixels, C, pixels_a_split, INDEX: tl.constexpr, BLOCK_C: tl.constexpr):
    """The program's share of [pixels, C]: channels [BLOCK_C], split, and pixels first to last."""
    tiles_c = tl.cdiv(C, BLOCK_C)
    c = tl.program_id(0) % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)
    split = tl.cast(tl.program_id(0) // tiles_c, INDEX)
    first = split * pixels_a_split
    return c, split, first, tl.minimum(first + pixels_a_split, pixels)


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of partial sums, whole sums and statistics of values in dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def partial_sums(splits: int, out: Tensor) -> Tensor:
    """Room for `splits` partial sums of what out, dense in memory, is to hold: out itself for one.

    As many for each element, in out's order in memory, in sum_dtype(out.dtype).
    """
    dtype = sum_dtype(out.dtype)
    if splits == 1 and out.dtype == dtype:
        return out
    return torch.empty((splits, out.numel()), dtype=dtype, device=out.device)


def add_splits(partial: Tensor, out: Tensor) -> Tensor:
    """out, which becomes the sum of its partial sums."""
    if partial is not out:
        splits, numel = partial.shape
        block, rows, warps = MANY if splits > 4 * FEW[1] else FEW
        if INTERPRETED:
            block = min(INTERPRETED_BLOCK // rows, triton.next_power_of_2(numel))
        launch(
            _add_splits_kernel, triton.cdiv(numel, block),
            partial, out, numel, splits,
            index_type(partial), rows, block, num_warps=warps, out=out,
        )  # fmt: skip
    return out
