"""What the pools share: windows, the sizes that follow, and the checks torch makes.

Pooling along one axis is pooling of images with a single row.
"""

import functools
from collections.abc import Callable, Sequence
from math import gcd, prod
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import (
    Size,
    as_given,
    check_tensor,
    flag,
    images,
    ints,
    layout,
    leave,
    pixel_tile,
    require_at_least,
    steps,
)
from ._recall import Applied

Ints = tuple[int, ...]

MOST_UNROLLED = 16  # taps, or pixels


class Window(NamedTuple):
    """Size, stride, padding and dilation by axis."""

    size: Ints
    stride: Ints
    padding: Ints
    dilation: Ints
    ceil_mode: bool

    def y_shape(self, shape: Sequence[int]) -> list[int]:
        dims = len(self.size)
        return list(shape[:-dims]) + [
            _windows(*geometry, self.ceil_mode)
            for geometry in zip(shape[-dims:], *self[:4], strict=True)
        ]

    def of_images(self) -> "Window":
        """The same for images: those of a single row where it has one axis."""
        if len(self.size) == 2:
            return self
        size, stride, padding, dilation, ceil_mode = self
        return Window((1, *size), (1, *stride), (0, *padding), (1, *dilation), ceil_mode)

    @property
    def reach(self) -> Ints:
        """The most windows that one pixel lies in, along each axis."""
        return tuple(
            triton.cdiv(d * (k - 1) + 1, s)
            for k, s, d in zip(self.size, self.stride, self.dilation, strict=True)
        )

    def visits(self, *out: int) -> Ints:
        """How many of `out` windows to ask whether they cover a pixel."""
        return tuple(map(min, self.reach, out))

    @property
    def unrolls(self) -> bool:
        """Whether its taps are few enough to be unrolled, and every pixel close to its windows."""
        few = prod(self.size) <= MOST_UNROLLED and prod(self.span) <= MOST_UNROLLED
        return few and max(self.dilation) == 1

    @property
    def span(self) -> Ints:
        """Sides of a block of pixels, multiples of the stride, that share most of their windows."""
        return self.stride[0], self.stride[1] if self.stride[1] > 1 else 2

    def spans(self, *sizes: int) -> Ints:
        """How many blocks of pixels cover an image, which starts inside the first of them."""
        return tuple(
            triton.cdiv(p % s + size, span)
            for size, s, p, span in zip(sizes, self.stride, self.padding, self.span, strict=True)
        )


SCHEMA = "int[] size, int[] stride, int[] padding, int[] dilation, bool ceil_mode"


def _windows(size: int, k: int, s: int, p: int, d: int, ceil_mode: bool) -> int:
    n = (size + 2 * p - d * (k - 1) - 1 + (s - 1 if ceil_mode else 0)) // s + 1
    # the last window must start inside the image or its left padding
    return n - 1 if ceil_mode and (n - 1) * s >= size + p else n


def check_pool_input(name: str, dims: int, x: Tensor, channels: bool = True) -> None:
    """A batch or a single item; only its number of items may be zero, or that of channels."""
    check_tensor(name, "input", x, (dims + 1, dims + 2))
    if 0 in x.shape[-dims - channels :]:
        sizes = "channels and pixels" if channels else "pixels"
        raise RuntimeError(f"{name}: input must have {sizes}, got shape {tuple(x.shape)}")


