"""Running modules as a chain: convolutions, batch norms and activations as one operation.

What the chain does not cover (an unbatched input, mixed dtypes) goes through the modules one by
one.
"""

import operator
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from ._block import Block, Tensors, Unit, main_units
from ._chain import Chain, chain_key, remembered
from ._common import FLOATING, autocast, autocast_dtype, layout
from ._composed import composed
from ._conv import fitted, geometry
from ._plan import plannable
from ._split import sum_dtype
from .batch_norm import move_running
from .conv_bn_relu import check_activation
from .conv_transpose2d import leading_back
from .modules import BatchNorm2d, Conv2d, held
from .norm.activation import activate


class UnitOf(NamedTuple):
    """Which of the modules make up a unit; norm is None where nothing is normalised.

    conv is None for a chain's first unit that normalises the input.
    """

    conv: int | None
    norm: int | None
    activation: str


class BlockOf(NamedTuple):
    """Units and shortcut as those of a Block, and how the shortcut is added where modules are."""

    units: tuple[UnitOf, ...]
    shortcut: str
    add: Callable[[Tensor, Tensor], Tensor] = operator.add


def run_chain(
    blocks: tuple[BlockOf, ...],
    recompute: bool,
    x: Tensor,
    residual: Tensor | None,
    *modules: nn.Module,
) -> Tensor:
    """What the modules give for x: the blocks one after another."""
    as_given, (x,) = x, autocast(x)
    first = blocks[0]
    as_it_is = first.shortcut == "identity" or first.units[0].conv is None  # added, or normalised
    if as_it_is and as_given.dtype != x.dtype:
        return _one_by_one(blocks, as_given, residual, modules)
    units = [unit for block in blocks for unit in block.units]
    tensors = [_tensors(unit, modules) for unit in units]
    norms = [modules[unit.norm] for unit in units if unit.norm is not None]
    norms = [norm for norm in norms if norm.of_batch]
    key, running = None, ()
    if plannable():
        running = [t for norm in norms for t in norm.running]
        options = [_options(unit, modules) for unit in units]
        given = (t for unit in tensors for t in unit)
        key = chain_key((blocks, recompute, *options), x, residual, *given, *running)
    if key is None:
        running = ()  # ops, who may look on, have no part in what is running

    def make() -> Chain | None:
        made = _blocks(blocks, x, residual, modules, tensors)
        momenta = [norm.momentum for norm in norms]
        return None if made is None else Chain(*made, recompute, key is not None, momenta)

    chain = remembered(key, make)
    if chain is None and residual is not None:  # of another shape, perhaps: added apart
        *before, last = blocks
        end = last.units[-1]
        bare = last._replace(units=(*last.units[:-1], end._replace(activation="none")))
        bare = (*before, bare._replace(shortcut="none"))
        y = run_chain(bare, recompute, as_given, None, *modules)
        return activate(last.add(y, residual), end.activation)
    if chain is None:
        return _one_by_one(blocks, as_given, residual, modules)
    y, all_stats = chain.run("conv_bn_relu", x, residual, tensors, running)
    if key is None:
        for norm, stats, n in zip(norms, all_stats, chain.values, strict=True):
            *running, _, momentum = norm.statistics()
            move_running(*running, stats.unbind(), n, momentum)
        if norms and not torch.compiler.is_compiling() and _saving_is_observed():
            return Last.apply(y)
    return y


def _saving_is_observed() -> bool:
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


class Last(torch.autograd.Function):
    """The identity, which keeps an empty tensor.

    A checkpoint computes again until the last tensor is kept: then statistics have moved, as they
    have in torch's layers.
    """

    @staticmethod
    def forward(ctx, y: Tensor) -> Tensor:
        ctx.save_for_backward(y.new_empty(0))
        return y

    @staticmethod
    def backward(ctx, dy: Tensor) -> Tensor:
        return dy


def _options(of: UnitOf, modules: Sequence[nn.Module]) -> tuple:
    """What of a unit's modules _unit reads beside their tensors."""
    options = ()
    if of.conv is not None:
        conv = modules[of.conv]
        options = conv.stride, conv.padding, conv.dilation, conv.groups, conv.output_padding
    if of.norm is None:
        return options
    norm = modules[of.norm]
    return *options, norm.of_batch, norm.eps, norm.momentum


