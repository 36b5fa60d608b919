"""Gradient of a normalisation, with what follows it.

    y = act(normalised x + residual),  x^ = (x - mean) / sqrt(var + eps)
    g = dy times the slope of act:  the gradient of the residual
    dweight = sum(g * x^),  dbias = sum(g)
    dx = (g - (sum(g) + x^ * sum(g * x^)) / n) * weight / sqrt(var + eps)
         or, where mean and var were given, g * weight / sqrt(var + eps)

The slope is told by y if that is given, and otherwise by x, without a residual.  Without mean and
variance x^ is x, and weight 1.
Sums: a program owns BLOCK_C channels of a share of the pixels, and the shares are added in fixed
order; on the way it can store y, which it had to compute.  dx: a program owns a tile of pixels by
channels.  Either can store g, where the residual needs a gradient: the first that reads dy does.
"""

import torch
import triton
import triton.language as tl

from .. import _split
from .._common import (
    accumulator,
    empty_in,
    empty_nhwc,
    index_type,
    leave,
    nhwc,
    op,
    pixel_blocks,
    tile,
    units,
)
from .._launch import launch
from .._split import pixel_share, sum_dtype
from .activation import activated, passed
from .normalise import coefficients, elements, row, vector
from .stats import shares


@triton.jit(do_not_specialize=("pixels", "pixels_a_split"))
def _batch_norm_sums_kernel(
    dy_ptr, x_ptr, mean_ptr, var_ptr, w_ptr, b_ptr, y_ptr, z_ptr, g_ptr, partial_ptr,
    pixels, C, pixels_a_split,  # dy, x, y, z, g [pixels, C], partial [splits, 2, C]; z: y computed
    ACTIVATION: tl.constexpr, EPS: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    UNIT: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    C = units(C, UNIT)
    c, split, first, last = pixel_share(pixels, C, pixels_a_split, INDEX, BLOCK_C)
    mean, rstd, scale, shift = coefficients(
        mean_ptr, var_ptr, w_ptr, b_ptr, c, c < C, EPS, ACC
    )  # fmt: skip
    sum_dy, sum_dy_x = tl.zeros((BLOCK_P, BLOCK_C), ACC), tl.zeros((BLOCK_P, BLOCK_C), ACC)
    for start in tl.range(first, last, BLOCK_P, num_stages=STAGES):
        p = start + tl.arange(0, BLOCK_P)
        inside = (p < last)[:, None] & (c < C)[None, :]
        offs = p[:, None] * C + c[None, :]
        dy = tl.load(dy_ptr + offs, mask=inside, other=0.0).to(ACC)
        x = tl.load(x_ptr + offs, mask=inside, other=0.0).to(ACC)
        x -= mean[None, :]
        y = x * scale[None, :] + shift[None, :]
        if z_ptr is not None:
            tl.store(z_ptr + offs, activated(y, ACTIVATION), mask=inside)
        if y_ptr is not None:
            y = tl.load(y_ptr + offs, mask=inside, other=0.0).to(ACC)
        dy = passed(dy, y, ACTIVATION, y_ptr is not None)
        if g_ptr is not None:
            tl.store(g_ptr + offs, dy, mask=inside)
        sum_dy += dy
        sum_dy_x += dy * x
    partial_ptr += split * 2 * C + c
    tl.store(partial_ptr, tl.sum(sum_dy, axis=0), mask=c < C)
    tl.store(partial_ptr + C, tl.sum(sum_dy_x, axis=0) * rstd, mask=c < C)


@triton.jit(do_not_specialize=("pixels",))
def _batch_norm_bwd_kernel(
    dy_ptr, x_ptr, mean_ptr, var_ptr, w_ptr, b_ptr, y_ptr, sums_ptr, dx_ptr, g_ptr,
    pixels, C,  # dy, x, y, dx, g [pixels, C], sums [2, C]
    ACTIVATION: tl.constexpr, EPS: tl.constexpr, ACC: tl.constexpr,
    INDEX: tl.constexpr, UNIT: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    C = units(C, UNIT)
    _, c, offs, inside = tile(pixels, C, INDEX, BLOCK_P, BLOCK_C)
    mean, rstd, scale, shift = coefficients(
        mean_ptr, var_ptr, w_ptr, b_ptr, c, c < C, EPS, ACC
    )  # fmt: skip
    dx = tl.load(dy_ptr + offs, mask=inside, other=0.0).to(ACC)
    x = tl.load(x_ptr + offs, mask=inside, other=0.0).to(ACC) - mean[None, :]
    if ACTIVATION != "none":
        y = x * scale[None, :] + shift[None, :]
        if y_ptr is not None:
            y = tl.load(y_ptr + offs, mask=inside, other=0.0).to(ACC)
        dx = passed(dx, y, ACTIVATION, y_ptr is not None)
    if g_ptr is not None:
        tl.store(g_ptr + offs, dx, mask=inside)
    if sums_ptr is not None:
        n = tl.cast(pixels, INDEX).to(ACC)
        of_dy = vector(sums_ptr, c, c < C, 0.0, ACC) / n
        of_dy_x = vector(sums_ptr + C, c, c < C, 0.0, ACC) / n * rstd
        dx -= of_dy[None, :] + x * of_dy_x[None, :]
    if dx_ptr is not None:
        tl.store(dx_ptr + offs, dx * scale[None, :], mask=inside)


# rows and stages of the sums; in float32 threads hold too little: blocks go through shared memory,
# and 2 are under way; in float64 what a thread computes takes all its registers
STEPS = {torch.float32: (32, 3), torch.float64: (32, 1)}
FORWARD = "Tensor x, Tensor? mean, Tensor? var, Tensor? w, Tensor? b, float eps, str activation"


def _sums(dy, x, mean, var, w, b, eps, activation, y, z=None, g=None):
    N, C, H, W = x.shape
    sums = x.new_empty((2, C), dtype=sum_dtype(x.dtype))
    if x.numel() == 0:
        return sums.zero_()
    rows, stages = STEPS.get(x.dtype, (64, 1))
    programs, splits, pixels_a_split, blocks = shares(N * H * W, C, rows)
    partial = _split.partial_sums(splits, sums)
    launch(
        _batch_norm_sums_kernel, programs,
        nhwc(dy), nhwc(x), row(mean), row(var), row(w), row(b), None if y is None else nhwc(y),
        z, g, partial, N * H * W, C, pixels_a_split,
        activation, eps, accumulator(x.dtype), index_type(x),
        out=tuple(t for t in (partial, z, g) if t is not None), STAGES=stages, **blocks,
    )  # fmt: skip
    return _split.add_splits(partial, sums)


@op(
    f"batch_norm_sums(Tensor dy, {FORWARD}, Tensor? y) -> Tensor",
    lambda dy, x, *args: x.new_empty((2, x.shape[1]), dtype=sum_dtype(x.dtype)),
)
def batch_norm_sums(dy, x, mean, var, w, b, eps, activation, y):
    """[sum(g), sum(g * x^)] of each channel."""
    return _sums(dy, x, mean, var, w, b, eps, activation, y)


@op(
    f"batch_norm_sums_and_y(Tensor dy, {FORWARD}) -> (Tensor, Tensor)",
    lambda dy, x, *args: (
        x.new_empty((2, x.shape[1]), dtype=sum_dtype(x.dtype)),
        empty_in(x.shape, x, torch.channels_last),
    ),
)
def batch_norm_sums_and_y(dy, x, mean, var, w, b, eps, activation):
    """The sums, and y without a residual once more, in channels_last."""
    z = empty_nhwc(x.shape, x)
    return _sums(dy, x, mean, var, w, b, eps, activation, None, z), z


@op(
    f"batch_norm_sums_and_g(Tensor dy, {FORWARD}, Tensor? y) -> (Tensor, Tensor)",
    lambda dy, x, *args: (
        x.new_empty((2, x.shape[1]), dtype=sum_dtype(x.dtype)),
        empty_in(x.shape, x, torch.channels_last),
    ),
)
def batch_norm_sums_and_g(dy, x, mean, var, w, b, eps, activation, y):
    """The sums, and g in channels_last."""
    g = empty_nhwc(x.shape, x)
    return _sums(dy, x, mean, var, w, b, eps, activation, y, g=g), g


def _bwd(dy, x, mean, var, w, b, eps, activation, y, sums, dx, g):
    N, C, H, W = x.shape
    programs, blocks = pixel_blocks(N * H * W, C, elements(x.dtype))
    launch(
        _batch_norm_bwd_kernel, programs,
        nhwc(dy), nhwc(x), row(mean), row(var), row(w), row(b), None if y is None else nhwc(y),
        sums, dx, g, N * H * W, C,
        activation, eps, accumulator(x.dtype), index_type(x),
        out=tuple(t for t in (dx, g) if t is not None), **blocks,
    )  # fmt: skip


@op(
    f"batch_norm_bwd(Tensor dy, {FORWARD}, Tensor? y, Tensor? sums, "
    "MemoryFormat memory_format) -> Tensor",
    lambda dy, x, *args: empty_in(x.shape, x, args[-1]),
)
def batch_norm_bwd(dy, x, mean, var, w, b, eps, activation, y, sums, memory_format):
    """dx; sums are given where mean and var are x's own."""
    dx = empty_nhwc(x.shape, x, memory_format)
    _bwd(dy, x, mean, var, w, b, eps, activation, y, sums, dx, None)
    return leave(dx, memory_format)


@op(
    f"batch_norm_bwd_and_g(Tensor dy, {FORWARD}, Tensor y) -> (Tensor, Tensor)",
    lambda dy, x, *args: (
        empty_in(x.shape, x, torch.channels_last),
        empty_in(x.shape, x, torch.channels_last),
    ),
)
def batch_norm_bwd_and_g(dy, x, mean, var, w, b, eps, activation, y):
    """dx where mean and var were given, and g, in channels_last."""
    dx, g = empty_nhwc(x.shape, x), empty_nhwc(x.shape, x)
    _bwd(dy, x, mean, var, w, b, eps, activation, y, None, dx, g)
    return dx, g


@op(
    "batch_norm_g(Tensor dy, Tensor y, str activation) -> Tensor",
    lambda dy, y, activation: empty_in(dy.shape, dy, torch.channels_last),
)
def batch_norm_g(dy, y, activation):
    """g alone, in channels_last."""
    g = empty_nhwc(dy.shape, dy)
    _bwd(dy, y, None, None, None, None, 0.0, activation, y, None, None, g)
    return g
