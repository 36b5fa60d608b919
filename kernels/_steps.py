"""What a call does, as steps: it allocates, starts kernels, and now and then asks torch for a copy.

A step names tensors by slots: first the arguments, then what the steps make.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from triton.tools.tensor_descriptor import TensorDescriptor

from ._launch import Prepared, start


class Place(NamedTuple):
    """Where a tensor is: in a slot, or a view of what is there."""

    slot: int
    offset: int = 0  # bytes from its first element
    view: tuple | None = None  # size, strides and offset in elements, of which dtype if another


class Allocate(NamedTuple):
    slot: int
    size: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class Ask(NamedTuple):
    """torch for a copy, or whatever else it is to do."""

    function: Callable
    args: tuple
    kwargs: dict
    slots: tuple[int, ...]  # of its results


class Start(NamedTuple):
    """A kernel; its tensors are places, its descriptors have places for bases."""

    kernel: Any
    programs: int
    args: tuple
    outs: tuple[Place, ...]
    meta: dict
    choice: Any
    prepared: Prepared | None


class Described(NamedTuple):
    base: Place
    fields: dict

    def of(self, base: Tensor) -> TensorDescriptor:
        made = object.__new__(TensorDescriptor)  # checked when it was recorded
        made.__dict__.update(self.fields, base=base)
        return made


def at(place: Any, slots: list) -> Any:
    if isinstance(place, Described):
        return place.of(at(place.base, slots))
    if not isinstance(place, Place):
        return place
    t = slots[place.slot]
    return t if place.view is None else viewed(t, *place.view)


def take(step: Any, slots: list) -> None:
    if isinstance(step, Allocate):
        slot, size, strides, dtype, device = step
        slots[slot] = torch.empty_strided(size, strides, dtype=dtype, device=device)
    elif isinstance(step, Ask):
        args, kwargs = mapped(functools.partial(at, slots=slots), (step.args, step.kwargs))
        results = tree_leaves(step.function(*args, **kwargs))
        for slot, t in zip(step.slots, results, strict=False):  # of what is written, none
            slots[slot] = t
    else:
        outs = {place: at(place, slots) for place in step.outs}
        args = tuple(outs[a] if _is_in(a, outs) else at(a, slots) for a in step.args)
        outs = tuple(outs.values())
        start(step.kernel, step.programs, args, outs, step.meta, step.choice)


def _is_in(a: Any, outs: dict) -> bool:
    return isinstance(a, Place) and a in outs


def viewed(t: Tensor, size: tuple, strides: tuple, offset: int, dtype=None) -> Tensor:
    t = t if dtype is None else t.view(dtype)
    return t.as_strided(size, strides, t.storage_offset() + offset)


def mapped(f: Callable, value: Any) -> Any:
    """f of all that value is made of; a place is one thing, though a tuple."""
    if isinstance(value, Place | Described):
        return f(value)
    if isinstance(value, dict):
        return {k: mapped(f, v) for k, v in value.items()}
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(mapped(f, v) for v in value)
    return f(value)


def places(value: Any) -> list[Place]:
    found = []

    def see(v):
        if isinstance(v, Described):
            v = v.base
        if isinstance(v, Place):
            found.append(v)

    mapped(see, value)
    return found


def used(step: Any) -> set[int]:
    """The slots that a step reads, writes or makes."""
    if isinstance(step, Allocate):
        return {step.slot}
    made = step.slots if isinstance(step, Ask) else ()
    return {place.slot for place in places((step.args, step[2]))} | set(made)


def last_uses(steps: list, given: int, results: Iterable) -> list[list[int]]:
    """Of each step the slots that nothing reads after it; arguments stay, and what is returned."""
    kept = {place.slot for place in places(tuple(results))}
    left = []
    for step in reversed(steps):
        slots = used(step)
        left.append(sorted(slot for slot in slots if slot >= given and slot not in kept))
        kept |= slots
    return left[::-1]
