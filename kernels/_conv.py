"""What the convolutions share: the checks torch makes, on one spatial axis or two.

A convolution along one axis is one of images with a single row.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._common import (
    PLAIN,
    Size,
    autocast,
    check_tensor,
    images,
    integer,
    ints,
    layout,
    require_at_least,
    steps,
)
from .conv.geometry import Formats, Geometry


class Operands(NamedTuple):
    """Checked tensors, in autocast's dtype, as the user gave them."""

    x: Tensor
    w: Tensor
    bias: Tensor | None


def as_images(
    x: Tensor, w: Tensor, bias: Tensor | None, dims: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    if dims == 2:
        return images(x, 2), w, bias
    # as torch: a transposed signal is copied, for it would pass for a channels_last image
    return images(x.contiguous(), 1), w.unsqueeze(-2), bias


Found = tuple[Formats, Geometry]

MOST_REMEMBERED = 4096

# what convolutions were found to be, by their signatures: checking costs more than a launch
_remembered: dict[tuple, Found] = {}


def recalled(
    name: str, x: Tensor, w: Tensor, b: Tensor | None, options: tuple
) -> tuple[tuple | None, Found | None]:
    """All that a convolution's checks depend on, if it is to be remembered, and what they found."""
    if torch.compiler.is_compiling():
        return None, None
    for t in (x, w) if b is None else (x, w, b):
        if type(t) not in PLAIN or t.layout is not torch.strided:
            return None, None  # sparse, or with symbolic shapes
    if not (x.is_cuda or x.is_cpu) or torch.is_autocast_enabled("cuda" if x.is_cuda else "cpu"):
        return None, None
    for option in options:  # what is equal to an int, as True and 1.0 are, need not be one
        kinds = map(type, option) if type(option) is tuple else (type(option),)
        if any(kind is not int and kind is not str for kind in kinds):
            return None, None
    of_x = x.shape, x.stride(), x.dtype, x.device
    of_w = w.shape, w.stride(), w.dtype, w.device
    of_b = None if b is None else (b.shape, b.dtype, b.device)
    key = name, of_x, of_w, of_b, options
    return key, _remembered.get(key)


def remember(key: tuple | None, found: Found) -> None:
    if key is not None:
        if len(_remembered) >= MOST_REMEMBERED:
            _remembered.clear()
        _remembered[key] = found


def operands(name: str, dims: int, input: Tensor, weight: Tensor, bias: Tensor | None) -> Operands:
    check_tensor(name, "input", input, (dims + 1, dims + 2))
    check_tensor(name, "weight", weight, (dims + 2,))
    if bias is not None:
        check_tensor(name, "bias", bias, (1,))
    given = Operands(*autocast(input, weight, bias))
    others = [t for t in (given.w, given.bias) if t is not None]
    if any(t.dtype != given.x.dtype or t.device != given.x.device for t in others):
        tensors = dict(zip(("input", "weight", "bias"), (given.x, *others), strict=False))
        got = ", ".join(f"{name} {t.dtype} on {t.device}" for name, t in tensors.items())
        raise RuntimeError(
            f"{name}: input, weight and bias must have the same dtype and device, got {got}; "
            "convert with .to()"
        )
    return given


def formats(x: Tensor, w: Tensor) -> Formats:
    """Gradients as what they belong to; the output in channels_last if one of the two is."""
    x_format, w_format = layout(x), layout(w)
    y_format = w_format if x_format == torch.contiguous_format else x_format
    return Formats(x_format, w_format, y_format)


def check_channels(
    name: str, given: Operands, in_channels: int, out_channels: int, groups: int
) -> None:
    """The channels that weight and groups ask for are those of input and bias."""
    x, w, bias = given
    channels = x.shape[1 - w.dim()]
    if w.shape[0] % groups or w.shape[0] == 0:
        raise RuntimeError(
            f"{name}: expected weight's first size to be a multiple of groups={groups}, got "
            f"weight {tuple(w.shape)}"
        )
    if channels != in_channels:
        raise RuntimeError(
            f"{name}: given groups={groups} and weight {tuple(w.shape)}, expected input to have "
            f"{in_channels} channels, got {channels} in input {tuple(x.shape)}"
        )
    if bias is not None and bias.shape[0] != out_channels:
        raise RuntimeError(
            f"{name}: expected bias of shape ({out_channels},) for weight {tuple(w.shape)}, got "
            f"{tuple(bias.shape)}"
        )


def fitted(name: str, sizes: Sequence[int], kernel: Sequence[int], g: Geometry) -> Geometry:
    """g for an input of these sizes: the kernel has taps, the input has pixels, the one fits into
    the other, and steps that lead nowhere are small."""
    reach = [d * (k - 1) + 1 for d, k in zip(g.dilation, kernel, strict=True)]
    padded = [n + b + a for n, b, a in zip(sizes, g.before, g.after, strict=True)]
    if min(*kernel, *sizes) == 0 or any(r > p for r, p in zip(reach, padded, strict=True)):
        raise RuntimeError(
            f"{name}: expected a non-empty input and a kernel of at least 1 that fits the padded "
            f"input, got kernel {tuple(kernel)} with dilation {g.dilation} for input "
            f"{tuple(sizes)} padded by {g.before} before and {g.after} after"
        )
    return g._replace(**steps(name, padded, kernel, g.stride, g.dilation))


def geometry(
    name: str,
    kernel: Sequence[int],
    stride: Size,
    padding: Size | str,
    dilation: Size,
    groups: int,
) -> Geometry:
    dims = len(kernel)
    stride = ints(name, "stride", stride, dims)
    dilation = ints(name, "dilation", dilation, dims)
    require_at_least(name, "stride", stride, 1)
    require_at_least(name, "dilation", dilation, 1)
    groups = integer(name, "groups", groups)
    require_at_least(name, "groups", (groups,), 1)
    if not isinstance(padding, str):
        before = after = ints(name, "padding", padding, dims)
        require_at_least(name, "padding", before, 0)
    elif padding == "valid":
        before = after = (0,) * dims
    elif padding == "same":
        if math.prod(stride) != 1:
            raise RuntimeError(
                f"{name}: padding='same' is not supported for strided convolutions, got stride "
                f"{stride}; pass the padding as numbers"
            )
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        before = tuple(t // 2 for t in total)
        after = tuple(t - b for t, b in zip(total, before, strict=True))
    else:
        raise RuntimeError(f"{name}: padding must be 'same', 'valid' or ints, got {padding!r}")
    return Geometry(stride, before, after, dilation, groups)
