"""How many products a convolution takes, for torch.utils.flop_counter.FlopCounterMode."""

import math
from collections.abc import Sequence

import torch
from torch.utils.flop_counter import register_flop_formula

from . import dgrad, forward, wgrad  # noqa: F401  they register the ops

ops = torch.ops.tritonconv


def _flops(w_shape: Sequence[int], y_shape: Sequence[int]) -> int:
    """Of any pass: a multiplication and an addition for every weight and pixel of y [N, CO, ...].

    In a group a channel of y meets CG channels of x, so that weights [CO, CG, KH, KW] count once.
    """
    N, _, *pixels = y_shape
    return 2 * N * math.prod(pixels) * math.prod(w_shape)


@register_flop_formula([ops.conv2d, ops.conv2d_fused])
def _forward(x_shape, w_shape, *args, out_shape, **kwargs) -> int:
    return _flops(w_shape, out_shape)


@register_flop_formula(ops.conv2d_stats)
def _forward_with_statistics(x_shape, w_shape, *args, out_shape, **kwargs) -> int:
    return _flops(w_shape, out_shape[0])


@register_flop_formula([ops.conv2d_dgrad, ops.conv2d_dgrad_stats, ops.conv2d_dgrad_fused])
def _dgrad(dy_shape, w_shape, *args, **kwargs) -> int:
    return _flops(w_shape, dy_shape)


@register_flop_formula(ops.conv2d_wgrad)
def _wgrad(dy_shape, x_shape, w_shape, *args, **kwargs) -> int:
    return _flops(w_shape, dy_shape)
