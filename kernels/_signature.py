"""What tensors are, but for their memory and what it holds, as a number.

All that steps may depend on: how their memory is aligned, dtype, sizes, strides, device, whether
they require a gradient.  Tensors that are as others were get their number by torch's own
comparison, which takes less time than to read all that from one of them.
"""

import itertools
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from ._launch import ALIGNED
from ._remembered import Remembered

PLAIN = {Tensor, Parameter}  # other types of tensors may have symbolic shapes, or none
MOST_AT_A_PLACE = 16
# torch has no public name for it; without it tensors are read one by one
GUARDS = getattr(torch._C._dynamo.guards, "TensorGuards", None)


class _Known(NamedTuple):
    """Tensors that came, all of an alignment, none given twice."""

    alike: Callable[..., bool]  # whether others are as they were, but for their alignment
    number: int


_known = Remembered(4096)  # by place and which are None
_numbers = Remembered(2**16)
_count = itertools.count()


def signature(place: Hashable, tensors: Sequence[Tensor | None]) -> int | None:
    """Equal where tensors are alike, wherever they come from; None where steps may depend on more.

    place tells apart where few signatures come from.
    """
    given = [t for t in tensors if t is not None]
    missing = len(tensors)
    if len(given) < missing:
        missing = tuple([t is None for t in tensors])
    place, hit = (place, missing), False
    try:
        for alike, number in _known.get(place, ()):
            if alike(*given):
                if _aligned(given):
                    return number
                hit = True
                break
    except TypeError:  # no tensor
        return None
    found = _read(tensors)
    if found is None:
        return None
    number = _numbers.get(found)
    if number is None:
        number = _numbers.add(found, next(_count))
    if GUARDS and not hit and _aligned(given) and len(set(map(id, given))) == len(given):
        known = _Known(_comparison(given), number)
        _known.add(place, (known, *_known.get(place, ())[: MOST_AT_A_PLACE - 1]))
    return number


def _aligned(tensors: Sequence[Tensor]) -> bool:
    pointers = 0
    for t in tensors:
        pointers |= t.data_ptr()
    return pointers % ALIGNED == 0


def _read(tensors: Sequence[Tensor | None]) -> tuple | None:
    """All of it; None of tensors that are not what their memory holds."""
    found: list = []
    try:
        for t in tensors:
            if t is None:
                found.append(None)
                continue
            pointer = t.data_ptr() if t.__class__ in PLAIN else 0
            if pointer == 0 or t.is_neg():
                return None
            found += (
                pointer % ALIGNED, t.dtype, t.shape, t.stride(), t.get_device(), t.requires_grad,
            )  # fmt: skip
    except RuntimeError:  # sparse, or nested: of no memory or no shape
        return None
    return tuple(found)


def _comparison(tensors: Sequence[Tensor]) -> Callable[..., bool]:
    """Dynamo's, which compares what is read above, and the dispatcher's keys: of negated tensors,
    of lazy zeros, of modes."""
    guards = GUARDS(
        *tensors,
        dynamic_dims_sizes=[list(t.shape) for t in tensors],
        dynamic_dims_strides=[list(t.stride()) for t in tensors],
    )
    return guards.check
