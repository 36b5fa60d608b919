"""Batch normalisation.

    y = (x - mean[c]) / sqrt(var[c] + eps) * weight[c] + bias[c]

mean and var are those of x over all but its channels, or given ones.  Statistics and sums are
float32 (float64 for float64).  The kernels, with the gradients' formulas, are in norm/.
"""

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ._common import check_tensor, flag, layout, public, real, reshaped
from ._plan import plannable, written
from ._recall import Applied, recalled
from ._signature import signature
from ._split import sum_dtype
from .norm.backward import batch_norm_bwd, batch_norm_sums
from .norm.normalise import NO_RESIDUAL
from .norm.normalise import batch_norm as normalise
from .norm.stats import Running, batch_norm_stats, statistics


class BatchNormFunction(torch.autograd.Function):
    """mean and var are given, or else stats, which are x's own [mean, var]."""

    @staticmethod
    def forward(ctx, x, w, b, mean, var, stats, eps, memory_format):
        ctx.save_for_backward(x, w, mean, var, stats)
        ctx.how = None if b is None else b.dtype, eps, memory_format
        if stats is not None:
            mean, var = stats.unbind()
        return normalise(x, mean, var, w, b, eps, *NO_RESIDUAL, "none", memory_format)

    @staticmethod
    def backward(ctx, dy):
        x, w, mean, var, stats = ctx.saved_tensors
        if stats is not None:
            mean, var = stats.unbind()
        given = dy, x, w, mean, var, ctx.needs_input_grad[:3], stats is not None, *ctx.how
        again = torch.is_grad_enabled() or torch.compiler.is_compiling()
        gradients = BatchNormBackwardFunction.apply(*given) if again else _backward(*given)
        return *gradients, None, None, None, None, None


class BatchNormOfBatchFunction(torch.autograd.Function):
    """With x's own statistics, which move mean and var, and count in batches: past the ops, which
    have no part in what is running."""

    @staticmethod
    def forward(ctx, x, w, b, mean, var, batches, momentum, eps, memory_format):
        stats = statistics(x, Running(mean, var, batches, momentum))
        written(mean, var, batches)
        return BatchNormFunction.forward(ctx, x, w, b, None, None, stats, eps, memory_format)

    @staticmethod
    def backward(ctx, dy):
        return *BatchNormFunction.backward(ctx, dy), None


def _backward(dy, x, w, mean, var, needed, of_batch, b_dtype, eps, memory_format):
    needs_dx, needs_dw, needs_db = needed
    dx = dw = db = sums = None
    if needs_dw or needs_db or (needs_dx and of_batch):
        sums = batch_norm_sums(dy, x, mean, var, w, None, eps, "none", None)
    if needs_dx:
        of_x = sums if of_batch else None
        dx = batch_norm_bwd(dy, x, mean, var, w, None, eps, "none", None, of_x, memory_format)
    if needs_dw:
        dw = sums[1].to(w.dtype)
    if needs_db:
        db = sums[0].to(b_dtype)
    return dx, dw, db


class BatchNormBackwardFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dy, x, w, mean, var, needed, of_batch, b_dtype, eps, memory_format):
        ctx.save_for_backward(dy, x, w, mean, var)
        ctx.how = of_batch, eps
        ctx.set_materialize_grads(False)
        dx, dw, db = _backward(dy, x, w, mean, var, needed, of_batch, b_dtype, eps, memory_format)
        return dx, *(t if t is None else t.clone() for t in (dw, db))  # no views

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
            given = [
                (r, g)
                for r, g in zip(results, grads, strict=True)
                if g is not None and r.requires_grad
            ]
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
    given = input, weight, bias, running_mean, running_var, None
    return normalised("batch_norm", given, training, momentum, eps)


