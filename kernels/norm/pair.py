"""Gradients of two normalisations by the batch's statistics, added, with what follows them.

    y = act(normalised x + normalised r)

of which y is given: act's slope, told by it, makes dy into g, the gradient of either; with that
each has the gradient of a normalisation by itself.  Taken together, dy and y are read once.
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
    nhwc,
    op,
    pixel_blocks,
    tile,
    units,
)
from .._launch import launch
from .._split import pixel_share, sum_dtype
from .activation import passed
from .backward import STEPS
from .normalise import coefficients, elements, row, vector
from .stats import shares


@triton.jit
def _gradient(
    dy_ptr, y_ptr, offs, inside, ACTIVATION: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    dy = tl.load(dy_ptr + offs, mask=inside, other=0.0).to(ACC)
    if y_ptr is not None:
        y = tl.load(y_ptr + offs, mask=inside, other=0.0).to(ACC)
        dy = passed(dy, y, ACTIVATION, True)
    return dy


@triton.jit(do_not_specialize=("pixels", "pixels_a_split"))
def _batch_norm_pair_sums_kernel(
    dy_ptr, y_ptr, x_ptr, mean_ptr, var_ptr, r_ptr, r_mean_ptr, r_var_ptr, partial_ptr,
    pixels, C, pixels_a_split,  # dy, y, x, r [pixels, C], partial [splits, 4, C]
    ACTIVATION: tl.constexpr, EPS: tl.constexpr, R_EPS: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr,
    UNIT: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    C = units(C, UNIT)
    c, split, first, last = pixel_share(pixels, C, pixels_a_split, INDEX, BLOCK_C)
    mean, rstd, _, _ = coefficients(mean_ptr, var_ptr, None, None, c, c < C, EPS, ACC)
    r_mean, r_rstd, _, _ = coefficients(r_mean_ptr, r_var_ptr, None, None, c, c < C, R_EPS, ACC)
    sum_g = tl.zeros((BLOCK_P, BLOCK_C), ACC)
    sum_g_x, sum_g_r = sum_g, sum_g
    for start in tl.range(first, last, BLOCK_P, num_stages=STAGES):
        p = start + tl.arange(0, BLOCK_P)
        inside = (p < last)[:, None] & (c < C)[None, :]
        offs = p[:, None] * C + c[None, :]
        g = _gradient(dy_ptr, y_ptr, offs, inside, ACTIVATION, ACC)
        x = tl.load(x_ptr + offs, mask=inside, other=0.0).to(ACC)
        r = tl.load(r_ptr + offs, mask=inside, other=0.0).to(ACC)
        sum_g += g
        sum_g_x += g * (x - mean[None, :])
        sum_g_r += g * (r - r_mean[None, :])
    partial_ptr += split * 4 * C + c
    of_g = tl.sum(sum_g, axis=0)
    tl.store(partial_ptr, of_g, mask=c < C)
    tl.store(partial_ptr + C, tl.sum(sum_g_x, axis=0) * rstd, mask=c < C)
    tl.store(partial_ptr + 2 * C, of_g, mask=c < C)
    tl.store(partial_ptr + 3 * C, tl.sum(sum_g_r, axis=0) * r_rstd, mask=c < C)


@triton.jit
def _undone(
    g, x_ptr, dx_ptr, mean_ptr, var_ptr, w_ptr, of_g, of_g_x, c, C, offs, inside,
    EPS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Stores dx, from g and the sums over the number of values."""
    mean, rstd, scale, _ = coefficients(mean_ptr, var_ptr, w_ptr, None, c, c < C, EPS, ACC)
    x = tl.load(x_ptr + offs, mask=inside, other=0.0).to(ACC) - mean[None, :]
    dx = g - (of_g[None, :] + x * (of_g_x * rstd)[None, :])
    tl.store(dx_ptr + offs, dx * scale[None, :], mask=inside)


