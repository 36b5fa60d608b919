"""What the kernels on Hopper's tensor memory accelerator have in common.

It copies boxes of a tensor of several dimensions into shared memory, and zeros where a box reaches
beyond the tensor.  The tensor's rows must be of whole 16 bytes.
"""

import math
from collections.abc import Callable, Sequence

import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .._common import nhwc
from .general.tiles import Tile
from .problem import Problem

ALIGNMENT = 16  # bytes
MOST_PIXELS = 2**31 - 2**12  # coordinates have 32 bits, and a box may reach beyond the end

Tables = dict[int, tuple[Tile, ...]]  # by element size in bytes

# m x n: pixels x channels, or for wgrad output x input channels.
TILES: Tables = {
    2: (
        Tile(256, 128, 64, 8, 3),
        Tile(128, 128, 64, 8, 3),
        Tile(128, 64, 64, 4, 4),
        Tile(64, 64, 64, 4, 4),
    ),
    4: (
        Tile(128, 128, 32, 8, 3),
        Tile(128, 64, 32, 4, 4),
        Tile(64, 64, 32, 4, 4),
    ),
}
MOST_INTERPRETED = 1024, 256, 256  # m, n and k
PROGRAMS = 132  # one for each multiprocessor of an H100
REGISTERS, SHARED, RESERVED = (
    2**16,
    228 * 1024,
    1024,
)  # of one, bytes of it, and those of each program
LARGE = 2**14  # outputs; of a larger tile, a multiprocessor runs one program at a time


def unit(p: Problem) -> int:
    """Elements in 16 bytes: kernels take channels in these, to know what divides them."""
    return ALIGNMENT // p.dtype.itemsize


def declines(p: Problem) -> str | None:
    g = p.geometry
    if p.capability is not None and p.capability[0] != 9:
        return "it needs the tensor memory accelerator of sm_90"
    if p.dtype.itemsize > 2 and p.precision != "tf32":
        return "it multiplies in float16, bfloat16 or TF32"
    if g.groups != 1:
        return "it takes one group"
    if any(channels % unit(p) for channels in p.channels):
        return f"it takes channels in multiples of {unit(p)}"
    if max(p.x[0] * math.prod(p.x[2:]), p.y[0] * math.prod(p.y[2:])) > MOST_PIXELS:
        return f"it takes at most {MOST_PIXELS} pixels"
    return None


def yields(p: Problem) -> bool:
    """In the interpreter, which has no accelerator to be for."""
    return p.capability is None


def serving(p: Problem, m: int, n: int, k: int, tables: Tables = TILES) -> tuple[Tile, ...]:
    """The tiles for m x n outputs, each a sum of k products; the best guess first."""
    if p.capability is None:
        powers = (triton.next_power_of_2(size) for size in (m, n, k))
        return (Tile(*map(min, powers, MOST_INTERPRETED), warps=1, stages=1),)
    tiles = tables[p.dtype.itemsize]
    least = tiles[-1]
    m, n = max(m, least.m), max(n, least.n)

    def fits(t: Tile) -> bool:
        busy = p.work == "wgrad" or triton.cdiv(m, t.m) * triton.cdiv(n, t.n) >= PROGRAMS
        return busy and t.m <= m and t.n <= n and t.m * t.n <= LARGE

    guess = next(filter(fits, tiles), least)
    return guess, *(t for t in tiles if t != guess)


def walkers(p: Problem, tile: Tile, blocks: int, tiles_c: int) -> int:
    """How many programs share the blocks of pixels of each tile of channels.

    One each; with statistics as many as are resident at once, for each leaves a part of them.
    """
    if not p.statistics:
        return blocks
    return min(blocks, max(PROGRAMS * resident(tile, p.dtype.itemsize) // tiles_c, 1))


def resident(tile: Tile, size: int) -> int:
    """Programs that a multiprocessor holds: sums take half of the registers they have."""
    shared = tile.stages * (tile.m + tile.n) * tile.k * size + RESERVED
    return max(min(REGISTERS // (2 * tile.m * tile.n), SHARED // shared), 1)


def of_steps(tile: Tile, steps: int, size: int) -> Tile:
    """The tile for so many steps: with no more stages, where a multiprocessor then holds more."""
    fewer = tile._replace(stages=min(tile.stages, steps))
    return fewer if resident(fewer, size) > resident(tile, size) else tile


def transposes_w(p: Problem) -> bool:
    """Whether weights are transposed for dgrad: TF32 products read both operands along the sum."""
    return p.work == "dgrad" and p.precision == "tf32"


def transposed(w: Tensor) -> Tensor:
    """w [CO, KH, KW, C] in memory as [C, KH, KW, CO]."""
    return nhwc(w.transpose(0, 1))


def weights(
    p: Problem, taps: int, C: int, K: int, block: tuple[int, int]
) -> tuple[bool, Callable[[Tensor], TensorDescriptor]]:
    """Whether forward's or dgrad's kernel takes w as [C, taps, K], otherwise [K, taps, C]; and what
    describes its blocks of so many of C and of K."""
    transposes, (block_c, block_k) = transposes_w(p), block
    along_k = p.work == "forward" or transposes
    if along_k:
        describe = descriptor((C, taps * K), (block_c, block_k))
    else:
        describe = descriptor((K, taps * C), (block_k, block_c))
    return along_k, lambda w: describe(transposed(w) if transposes else w)


def descriptor(
    shape: Sequence[int], box: Sequence[int], order: Sequence[int] = ()
) -> Callable[[Tensor], TensorDescriptor]:
    """What describes boxes of tensors dense in `shape`, their dimensions in `order` if given."""
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    order = order or range(len(shape))
    sizes, strides = [shape[i] for i in order], [strides[i] for i in order]
    checked = {}  # a descriptor's fields: checking them again would cost as much as all else

    def describe(x: Tensor) -> TensorDescriptor:
        if x.data_ptr() % ALIGNMENT:
            x = x.clone()
        if not checked:
            checked.update(vars(TensorDescriptor(x, sizes, strides, list(box))), base=None)
        made = object.__new__(TensorDescriptor)
        made.__dict__.update(checked, base=x)
        return made

    return describe
