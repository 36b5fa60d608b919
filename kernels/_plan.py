"""A function of tensors as a list of steps, recorded in a call and replayed in those after it.

A call allocates, launches kernels, and now and then asks torch for a copy: which, and with which
sizes, depends on its arguments' sizes, strides, dtypes and alignment, and on few switches.  Where
these are as they were, so are the steps, and all that decided on them need not be decided again.

A step names tensors by slots: first the arguments, then what the steps make.  Replayed they are
one straight function, with each kernel started as it was compiled; where launches need more than to
be started (`stream_of`), and in the interpreter, they are gone through one by one, each launch as
any other.  A plan holds no tensors.  What it cannot name (a tensor from elsewhere, a number read
from a tensor) it does not stand for: then there is none, and every call goes the way of the first.
"""

import functools
import inspect
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch._C import (
    DispatchKey,
    _dispatch_tls_is_dispatch_key_included,
    _is_tracing,
    _len_torch_dispatch_stack,
)
from torch.autograd import _profiler_enabled, forward_ad
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from triton.tools.tensor_descriptor import TensorDescriptor

from ._launch import (
    ALIGNED,
    INTERPRETED,
    Prepared,
    find_prepared,
    recorded,
    run,
    start,
    stream_of,
    watching,
)

PLAIN = (Tensor, Parameter)  # other types of tensors may have symbolic shapes, or none
ALLOCATIONS = {
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.empty_strided.default,
    torch.ops.aten.new_empty.default,
    torch.ops.aten.new_empty_strided.default,
    torch.ops.aten.empty_like.default,
}


