"""Calls of operators, recalled by their signatures.

What an operator's checks find depends on its options and on its tensors' signature: that they were
made once does for all calls alike.  These go straight from their arguments to one autograd Function
whose passes are planned.  It is the Function that the checks chose, run by a plan: what it saves,
what it keeps beside and what its backward does are as it says, and where no plan may stand for a
pass (second gradients, what somebody looks on at) it runs as it is.
"""

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from ._common import refuse_transforms
from ._launch import BY_VALUE
from ._plan import generation, plannable, planned
from ._remembered import Remembered
from ._signature import PLAIN, signature

MOST_PLANS = 16  # of a call: one forward, and a backward for each set of gradients wanted


class Applied(NamedTuple):
    """What an operator's checks find: an autograd Function of tensors and of options.

    The tensors are the given ones, or what prepare made of them; finish makes of the Function's
    results what the operator gives.  Both are differentiable, and depend on no more than the given
    tensors' signature.
    """

    function: type[Function]
    tensors: tuple[Tensor | None, ...]
    options: tuple
    prepare: Callable | None = None
    finish: Callable | None = None

    def result(self) -> Any:
        results = self.function.apply(*self.tensors, *self.options)
        return results if self.finish is None else self.finish(results)


def recalled(depends_on: Callable[[Tensor], tuple] | None = None) -> Callable:
    """Makes an operator, of its name, its tensors and its options, of what checks these and gives
    what is Applied, or a result at once.

    depends_on tells, by a tensor, what the steps depend on beside these.
    """

    def decorate(check: Callable) -> Callable:
        @functools.wraps(check)
        def called(name, tensors, *options):
            key = None
            if plannable() and (told := _told(check, tensors, options)) is not None:
                state = (generation(),) if depends_on is None else depends_on(tensors[0])
                key = check, name, torch.is_grad_enabled(), *told, *state
                call = _calls.get(key)
                if call is not None:
                    return call(tensors)
            refuse_transforms(name, *tensors)
            applied = check(name, tensors, *options)
            if not isinstance(applied, Applied):
                return applied
            if key is not None:
                _calls.add(key, Call(applied, depends_on))
            return applied.result()

        return called

    return decorate


_calls = Remembered(4096)


def _told(check: Callable, tensors: tuple, options: tuple) -> tuple | None:
    """All there is to tell of them; None where there may be more to tell."""
    x = tensors[0]
    if x.__class__ not in PLAIN:
        return None
    try:
        found = signature((check, x.shape), tensors)
    except RuntimeError:  # of a nested tensor
        return None
    if found is None:
        return None
    kinds = inside = tuple(map(type, options))
    if tuple in kinds or list in kinds:
        flat = []
        for option in options:
            flat += (*option, len(option)) if option.__class__ in (tuple, list) else (option,)
        options, inside = flat, tuple(map(type, flat))
    # what is equal to an int, as True and 1.0 are, need not be one
    return (found, kinds, inside, *options) if BY_VALUE.issuperset(inside) else None


class Context:
    """Stands in for autograd's where a Function's passes are planned, but for the tensors."""

    def __init__(self, needs: Sequence[bool], options: tuple) -> None:
        self.needs_input_grad = (*needs, *(False for _ in options))
        self.saved_tensors = self.marked = ()

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        self.saved_tensors = tensors

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        self.marked = tensors

    def set_materialize_grads(self, value: bool) -> None:
        """For several results gradients are never made of nothing."""


class Call:
    """What is the same in all calls of a signature, and the plans of their passes."""

    def __init__(self, applied: Applied, depends_on: Callable | None) -> None:
        self.function, tensors, self.options, self.prepare, self.finish = applied
        with_gradients = torch.is_grad_enabled()
        self.needs = tuple(with_gradients and t is not None and t.requires_grad for t in tensors)
        self.apply = _applying(self.function) if any(self.needs) else None
        self.depends_on = depends_on
        self.plans = Remembered(MOST_PLANS)
        self.context, self.outputs, self.marked = None, 1, ()

    def __call__(self, tensors: Sequence[Tensor | None]) -> Any:
        if self.prepare is not None:
            tensors = self.prepare(*tensors)
        if self.apply is not None:
            results = self.apply(self, *tensors)
        else:
            results = planned(self.plans, "forward", self.forward, tensors, True)[: self.outputs]
            if self.outputs == 1:
                (results,) = results
        return results if self.finish is None else self.finish(results)

    def forward(self, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        """The Function's results, and what it saves."""
        context = Context(self.needs, self.options)
        results = self.function.forward(context, *tensors, *self.options)
        results = results if isinstance(results, tuple) else (results,)
        marked = set(map(id, context.marked))
        self.marked = [i for i, t in enumerate(results) if id(t) in marked]
        self.outputs, saved = len(results), context.saved_tensors
        context.saved_tensors = context.marked = ()
        self.context = context
        return *results, *saved

    def backward(self, needs: tuple[bool, ...], tensors: Sequence[Tensor | None]) -> tuple:
        """The gradients of the Function's tensors, from those of its results and what it saved."""
        if tensors[0] is not None and not torch.is_grad_enabled() and plannable():
            found = signature(self, tensors)
            if found is not None:
                state = () if self.depends_on is None else self.depends_on(tensors[0])
                function = functools.partial(self.gradients, needs)
                return planned(self.plans, (needs, found, *state), function, tensors, True)
        return self.gradients(needs, *tensors)

    def gradients(self, needs: tuple[bool, ...], *tensors: Tensor | None) -> tuple:
        context = copy.copy(self.context)
        context.needs_input_grad = (*needs, *(False for _ in self.options))
        context.saved_tensors = tensors[self.outputs :]
        return self.function.backward(context, *tensors[: self.outputs])[: len(needs)]


class PlannedFunction(Function):
    """A call's Function, run by the call's plans."""

    @staticmethod
    def forward(ctx, call, *tensors):
        results = planned(call.plans, "forward", call.forward, tensors, True)
        ctx.call, outputs = call, call.outputs
        ctx.save_for_backward(*results[outputs:])
        if outputs == 1:
            return results[0]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(results[i] for i in call.marked))
        return results[:outputs]

    @staticmethod
    def backward(ctx, *dys):
        return None, *ctx.call.backward(ctx.needs_input_grad[1:], (*dys, *ctx.saved_tensors))


@functools.cache
def _applying(function: type[Function]) -> Callable:
    """Applies a planned Function that is named as it is, without what Function.apply does for
    transforms, which are refused."""
    planned_function = type(function.__name__, (PlannedFunction,), {})
    return super(Function, planned_function).apply
