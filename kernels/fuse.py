"""Rewriting a model so that its convolution, batch norm, add and ReLU groups run fused.

torch.fx traces each container of the model (a module whose forward calls others); groups found in
its graph become calls of run_chain, and the container gets a subclass of its own class, with that
graph as its forward.  Nothing moves: children, parameters and their names stay.  Where a layer was
altered since (hooks, another type), the container runs its own forward again.
"""

import copy
import functools
import itertools
import operator
import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils import fusion

from . import modules
from .fused import BlockOf, ConvBNReLU, UnitOf, altered, run_chain, warn_once

Report = Callable[[str], object]

LAYERS = tuple(
    kind
    for kind in vars(modules).values()
    if isinstance(kind, type) and issubclass(kind, nn.Module)
)
CONVOLUTIONS = (modules.Conv2d, modules.ConvTranspose2d)
NORMS = (modules.BatchNorm2d, nn.Identity)  # fold() leaves an identity
ACTIVATIONS = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    F.relu: "relu",
    F.relu_: "relu",
    F.relu6: "relu6",
    torch.relu: "relu",
    torch.relu_: "relu",
    "relu": "relu",
    "relu_": "relu",
}
ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
IN_PLACE = (operator.iadd, "add_")


class Found(NamedTuple):
    """A convolution in a graph and what follows it, each the only user of the one before."""

    conv: fx.Node
    norm: fx.Node | None
    act: fx.Node | None
    activation: str

    @property
    def nodes(self) -> list[fx.Node]:
        return [n for n in (self.conv, self.norm, self.act) if n is not None]

    @property
    def start(self) -> fx.Node:
        return self.conv.args[0]

    @property
    def end(self) -> fx.Node:
        return self.nodes[-1]


class Piece(NamedTuple):
    """One block in a graph: found one after another, and what is added to the last one's result."""

    main: tuple[Found, ...]
    shortcut: str = "none"
    side: Found | None = None
    residual: fx.Node | None = None
    tail: tuple[fx.Node, ...] = ()  # the addition and the activation behind it
    activation: str = "none"

    @property
    def found(self) -> tuple[Found, ...]:
        return self.main if self.side is None else (*self.main, self.side)

    @property
    def nodes(self) -> list[fx.Node]:
        return [*(n for found in self.found for n in found.nodes), *self.tail]

    @property
    def start(self) -> fx.Node:
        return self.main[0].start

    @property
    def end(self) -> fx.Node:
        return self.tail[-1] if self.tail else self.main[-1].end


class Program(NamedTuple):
    """A container's fused forward, and what must not have changed for it to stand in."""

    forward: Callable
    expected: tuple[tuple[tuple[str, ...], type[nn.Module]], ...]  # path and type


class UntraceableError(Exception):
    pass


class _Tracer(fx.Tracer):
    def __init__(self, inline: Callable[[nn.Module, str], bool]) -> None:
        super().__init__()
        self.inline = inline

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _is_layer(m) or not self.inline(m, module_qualified_name)


def _is_layer(module: nn.Module) -> bool:
    """Whether a module is called as it is: it has no children, or is torch.nn's or ours."""
    kind = type(module)
    return (
        not any(module.children())
        or isinstance(module, (*LAYERS, ConvBNReLU))
        or (kind.__module__.startswith("torch.nn") and not isinstance(module, nn.Sequential))
    )


def _trace(container: nn.Module, training: bool, inline: Callable) -> fx.Graph:
    """container's graph as if in training, or not; layers are called as they are."""
    before = [(m, dict(vars(m))) for m in _containers(container)]
    chance = random.getstate(), torch.get_rng_state()
    try:
        for m, _ in before:
            m.training = training
        tracer = _Tracer(inline)
        if isinstance(container, Fused):
            tracer.traced_func_name = "_unfused_forward"
        graph = tracer.trace(container)
    except Exception as error:  # a forward may raise anything when traced
        said = str(error).strip() or type(error).__name__
        raise UntraceableError(said.splitlines()[0]) from error
    finally:
        stateful = any(_differ(vars(m), was) for m, was in before)
        for m, was in before:
            vars(m).clear()
            vars(m).update(was)
    if stateful:
        raise UntraceableError("its forward sets attributes")
    if chance[0] != random.getstate() or not torch.equal(chance[1], torch.get_rng_state()):
        raise UntraceableError("its forward draws random numbers")
    return graph