class Remembered(dict):
    """What is bounded: the oldest goes where a new one comes."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.lock = most, threading.Lock()

    def add(self, key: tuple, value: Any) -> Any:
        with self.lock:
            while len(self) >= self.most:
                del self[next(iter(self))]
            self[key] = value
        return value


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


class Plan:
    """Steps; and, where each of their kernels is prepared, the function that takes them."""

    def __init__(self, recorder: Recorder, given: int, results: Sequence[Tensor | None]) -> None:
        self.given, self.slots = given, recorder.count
        self.results = tuple(recorder.place(t) for t in results)
        self.steps: list = _sharing_memory(recorder.steps, self.slots, self.results)
        self.slots += 1
        self.left = _last_uses(self.steps, given, self.results)
        starts = [step for step in self.steps if isinstance(step, Start)]
        ready = all(step.prepared is not None and step.prepared.run for step in starts)
        self.straight = _straight(self) if ready and not INTERPRETED else None

    def __call__(self, tensors: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        stream = None if self.straight is None else stream_of(tensors[0].get_device())
        if stream is None:
            return self.one_by_one(tensors)
        return self.straight(stream, *tensors)

    def one_by_one(self, tensors: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        slots = [*tensors, *(None,) * (self.slots - self.given)]
        for step, left in zip(self.steps, self.left, strict=True):
            _take(step, slots)
            for slot in left:
                slots[slot] = None
        return tuple(_at(place, slots) for place in self.results)


def _at(place: Any, slots: list) -> Any:
    if isinstance(place, Described):
        return place.of(_at(place.base, slots))
    if not isinstance(place, Place):
        return place
    t = slots[place.slot]
    return t if place.view is None else viewed(t, *place.view)


def _take(step: Any, slots: list) -> None:
    if isinstance(step, Allocate):
        slot, size, strides, dtype, device = step
        slots[slot] = torch.empty_strided(size, strides, dtype=dtype, device=device)
    elif isinstance(step, Ask):
        args, kwargs = _mapped(functools.partial(_at, slots=slots), (step.args, step.kwargs))
        results = tree_leaves(step.function(*args, **kwargs))
        for slot, t in zip(step.slots, results, strict=False):  # of what is written, none
            slots[slot] = t
    else:
        outs = {place: _at(place, slots) for place in step.outs}
        args = tuple(outs[a] if _is_in(a, outs) else _at(a, slots) for a in step.args)
        outs = tuple(outs.values())
        start(step.kernel, step.programs, args, outs, step.meta, step.choice)


def _is_in(a: Any, outs: dict) -> bool:
    return isinstance(a, Place) and a in outs


def viewed(t: Tensor, size: tuple, strides: tuple, offset: int, dtype=None) -> Tensor:
    t = t if dtype is None else t.view(dtype)
    return t.as_strided(size, strides, t.storage_offset() + offset)


def _mapped(f: Callable, value: Any) -> Any:
    """f of all that value is made of; a place is one thing, though a tuple."""
    if isinstance(value, Place | Described):
        return f(value)
    if isinstance(value, dict):
        return {k: _mapped(f, v) for k, v in value.items()}
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(_mapped(f, v) for v in value)
    return f(value)


def _places(value: Any) -> list[Place]:
    found = []

    def see(v):
        if isinstance(v, Described):
            v = v.base
        if isinstance(v, Place):
            found.append(v)

    _mapped(see, value)
    return found


def _used(step: Any) -> set[int]:
    """The slots that a step reads, writes or makes."""
    if isinstance(step, Allocate):
        return {step.slot}
    made = step.slots if isinstance(step, Ask) else ()
    return {place.slot for place in _places((step.args, step[2]))} | set(made)


MOST_SHARED = 2**24  # bytes: what is larger goes as soon as it can
APART = 512  # bytes, from one thing to the next


def _sharing_memory(steps: list, slot: int, results: tuple) -> list:
    """The same steps with one allocation, in this slot, for all that kernels alone see of them.

    Each thing lies where nothing lies that is used while it is: kernels run one after another.
    """
    last = {used: i for i, step in enumerate(steps) for used in _used(step)}
    alone = {place.slot for place in _places(results)}
    alone |= {used for step in steps if isinstance(step, Ask) for used in _used(step)}
    if not c_form():  # Triton's launchers in Python take descriptors of tensors
        alone |= {
            a.base.slot
            for step in steps
            if isinstance(step, Start)
            for a in step.args
            if isinstance(a, Described)
        }
    homes, taken, size, kept, device = {}, [], 0, [], None
    for i, step in enumerate(steps):
        if isinstance(step, Allocate) and step.slot not in alone:
            elements = 1 + sum((n - 1) * s for n, s in zip(step.size, step.strides, strict=True))
            room = -(-elements * step.dtype.itemsize // APART) * APART
            if 0 not in step.size and room <= MOST_SHARED and device in (None, step.device):
                taken = sorted(t for t in taken if t[2] > i)
                at = 0
                for begin, end, _ in taken:
                    if begin - at >= room:
                        break
                    at = end
                taken.append((at, at + room, last[step.slot]))
                homes[step.slot], size, device = (at, step), max(size, at + room), step.device
                continue
        kept.append(step)

    def moved(place):
        if isinstance(place, Described):
            return place._replace(base=moved(place.base))
        if not isinstance(place, Place) or place.slot not in homes:
            return place
        at, made = homes[place.slot]
        view_size, strides, _ = place.view or (made.size, made.strides, 0)
        offset = at + place.offset
        view = view_size, strides, offset // made.dtype.itemsize, made.dtype
        return Place(slot, offset, view)

    if not homes:
        return kept
    starts = (
        step._replace(args=tuple(map(moved, step.args)), outs=tuple(map(moved, step.outs)))
        if isinstance(step, Start)
        else step
        for step in kept
    )
    return [Allocate(slot, (size,), (1,), torch.uint8, device), *starts]


def _last_uses(steps: list, given: int, results: Iterable) -> list[list[int]]:
    """Of each step the slots that nothing reads after it; arguments stay, and what is returned."""
    kept = {place.slot for place in _places(tuple(results))}
    left = []
    for step in reversed(steps):
        slots = _used(step)
        left.append(sorted(slot for slot in slots if slot >= given and slot not in kept))
        kept |= slots
    return left[::-1]


def _straight(plan: Plan) -> Callable:
    """The steps as one function of the stream and the arguments; `__source__` is its text."""
    names: dict[str, Any] = {"viewed": viewed}
    bound: dict[int, str] = {}
    lines, pointers = [], set()

    def name(value: Any) -> str:
        if value is None or value.__class__ in (int, bool, str):
            return repr(value)
        if id(value) not in bound:
            bound[id(value)] = f"c{len(bound)}"
            names[bound[id(value)]] = value
        return bound[id(value)]

    def tensor(place: Any) -> str:
        if isinstance(place, Described):
            return f"{name(place.of)}({tensor(place.base)})"
        if not isinstance(place, Place):
            return name(place)
        t = f"t{place.slot}"
        if place.view is None:
            return t
        how = (name(v) if isinstance(v, torch.dtype) else repr(v) for v in place.view)
        return f"viewed({t}, {', '.join(how)})"

    def expression(value: Any) -> str:
        if type(value) in (list, tuple):
            inside = ", ".join(map(expression, value))
            return f"[{inside}]" if type(value) is list else f"({inside},)"
        return tensor(value)

    def argument(place: Any) -> str:
        """Of a kernel: pointers instead of tensors."""
        if not isinstance(place, Place):
            return tensor(place)
        if place.slot not in pointers:
            pointers.add(place.slot)
            lines.append(f"p{place.slot} = t{place.slot}.data_ptr()")
        return f"p{place.slot} + {place.offset}" if place.offset else f"p{place.slot}"

    for step, left in zip(plan.steps, plan.left, strict=True):
        if isinstance(step, Allocate):
            slot, size, strides, dtype, device = step
            how = f"{size}, {strides}, dtype={name(dtype)}, device={name(device)}"
            lines.append(f"t{slot} = {name(torch.empty_strided)}({how})")
        elif isinstance(step, Ask):
            given = [*map(expression, step.args)]
            given += [f"{key}={expression(value)}" for key, value in step.kwargs.items()]
            made = "".join(f"t{slot}, " for slot in step.slots)
            made = f"{made.removesuffix(', ')} = " if len(step.slots) == 1 else made and f"{made}= "
            lines.append(f"{made}{name(step.function)}({', '.join(given)})")
        else:
            prepared = step.prepared
            launcher, form = c_launcher(prepared) or (prepared.run, RUN)
            descriptors, given = iter(prepared.descriptors), []
            for a in step.args:
                if isinstance(a, Described) and form is not RUN:
                    pointer, base = argument(a.base), tensor(a.base)
                    encoded = name(Encoded(a, next(descriptors)))
                    given.append(f"{encoded}.get({pointer}) or {encoded}.encode({pointer}, {base})")
                    given += map(str, (*a.fields["shape"], *a.fields["strides"]))
                else:
                    given.append(argument(a))
            given = ", ".join([*given, *map(name, prepared.constants)])
            known = ("arg_annotations", "kernel_signature")
            call = form.format(
                programs=step.programs, function=name(prepared.function), given=given,
                metadata=name(prepared.metadata),
                **{key: name(getattr(prepared.run, key, None)) for key in known},
            )  # fmt: skip
            lines.append(f"{name(launcher)}({call})")
        lines += [f"t{slot} = None" for slot in left]
    lines.append(f"return {expression(plan.results)}")
    given = ", ".join(f"t{i}" for i in range(plan.given))
    source = f"def straight(stream, {given}):\n    " + "\n    ".join(lines)
    exec(source, names)
    straight = names["straight"]
    straight.__source__ = source
    return straight


RUN = "{programs}, 1, 1, stream, {function}, {metadata}, None, None, None, {given}"

# What Triton's launchers in C take, which lie below the Python that encodes descriptors anew and
# asks about memory: of the versions they were tested with, for in others it may differ.
C_LAUNCHERS = {
    "3.6": "{programs}, 1, 1, stream, {function}, False, False, None, None, {metadata}, None, "
    "None, None, {given}",
    "3.7": "{programs}, 1, 1, stream, {function}, False, False, {metadata}, None, None, None, "
    "None, None, {arg_annotations}, {kernel_signature}, ({given},)",
}


def c_form() -> str | None:
    return C_LAUNCHERS.get(".".join(triton.__version__.split(".")[:2]))


def c_launcher(prepared: Prepared) -> tuple[Callable, str] | None:
    """The launcher in C and its arguments' form, where both are known."""
    form = c_form()
    launcher = getattr(prepared.run, "launch", None)
    if inspect.isfunction(launcher):  # what encodes the descriptors before it
        launcher = inspect.getclosurevars(launcher).nonlocals.get("launcher")
    return (launcher, form) if form and inspect.isbuiltin(launcher) else None


