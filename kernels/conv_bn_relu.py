"""Convolution, batch normalisation, a residual and an activation as one operation.

    y = act(batch_norm(conv2d(x, w) + bias) + residual)

With given statistics and no gradient wanted it is one kernel.  In training the statistics come from
the convolution's own kernel, and one pass does the rest; the backward keeps x, the convolution's
result and, beside a residual, y.
"""

from torch import Tensor

from ._block import Block, Tensors, Unit
from ._chain import Chain, chain_key, remembered
from ._common import Size, as_given, images, public, real
from ._conv import as_images, check_channels, fitted, formats, geometry, operands
from ._plan import plannable
from .batch_norm import batch_norm, check_norm, move_running
from .conv2d import conv2d
from .norm.activation import FUNCTIONS, activate, is_activation


@public
def conv_bn_relu(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    bn_weight: Tensor | None = None,
    bn_bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    activation: str | None = "relu",
) -> Tensor:
    """relu(batch_norm(conv2d(input, weight, bias)) + residual), as torch.nn.functional's.

    input [N, C, H, W] or [C, H, W], weight [CO, C / groups, KH, KW], bias, running_mean,
    running_var, bn_weight and bn_bias [CO], residual of the output's shape and dtype ->
    [N, CO, OH, OW] or [CO, OH, OW].  Options, dtypes, memory formats and errors are conv2d's and
    batch_norm's.  activation is relu, relu6, leaky_relu, silu, hardswish, gelu, gelu_tanh, sigmoid,
    hardsigmoid or None, computed as torch's of these names; leaky_relu's negative slope is 0.01, or
    written behind it, as in "leaky_relu(0.1)".  training normalises with the batch's statistics and
    moves running_mean and running_var, if given.
    """
    name = "conv_bn_relu"
    given = operands(name, 2, input, weight, bias)
    g = geometry(name, weight.shape[2:], stride, padding, dilation, groups)
    check_channels(name, given, weight.shape[1] * g.groups, weight.shape[0], g.groups)
    g = fitted(name, input.shape[-2:], weight.shape[2:], g)
    check_activation(name, activation)
    momentum, eps = real(name, "momentum", momentum), real(name, "eps", eps)
    x, w, b = as_images(*given, 2)
    shape = g.y_shape(x.shape, w.shape)
    norm = running_mean, running_var, bn_weight, bn_bias
    check_norm(name, x, shape, *norm, training, eps, prefix="bn_")
    if residual is not None:
        _check_residual(name, residual, shape if input.dim() == 4 else shape[1:], x)
        residual = images(residual, 2)

    activation = activation or "none"
    if 0 in x.shape:
        y = batch_norm(conv2d(x, w, b, stride, padding, dilation, groups), *norm, training,
                       momentum, eps)  # fmt: skip
        y = activate(y if residual is None else y + residual, activation)
        return as_given(y, 2, input.dim())
    f = formats(x, w)
    unit = Unit(g, None, f.w, "batch" if training else "given", eps, activation)
    block = Block((unit,), "none" if residual is None else "given", f.x, f.y)
    used = (None, None) if training else (running_mean, running_var)
    n = shape[0] * shape[2] * shape[3]
    tensors = Tensors(w, b, bn_weight, bn_bias, *used)
    key, running = None, ()
    if plannable():
        running = (running_mean, running_var, None) if training else ()
        key = chain_key((block, momentum), x, residual, *tensors, *running)
    if key is None:
        running = ()
    chain = remembered(key, lambda: Chain((block,), (n,), False, key is not None, (momentum,)))
    y, stats = chain.run(name, x, residual, [tensors], running)
    for of_batch in stats if key is None else ():
        move_running(running_mean, running_var, of_batch.unbind(), n, momentum)
    return y if input.dim() == 4 else y.squeeze(0)  # a view: y is kept for the backward


def check_activation(name: str, activation: str | None) -> None:
    if activation is not None and (activation == "none" or not is_activation(activation)):
        names = ", ".join(f for f in FUNCTIONS if f != "none")
        raise ValueError(f"{name}: activation must be {names} or None, got {activation!r}")


def _check_residual(name: str, residual: Tensor, shape: list[int], x: Tensor) -> None:
    if not isinstance(residual, Tensor):
        raise TypeError(f"{name}: residual must be a Tensor, got {type(residual).__name__}")
    if (list(residual.shape), residual.dtype, residual.device) != (list(shape), x.dtype, x.device):
        raise RuntimeError(
            f"{name}: residual must have the output's shape {tuple(shape)} and dtype {x.dtype}, on "
            f"{x.device}, got {tuple(residual.shape)} and {residual.dtype} on {residual.device}; "
            "convert with .to()"
        )
