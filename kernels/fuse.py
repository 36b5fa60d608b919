"""Rewriting a model so that its convolution, batch norm, add and activation groups run fused.

The forward of each container of the model (a module whose forward calls others) is read; groups
found in its graph become calls of run_chain.  Nothing moves: children, parameters and their names
stay.
"""

from collections.abc import Callable, Iterator

from torch import nn

from ._check import check_fused
from ._groups import why_not
from ._reading import containers
from ._stand_in import Outcome, copied, specialise

Report = Callable[[str], object]


def fuse(
    model: nn.Module,
    recompute: bool = False,
    report: Report | None = None,
    check: tuple | None = None,
) -> nn.Module:
    """A deep copy of model that runs its convolution, batch norm, add and activation groups fused.

    Groups are made of our Conv2d and ConvTranspose2d, our BatchNorm2d, an addition and one of
    conv_bn_relu's activations (modules or functions); convert() a model of torch.nn's layers first.
    Chains of them, as a residual block is one, are one operation that keeps the convolutions'
    results for the backward and nothing between; recompute makes one of all residual blocks in a
    row, which does not keep their outputs either.  Batch norm may be missing.

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
    a new project, with a batch as in training, for batch norms of a few values make much of
    rounding: it takes a few calls of everything, and memory for copies in float64.
    """
    if check is not None and not isinstance(check, tuple):
        raise TypeError(
            f"fuse: check must be a tuple of the model's arguments, got {type(check).__name__}; "
            "write check=(x,)"
        )
    fused = copied(model)
    outcomes = {
        m: specialise(m, recompute) for m in reversed(containers(fused))
    }  # inner ones first
    if report is not None:
        for line in dict.fromkeys(_report(fused, outcomes)):
            report(line)
    for path in [] if check is None else check_fused(model, fused, check):
        if report is not None:
            report(f"{path or 'model'}: not checked, for no call of it ran fused")
    return fused


def _report(model: nn.Module, outcomes: dict[nn.Module, Outcome]) -> Iterator[str]:
    names = {module: name for name, module in model.named_modules()}
    lines: dict[bool, dict[nn.Module, str]] = {True: {}, False: {}}
    called = set()
    for container, outcome in outcomes.items():
        called |= {container.get_submodule(path) for path in outcome.called}
        for training, found in outcome.lines.items():
            for path, line in found.items():
                conv = container.get_submodule(path)
                lines[training][conv] = f"{names[container] or 'model'}: {line}"
    fused = lines[True].keys() | lines[False].keys()
    for conv, name in names.items():
        if not isinstance(conv, nn.modules.conv._ConvNd) and conv not in fused:
            continue
        training, evaluation = lines[True].get(conv), lines[False].get(conv)
        if training and training == evaluation:
            yield training
        elif training or evaluation:
            yield from [f"{training} in training"] if training else []
            yield from [f"{evaluation} in evaluation"] if evaluation else []
        else:
            yield f"{name}: kept, for {_why_kept(conv, name, conv in called, names, outcomes)}"


def _why_kept(
    conv: nn.Module,
    name: str,
    called: bool,
    names: dict[nn.Module, str],
    outcomes: dict[nn.Module, Outcome],
) -> str:
    if why := why_not(conv):
        return why
    if called:
        return "nothing that could be fused with it uses its result alone"
    around = [m for m, o in outcomes.items() if o.failure and conv in m.modules()]
    if around:
        return outcomes[max(around, key=lambda m: len(names[m]))].failure
    return "no forward that is read calls it"