def _differ(now: dict, was: dict) -> bool:
    return now.keys() != was.keys() or any(
        now[name] is not was[name] for name in was if name != "training"
    )


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _layer(container: nn.Module, node: fx.Node | None) -> nn.Module | None:
    """The layer that node calls with one tensor, if it does."""
    if node is None or node.op != "call_module" or len(node.args) != 1 or node.kwargs:
        return None
    return container.get_submodule(node.target)


def _activation(container: nn.Module, node: fx.Node | None) -> str | None:
    if node is None or not set(node.kwargs) <= {"inplace"}:
        return None
    if node.op == "call_module":
        return ACTIVATIONS.get(type(_layer(container, node)))
    called = node.op in ("call_function", "call_method") and len(node.args) <= 2
    return ACTIVATIONS.get(node.target) if called else None


def _find(container: nn.Module, graph: fx.Graph) -> list[Found]:
    """Every convolution with what normalises or rectifies it."""
    found = []
    for conv in graph.nodes:
        layer = _layer(container, conv)
        if type(layer) not in CONVOLUTIONS or layer.padding_mode != "zeros":
            continue
        follows = _only_user(conv)
        norm = follows if type(_layer(container, follows)) in NORMS else None
        act = follows if norm is None else _only_user(norm)
        activation = _activation(container, act)
        if norm is not None or activation is not None:
            act = None if activation is None else act
            found.append(Found(conv, norm, act, activation or "none"))
    return found


def _normalised(container: nn.Module, found: Found) -> bool:
    return type(_layer(container, found.norm)) is modules.BatchNorm2d


def _runs(container: nn.Module, found: list[Found]) -> list[list[Found]]:
    """What follows one another, as long as it lies in one container, or fills it."""
    runs = []
    by_end = {}
    for this in found:
        run = by_end.pop(this.start, None)
        linked = run is not None and _only_user(this.start) is this.conv
        if linked and _normalised(container, run[-1]) == _normalised(container, this):
            run.append(this)
        else:
            run = [this]
            runs.append(run)
        by_end[this.end] = run
    return [part for run in runs for part in _split(container, run)]


def _split(container: nn.Module, run: list[Found]) -> Iterator[list[Found]]:
    convolutions = {found.conv.target for found in run}
    part = run[:1]
    for before, this in itertools.pairwise(run):
        names = [n.target for f in (before, this) for n in (f.conv, f.norm) if n is not None]
        owner = _common_owner([name.rpartition(".")[0] for name in names])
        siblings = all(name.rpartition(".")[0] == owner for name in names)
        inside = {
            f"{owner}.{name}".lstrip(".")
            for name, module in container.get_submodule(owner).named_modules()
            if isinstance(module, CONVOLUTIONS)
        }
        if siblings or inside <= convolutions:
            part.append(this)
        else:
            yield part
            part = [this]
    yield part


def _common_owner(names: list[str]) -> str:
    """The innermost of the containers that all of these lie in, themselves included."""
    paths = [name.split(".") if name else [] for name in names]
    common = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)


def _pieces(container: nn.Module, graph: fx.Graph) -> list[Piece]:
    """The blocks in a graph: runs, with the additions that end them."""
    runs = _runs(container, _find(container, graph))
    by_end = {run[-1].end: run for run in runs}
    pieces = {id(run): Piece(tuple(run)) for run in runs}
    for add in graph.nodes:
        if add.target not in ADDITIONS or len(add.args) != 2 or add.kwargs:
            continue
        # those runs that the sum alone uses
        ends = [
            by_end[n]
            for n in add.args
            if n in by_end and by_end[n][-1].act is None and _only_user(n) is add
        ]
        piece = _with_shortcut(container, add, sorted(ends, key=len, reverse=True))
        if piece is None:
            continue
        act = _only_user(add)
        activation = _activation(container, act)
        tail = (add,) if activation is None else (add, act)
        pieces[id(by_end[piece.main[-1].end])] = piece._replace(
            tail=tail, activation=activation or "none"
        )
        if piece.side is not None:
            del pieces[id(by_end[piece.side.end])]
    return list(pieces.values())


