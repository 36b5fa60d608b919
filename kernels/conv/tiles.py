"""Which block sizes serve a convolution: coarse tables for GPUs, one policy for the interpreter.

A tile is m x n outputs and a reduction step of k.  Every tile of the tables compiles without spills
for sm_80 and newer within 99 KiB of shared memory, the least any of these devices has, except
those of HOPPER, which sm_90's 227 KiB allow.
"""

from typing import NamedTuple

import torch
import triton

from .._launch import INTERPRETED, INTERPRETED_BLOCK


class Tile(NamedTuple):
    m: int
    n: int
    k: int
    warps: int
    stages: int


# By element size in bytes, widest n first: the first tile no wider than the problem serves it.
TILES = {
    2: (
        Tile(128, 128, 32, 8, 4),
        Tile(128, 64, 32, 4, 4),
        Tile(128, 32, 32, 4, 4),
        Tile(128, 16, 32, 4, 4),
    ),
    4: (
        Tile(64, 64, 16, 4, 3),
        Tile(64, 32, 16, 4, 3),
        Tile(64, 16, 16, 4, 3),
    ),
    8: (
        Tile(32, 32, 16, 4, 2),
        Tile(32, 16, 16, 4, 2),
    ),
}
HOPPER = {
    2: (
        Tile(128, 128, 64, 8, 3),
        Tile(128, 64, 64, 8, 4),
        Tile(128, 32, 64, 4, 4),
        Tile(128, 16, 64, 4, 4),
    ),
}
PROGRAMS = 264  # two for each multiprocessor of an H100: fewer leave some idle
LONG_ENOUGH = 8  # steps of the reduction that repay a program's start


def table(dtype: torch.dtype, capability: tuple[int, int]) -> tuple[Tile, ...]:
    size = dtype.itemsize
    return HOPPER[size] if capability[0] == 9 and size in HOPPER else TILES[size]


def device_capability(x: torch.Tensor) -> tuple[int, int]:
    return torch.cuda.get_device_capability(x.device)


def choose(m: int, n: int, k: int, x: torch.Tensor) -> Tile:
    """The tile for m x n outputs, each a sum of k products, in x's dtype on x's device."""
    if INTERPRETED:
        return interpreted(m, n, k)
    tiles = table(x.dtype, device_capability(x))
    return next((t for t in tiles if t.n <= n), tiles[-1])


def interpreted(m: int, n: int, k: int) -> Tile:
    """Few, large blocks: the longest side gets what the interpreter's block limit leaves."""
    sizes = [triton.next_power_of_2(size) for size in (m, n, k)]
    longest = sizes.index(max(sizes))
    blocks = [min(size, 256) for size in sizes]
    across = max(blocks[:longest] + blocks[longest + 1 :])
    blocks[longest] = min(sizes[longest], INTERPRETED_BLOCK // across)
    return Tile(*blocks, warps=1, stages=1)


def pixel_box(pixels: int, height: int, width: int) -> tuple[int, int, int]:
    """A box of [images, rows, columns], each a power of two, that holds `pixels` pixels."""
    columns = min(triton.next_power_of_2(width), pixels)
    rows = min(triton.next_power_of_2(height), pixels // columns)
    return pixels // (columns * rows), rows, columns


def splits(programs: int, steps: int) -> int:
    """Into how many parts to split a reduction of `steps` steps; depends on shapes alone."""
    if INTERPRETED:
        return 1
    return max(min(PROGRAMS // programs, steps // LONG_ENOUGH), 1)