def _tensors(of: UnitOf, modules: Sequence[nn.Module]) -> Tensors:
    convolved = (None, None)
    if of.conv is not None:
        conv = modules[of.conv]
        convolved = held(conv, "weight"), held(conv, "bias")
    if of.norm is None:
        return Tensors(*convolved)
    norm = modules[of.norm]
    of_norm = ["weight", "bias"] + ([] if norm.of_batch else ["running_mean", "running_var"])
    return Tensors(*convolved, *(held(norm, name) for name in of_norm))


def _blocks(
    blocks: tuple[BlockOf, ...],
    x: Tensor,
    residual: Tensor | None,
    modules: Sequence[nn.Module],
    all_tensors: Sequence[Tensors],
) -> tuple[tuple[Block, ...], list[int]] | None:
    """A chain's blocks and numbers of values; None where no chain covers the call."""
    if x.dim() != 4 or x.dtype not in FLOATING or 0 in x.shape:
        return None
    shape, x_format = list(x.shape), layout(x)
    made, values, left = [], [], iter(all_tensors)
    for block in blocks:
        start, units, y_format = shape, [], x_format
        for i, unit_of in enumerate(block.units):
            side, tensors = i == len(main_units(block)), next(left)
            unit = _unit(unit_of, start if side else shape, modules, tensors)
            found = _shape(unit, tensors, x, start if side else shape)
            if found is None or (side and found != shape):
                return None
            shape = found
            if not side and unit.w_format == torch.channels_last:
                y_format = torch.channels_last
            units.append(unit)
            if unit.of_batch:
                values.append(shape[0] * shape[2] * shape[3])
        if block.shortcut == "identity" and shape != start:
            return None
        made.append(Block(tuple(units), block.shortcut, x_format, y_format))
        x_format = y_format
    if 1 in values:
        return None
    if residual is not None and (list(residual.shape), residual.dtype) != (shape, x.dtype):
        return None
    return tuple(made), values


def _unit(
    of: UnitOf, x_shape: Sequence[int], modules: Sequence[nn.Module], tensors: Tensors
) -> Unit:
    if of.conv is None:
        g, size, w_format = None, None, torch.contiguous_format
    else:
        g, size, w_format = _convolved(modules[of.conv], x_shape, tensors.w)
    if of.norm is None:
        return Unit(g, size, w_format, "none", 0.0, of.activation)
    norm = modules[of.norm]
    statistics = "batch" if norm.of_batch else "given"
    return Unit(g, size, w_format, statistics, norm.eps, of.activation)


def _convolved(conv: nn.Module, x_shape: Sequence[int], w: Tensor) -> tuple:
    """A unit's geometry, size and w_format."""
    g = geometry("conv_bn_relu", w.shape[2:], conv.stride, conv.padding, conv.dilation, conv.groups)
    size = None
    if conv.transposed:
        g = leading_back(g, conv.output_padding)
        size = tuple(g.x_shape(x_shape, w.shape)[2:])
    g = fitted("conv_bn_relu", size or x_shape[2:], w.shape[2:], g)
    return g, size, layout(w)


def _shape(unit: Unit, t: Tensors, x: Tensor, x_shape: Sequence[int]) -> list[int] | None:
    """Of the unit's result; None where its tensors do not fit one another or x."""
    shape = list(x_shape)
    if unit.geometry is not None:
        channels = t.w.shape[1] * unit.geometry.groups
        if x_shape[1] != (channels if unit.size is None else t.w.shape[0]):
            return None
        shape = list(unit.y_shape(x_shape, t.w.shape))
    vectors, cast = [v for v in t[2:] if v is not None], autocast_dtype(x)
    dtypes = {v.dtype for v in vectors}
    fits = (
        min(shape) > 0
        and all(v.shape == (shape[1],) for v in vectors)
        and len(dtypes) <= 1
        and dtypes <= {x.dtype, sum_dtype(x.dtype)}
        and all(_used_in(v.dtype, cast) == x.dtype for v in t[:2] if v is not None)
        and all(v.device == x.device for v in t if v is not None)
    )
    return shape if fits else None


