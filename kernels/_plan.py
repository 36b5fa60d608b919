"""A function of tensors as a list of steps, recorded in a call and replayed in those after it.

Which steps a call takes depends on its arguments' sizes, strides, dtypes and alignment, and on few
switches.  Where these are as they were, so are the steps, and all that decided on them need not be
decided again.

Replayed they are one straight function, with each kernel started as it was compiled; where launches
need more than to be started (`stream_of`), and in the interpreter, they are gone through one by
one, each launch as any other.  A plan holds no tensors.  What it cannot name (a tensor from
elsewhere, a number read from a tensor) it does not stand for: then there is none, and every call
goes the way of the first.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import (
    DispatchKey,
    _are_functorch_transforms_active,
    _dispatch_tls_is_dispatch_key_included,
    _is_tracing,
    _len_torch_dispatch_stack,
)
from torch.autograd import _profiler_enabled, forward_ad
from torch.compiler import is_dynamo_compiling

from ._launch import INTERPRETED, recorded, stream_of, watching
from ._record import Recorder, UnplannableError
from ._remembered import Remembered
from ._sharing import sharing_memory
from ._steps import Start, at, last_uses, take
from ._straight import c_form, straight

PRE_DISPATCH = DispatchKey.PreDispatch


class Plan:
    """Steps; and, where each of their kernels is prepared, the function that takes them."""

    def __init__(self, recorder: Recorder, given: int, results: Sequence[Tensor | None]) -> None:
        self.given, self.slots = given, recorder.count + 1
        self.results = tuple(recorder.place(t) for t in results)
        described = c_form() is not None  # Triton's launchers in Python take them of tensors
        self.steps = sharing_memory(recorder.steps, recorder.count, self.results, described)
        self.left = last_uses(self.steps, given, self.results)
        self.written = sorted(
            {slot for step in self.steps for slot in writes(step) if slot < given}
        )
        starts = [step for step in self.steps if isinstance(step, Start)]
        ready = all(step.prepared is not None and step.prepared.run for step in starts)
        self.straight = straight(self) if ready and not INTERPRETED else None

    def __call__(self, tensors: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        stream = None if self.straight is None else stream_of(tensors[0].get_device())
        results = self.one_by_one(tensors) if stream is None else self.straight(stream, *tensors)
        if self.written:
            written(*(tensors[slot] for slot in self.written))
        return results

    def one_by_one(self, tensors: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        slots = [*tensors, *(None,) * (self.slots - self.given)]
        for step, left in zip(self.steps, self.left, strict=True):
            take(step, slots)
            for slot in left:
                slots[slot] = None
        return tuple(at(place, slots) for place in self.results)


def writes(step: Any) -> Iterable[int]:
    """The slots of what kernels write: torch tells autograd of what it writes itself."""
    return (place.slot for place in step.outs) if isinstance(step, Start) else ()


def plannable() -> bool:
    """Whether a plan may stand for a call: where nobody looks on at what torch is asked for."""
    return not (
        is_dynamo_compiling()  # what torch.export runs without it is seen by a mode
        or _is_tracing()
        or _len_torch_dispatch_stack()
        or _profiler_enabled()
        or _are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or _dispatch_tls_is_dispatch_key_included(PRE_DISPATCH)
        or recorded()
    )


def written(*tensors: Tensor | None) -> None:
    """Tells autograd, which knows nothing of kernels, that these are not what they were."""
    known = [t for t in tensors if t is not None]
    try:
        torch.autograd.graph.increment_version(known)
    except RuntimeError:  # some are of inference mode, and have none
        known = [t for t in known if not t.is_inference()]
        torch.autograd.graph.increment_version(known)


_generation = 0


def generation() -> int:
    """Part of every plan's key."""
    return _generation


def forget() -> None:
    """No plan made so far is replayed again."""
    global _generation
    _generation += 1


def planned(
    plans: Remembered, key: Any, function: Callable, tensors: Sequence, ran: bool = False
) -> tuple:
    """function(*tensors), a tuple of tensors and Nones; the first one tells where it runs.

    Replayed where it was recorded under this key, which says all that its steps depend on: of the
    tensors their signature.  Recorded in its second call: the first one compiles, and may be the
    only one.  In its first where it ran before, apart.
    """
    plan = plans.get(key, plans)
    if plan is plans:
        plans.add(key, None)
        if not ran:
            return function(*tensors)
    elif plan:
        return plan(tensors)
    if plan is NO_PLAN or (not INTERPRETED and stream_of(tensors[0].get_device()) is None):
        return function(*tensors)
    results, plan = _recorded(function, tensors)
    if plan is not None:
        plans[key] = plan
    return results


NO_PLAN = False  # where its steps say it not


def _recorded(function: Callable, tensors: Sequence[Tensor | None]) -> tuple[tuple, Any]:
    """The results, and their plan or NO_PLAN; None where one tensor is given twice, which may be
    so in this call alone."""
    try:
        recorder = Recorder(tensors)
    except UnplannableError:
        return function(*tensors), None
    with watching(recorder.launch), recorder:
        results = function(*tensors)
    if recorder.why is not None:
        return results, NO_PLAN
    try:
        return results, Plan(recorder, len(tensors), results)
    except UnplannableError:
        return results, NO_PLAN
