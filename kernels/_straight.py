"""The steps of a plan as one straight function, with each kernel started as it was compiled."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from ._launch import Prepared
from ._remembered import Remembered
from ._steps import Allocate, Ask, Described, Place, viewed


def straight(plan) -> Callable:
    """The steps as one function of the stream and the arguments; `__source__` is its text."""
    names: dict[str, Any] = {"viewed": viewed}
    bound: dict[int, str] = {}
    lines, pointers = [], set()
    matrices: dict[int, tuple[int]] = {}  # the size of a row, by slot

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
        size, strides, offset, *_ = place.view
        if matrices.get(place.slot) == size and strides == (1,) and offset % size[0] == 0:
            return f"{t}[{offset // size[0]}]"
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
            if len(size) == 2 and strides == (size[1], 1):
                matrices[slot] = size[1:]
            allocate, how = torch.empty_strided, f", device={name(device)}"
            if device.type == "cuda" and not torch.are_deterministic_algorithms_enabled():
                allocate, how = EMPTY_STRIDED, ""  # on the current device; memory is not filled
            dtype = f"dtype={name(dtype)}" if how else name(dtype)
            lines.append(f"t{slot} = {name(allocate)}({size}, {strides}, {dtype}{how})")
        elif isinstance(step, Ask):
            given = [*map(expression, step.args)]
            given += [f"{key}={expression(value)}" for key, value in step.kwargs.items()]
            made = "".join(f"t{slot}, " for slot in step.slots)
            made = f"{made.removesuffix(', ')} = " if len(step.slots) == 1 else made and f"{made}= "
            function = BINDINGS.get(step.function, step.function)
            lines.append(f"{made}{name(function)}({', '.join(given)})")
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


# what Inductor's code allocates with, in half of empty_strided's time
EMPTY_STRIDED = torch._C._dynamo.guards._empty_strided_cuda
# ops whose own bindings take half as long
BINDINGS = {
    torch.ops.aten._foreach_copy_.default: torch._foreach_copy_,
    torch.ops.aten.clone.default: torch.clone,
}

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