class Encoded(Remembered):
    """A descriptor as the hardware reads it, by address: it says nothing of what lies there."""

    def __init__(self, described: Described, metadata: Any) -> None:
        super().__init__(most=64)
        self.described, self.metadata = described, metadata

    def encode(self, pointer: int, base: Tensor) -> Any:
        from triton.backends.nvidia.driver import make_tensordesc_arg  # as C_LAUNCHERS, of versions

        return self.add(pointer, make_tensordesc_arg(self.described.of(base), self.metadata)[0])


def signature(tensors: Iterable[Tensor | None]) -> list | None:
    """All of tensors that steps may depend on; None where they may depend on more."""
    found: list = []
    for t in tensors:
        if t is None:
            found.append(None)
            continue
        pointer = t.data_ptr() if type(t) in PLAIN else 0
        if pointer == 0 or t.is_neg():
            return None
        found += (
            pointer % ALIGNED, t.dtype, t.shape, t.stride(), t.get_device(), t.requires_grad,
        )  # fmt: skip
    return found


def plannable() -> bool:
    """Whether a plan may stand for a call: where nobody looks on at what torch is asked for."""
    return not (
        torch.compiler.is_compiling()
        or _is_tracing()
        or _len_torch_dispatch_stack()
        or _profiler_enabled()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or _dispatch_tls_is_dispatch_key_included(DispatchKey.PreDispatch)
        or recorded()
    )