def window(
    name: str,
    dims: int,
    x: Tensor,
    kernel_size: Size,
    stride: Size | None,
    padding: Size,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Window:
    """The checked window along dims axes; a missing stride is the window's own size."""
    check_pool_input(name, dims, x)
    size = ints(name, "kernel_size", kernel_size, dims)
    require_at_least(name, "kernel_size", size, 1)
    no_stride = stride is None or (isinstance(stride, tuple | list) and not stride)
    w = Window(
        size,
        size if no_stride else ints(name, "stride", stride, dims),
        ints(name, "padding", padding, dims),
        ints(name, "dilation", dilation, dims),
        flag(name, "ceil_mode", ceil_mode),
    )
    require_at_least(name, "stride", w.stride, 1)
    require_at_least(name, "padding", w.padding, 0)
    require_at_least(name, "dilation", w.dilation, 1)
    for k, p in zip(w.size, w.padding, strict=True):
        if p > k // 2:
            raise RuntimeError(
                f"{name}: padding must be at most half of kernel_size, got padding={p} for "
                f"kernel_size={k}"
            )
    if min(w.y_shape(x.shape)[-dims:]) < 1:
        raise RuntimeError(
            f"{name}: output would be empty: kernel_size {w.size} with dilation {w.dilation} does "
            f"not fit input {tuple(x.shape)} padded by {w.padding}"
        )
    if prod(w.size) >= 2**31:
        raise RuntimeError(f"{name}: a window must have less than 2**31 taps, got {w.size}")
    padded = [n + 2 * p for n, p in zip(x.shape[-dims:], w.padding, strict=True)]
    return w._replace(**steps(name, padded, w.size, w.stride, w.dilation))


def output_size(
    name: str, dims: int, x: Tensor, size: int | Sequence[int | None]
) -> tuple[int, int]:
    """The checked output size for images(x, dims); None, where there are two axes, keeps x's."""
    if dims == 2 and isinstance(size, tuple | list):
        if len(size) != 2:
            raise RuntimeError(f"{name}: output_size must be an int or a tuple of 2, got {size!r}")
        size = [m if n is None else n for n, m in zip(size, x.shape[-2:], strict=True)]
    sizes = ints(name, "output_size", size, dims)
    require_at_least(name, "output_size", sizes, 0)
    return (1, *sizes)[-2:]


def with_winner(x: Tensor, return_indices: bool) -> bool:
    """Whether a maximum's place is wanted: for the caller, the backward, or, lest a trace differ
    with the mode it is made in, a trace."""
    needs_gradient = torch.is_grad_enabled() and x.requires_grad
    return bool(return_indices) or needs_gradient or torch.jit.is_tracing()


def as_applied(
    function: type, dims: int, input: Tensor, options: tuple, indices: Callable | None = None
) -> Applied:
    """function of images(input, dims); indices makes int64 of what tells where maxima lie, where
    the function gives that, too."""
    x, rank, prepare, finish = images(input, dims), input.dim(), None, None
    if x is not input:
        prepare = functools.partial(_prepared, dims=dims)
    if indices is not None:
        finish = functools.partial(
            _with_indices, indices=indices, memory_format=layout(x), dims=dims, rank=rank
        )
    elif rank != 4:
        finish = functools.partial(as_given, dims=dims, rank=rank)
    return Applied(function, (x,), options, prepare, finish)


def _prepared(x: Tensor, dims: int) -> tuple[Tensor]:
    return (images(x, dims),)


def _with_indices(
    results, indices: Callable, memory_format: torch.memory_format, dims: int, rank: int
) -> tuple[Tensor, Tensor]:
    y, found = results
    found = leave(indices(found), memory_format)
    return as_given(y, dims, rank), as_given(found, dims, rank)


def longest(size: int, out: int) -> int:
    """The most pixels in a window when `size` pixels are pooled to `out`."""
    return 0 if out == 0 else triton.cdiv(size - gcd(size, out), out) + 1


def as_row(H: int, W: int, OH: int, OW: int) -> tuple[int, int]:
    """Sizes of images as the pools take them: as single rows where all their pixels are pooled."""
    return (1, H * W) if OH == OW == 1 else (H, W)


@triton.jit
def bounds(o, SIZE, OUT):
    """First and past-the-last pixel of window o; swapped, of the windows that cover a pixel."""
    # clamped for the compiler to see that SIZE = 1 leaves but pixel 0
    first = tl.minimum(tl.maximum(o * SIZE // OUT, 0), SIZE - 1)
    return first, ((o + 1) * SIZE + OUT - 1) // OUT


@triton.jit
def covering_window(h, back, O, K, S, P, D):  # noqa: E741
    """The window `back` before the last to reach pixel h: its index, its tap there, if any."""
    # clamped from below, too, for the compiler to see that it is 0 where O is 1
    o = tl.minimum(tl.maximum((h + P) // S, 0), O - 1) - back
    from_start = h + P - o * S
    tap = from_start // D
    return o, tap, (o >= 0) & (tap < K) & (from_start % D == 0)


@triton.jit
def span_tile(
    spans, C, SPANS_H, SPANS_W, PH, PW, SH: tl.constexpr, SW: tl.constexpr,
    SPAN_H: tl.constexpr, SPAN_W: tl.constexpr,
    INDEX: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The program's tile of blocks of pixels: n; oh, ow, the last windows to reach their first
    pixels; these pixels, h, w; c; and which are inside."""
    n, h, w, c, _, inside = pixel_tile(spans, C, SPANS_H, SPANS_W, INDEX, BLOCK_P, BLOCK_C)
    oh, ow = PH // SH + h * (SPAN_H // SH), PW // SW + w * (SPAN_W // SW)
    return n, oh, ow, oh * SH - PH, ow * SW - PW, c, inside


@triton.jit
def store_span(
    dx_ptr, dx, n, h, w, c, inside, H, W, pixel, SPAN_H: tl.constexpr, SPAN_W: tl.constexpr
):  # fmt: skip
    """Stores dx, a tile for each pixel of a block, from (h, w) on."""
    dx_ptr += ((n * H + h) * W + w) * pixel + c
    for i in tl.static_range(SPAN_H):
        row = inside & (h + i >= 0) & (h + i < H)
        for j in tl.static_range(SPAN_W):
            there = row & (w + j >= 0) & (w + j < W)
            tl.store(dx_ptr + (i * W + j) * pixel, dx[i * SPAN_W + j], mask=there)