@triton.jit(do_not_specialize=("pixels",))
def _batch_norm_pair_bwd_kernel(
    dy_ptr, y_ptr, x_ptr, mean_ptr, var_ptr, w_ptr, r_ptr, r_mean_ptr, r_var_ptr, r_w_ptr,
    sums_ptr, dx_ptr, dr_ptr, pixels, C,  # dy, y, x, r, dx, dr [pixels, C], sums [4, C]
    ACTIVATION: tl.constexpr, EPS: tl.constexpr, R_EPS: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr,
    UNIT: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    C = units(C, UNIT)
    _, c, offs, inside = tile(pixels, C, INDEX, BLOCK_P, BLOCK_C)
    g = _gradient(dy_ptr, y_ptr, offs, inside, ACTIVATION, ACC)
    n = tl.cast(pixels, INDEX).to(ACC)
    of_g = vector(sums_ptr, c, c < C, 0.0, ACC) / n
    of_g_x = vector(sums_ptr + C, c, c < C, 0.0, ACC) / n
    of_g_r = vector(sums_ptr + 3 * C, c, c < C, 0.0, ACC) / n
    _undone(
        g, x_ptr, dx_ptr, mean_ptr, var_ptr, w_ptr, of_g, of_g_x, c, C, offs, inside, EPS, ACC
    )  # fmt: skip
    _undone(
        g, r_ptr, dr_ptr, r_mean_ptr, r_var_ptr, r_w_ptr, of_g, of_g_r, c, C, offs, inside,
        R_EPS, ACC,
    )  # fmt: skip


@op(
    "batch_norm_pair_sums(Tensor dy, Tensor? y, Tensor x, Tensor mean, Tensor var, float eps, "
    "Tensor r, Tensor r_mean, Tensor r_var, float r_eps, str activation) -> Tensor",
    lambda dy, y, x, *args: x.new_empty((4, x.shape[1]), dtype=sum_dtype(x.dtype)),
)
def batch_norm_pair_sums(dy, y, x, mean, var, eps, r, r_mean, r_var, r_eps, activation):
    """[sum(g), sum(g * x^), sum(g), sum(g * r^)] of each channel: each normalisation's own.

    Without an activation y is None.
    """
    N, C, H, W = x.shape
    sums = x.new_empty((4, C), dtype=sum_dtype(x.dtype))
    if x.numel() == 0:
        return sums.zero_()
    rows, stages = STEPS.get(x.dtype, (64, 1))
    programs, splits, pixels_a_split, blocks = shares(N * H * W, C, rows)
    partial = _split.partial_sums(splits, sums)
    launch(
        _batch_norm_pair_sums_kernel, programs,
        nhwc(dy), None if y is None else nhwc(y), nhwc(x), row(mean), row(var),
        nhwc(r), row(r_mean), row(r_var), partial, N * H * W, C, pixels_a_split,
        activation, eps, r_eps, accumulator(x.dtype), index_type(x),
        out=partial, STAGES=stages, **blocks,
    )  # fmt: skip
    return _split.add_splits(partial, sums)


@op(
    "batch_norm_pair_bwd(Tensor dy, Tensor? y, Tensor x, Tensor mean, Tensor var, Tensor? w, "
    "float eps, Tensor r, Tensor r_mean, Tensor r_var, Tensor? r_w, float r_eps, "
    "str activation, Tensor sums) -> (Tensor, Tensor)",
    lambda dy, y, x, *args: tuple(empty_in(x.shape, x, torch.channels_last) for _ in range(2)),
)
def batch_norm_pair_bwd(
    dy, y, x, mean, var, w, eps, r, r_mean, r_var, r_w, r_eps, activation, sums
):
    """dx and dr, in channels_last."""
    N, C, H, W = x.shape
    dx, dr = empty_nhwc(x.shape, x), empty_nhwc(x.shape, x)
    programs, blocks = pixel_blocks(N * H * W, C, elements(x.dtype))
    launch(
        _batch_norm_pair_bwd_kernel, programs,
        nhwc(dy), None if y is None else nhwc(y), nhwc(x), row(mean), row(var), row(w),
        nhwc(r), row(r_mean), row(r_var), row(r_w), sums, dx, dr, N * H * W, C,
        activation, eps, r_eps, accumulator(x.dtype), index_type(x),
        out=(dx, dr), **blocks,
    )  # fmt: skip
    return dx, dr