def _with_shortcut(container: nn.Module, add: fx.Node, ends: list[list[Found]]) -> Piece | None:
    """The piece that the addition ends, one of these runs being its main part."""
    if not ends:
        return None
    main, side = ends[0], ends[1] if len(ends) == 2 else None
    other = next((n for n in add.args if n is not main[-1].end), None)
    if not isinstance(other, fx.Node):
        return None
    alike = side is not None and _normalised(container, side[0]) == _normalised(container, main[0])
    if alike and len(side) == 1 and side[0].start is main[0].start:
        return Piece(tuple(main), "unit", side=side[0])
    if add.target in IN_PLACE and add.args[0] is other:
        return None  # what it writes to may be read elsewhere
    if other is main[0].start:
        return Piece(tuple(main), "identity")
    return Piece(tuple(main), "given", residual=other)


def _groups(container: nn.Module, graph: fx.Graph, recompute: bool) -> list[list[Piece]]:
    """Pieces by the call that stands for them: one each, or, with recompute, all in a row."""
    pieces = _pieces(container, graph)
    groups = [[piece] for piece in pieces]
    if not recompute:
        return groups
    by_end = {}
    for group in list(groups):
        (piece,) = group
        before = by_end.get(piece.start)
        if before is not None and set(piece.start.users) <= set(piece.nodes):
            before.extend(group)
            groups.remove(group)
            group = before
        if piece.shortcut in ("identity", "unit") and _normalised(container, piece.main[0]):
            by_end[piece.end] = group
    return groups


def _owner(node: fx.Node) -> str:
    """The path of the container whose forward made node."""
    stack = [path.partition("@")[0] for path in node.meta.get("nn_module_stack", {})]
    if node.op == "call_module" and stack and stack[-1] == node.target:
        stack.pop()
    return stack[-1] if stack else ""


def _whole(container: nn.Module, training: bool) -> fx.Graph:
    """container's graph with all that lies in it, but what cannot be traced."""
    try:
        return _trace(container, training, lambda m, name: True)
    except UntraceableError:
        opaque = {m for m in _containers(container) if not _traceable(m, training)}
        if opaque == {container}:
            raise
        return _trace(container, training, lambda m, name: m not in opaque)


def _traceable(container: nn.Module, training: bool) -> bool:
    try:
        _trace(container, training, lambda m, name: True)
    except UntraceableError:
        return False
    return True


def _containers(model: nn.Module) -> list[nn.Module]:
    """What calls layers, outermost first."""
    return [m for m in model.modules() if not _is_layer(m)]


def _program(
    container: nn.Module, training: bool, recompute: bool
) -> tuple[Program | None, dict[str, str]]:
    """The fused form of what container's own forward does, and, by convolution, what it is in."""

    def own(graph: fx.Graph) -> list[list[Piece]]:
        return [
            group
            for group in _groups(container, graph, recompute)
            if _common_owner([_owner(n) for piece in group for n in piece.nodes]) == ""
        ]

    groups = own(_whole(container, training))
    if not groups:
        return None, {}
    owners = {_owner(n) for group in groups for piece in group for n in piece.nodes}
    inside = {
        ".".join(path.split(".")[:i]) for path in owners for i in range(1, path.count(".") + 2)
    }
    graph = _trace(container, training, lambda m, name: name in inside)
    lines, expected = {}, [(name, container.get_submodule(name)) for name in inside if name]
    for group in own(graph):
        nodes = [n for piece in group for n in piece.nodes]
        called = [n.target for n in nodes if n.op == "call_module"]
        expected += [(name, container.get_submodule(name)) for name in called]
        line = ", ".join(n.target if n.op == "call_module" else n.name for n in nodes)
        lines |= {found.conv.target: line for piece in group for found in piece.found}
        _replace(container, graph, group, recompute)
    graph.lint()
    forward = type(fx.GraphModule(container, graph)).forward
    # a layer called more than once is checked once
    paths = tuple((tuple(name.split(".")), type(module)) for name, module in dict(expected).items())
    return Program(forward, paths), lines


