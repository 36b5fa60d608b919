"""What the pools share: how a window moves, the sizes that follow, and the checks torch makes."""

from collections.abc import Sequence
from typing import NamedTuple

import triton
import triton.language as tl  # noqa: F401 the interpreter wants it
from torch import Tensor

from ._common import Pair, Size2, check_pool_input, pair, require_at_least


class Window(NamedTuple):
    size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    ceil_mode: bool

    def y_shape(self, shape: Sequence[int]) -> list[int]:
        return list(shape[:-2]) + [
            _windows(*geometry, self.ceil_mode)
            for geometry in zip(shape[-2:], *self[:4], strict=True)
        ]

    @property
    def reach(self) -> Pair:
        """The most windows that one pixel lies in, along each axis."""
        return tuple(
            triton.cdiv(d * (k - 1) + 1, s)
            for k, s, d in zip(self.size, self.stride, self.dilation, strict=True)
        )


SCHEMA = "int[] size, int[] stride, int[] padding, int[] dilation, bool ceil_mode"


def _windows(size: int, k: int, s: int, p: int, d: int, ceil_mode: bool) -> int:
    n = (size + 2 * p - d * (k - 1) - 1 + (s - 1 if ceil_mode else 0)) // s + 1
    # the last window must start inside the image or its left padding
    return n - 1 if ceil_mode and (n - 1) * s >= size + p else n


def window(
    name: str,
    x: Tensor,
    kernel_size: Size2,
    stride: Size2 | None,
    padding: Size2,
    dilation: Size2 = 1,
    ceil_mode: bool = False,
) -> Window:
    """The checked window; an empty or missing stride is the window's own size."""
    check_pool_input(name, x)
    size = pair(name, "kernel_size", kernel_size)
    no_stride = stride is None or (isinstance(stride, tuple | list) and not stride)
    w = Window(
        size,
        size if no_stride else pair(name, "stride", stride),
        pair(name, "padding", padding),
        pair(name, "dilation", dilation),
        bool(ceil_mode),
    )
    require_at_least(name, "kernel_size", w.size, 1)
    require_at_least(name, "stride", w.stride, 1)
    require_at_least(name, "padding", w.padding, 0)
    require_at_least(name, "dilation", w.dilation, 1)
    for k, p, d in zip(w.size, w.padding, w.dilation, strict=True):
        if p > (d * (k - 1) + 1) // 2:
            raise RuntimeError(
                f"{name}: padding must be at most half of the (dilated) kernel_size, got "
                f"padding={p} for kernel_size={k} and dilation={d}"
            )
    if min(w.y_shape(x.shape)[-2:]) < 1:
        raise RuntimeError(
            f"{name}: output would be empty: kernel_size {w.size} with dilation {w.dilation} does "
            f"not fit input {tuple(x.shape)} padded by {w.padding}"
        )
    return w


@triton.jit
def covering_window(h, back, O, K, S, P, D):  # noqa: E741
    """The window `back` before the last to reach pixel h: its index, its tap there, if any."""
    o = (h + P) // S - back
    from_start = h + P - o * S
    tap = from_start // D
    return o, tap, (o >= 0) & (o < O) & (tap < K) & (from_start % D == 0)