def _used_in(dtype: torch.dtype, cast: torch.dtype | None) -> torch.dtype:
    return dtype if cast is None or dtype not in FLOATING[:3] else cast


def _one_by_one(
    blocks: tuple[BlockOf, ...],
    x: Tensor,
    residual: Tensor | None,
    modules: Sequence[nn.Module],
) -> Tensor:
    units = [unit for block in blocks for unit in block.units]

    def normalised(place: int, z: Tensor) -> Tensor:
        layers = [modules[n] for n in (units[place].conv, units[place].norm) if n is not None]
        for layer in layers:
            z = getattr(layer, "alone", layer)(z)  # what else another library's does is apart
        return z

    return composed(blocks, x, residual, normalised)


class Watched(NamedTuple):
    """What a module must be for a fused forward to stand in for the container's own."""

    path: tuple[str, ...]
    kind: type[nn.Module] | None = None
    entered: bool = False  # its own call is left out
    of_mode: bool = False  # its own mode was read
    children: tuple[str, ...] | None = None
    attributes: tuple[tuple[str, Any], ...] = ()

    def changed(self, container: nn.Module) -> str | None:
        """What is no longer so, if anything."""
        module = container
        for name in self.path:
            module = module._modules.get(name)
            if module is None:
                return f"{self.name} is gone"
        if self.entered:
            why = altered(module, self.kind)
            of_mode = self.of_mode or any(module.children())
            if why is None and of_mode and module.training != container.training:
                why = "is in another mode"
            if why is not None:
                return f"{self.name} {why}"
        elif self.kind is not None and own_class(module) is not self.kind:
            return f"{self.name} is a {type(module).__name__}, not a {self.kind.__name__}"
        if self.children is not None and tuple(module._modules) != self.children:
            return f"{self.name} has other children"
        for name, value in self.attributes:
            now = module
            for part in name.split("."):
                now = getattr(now, part, ABSENT)
            if value is Tensor:
                same = isinstance(now, Tensor)
            else:
                same = type(now) is type(value) and now == value
            if not same:
                return f"{self.name} has another {name}"
        return None

    @property
    def name(self) -> str:
        return ".".join(self.path) or "it"


ABSENT = object()


def own_class(module: nn.Module) -> type[nn.Module]:
    """The module's class; a fused container's own."""
    return getattr(type(module), "unfused", type(module))


def altered(module: nn.Module, expected: type[nn.Module]) -> str | None:
    """Why module has to be called itself, if it has: then no chain may stand in for it."""
    if own_class(module) is not expected:
        return f"is a {type(module).__name__}, not a {expected.__name__}"
    if "forward" in vars(module):
        return "has a forward of its own"
    hooks = (
        module._forward_pre_hooks,
        module._forward_hooks,
        module._backward_pre_hooks,
        module._backward_hooks,
    )
    if any(hooks) or _has_any_global_hook():
        return "has hooks"
    return None


def warn_once(module: nn.Module, why: str) -> None:
    if vars(module).setdefault("_warned", why) is why:  # of threads, only the first
        warnings.warn(f"{type(module).__name__} runs unfused: {why}", stacklevel=3)


class ConvBNReLU(nn.Module):
    """Conv2d, BatchNorm2d and an activation, as one operation; see conv_bn_relu.

    activation is one of conv_bn_relu's.  forward takes input and, if something is to be added
    before the activation, residual, of the output's shape.  The children conv and bn are called one
    by one where they have hooks or are no longer of their own types.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = False,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        activation: str | None = "relu",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_activation("ConvBNReLU", activation)
        factory = {"device": device, "dtype": dtype}
        self.conv = Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            **factory,
        )  # fmt: skip
        self.bn = BatchNorm2d(out_channels, eps, momentum, **factory)
        self.activation = activation

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        unit = UnitOf(0, 1, self.activation or "none")
        blocks = (BlockOf((unit,), "none" if residual is None else "given"),)
        why = altered(self.conv, Conv2d) or altered(self.bn, BatchNorm2d)
        if why is not None:
            warn_once(self, f"a child {why}")
            return _one_by_one(blocks, input, residual, (self.conv, self.bn))
        return run_chain(blocks, False, input, residual, self.conv, self.bn)

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}"