def _replace(container: nn.Module, graph: fx.Graph, group: list[Piece], recompute: bool) -> None:
    """Puts one call of run_chain in the place of the group."""
    names: list[str] = []

    def place(node: fx.Node) -> int:
        if node.target not in names:
            names.append(node.target)
        return names.index(node.target)

    def unit(found: Found, activation: str) -> UnitOf:
        norm = place(found.norm) if _normalised(container, found) else None
        return UnitOf(place(found.conv), norm, activation)

    blocks = []
    for piece in group:
        *inner, last = piece.main
        units = [unit(found, found.activation) for found in inner]
        units.append(unit(last, piece.activation if piece.tail else last.activation))
        if piece.side is not None:
            units.append(unit(piece.side, "none"))
        blocks.append(BlockOf(tuple(units), piece.shortcut))
    end = group[-1].end
    with graph.inserting_before(end):
        called = [graph.get_attr(name) for name in names]
        run = _chain_of(tuple(blocks), recompute and len(group) > 1)
        fused = graph.call_function(run, (group[0].start, group[-1].residual, *called))
    end.replace_all_uses_with(fused)
    nodes = {n for piece in group for n in piece.nodes}
    for node in reversed([n for n in graph.nodes if n in nodes]):
        graph.erase_node(node)


def _chain_of(blocks: tuple[BlockOf, ...], recompute: bool) -> Callable:
    def fused(x: Tensor, residual: Tensor | None, *modules: nn.Module) -> Tensor:
        return run_chain(blocks, recompute, x, residual, *modules)

    return fused


class Fused:
    """What a container becomes, before its own class: its programs are kept by mode."""

    def forward(self, *args, **kwargs):
        if any(isinstance(a, fx.Proxy) for a in (*args, *kwargs.values())):
            return super().forward(*args, **kwargs)
        program = self._programs[self.training]
        if program is None:
            return super().forward(*args, **kwargs)
        for path, kind in program.expected:
            module = self
            for name in path:
                module = module._modules[name]
            why = altered(module, kind)
            if why is None and module.training != self.training and any(module.children()):
                why = "is in another mode"
            if why is not None:
                warn_once(self, f"{'.'.join(path)} {why}")
                return super().forward(*args, **kwargs)
        return program.forward(self, *args, **kwargs)

    def __reduce_ex__(self, protocol):
        state = {name: value for name, value in vars(self).items() if name != "_programs"}
        return _blank, (type(self).unfused,), state

    def __setstate__(self, state):
        super().__setstate__(state)
        _specialise(self, self._recompute)


@functools.cache
def _fused_class(kind: type[nn.Module]) -> type[nn.Module]:
    own = {"unfused": kind, "_unfused_forward": kind.forward, "__module__": kind.__module__}
    return type(f"Fused{kind.__name__}", (Fused, kind), own)


def _blank(kind: type[nn.Module]) -> nn.Module:
    cls = _fused_class(kind)
    return cls.__new__(cls)


def _specialise(container: nn.Module, recompute: bool) -> tuple[dict[str, str], str | None]:
    """Gives container its fused forwards, if it has any.

    Returns, by convolution, what each is fused in, and why tracing failed, if it did.
    """
    if isinstance(container, Fused):
        container.__class__ = type(container).unfused
    programs, lines, failure = {}, {}, None
    for training in (True, False):
        try:
            programs[training], found = _program(container, training, recompute)
        except UntraceableError as error:
            programs[training], found, failure = None, {}, str(error)
        lines |= found
    if lines:
        container.__class__ = _fused_class(type(container))
        container._programs, container._recompute = programs, recompute
    return lines, failure


def unfuse(container: nn.Module) -> None:
    """Gives a fused container its own class back."""
    if isinstance(container, Fused):
        container.__class__ = type(container).unfused
        for name in ("_programs", "_recompute", "_warned"):
            vars(container).pop(name, None)


