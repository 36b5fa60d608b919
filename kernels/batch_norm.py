"""Batch normalisation.

    y = (x - mean[c]) / sqrt(var[c] + eps) * weight[c] + bias[c]

mean and var are those of x over all but its channels, or given ones.  Statistics and sums are
float32 (float64 for float64).  Each block of pixels gives its mean and its sum of squares about it,
and Chan's formula combines them: nothing cancels however far the mean is from zero.

    g = dy * weight / sqrt(var + eps),  x^ = (x - mean) / sqrt(var + eps)
    dx = g - (sum(g) + x^ * sum(g * x^)) / n,  or g where mean and var were given
    dweight = sum(dy * x^),  dbias = sum(dy)

Reductions: a program owns BLOCK_C channels of a share of the pixels, and the shares are combined in
fixed order.  The rest: a program owns a tile of pixels by channels.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _split
from ._common import (
    accumulator,
    check_tensor,
    empty_in,
    empty_nhwc,
    index_type,
    layout,
    leave,
    nhwc,
    op,
    pixel_blocks,
    public,
    refuse_transforms,
)
from ._launch import INTERPRETED, launch
from ._split import pixel_share, sum_dtype


@triton.jit
def _combine(mean, m2, before, block_mean, block_m2, n):
    """Mean and sum of squares about it of `before` values and of n more (Chan et al., 1983)."""
    delta = block_mean - mean
    mean += delta * (n / (before + n))
    m2 += block_m2 + delta * delta * (before * n / (before + n))
    return mean, m2


@triton.jit
def _batch_norm_stats_kernel(
    x_ptr, partial_ptr, pixels, C, pixels_a_split,  # x [pixels, C], partial [splits, 2, C]
    ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    c, split, first, last = pixel_share(pixels, C, pixels_a_split, INDEX, BLOCK_C)
    mean, m2 = tl.zeros((BLOCK_C,), ACC), tl.zeros((BLOCK_C,), ACC)
    for start in range(first, last, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        inside = (p < last)[:, None] & (c < C)[None, :]
        x = tl.load(x_ptr + (p[:, None] * C + c[None, :]), mask=inside, other=0.0).to(ACC)
        n = tl.minimum(last - start, BLOCK_P).to(ACC)
        rough = tl.sum(x, axis=0) / n
        offset = tl.where(inside, x - rough[None, :], 0.0)
        rest = tl.sum(offset, axis=0) / n  # what rounding left of the mean
        block_m2 = tl.sum(offset * offset, axis=0) - n * rest * rest
        mean, m2 = _combine(mean, m2, (start - first).to(ACC), rough + rest, block_m2, n)
    partial_ptr += split * 2 * C + c
    tl.store(partial_ptr, mean, mask=c < C)
    tl.store(partial_ptr + C, m2, mask=c < C)


@triton.jit
def _batch_norm_combine_kernel(
    partial_ptr, stats_ptr, pixels, C, pixels_a_split, splits,  # [splits, 2, C] -> [2, C]
    ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    mean, m2 = tl.zeros((BLOCK_C,), ACC), tl.zeros((BLOCK_C,), ACC)
    for split in range(splits):
        before = tl.cast(split, INDEX) * pixels_a_split
        n = tl.minimum(pixels - before, pixels_a_split).to(ACC)
        part_ptr = partial_ptr + tl.cast(split, INDEX) * 2 * C + c
        part_mean = tl.load(part_ptr, mask=c < C, other=0.0)
        part_m2 = tl.load(part_ptr + C, mask=c < C, other=0.0)
        mean, m2 = _combine(mean, m2, before.to(ACC), part_mean, part_m2, n)
    tl.store(stats_ptr + c, mean, mask=c < C)
    tl.store(stats_ptr + C + c, m2 / tl.cast(pixels, INDEX).to(ACC), mask=c < C)


@triton.jit
def _tile(pixels, C, INDEX: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """The program's tile of [pixels, C]: channels [BLOCK_C], offsets, and what is inside."""
    program = tl.cast(tl.program_id(0), INDEX)
    tiles_c = tl.cdiv(C, BLOCK_C)
    p = program // tiles_c * BLOCK_P + tl.arange(0, BLOCK_P)
    c = (program % tiles_c * BLOCK_C).to(tl.int32) + tl.arange(0, BLOCK_C)
    return c, p[:, None] * C + c[None, :], (p < pixels)[:, None] & (c < C)[None, :]


