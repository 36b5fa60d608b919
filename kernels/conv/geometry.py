"""How a window moves over an image, as the ops pass it on, and the sizes that follow."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

Ints = tuple[int, ...]

# Kernels' arguments for which Triton must not compile anew where they are 1 or multiples of 16:
# sizes that say nothing of how memory is aligned.
SIZES = ("N", "H", "W", "OH", "OW", "GROUPS", "KH", "KW", "SH", "SW", "PH", "PW", "DH", "DW")


class Geometry(NamedTuple):
    """stride, padding before (top, left) and after (bottom, right), dilation, by axis; groups."""

    stride: Ints
    before: Ints
    after: Ints
    dilation: Ints
    groups: int

    def y_shape(self, x_shape: Sequence[int], w_shape: Sequence[int]) -> list[int]:
        """[N, CO, OH, OW] of the convolution of x_shape with weights [CO, CG, KH, KW]."""
        return [x_shape[0], w_shape[0]] + [
            (size + before + after - dilation * (taps - 1) - 1) // stride + 1
            for size, taps, stride, before, after, dilation in zip(
                x_shape[2:], w_shape[2:], *self[:4], strict=True
            )
        ]

    def x_shape(self, y_shape: Sequence[int], w_shape: Sequence[int]) -> list[int]:
        """[N, C, H, W] of the smallest images that give y_shape: those of the transposed
        convolution, whose output padding `after` is short of."""
        return [y_shape[0], w_shape[1] * self.groups] + [
            (size - 1) * stride - before - after + dilation * (taps - 1) + 1
            for size, taps, stride, before, after, dilation in zip(
                y_shape[2:], w_shape[2:], *self[:4], strict=True
            )
        ]

    @property
    def flat(self) -> Ints:
        """As the ops take it: a list of its own for each field costs them as much as a launch."""
        return *self.stride, *self.before, *self.after, *self.dilation, self.groups

    def of_images(self) -> "Geometry":
        """The same for images: those of a single row where it has one axis."""
        if len(self.stride) == 2:
            return self
        return Geometry(
            (1, *self.stride), (0, *self.before), (0, *self.after), (1, *self.dilation), self.groups
        )


class Formats(NamedTuple):
    """In which memory format input, weight and output, and their gradients, leave an op."""

    x: torch.memory_format
    w: torch.memory_format
    y: torch.memory_format


SCHEMA = "int[] geometry"


def from_flat(values: Sequence[int]) -> Geometry:
    *values, groups = values
    return Geometry(*(tuple(values[i : i + 2]) for i in range(0, 8, 2)), groups)