def written(*tensors: Tensor | None) -> None:
    """Tells autograd, which knows nothing of kernels, that these are not what they were."""
    known = [t for t in tensors if t is not None and not t.is_inference()]
    if known:
        torch.autograd.graph.increment_version(known)


_generation = 0


def generation() -> int:
    """Part of every plan's key."""
    return _generation


def forget() -> None:
    """No plan made so far is replayed again."""
    global _generation
    _generation += 1


def planned(plans: Remembered, key: Any, function: Callable, tensors: Sequence) -> tuple:
    """function(*tensors), a tuple of tensors and Nones; the first one tells where it runs.

    Replayed where it was recorded under this key, which says all that its steps depend on: of the
    tensors their signature.  Recorded in its second call: the first one compiles, and may be the
    only one.
    """
    plan = plans.get(key, plans)
    if plan is plans:
        plans.add(key, None)
        return function(*tensors)
    if plan is not None:
        return plan(tensors)
    if not INTERPRETED and stream_of(tensors[0].get_device()) is None:
        return function(*tensors)
    results, plan = _recorded(function, tensors)
    if plan is not None:
        plans[key] = plan
    return results


def with_plans(launcher: Callable, depends_on: Callable | None = None) -> Callable:
    """A launcher of tensors and options, by its plans: called with its arguments, which are
    hashable, the signature of the tensors among them, and these.

    It gives a tensor or a tuple of them.  depends_on: of the first tensor, what else it reads.
    """
    plans = Remembered(1024)

    def by_plan(args: tuple, found: list, tensors: list[Tensor]) -> Tensor | tuple:
        def function(*tensors):
            left = iter(tensors)
            results = launcher(*(next(left) if isinstance(a, Tensor) else a for a in args))
            return results if isinstance(results, tuple) else (results,)

        others = (
            Tensor if isinstance(a, Tensor) else tuple(a) if isinstance(a, list) else a
            for a in args
        )
        state = (generation(),) if depends_on is None else depends_on(tensors[0])
        results = planned(plans, (*others, *found, *state), function, tensors)
        return results if len(results) > 1 else results[0]

    return by_plan


def _recorded(function: Callable, tensors: Sequence[Tensor | None]) -> tuple[tuple, Plan | None]:
    try:
        recorder = Recorder(tensors)
    except UnplannableError:
        return function(*tensors), None
    with watching(recorder.launch), recorder:
        results = function(*tensors)
    if recorder.why is not None:
        return results, None
    try:
        return results, Plan(recorder, len(tensors), results)
    except UnplannableError:
        return results, None
