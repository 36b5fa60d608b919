"""How far each layer of a network sees: r_l = r_(l-1) + (k_l - 1) * d_l * (earlier strides)."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

WINDOWED = (nn.Conv2d, nn.AvgPool2d, nn.MaxPool2d)


class Field(NamedTuple):
    size: tuple[int, int] = (1, 1)  # in pixels of the input
    jump: tuple[int, int] = (1, 1)  # from one output to the next


class Layer(NamedTuple):
    name: str
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    field: Field


class _Fields(TorchDispatchMode):
    """The field of every tensor: an operation's result sees all that its operands see."""

    def __init__(self) -> None:
        super().__init__()
        self.of = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.join(result, (args, kwargs))
        return result

    def join(self, result: object, operands: object) -> None:
        seen = [self.of[x] for x in tree_leaves(operands) if isinstance(x, Tensor) and x in self.of]
        for y in tree_leaves(result):
            if seen and isinstance(y, Tensor):
                self.of[y] = Field(_widest(f.size for f in seen), _widest(f.jump for f in seen))


def _widest(pairs: Iterable[tuple[int, int]]) -> tuple[int, int]:
    heights, widths = zip(*pairs, strict=True)
    return max(heights), max(widths)


@torch.no_grad()
def receptive_field(model: nn.Module, shape: tuple[int, int, int]) -> list[Layer]:
    """The windowed layers of model, in the order in which they see an input of shape [C, H, W].

    Where branches meet, the widest counts.  Adaptive pooling and linear layers are not listed: they
    see the whole image.
    """
    fields, layers = _Fields(), []

    def enlarge(name: str, module: nn.Module, args: tuple, result: object) -> None:
        if isinstance(module, WINDOWED):
            k, s = _pair(module.kernel_size), _pair(module.stride)
            d = _pair(getattr(module, "dilation", 1))
            before = fields.of[args[0]]
            steps = zip(before.size, k, d, before.jump, strict=True)
            size = tuple(r + (k_ - 1) * d_ * jump for r, k_, d_, jump in steps)
            jump = tuple(a * b for a, b in zip(before.jump, s, strict=True))
            fields.of[result] = Field(size, jump)
            layers.append(Layer(name, k, s, d, fields.of[result]))
        elif not any(module.children()):
            fields.join(result, args)

    hooks = [
        module.register_forward_hook(lambda *call, name=name: enlarge(name, *call))
        for name, module in model.named_modules()
    ]
    x = torch.empty(1, *shape, device="meta")
    fields.of[x] = Field()
    try:
        with fields:
            model.eval()(x)
    finally:
        for hook in hooks:
            hook.remove()
    return layers