@triton.jit
def _normalising(mean_ptr, var_ptr, c, C, EPS: tl.constexpr, ACC: tl.constexpr):
    """mean and 1 / sqrt(var + eps) of channels c."""
    mean = tl.load(mean_ptr + c, mask=c < C, other=0.0).to(ACC)
    var = tl.load(var_ptr + c, mask=c < C, other=1.0).to(ACC)
    return mean, 1.0 / tl.sqrt(var + EPS)


@triton.jit
def _batch_norm_fwd_kernel(
    x_ptr, mean_ptr, var_ptr, w_ptr, b_ptr, y_ptr, pixels, C,  # x, y [pixels, C], the others [C]
    HAS_W: tl.constexpr, HAS_B: tl.constexpr, EPS: tl.constexpr, ACC: tl.constexpr,
    INDEX: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    c, offs, inside = _tile(pixels, C, INDEX, BLOCK_P, BLOCK_C)
    mean, scale = _normalising(mean_ptr, var_ptr, c, C, EPS, ACC)
    if HAS_W:
        scale *= tl.load(w_ptr + c, mask=c < C, other=0.0).to(ACC)
    x = tl.load(x_ptr + offs, mask=inside, other=0.0).to(ACC)
    y = (x - mean[None, :]) * scale[None, :]
    if HAS_B:
        y += tl.load(b_ptr + c, mask=c < C, other=0.0).to(ACC)[None, :]
    tl.store(y_ptr + offs, y, mask=inside)


@triton.jit
def _batch_norm_sums_kernel(
    dy_ptr, x_ptr, mean_ptr, var_ptr, partial_ptr,  # dy, x [pixels, C], partial [splits, 2, C]
    pixels, C, pixels_a_split,
    EPS: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    c, split, first, last = pixel_share(pixels, C, pixels_a_split, INDEX, BLOCK_C)
    mean, rstd = _normalising(mean_ptr, var_ptr, c, C, EPS, ACC)
    sum_dy, sum_dy_x = tl.zeros((BLOCK_P, BLOCK_C), ACC), tl.zeros((BLOCK_P, BLOCK_C), ACC)
    for start in range(first, last, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        inside = (p < last)[:, None] & (c < C)[None, :]
        offs = p[:, None] * C + c[None, :]
        dy = tl.load(dy_ptr + offs, mask=inside, other=0.0).to(ACC)
        x = tl.load(x_ptr + offs, mask=inside, other=0.0).to(ACC)
        sum_dy += dy
        sum_dy_x += dy * (x - mean[None, :])
    partial_ptr += split * 2 * C + c
    tl.store(partial_ptr, tl.sum(sum_dy, axis=0), mask=c < C)
    tl.store(partial_ptr + C, tl.sum(sum_dy_x, axis=0) * rstd, mask=c < C)


@triton.jit
def _batch_norm_bwd_kernel(
    dy_ptr, x_ptr, mean_ptr, var_ptr, w_ptr, sums_ptr, dx_ptr,  # dy, x, dx [pixels, C], sums [2, C]
    pixels, C,
    HAS_W: tl.constexpr, OF_BATCH: tl.constexpr, EPS: tl.constexpr, ACC: tl.constexpr,
    INDEX: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    c, offs, inside = _tile(pixels, C, INDEX, BLOCK_P, BLOCK_C)
    mean, rstd = _normalising(mean_ptr, var_ptr, c, C, EPS, ACC)
    scale = rstd
    if HAS_W:
        scale *= tl.load(w_ptr + c, mask=c < C, other=0.0).to(ACC)
    dx = tl.load(dy_ptr + offs, mask=inside, other=0.0).to(ACC)
    if OF_BATCH:
        n = tl.cast(pixels, INDEX).to(ACC)
        of_dy = tl.load(sums_ptr + c, mask=c < C, other=0.0) / n
        of_dy_x = tl.load(sums_ptr + C + c, mask=c < C, other=0.0) / n * rstd
        x = tl.load(x_ptr + offs, mask=inside, other=0.0).to(ACC)
        dx -= of_dy[None, :] + (x - mean[None, :]) * of_dy_x[None, :]
    tl.store(dx_ptr + offs, dx * scale[None, :], mask=inside)


def _shares(pixels: int, C: int) -> tuple[int, int, int, dict[str, int]]:
    """For a reduction over pixels: programs, splits, pixels in each, and the block sizes."""
    block_c = min(triton.next_power_of_2(C), 64)
    block_p = min(4096 if INTERPRETED else 32, triton.next_power_of_2(pixels))
    tiles_c = triton.cdiv(C, block_c)
    splits, pixels_a_split = _split.shares(tiles_c, pixels, triton.cdiv(pixels, block_p))
    return tiles_c * splits, splits, pixels_a_split, {"BLOCK_P": block_p, "BLOCK_C": block_c}


@op(
    "batch_norm_stats(Tensor x) -> Tensor",
    lambda x: x.new_empty((2, x.shape[1]), dtype=sum_dtype(x.dtype)),
)
def _batch_norm_stats(x):
    """[mean, var] of each channel."""
    N, C, H, W = x.shape
    pixels, dtype = N * H * W, sum_dtype(x.dtype)
    if x.numel() == 0:
        return x.new_full((2, C), float("nan"), dtype=dtype)
    programs, splits, pixels_a_split, blocks = _shares(pixels, C)
    partial = torch.empty((splits, 2, C), dtype=dtype, device=x.device)
    stats = torch.empty((2, C), dtype=dtype, device=x.device)
    launch(
        _batch_norm_stats_kernel, programs,
        nhwc(x), partial, pixels, C, pixels_a_split,
        accumulator(x.dtype), index_type(x), out=partial, **blocks,
    )  # fmt: skip
    launch(
        _batch_norm_combine_kernel, triton.cdiv(C, blocks["BLOCK_C"]),
        partial, stats, pixels, C, pixels_a_split, splits,
        accumulator(x.dtype), index_type(x), blocks["BLOCK_C"], out=stats,
    )  # fmt: skip
    return stats


@op(
    "batch_norm(Tensor x, Tensor mean, Tensor var, Tensor? w, Tensor? b, float eps, "
    "MemoryFormat memory_format) -> Tensor",
    lambda x, mean, var, w, b, eps, memory_format: empty_in(x.shape, x, memory_format),
)
def _batch_norm(x, mean, var, w, b, eps, memory_format):
    N, C, H, W = x.shape
    y = empty_nhwc(x.shape, x)
    programs, blocks = pixel_blocks(N * H * W, C)
    launch(
        _batch_norm_fwd_kernel, programs,
        nhwc(x), mean.contiguous(), var.contiguous(), _row(w), _row(b), y, N * H * W, C,
        w is not None, b is not None, eps, accumulator(x.dtype), index_type(x),
        out=y, **blocks,
    )  # fmt: skip
    return leave(y, memory_format)


@op(
    "batch_norm_sums(Tensor dy, Tensor x, Tensor mean, Tensor var, float eps) -> Tensor",
    lambda dy, x, mean, var, eps: x.new_empty((2, x.shape[1]), dtype=sum_dtype(x.dtype)),
)
def _batch_norm_sums(dy, x, mean, var, eps):
    """[sum(dy), sum(dy * x^)] of each channel."""
    N, C, H, W = x.shape
    dtype = sum_dtype(x.dtype)
    if x.numel() == 0:
        return x.new_zeros((2, C), dtype=dtype)
    programs, splits, pixels_a_split, blocks = _shares(N * H * W, C)
    partial = torch.empty((splits, 2, C), dtype=dtype, device=x.device)
    launch(
        _batch_norm_sums_kernel, programs,
        nhwc(dy), nhwc(x), mean.contiguous(), var.contiguous(), partial,
        N * H * W, C, pixels_a_split, eps, accumulator(x.dtype), index_type(x),
        out=partial, **blocks,
    )  # fmt: skip
    return _split.add_splits(partial, (2, C), dtype)


@op(
    "batch_norm_bwd(Tensor dy, Tensor x, Tensor mean, Tensor var, Tensor? w, Tensor? sums, "
    "float eps, MemoryFormat memory_format) -> Tensor",
    lambda dy, x, mean, var, w, sums, eps, memory_format: empty_in(x.shape, x, memory_format),
)
def _batch_norm_bwd(dy, x, mean, var, w, sums, eps, memory_format):
    """dx; sums are given where mean and var are x's own."""
    N, C, H, W = x.shape
    dx = empty_nhwc(x.shape, x)
    programs, blocks = pixel_blocks(N * H * W, C)
    launch(
        _batch_norm_bwd_kernel, programs,
        nhwc(dy), nhwc(x), mean.contiguous(), var.contiguous(), _row(w), sums, dx, N * H * W, C,
        w is not None, sums is not None, eps, accumulator(x.dtype), index_type(x),
        out=dx, **blocks,
    )  # fmt: skip
    return leave(dx, memory_format)


def _row(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


class BatchNormFunction(torch.autograd.Function):
    """mean and var are the given ones, or x's own if of_batch."""

    @staticmethod
    def forward(ctx, x, w, b, mean, var, of_batch, eps, memory_format):
        ctx.save_for_backward(x, w, mean, var)
        ctx.b_dtype = None if b is None else b.dtype
        ctx.how = of_batch, eps, memory_format
        return _batch_norm(x, mean, var, w, b, eps, memory_format)

    @staticmethod
    def backward(ctx, dy):
        needed = ctx.needs_input_grad[:3]
        gradients = BatchNormBackwardFunction.apply(
            dy, *ctx.saved_tensors, needed, ctx.b_dtype, *ctx.how
        )
        return *gradients, None, None, None, None, None


class BatchNormBackwardFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dy, x, w, mean, var, needed, b_dtype, of_batch, eps, memory_format):
        ctx.save_for_backward(dy, x, w, mean, var)
        ctx.how = of_batch, eps
        ctx.set_materialize_grads(False)
        needs_dx, needs_dw, needs_db = needed
        dx = dw = db = sums = None
        if needs_dw or needs_db or (needs_dx and of_batch):
            sums = _batch_norm_sums(dy, x, mean, var, eps)
        if needs_dx:
            of_x = sums if of_batch else None
            dx = _batch_norm_bwd(dy, x, mean, var, w, of_x, eps, memory_format)
        if needs_dw:
            dw = sums[1].to(w.dtype, copy=True)
        if needs_db:
            db = sums[0].to(b_dtype, copy=True)
        return dx, dw, db

    @staticmethod
    def backward(ctx, *grads):
        """Through the formulas in torch's arithmetic: differentiable again."""
        dy, x, w, mean, var = ctx.saved_tensors
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            # views, lest the search for gradients of x goes on through dy's own history
            dy, x, w = (t if t is None else t.view_as(t) for t in (dy, x, w))
            needed = zip((dy, x, w), ctx.needs_input_grad[:3], strict=True)
            inputs = [t for t, needs in needed if needs]
            results = _gradients(dy, x, w, mean, var, *ctx.how)
            given = [(r, g) for r, g in zip(results, grads, strict=True) if g is not None]
            found = torch.autograd.grad(
                [r for r, _ in given],
                inputs,
                [g.to(r.dtype) for r, g in given],
                create_graph=again,
                allow_unused=True,
            )
        found = iter(found)
        return *(next(found) if n else None for n in ctx.needs_input_grad[:3]), *(None,) * 7


def _gradients(dy, x, w, mean, var, of_batch, eps) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dweight, dbias; mean and var as functions of x where they are its own."""
    dtype, axes = mean.dtype, (0, 2, 3)
    dy, x = dy.to(dtype), x.to(dtype)
    if of_batch:
        mean = x.mean(axes, keepdim=True)
        var = (x - mean).square().mean(axes, keepdim=True)
    else:
        mean, var = mean[:, None, None], var[:, None, None]
    rstd = (var + eps).rsqrt()
    x = (x - mean) * rstd
    g = dy * rstd if w is None else dy * rstd * w.to(dtype)[:, None, None]
    dx = g
    if of_batch:
        dx = g - g.mean(axes, keepdim=True) - x * (g * x).mean(axes, keepdim=True)
    return dx, (dy * x).sum(axes), dy.sum(axes)


@public
def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """As torch.nn.functional.batch_norm.

    input [N, C, ...], the others [C] -> input's shape, images in input's memory format.  training:
    normalises with the batch's own mean and (biased) variance, and moves running_mean and
    running_var, if given, by momentum towards the mean and the unbiased variance; otherwise
    normalises with these two.  float32, float16, bfloat16 or float64; beside half precision the
    others may be float32.  Raises ValueError for one value per channel in training, RuntimeError
    for what does not fit, NotImplementedError for other dtypes.
    """
    _check(input, running_mean, running_var, weight, bias, training, eps)
    refuse_transforms("batch_norm", input, weight, bias)
    x = _as_images(input)
    memory_format = layout(input) if input.dim() == 4 else torch.contiguous_format
    if training:
        mean, var = _batch_norm_stats(x.detach()).unbind()
        if x.numel() > 0:
            _move(running_mean, mean, momentum)
            n = x.numel() // x.shape[1]
            _move(running_var, var * (n / (n - 1)), momentum)
    else:
        mean, var = running_mean, running_var
    y = BatchNormFunction.apply(x, weight, bias, mean, var, training, eps, memory_format)
    return y.reshape(input.shape)


def _as_images(x: Tensor) -> Tensor:
    """[N, C, ...] as [N, C, H, W], whatever its rank."""
    if x.dim() == 4:
        return x
    if x.dim() < 4:
        return x.reshape(*x.shape, *(1,) * (4 - x.dim()))
    return x.flatten(2, -2)


@torch.no_grad()
def _move(running: Tensor | None, value: Tensor, momentum: float) -> None:
    if running is not None:
        running.copy_(running.to(value.dtype).lerp(value, momentum))


def _check(x, running_mean, running_var, weight, bias, training, eps) -> None:
    check_tensor("batch_norm", "input", x, tuple(range(2, 9)))
    vectors = {
        "running_mean": running_mean,
        "running_var": running_var,
        "weight": weight,
        "bias": bias,
    }
    for name, vector in vectors.items():
        if vector is None:
            if name.startswith("running") and not training:
                raise RuntimeError(f"batch_norm: {name} must be given in evaluation, got None")
            continue
        check_tensor("batch_norm", name, vector, (1,))
        if vector.shape[0] != x.shape[1]:
            raise RuntimeError(
                f"batch_norm: expected {name} of shape ({x.shape[1]},), as many as input has "
                f"channels, got {tuple(vector.shape)}"
            )
        if vector.device != x.device or vector.dtype not in (x.dtype, sum_dtype(x.dtype)):
            raise RuntimeError(
                f"batch_norm: {name} must be {sum_dtype(x.dtype)} or have input's dtype, on its "
                f"device, got {vector.dtype} on {vector.device} for {x.dtype} on {x.device}; "
                "convert with .to()"
            )
        if name.startswith("running") and vector.requires_grad:
            raise RuntimeError(f"batch_norm: {name} cannot require a gradient; detach it")
    if eps < 0:
        raise ValueError(f"batch_norm: eps must be non-negative, got {eps}")
    dtypes = {vector.dtype for vector in vectors.values() if vector is not None}
    if len(dtypes) > 1:
        raise RuntimeError(
            "batch_norm: running_mean, running_var, weight and bias must have one dtype, got "
            f"{sorted(map(str, dtypes))}; convert with .to()"
        )
    if training and math.prod((x.shape[0], *x.shape[2:])) == 1:
        raise ValueError(
            "batch_norm: Expected more than 1 value per channel when training, got input size "
            f"{tuple(x.shape)}"
        )
