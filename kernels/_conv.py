"""What the convolutions share: the checks torch makes, on one spatial axis or two.

A convolution along one axis is one of images with a single row.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._common import (
    Size,
    as_given,
    autocast,
    autocast_dtype,
    check_tensor,
    images,
    integer,
    ints,
    layout,
    require_at_least,
    steps,
)
from ._recall import Applied
from .conv import dispatch
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


def depends_on(x: Tensor) -> tuple:
    """What a convolution depends on beside its arguments."""
    return *dispatch.depends_on(x), autocast_dtype(x)


def _prepared(x: Tensor, w: Tensor, bias: Tensor | None, dims: int, dtype: torch.dtype) -> tuple:
    return as_images(*(t if t is None else t.to(dtype) for t in (x, w, bias)), dims)


def as_applied(function: type, dims: int, used: tuple, options: tuple, given: tuple) -> Applied:
    """function of used, which are as_images(operands(*given)), of the number of spatial axes."""
    rank, prepare, finish = given[0].dim(), None, None
    if any(t is not g for t, g in zip(used, given, strict=True)):
        prepare = functools.partial(_prepared, dims=dims, dtype=used[0].dtype)
    if rank != 4:
        finish = functools.partial(as_given, dims=dims, rank=rank)
    return Applied(function, used, options, prepare, finish)


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
