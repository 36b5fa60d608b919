"""The steps of a call, seen while it runs."""

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from triton.tools.tensor_descriptor import TensorDescriptor

from ._launch import INTERPRETED, find_prepared, run
from ._steps import Allocate, Ask, Described, Place, Start

ALLOCATIONS = {
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.empty_strided.default,
    torch.ops.aten.new_empty.default,
    torch.ops.aten.new_empty_strided.default,
    torch.ops.aten.empty_like.default,
}


class UnplannableError(Exception):
    """Something happens that steps cannot say."""


class Recorder(TorchDispatchMode):
    """Sees what torch does, and what is launched."""

    def __init__(self, tensors: Sequence[Tensor | None]) -> None:
        super().__init__()
        self.steps, self.count, self.why, self.blind = [], 0, None, False
        self.places: dict[int, tuple[Place, int, weakref.ref]] = {}  # by id; with the pointer
        for t in tensors:
            self.add(t)

    def add(self, t: Tensor | None) -> int:
        """The slot of a tensor that is new, whether there is one or not."""
        if t is not None:
            if id(t) in self.places:
                raise UnplannableError("a tensor is given twice")
            self.know(t, Place(self.count))
        self.count += 1
        return self.count - 1

    def know(self, t: Tensor, place: Place) -> None:
        key = id(t)
        gone = weakref.ref(t, lambda _: self.places.pop(key, None))
        self.places[key] = place, t.data_ptr(), gone

    def place(self, t: Any) -> Any:
        if isinstance(t, TensorDescriptor):
            return Described(self.place(t.base), vars(t) | {"base": None})
        if not isinstance(t, Tensor):
            return t
        if id(t) not in self.places:
            raise UnplannableError("a tensor comes from elsewhere")
        return self.places[id(t)][0]

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        results = function(*args, **kwargs)
        if self.why is None and not self.blind:
            try:
                self.note(function, args, kwargs, results)
            except UnplannableError as why:
                self.why = why
        return results

    def note(self, function, args: tuple, kwargs: dict, results: Any) -> None:
        found = [] if results is None else tree_leaves(results)
        if not all(isinstance(t, Tensor) for t in found):
            raise UnplannableError(f"{function} gives more than tensors")
        if function in ALLOCATIONS:
            (t,) = found
            step = Allocate(self.count, tuple(t.shape), t.stride(), t.dtype, t.device)
            self.add(t)
        elif function.is_view and _alike(found[0], args[0]):  # some may copy
            for t in found:
                self.note_view(t, args[0])
            return
        else:
            places = tree_map(self.place, (args, kwargs))
            written = function._schema.is_mutable  # then its results are among its arguments
            slots = () if written else tuple(self.add(t) for t in found)
            step = Ask(function, *places, slots)
        self.steps.append(step)

    def note_view(self, t: Tensor, source: Tensor) -> None:
        place = self.place(source)
        _, pointer, _ = self.places[id(source)]
        if t.dtype != source.dtype:
            raise UnplannableError("a tensor is read as another dtype")
        offset = place.offset + t.data_ptr() - pointer
        view = tuple(t.shape), t.stride(), offset // t.itemsize
        self.know(t, Place(place.slot, offset, view))

    def launch(self, kernel, programs, args, outs, meta, choice) -> None:
        self.blind = True  # to what the interpreter does
        try:
            run(kernel, programs, args, outs, meta)
        finally:
            self.blind = False
        if self.why is None:
            prepared = None if INTERPRETED else find_prepared(kernel, programs, args, outs, meta)
            try:
                places = tuple(map(self.place, args)), tuple(map(self.place, outs))
            except UnplannableError as why:
                self.why = why
            else:
                self.steps.append(Start(kernel, programs, *places, meta, choice, prepared))


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
