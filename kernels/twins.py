"""Twins: the same model with equal values on our layers, or on torch.nn's."""

from collections.abc import Callable

from torch import nn

from . import modules
from ._stand_in import copied, unfuse

TWINS = {
    getattr(nn, name): value
    for name, value in vars(modules).items()
    if isinstance(value, type) and issubclass(value, nn.Module)
}


def convert(model: nn.Module, report: Callable[[str], object] | None = None) -> nn.Module:
    """A deep copy of model with torch.nn's layers replaced by ours.

    Only exact types are replaced: a subclass may compute something else, so it is kept; a layer
    with a parametrization is one.  Hooks stay, those too that make a weight, as pruning has them.
    report, if given (print, say), is called with a line for every replaced layer and every other
    leaf.
    """
    return _swapped(model, TWINS, report)


def as_torch(model: nn.Module, report: Callable[[str], object] | None = None) -> nn.Module:
    """A deep copy of model with our layers replaced by torch.nn's, and unfused; see convert."""
    twin = _swapped(model, {ours: theirs for theirs, ours in TWINS.items()}, report)
    for module in twin.modules():
        unfuse(module)
    return twin


def _swapped(model: nn.Module, to: dict, report: Callable[[str], object] | None) -> nn.Module:
    twin = copied(model)
    for name, module in twin.named_modules():
        kind = type(module)
        if kind in to:
            module.__class__ = to[kind]  # a layer and its twin hold the same attributes
            line = f"{_path(kind)} -> {_path(to[kind])}"
        elif isinstance(module, tuple(to)) or not any(module.children()):
            line = f"{_path(kind)} kept"
        else:
            continue
        if report is not None:
            report(f"{name or 'model'}: {line}")
    return twin


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