@recalled()
def normalised(name, given, training, momentum, eps) -> Applied:
    """batch_norm of input, weight, bias, running mean and variance.  In training it counts in the
    number of batches, the last of the given, if that is given; then momentum may be None, for the
    average of all batches."""
    input, weight, bias, *running, batches = given
    check_tensor(name, "input", input, None)
    if input.dim() < 2:
        raise RuntimeError(
            f"{name}: input must be [N, C, ...], got shape {tuple(input.shape)}; unsqueeze it"
        )
    eps = real(name, "eps", eps)
    if momentum is not None or batches is None:
        momentum = real(name, "momentum", momentum)
    check_norm(name, input, input.shape, *running, weight, bias, training, eps)
    x, prepare, finish = _as_images(input), None, None
    memory_format = layout(input) if input.dim() == 4 else torch.contiguous_format
    if x is not input:
        prepare, finish = _with_images, functools.partial(reshaped, shape=input.shape)
    used, options = (x, *given[1:]), (eps, memory_format)
    if not training:
        return Applied(BatchNormFunction, used, options, prepare, finish)
    if plannable() and signature(normalised, used) is not None:
        options = momentum, *options
        return Applied(BatchNormOfBatchFunction, used, options, prepare, finish)
    if batches is not None:
        batches.add_(1)
        if momentum is None:
            momentum = 1.0 / float(batches)
    stats = batch_norm_stats(x.detach())
    if x.numel() > 0:
        move_running(*running, stats.unbind(), x.numel() // x.shape[1], momentum)
    used = x, weight, bias, None, None, stats
    return Applied(BatchNormFunction, used, options, prepare, finish)


def _with_images(x: Tensor, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    return _as_images(x), *others


def _as_images(x: Tensor) -> Tensor:
    """[N, C, ...] as [N, C, H, W], whatever its rank."""
    if x.dim() == 4:
        return x
    if x.dim() < 4:
        return x.reshape(*x.shape, *(1,) * (4 - x.dim()))
    return x.flatten(2, -2)


@torch.no_grad()
def move_running(
    running_mean: Tensor | None,
    running_var: Tensor | None,
    stats: Sequence[Tensor],
    n: int,
    momentum: float,
) -> None:
    """By momentum towards the mean and the unbiased variance of n values a channel."""
    mean, var = stats
    for running, value in ((running_mean, mean), (running_var, var * (n / (n - 1)))):
        if running is not None:
            moved = running.to(value.dtype)  # itself, where it has that dtype
            moved.mul_(1 - momentum).add_(value, alpha=momentum)  # lerp makes NaN of infinity
            if moved is not running:
                running.copy_(moved)


def check_norm(
    name, like, shape, running_mean, running_var, weight, bias, training, eps,
    prefix="",
) -> None:  # fmt: skip
    """What batch norm asks of its vectors, for an input of the given shape, in like's dtype."""
    flag(name, "training", training)
    vectors = {
        "running_mean": running_mean,
        "running_var": running_var,
        f"{prefix}weight": weight,
        f"{prefix}bias": bias,
    }
    for argument, vector in vectors.items():
        if vector is None:
            if argument.startswith("running") and not training:
                raise RuntimeError(f"{name}: {argument} must be given in evaluation, got None")
            continue
        check_tensor(name, argument, vector, (1,))
        if vector.shape[0] != shape[1]:
            raise RuntimeError(
                f"{name}: expected {argument} of shape ({shape[1]},), as many as there are "
                f"channels to normalise, got {tuple(vector.shape)}"
            )
        if vector.device != like.device or vector.dtype not in (like.dtype, sum_dtype(like.dtype)):
            raise RuntimeError(
                f"{name}: {argument} must be {sum_dtype(like.dtype)} or have input's dtype, on its "
                f"device, got {vector.dtype} on {vector.device} for {like.dtype} on {like.device}; "
                "convert with .to()"
            )
        if argument.startswith("running") and vector.requires_grad:
            raise RuntimeError(f"{name}: {argument} cannot require a gradient; detach it")
    if eps < 0 or (training and eps == 0):
        raise ValueError(
            f"{name}: eps must be {'positive in training' if training else 'non-negative'}, got "
            f"{eps}"
        )
    dtypes = {vector.dtype for vector in vectors.values() if vector is not None}
    if len(dtypes) > 1:
        raise RuntimeError(
            f"{name}: {', '.join(vectors)} must have one dtype, got {sorted(map(str, dtypes))}; "
            "convert with .to()"
        )
    if training and math.prod((shape[0], *shape[2:])) == 1:
        raise ValueError(
            f"{name}: Expected more than 1 value per channel when training, got input size "
            f"{tuple(shape)}"
        )