def fuse(model: nn.Module, recompute: bool = False, report: Report | None = None) -> nn.Module:
    """A deep copy of model that runs its convolution, batch norm, add and ReLU groups fused.

    Groups are made of our Conv2d and ConvTranspose2d, our BatchNorm2d, an addition and ReLU or
    ReLU6 (modules or functions); convert() a model of torch.nn's layers first.  Chains of them, as
    a residual block is one, are one operation that keeps the convolutions' results for the backward
    and nothing between; recompute makes one of all residual blocks in a row, which does not keep
    their outputs either.  Without batch norm, groups are fused where no gradient is wanted.

    Modules, parameters and their names stay, and each container stays an instance of its class.  A
    container runs its own forward where a layer it fused was altered since (hooks,
    parametrizations, another type), and warns of it once.  Its forward is read here: what steers it
    but self.training (attributes, say) must stay as it is, or fuse the model again.  report, if
    given (print, say), is called with a line for every group and every convolution that is in none.
    """
    fused = copy.deepcopy(model)
    names = {module: name for name, module in fused.named_modules()}
    lines, failures = {}, {}
    for container in reversed(_containers(fused)):  # the inner ones first
        prefix = f"{names[container]}." if names[container] else ""
        found, failure = _specialise(container, recompute)
        lines |= {
            prefix + conv: f"{names[container] or 'model'}: {line} fused"
            for conv, line in found.items()
        }
        if failure is not None:
            failures[prefix] = failure
    if report is not None:
        for line in dict.fromkeys(_report(fused, lines, failures)):
            report(line)
    return fused


def _report(model: nn.Module, lines: dict[str, str], failures: dict[str, str]) -> Iterator[str]:
    for name, module in model.named_modules():
        if not isinstance(module, nn.modules.conv._ConvNd):
            continue
        failure = next((f for p, f in reversed(failures.items()) if name.startswith(p)), None)
        if name in lines:
            yield lines[name]
        elif type(module) not in CONVOLUTIONS:
            yield f"{name}: kept, for it is a {type(module).__module__}.{type(module).__name__}"
        elif module.padding_mode != "zeros":
            yield f"{name}: kept, for it pads with {module.padding_mode}"
        elif failure is not None:
            yield f"{name}: kept, for its container cannot be traced: {failure}"
        else:
            yield f"{name}: kept, for no batch norm or activation alone uses its result"


def fold(model: nn.Module, report: Report | None = None) -> nn.Module:
    """A deep copy of model for inference, with each BatchNorm2d folded into the convolution before.

    The convolution's weight and bias take up the running statistics, weight and bias of the batch
    norm, which becomes an nn.Identity; a fused model stays fused.  The copy is in evaluation mode,
    and not meant to be trained.  Layers used more than once and grouped transposed convolutions
    are left as they are.  report, if given, is called with a line for each pair.
    """
    folded = copy.deepcopy(model).eval()
    paths: dict[nn.Module, list[str]] = {}
    for name, module in folded.named_modules(remove_duplicate=False):
        paths.setdefault(module, []).append(name)
    for container in reversed(_containers(folded)):
        try:
            graph = _whole(container, False)
        except UntraceableError:
            continue
        calls = [n.target for n in graph.nodes if n.op == "call_module"]
        for found in _find(container, graph):
            conv, norm = _layer(container, found.conv), _layer(container, found.norm)
            once = all(calls.count(n.target) == 1 for n in found.nodes[:2])
            if type(norm) is not modules.BatchNorm2d or norm.running_mean is None or not once:
                continue
            if len(paths[conv]) > 1 or len(paths[norm]) > 1:
                continue
            if conv.transposed and conv.groups > 1:  # which fuse_conv_bn_weights gets wrong
                continue
            conv.weight, conv.bias = fusion.fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps,
                norm.weight, norm.bias, transpose=conv.transposed,
            )  # fmt: skip
            owner, _, name = paths[norm][0].rpartition(".")
            setattr(folded.get_submodule(owner), name, nn.Identity())
            if report is not None:
                report(f"{paths[norm][0]}: folded into {paths[conv][0]}")
    for container in reversed(_containers(folded)):
        if isinstance(container, Fused):
            _specialise(container, container._recompute)
    return folded
