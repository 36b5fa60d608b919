"""Twins: the same model with equal values on our layers, or on torch.nn's."""

from collections.abc import Callable

from torch import nn

from . import modules
from ._others import KNOWN, acts_as, changes_nothing, made
from ._stand_in import copied, unfuse

TWINS = {
    getattr(nn, name): value
    for name, value in vars(modules).items()
    if isinstance(value, type) and issubclass(value, nn.Module)
}
THEIRS = {ours: theirs for theirs, ours in TWINS.items()}


def convert(model: nn.Module, report: Callable[[str], object] | None = None) -> nn.Module:
    """A deep copy of model with torch.nn's layers replaced by ours.

    Replaced are exact types; subclasses that override nothing that computes; timm's BatchNormAct2d
    and Conv2dSame and torchvision's FrozenBatchNorm2d.  Other subclasses may compute something
    else, so they are kept; a layer with a parametrization is one.  A layer of a subclass stays an
    instance of it.  Hooks stay, those too that make a weight, as pruning has them.  report, if
    given (print, say), is called with a line for every replaced layer and every other leaf.
    """
    return _swapped(model, _ours, tuple(TWINS), report)


def as_torch(model: nn.Module, report: Callable[[str], object] | None = None) -> nn.Module:
    """A deep copy of model with our layers replaced by those they replaced, and unfused."""
    twin = _swapped(model, _theirs, tuple(THEIRS), report)
    for module in twin.modules():
        unfuse(module)
    return twin


def _ours(kind: type) -> type | None:
    if kind in TWINS or kind in THEIRS:
        return TWINS.get(kind)
    known = KNOWN.get(_path(kind))
    base = next((base for base in kind.__mro__ if base in TWINS), None)
    if known is None and base is not None and changes_nothing(kind, base):
        known = TWINS[base]
    return None if known is None else made(kind, known)


def _theirs(kind: type) -> type | None:
    return THEIRS.get(kind, vars(kind).get("made_of"))


def _swapped(
    model: nn.Module,
    other: Callable[[type], type | None],
    layers: tuple[type, ...],
    report: Callable[[str], object] | None,
) -> nn.Module:
    twin = copied(model)
    for name, module in twin.named_modules():
        kind, to = type(module), other(type(module))
        if to is not None:
            old = acts_as(module)
            module.__class__ = to  # a layer and its twin hold the same attributes
            line = f"{_path(old)} -> {_path(acts_as(module))}"
        elif isinstance(module, layers) or not any(module.children()):
            line = f"{_path(kind)} kept"
        else:
            continue
        if report is not None:
            report(f"{name or 'model'}: {line}")
    return twin


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
