"""Rewriting a model so that its convolution, batch norm, add and ReLU groups run fused.

The forward of each container of the model (a module whose forward calls others) is read; groups
found in its graph become calls of run_chain.  Nothing moves: children, parameters and their names
stay.
"""

from collections.abc import Callable, Iterator

from torch import nn

from ._check import check_fused
from ._groups import why_not
from ._reading import containers
from ._stand_in import copied, specialise

Report = Callable[[str], object]


def fuse(
    model: nn.Module,
    recompute: bool = False,
    report: Report | None = None,
    check: tuple | None = None,
) -> nn.Module:
    """A deep copy of model that runs its convolution, batch norm, add and ReLU groups fused.

    Groups are made of our Conv2d and ConvTranspose2d, our BatchNorm2d, an addition and ReLU or
    ReLU6 (modules or functions); convert() a model of torch.nn's layers first.  Chains of them, as
    a residual block is one, are one operation that keeps the convolutions' results for the backward
    and nothing between; recompute makes one of all residual blocks in a row, which does not keep
    their outputs either.  Without batch norm, groups are fused where no gradient is wanted.

    Modules, parameters and their names stay, and each container stays an instance of its class.  A
    forward is fused only if all that it does is understood from its source, which is read and not
    run: calls of its modules and of torch's functions, arithmetic, loops over modules, branches on
    attributes and on whether an argument is given.  Otherwise it stays, and what lies in it is
    fused.  A container runs its own forward too where anything it was read from has changed since
    (hooks, parametrizations, children, attributes), and warns of it once.  report, if given (print,
    say), is called with a line for every group and every convolution that is in none.

    check, if given, is a tuple of arguments that the model takes: each container that runs fused,
    and the model, are compared with their own forwards, in the model's dtype and in float64:
    outputs, gradients, buffers, arguments written to; as the model is, and in evaluation mode.
    RuntimeError names the first container that differs, and the report those that were not reached.
    The models, the arguments and the random numbers stay as they are.  Meant for the first time in
    a new project: it takes a few calls of everything, and memory for copies in float64.
    """
    if check is not None and not isinstance(check, tuple):
        raise TypeError(
            f"fuse: check must be a tuple of the model's arguments, got {type(check).__name__}; "
            "write check=(x,)"
        )
    fused = copied(model)
    names = {module: name for name, module in fused.named_modules()}
    lines, failures = {}, {}
    for container in reversed(containers(fused)):  # the inner ones first
        prefix = f"{names[container]}." if names[container] else ""
        found, failure = specialise(container, recompute)
        lines |= {
            prefix + conv: f"{names[container] or 'model'}: {line} fused"
            for conv, line in found.items()
        }
        if failure is not None:
            failures[prefix] = failure
    if report is not None:
        for line in dict.fromkeys(_report(fused, lines, failures)):
            report(line)
    for path in [] if check is None else check_fused(model, fused, check):
        if report is not None:
            report(f"{path or 'model'}: not checked, for no call of it ran fused")
    return fused


def _report(model: nn.Module, lines: dict[str, str], failures: dict[str, str]) -> Iterator[str]:
    for name, module in model.named_modules():
        if not isinstance(module, nn.modules.conv._ConvNd):
            continue
        owners = [prefix for prefix in failures if name.startswith(prefix)]
        if name in lines:
            yield lines[name]
        elif why := why_not(module):
            yield f"{name}: kept, for {why}"
        elif owners:
            yield f"{name}: kept, for {failures[max(owners, key=len)]}"
        else:
            yield f"{name}: kept, for no batch norm or activation alone uses its result"
