"""Reductions split between programs: into how many parts, and their sum in fixed order.

    out[i] = sum_s partial[s, i]

A program owns some consecutive elements of out and adds several parts of them at a time.  One
launch takes up to eight such sums: those that nothing waits for are put off and taken together.
"""

import contextlib
from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import index_type
from ._later import collecting, put_off
from ._launch import INTERPRETED, INTERPRETED_BLOCK, launch

PROGRAMS = 264  # two for each multiprocessor of an H100: fewer leave some idle
LONG_ENOUGH = 8  # steps of the reduction that repay a program's start

# parts and elements that a program adds at a time: many parts of few elements take programs of few
# elements, to be many; few parts of many elements, long rows of memory
MANY_ROWS, MANY_BLOCK = 256, 32
FEW_ROWS, FEW_BLOCK = 4, 1024
MOST_FEW = 4 * FEW_ROWS
AT_ONCE = 8  # sums


@triton.jit
def _add_rows(
    partial_ptr, out_ptr, numel, splits, block,
    INDEX: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    offs = tl.cast(block, INDEX) * BLOCK + tl.arange(0, BLOCK)
    row = tl.arange(0, ROWS)
    acc = tl.zeros((ROWS, BLOCK), partial_ptr.dtype.element_ty)
    for start in range(0, splits, ROWS):
        split = start + row
        inside = (split < splits)[:, None] & (offs < numel)[None, :]
        split_offs = tl.cast(split, INDEX)[:, None] * numel + offs[None, :]
        acc += tl.load(partial_ptr + split_offs, mask=inside, other=0.0)
    tl.store(out_ptr + offs, tl.sum(acc, axis=0), mask=offs < numel)


@triton.jit
def _add(
    partial_ptr, out_ptr, numel, splits, block, INDEX: tl.constexpr, MOST_FEW: tl.constexpr,
    MANY_ROWS: tl.constexpr, FEW_ROWS: tl.constexpr, MANY: tl.constexpr, FEW: tl.constexpr,
):  # fmt: skip
    if splits > MOST_FEW:
        _add_rows(partial_ptr, out_ptr, numel, splits, block, INDEX, MANY_ROWS, MANY)
    else:
        _add_rows(partial_ptr, out_ptr, numel, splits, block, INDEX, FEW_ROWS, FEW)


@triton.jit(do_not_specialize=("splits",))
def _add_splits_kernel(
    partial_ptr, out_ptr, numel, splits,  # partial [splits, numel], out [numel]
    INDEX: tl.constexpr, MOST_FEW: tl.constexpr,
    MANY_ROWS: tl.constexpr, FEW_ROWS: tl.constexpr, MANY: tl.constexpr, FEW: tl.constexpr,
):  # fmt: skip
    _add(
        partial_ptr, out_ptr, numel, splits, tl.program_id(0),
        INDEX, MOST_FEW, MANY_ROWS, FEW_ROWS, MANY, FEW,
    )  # fmt: skip


@triton.jit
def _next(
    partial_ptr, out_ptr, numel, splits, block, next_partial_ptr, next_out_ptr, next_numel,
    next_splits, MOST_FEW: tl.constexpr, MANY: tl.constexpr, FEW: tl.constexpr,
):  # fmt: skip
    """A sum and the number of a block of it, or of the next one, if it has no such block."""
    blocks = tl.cdiv(numel, tl.where(splits > MOST_FEW, MANY, FEW))
    if block >= blocks:
        block -= blocks
        partial_ptr, out_ptr = next_partial_ptr, next_out_ptr
        numel, splits = next_numel, next_splits
    return partial_ptr, out_ptr, numel, splits, block


@triton.jit(do_not_specialize=[f"splits_{i}" for i in range(8)])
def _add_several_splits_kernel(
    partial_0_ptr, out_0_ptr, numel_0, splits_0,
    partial_1_ptr, out_1_ptr, numel_1, splits_1,
    partial_2_ptr, out_2_ptr, numel_2, splits_2,
    partial_3_ptr, out_3_ptr, numel_3, splits_3,
    partial_4_ptr, out_4_ptr, numel_4, splits_4,
    partial_5_ptr, out_5_ptr, numel_5, splits_5,
    partial_6_ptr, out_6_ptr, numel_6, splits_6,
    partial_7_ptr, out_7_ptr, numel_7, splits_7,
    INDEX: tl.constexpr, MOST_FEW: tl.constexpr,
    MANY_ROWS: tl.constexpr, FEW_ROWS: tl.constexpr, MANY: tl.constexpr, FEW: tl.constexpr,
):  # fmt: skip
    """Of no elements are those that are not there."""
    partials = (
        partial_1_ptr, partial_2_ptr, partial_3_ptr, partial_4_ptr,
        partial_5_ptr, partial_6_ptr, partial_7_ptr,
    )  # fmt: skip
    outs = out_1_ptr, out_2_ptr, out_3_ptr, out_4_ptr, out_5_ptr, out_6_ptr, out_7_ptr
    numels = numel_1, numel_2, numel_3, numel_4, numel_5, numel_6, numel_7
    all_splits = splits_1, splits_2, splits_3, splits_4, splits_5, splits_6, splits_7
    partial_ptr, out_ptr, numel, splits = partial_0_ptr, out_0_ptr, numel_0, splits_0
    block = tl.program_id(0)
    for i in tl.static_range(7):
        partial_ptr, out_ptr, numel, splits, block = _next(
            partial_ptr, out_ptr, numel, splits, block,
            partials[i], outs[i], numels[i], all_splits[i], MOST_FEW, MANY, FEW,
        )  # fmt: skip
    _add(
        partial_ptr, out_ptr, numel, splits, block,
        INDEX, MOST_FEW, MANY_ROWS, FEW_ROWS, MANY, FEW,
    )  # fmt: skip


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
        _add_all([(partial, out)])
    return out


def add_splits_later(partial: Tensor, out: Tensor) -> Tensor:
    """The same; but where sums are taken together, out holds them only then."""
    if partial is out or put_off((partial, out)):
        return out
    return add_splits(partial, out)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Takes the sums that may be taken later when this context ends."""
    pending = []
    with collecting(pending):
        yield
    kinds = {}
    for partial, out in pending:
        kinds.setdefault((partial.dtype, out.dtype), []).append((partial, out))
    for sums in kinds.values():
        for i in range(0, len(sums), AT_ONCE):
            _add_all(sums[i : i + AT_ONCE])


def _add_all(sums: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Up to AT_ONCE, of the same dtypes."""
    many, few = MANY_BLOCK, FEW_BLOCK
    if INTERPRETED:
        largest = triton.next_power_of_2(max(out.numel() for _, out in sums))
        many = min(INTERPRETED_BLOCK // MANY_ROWS, largest)
        few = min(INTERPRETED_BLOCK // FEW_ROWS, largest)
    args, outs, programs, most = [], [], 0, 0
    for partial, out in sums:
        splits, numel = partial.shape
        args += (partial, out, numel, splits)
        outs.append(out)
        programs += -(-numel // (many if splits > MOST_FEW else few))
        most = max(most, splits * numel)
    kernel = _add_splits_kernel
    if len(outs) > 1:
        kernel = _add_several_splits_kernel
        args += (*args[:2], 0, 0) * (AT_ONCE - len(outs))
    launch(
        kernel, programs, *args, index_type(most=most),
        MOST_FEW, MANY_ROWS, FEW_ROWS, many, few, num_warps=8, out=tuple(outs),
    )  # fmt: skip
