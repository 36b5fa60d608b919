"""Layers of other libraries on our kernels.

Those known by name do what timm's and torchvision's do; a subclass of a layer of torch.nn's that
changes nothing of what it computes is that layer.  Each gets a class that is a subclass of its own
and of ours.
"""

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from . import modules
from .batch_norm import batch_norm


class BatchNormAct2d(modules.BatchNorm2d):
    """As timm's: a batch norm, with its children drop and act behind it."""

    behind = ("drop", "act")

    def _run(self, input: Tensor) -> Tensor:
        return self.act(self.drop(self.alone(input)))

    def alone(self, input: Tensor) -> Tensor:
        return super()._run(input)


class Conv2dSame(modules.Conv2d):
    """As timm's: a convolution of its input with zeros around it, as TensorFlow's 'same'."""

    behind = ()

    def _run(self, input: Tensor) -> Tensor:
        return self.alone(same(input, self.kernel_size, self.stride, self.dilation))

    def alone(self, input: Tensor) -> Tensor:
        return super()._run(input)


def alone(layer: torch.nn.Module, input: Tensor) -> Tensor:
    """What layer gives without its children, or its padding."""
    return layer.alone(input)


def same(input: Tensor, kernel_size: tuple, stride: tuple, dilation: tuple) -> Tensor:
    """input [..., H, W] with zeros around it, for ceil(H / stride) by ceil(W / stride) windows."""
    moves = zip(input.shape[-2:], kernel_size, stride, dilation, strict=True)
    h, w = (max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0) for n, k, s, d in moves)
    return F.pad(input, (w // 2, w - w // 2, h // 2, h - h // 2)) if h or w else input


class FrozenBatchNorm2d(modules._Layer):
    """As torchvision's: a batch norm of buffers, which is in evaluation mode always."""

    of_batch, momentum = False, None  # which a chain asks of a batch norm

    def _run(self, input: Tensor) -> Tensor:
        running = self.running_mean, self.running_var
        return batch_norm(input, *running, self.weight, self.bias, False, 0.0, self.eps)


KNOWN = {
    "timm.layers.conv2d_same.Conv2dSame": Conv2dSame,
    "timm.layers.norm_act.BatchNormAct2d": BatchNormAct2d,
    "torchvision.ops.misc.FrozenBatchNorm2d": FrozenBatchNorm2d,
}
# what a subclass may define without computing something else
OWN = {
    "__annotate_func__", "__annotations__", "__annotations_cache__", "__constants__", "__dict__",
    "__doc__", "__firstlineno__", "__init__", "__module__", "__qualname__", "__repr__",
    "__static_attributes__", "__weakref__", "extra_repr", "reset_parameters",
}  # fmt: skip


def acts_as(module: torch.nn.Module | None) -> type:
    """The class of ours that module computes as; its own class where it is none of ours."""
    return vars(type(module)).get("acts_as", type(module))


def changes_nothing(kind: type, base: type) -> bool:
    """Whether kind, a subclass of base, computes what base does: it overrides nothing of it."""
    added = {
        name: value
        for one in kind.__mro__[: kind.__mro__.index(base)]
        for name, value in vars(one).items()
        if name not in OWN
    }
    return not any(
        hasattr(base, name) or name.startswith("__") or hasattr(value, "__set__")
        for name, value in added.items()
    )


@functools.cache
def made(kind: type, ours: type) -> type:
    """kind, computing as ours."""

    def reduced(self, protocol: int) -> tuple:
        _, (_, *args), *state = super(cls, self).__reduce_ex__(max(protocol, 2))
        return blank, (kind, ours, *args), *state

    own = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    own |= {"acts_as": ours, "made_of": kind, "__reduce_ex__": reduced}
    cls = type(kind.__name__, (ours, kind), own)
    return cls


def blank(kind: type, ours: type, *args: Any) -> torch.nn.Module:
    cls = made(kind, ours)
    return cls.__new__(cls, *args)
