"""Which kernels serve a call, and why: for reports of bugs, and for the curious."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ._launch import recording
from .conv.dispatch import Choice, declined
from .twins import TWINS


class Launch(NamedTuple):
    """A kernel, how many programs of it run, with which constants; for a convolution, why."""

    kernel: str
    programs: int
    constants: dict[str, Any]
    choice: Choice | None

    def __str__(self) -> str:
        constants = ", ".join(f"{name}={value}" for name, value in self.constants.items())
        launch = f"{self.kernel}: {self.programs} programs, {constants}"
        if self.choice is None:
            return launch
        p, family, config, _ = self.choice
        lines = [str(p), f"    {family.name} {config}", f"    {launch}"]
        lines += [f"    not {name}: {reason}" for name, reason in declined(p).items()]
        return "\n".join(lines)


class Explanation(list[Launch]):
    """Launches in order; printed, a paragraph for each, and then what layers are torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.of_torch: list[str] = []

    def __str__(self) -> str:
        return "\n".join([*map(str, self), *self.of_torch])


def explain(function: Callable | nn.Module, *args: Any, **kwargs: Any) -> Explanation:
    """What function(*args, **kwargs), and its backward where it has gradients, would launch.

    function: an operator of tritonconv, or a module; the tensors are where they would be.  Nothing
    runs on the device, and neither the module nor the arguments change: they are copied.  What
    other threads launch runs, those too that a module starts itself.  Raises TypeError for other
    functions, which may change what no copy was made of.

        print(tritonconv.explain(tritonconv.conv2d, x, w, padding=1))
    """
    launches = Explanation()
    if isinstance(function, nn.Module):
        function = copy.deepcopy(function)
        launches.of_torch += [
            f"{name or 'it'} is a {type(layer).__module__}.{type(layer).__name__}, which torch "
            "computes; convert() makes it ours"
            for name, layer in function.named_modules()
            if type(layer) in TWINS
        ]
    elif not hasattr(function, "__prepare_scriptable__"):
        raise TypeError(
            "explain: function must be an operator of tritonconv or a module, got "
            f"{function!r}; wrap it in a torch.nn.Module"
        )
    args, kwargs = tree_map(_copied, (args, kwargs))

    def record(kernel, programs, constants, choice) -> None:
        launches.append(Launch(kernel.__name__, programs, constants, choice))

    with recording(record):
        outputs = [
            y
            for y in tree_leaves(function(*args, **kwargs))
            if isinstance(y, Tensor) and y.requires_grad
        ]
        if outputs:
            torch.autograd.backward(outputs, [torch.empty_like(y) for y in outputs])
    return launches


def _copied(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.detach().clone().requires_grad_(value.requires_grad)
