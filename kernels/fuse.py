"""Rewriting a model so that its convolution, batch norm, add and ReLU groups run fused.

The forward of each container of the model (a module whose forward calls others) is read; groups
found in its graph become calls of run_chain, and the container gets a subclass of its own class,
with that graph as its forward.  Nothing moves: children, parameters and their names stay.  Where
what was read has changed since (hooks, children, attributes), the container runs its own forward
again.
"""

import ast
import copy
import functools
import itertools
import operator
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils import fusion

from . import modules
from ._effects import Effects, harmless
from ._reading import IN_PLACE, NotUnderstoodError, is_layer, opens, parameters, read
from .fused import BlockOf, UnitOf, Watched, altered, run_chain, warn_once

Report = Callable[[str], object]

CONVOLUTIONS = (modules.Conv2d, modules.ConvTranspose2d)
LISTS = (nn.ModuleList, nn.ModuleDict)  # which hold modules and call none
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
MOST_OPTIONAL = 2  # parameters that a program is made for both with and without

ADDED_TO = (IN_PLACE[ast.Add], "add_")
ADDITIONS = (operator.add, torch.add, "add", *ADDED_TO)


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

    @property
    def residual(self) -> fx.Node | None:
        if self.shortcut != "given":
            return None
        return next(n for n in self.tail[0].args if n is not self.main[-1].end)


class Program(NamedTuple):
    """A container's fused forward, and what must not have changed for it to stand in."""

    forward: Callable
    watched: tuple[Watched, ...]


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
    if node.op == "call_module" and len(node.args) == 1 and not node.kwargs:
        layer = _layer(container, node)
        return None if altered(layer, type(layer)) else ACTIVATIONS.get(type(layer))
    called = node.op in ("call_function", "call_method") and len(node.args) <= 2
    return ACTIVATIONS.get(node.target) if called else None


def _find(container: nn.Module, graph: fx.Graph) -> list[Found]:
    """Every convolution with what normalises or rectifies it."""
    found = []
    for conv in graph.nodes:
        layer = _layer(container, conv)
        if _why_not(layer) is not None:
            continue
        follows = _only_user(conv)
        norm = follows if _is_norm(_layer(container, follows)) else None
        act = follows if norm is None else _only_user(norm)
        activation = _activation(container, act)
        if norm is not None or activation is not None:
            act = None if activation is None else act
            found.append(Found(conv, norm, act, activation or "none"))
    return found


def _why_not(conv: nn.Module | None) -> str | None:
    """Why conv is no convolution that can be fused, if it is none."""
    kind = type(conv)
    if kind not in CONVOLUTIONS:
        return f"it is a {kind.__module__}.{kind.__name__}"
    if conv.padding_mode != "zeros":
        return f"it pads with {conv.padding_mode}"
    why = altered(conv, kind)
    return None if why is None else f"it {why}"


def _is_norm(module: nn.Module | None) -> bool:
    return type(module) in NORMS and altered(module, type(module)) is None


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


def _pieces(container: nn.Module, graph: fx.Graph, effects: Effects) -> list[Piece]:
    """The blocks in a graph: runs, with the additions that end them."""
    runs = []
    for run in _runs(container, _find(container, graph)):
        whole = effects.movable(Piece(tuple(run)).nodes)
        parts = [run] if whole else [[found] for found in run]
        runs += [part for part in parts if whole or effects.movable(part[0].nodes)]
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
        piece = piece._replace(tail=tail, activation=activation or "none")
        if not effects.movable(piece.nodes):
            continue
        pieces[id(by_end[piece.main[-1].end])] = piece
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
    if add.target in ADDED_TO and add.args[0] is other:
        return None  # what it writes to may be read elsewhere
    if alike and len(side) == 1 and side[0].start is main[0].start:
        return Piece(tuple(main), "unit", side=side[0])
    if other is main[0].start:
        return Piece(tuple(main), "identity")
    return Piece(tuple(main), "given")


def _groups(
    container: nn.Module, graph: fx.Graph, effects: Effects, recompute: bool
) -> list[list[Piece]]:
    """Pieces by the call that stands for them: one each, or, with recompute, all in a row."""
    groups = [[piece] for piece in _pieces(container, graph, effects)]
    if not recompute:
        return groups
    by_end = {}
    for group in list(groups):
        (piece,) = group
        before = by_end.get(piece.start)
        if (
            before is not None
            and set(piece.start.users) <= set(piece.nodes)
            and effects.movable([n for p in (*before, piece) for n in p.nodes])
        ):
            before.extend(group)
            groups.remove(group)
            group = before
        if piece.shortcut in ("identity", "unit") and _normalised(container, piece.main[0]):
            by_end[piece.end] = group
    return groups


def _owner(group: list[Piece]) -> str:
    """The path of the container whose forward, with what it calls, made the group."""
    return _common_owner([n.meta["owner"] for piece in group for n in piece.nodes])


def _containers(model: nn.Module) -> list[nn.Module]:
    """What calls layers, outermost first."""
    return [m for m in model.modules() if not is_layer(m)]


def _program(
    container: nn.Module, training: bool, given: tuple[str, ...], recompute: bool
) -> tuple[Program | None, dict[str, str]]:
    """The fused form of container's own forward, and, by convolution, what it is in."""
    graph = read(container, training, given).graph
    groups = _groups(container, graph, Effects(container, graph), recompute)
    owners = {n.meta["owner"] for g in groups if _owner(g) == "" for p in g for n in p.nodes}
    if not owners:
        return None, {}
    inside = {
        ".".join(path.split(".")[:i]) for path in owners for i in range(1, path.count(".") + 2)
    }
    apart = harmless(container, graph)
    graph, watched, _ = read(container, training, given, inside.__contains__)
    lines, called = {}, set()
    # those too of the containers entered, whose own forwards will not run
    for group in _groups(container, graph, Effects(container, graph, apart), recompute):
        nodes = [n for piece in group for n in piece.nodes]
        called |= {n.target for n in nodes if n.op == "call_module"}
        line = ", ".join(n.target if n.op == "call_module" else n.name for n in nodes)
        lines |= {found.conv.target: line for piece in group for found in piece.found}
        _replace(container, graph, group, recompute)
    graph.lint()
    code = graph.python_code("self")
    names = dict(code.globals)
    exec(code.src, names)
    stands_for = [w._replace(entered=True) if ".".join(w.path) in called else w for w in watched]
    return Program(names["forward"], tuple(stands_for)), lines


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
        in_place = bool(piece.tail) and piece.tail[0].target in ADDED_TO
        add = operator.iadd if in_place else operator.add
        blocks.append(BlockOf(tuple(units), piece.shortcut, add))
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


class Fusion(NamedTuple):
    """A container's fused forwards, by mode and by which parameters tensors are given for."""

    recompute: bool
    names: tuple[str, ...] = ()
    optional: frozenset[str] = frozenset()  # those that are None by default
    programs: dict[tuple[bool, tuple[str, ...]], Program] = {}  # noqa: RUF012 never written to

    def find(
        self, training: bool, args: tuple, kwargs: dict
    ) -> tuple[Program | None, list[Tensor]]:
        """The program for a call, if there is one, and what to call it with."""
        by_name = dict(zip(self.names, args, strict=False)) | kwargs
        if len(by_name) != len(args) + len(kwargs):
            return None, []
        none = [name for name, value in by_name.items() if value is None]
        for name in self.optional.intersection(none):
            del by_name[name]
        given = tuple(name for name in self.names if name in by_name)
        tensors = [by_name[name] for name in given]
        if len(given) != len(by_name) or not all(isinstance(t, Tensor) for t in tensors):
            return None, []
        return self.programs.get((training, given)), tensors

    def __deepcopy__(self, memo: dict) -> "Fusion":
        return self

    def __reduce__(self) -> tuple:
        return Fusion, (self.recompute,)  # read again where it is loaded


class Fused:
    """What a container becomes, before its own class."""

    _fusion: Fusion | None = None  # none for those that the class makes itself, as slices

    def forward(self, *args, **kwargs):
        if self._fusion is not None:
            program, tensors = self._fusion.find(self.training, args, kwargs)
            if program is not None:
                for watched in program.watched:
                    why = watched.changed(self)
                    if why is not None:
                        warn_once(self, why)
                        return super().forward(*args, **kwargs)
                return program.forward(self, *tensors)
        return super().forward(*args, **kwargs)

    def __reduce_ex__(self, protocol):
        _, (_, *args), *state = super().__reduce_ex__(max(protocol, 2))
        return _blank, (type(self).unfused, *args), *state

    def __setstate__(self, state):
        super().__setstate__(state)
        if self._fusion is not None and not self._fusion.programs:
            _, failure = _specialise(self, self._fusion.recompute)
            if failure is not None and not isinstance(self, Fused):
                warn_once(self, failure)


@functools.cache
def _fused_class(kind: type[nn.Module]) -> type[nn.Module]:
    @functools.wraps(kind.forward)
    def forward(self, *args, **kwargs):
        return Fused.forward(self, *args, **kwargs)

    names = ("__module__", "__qualname__", "__doc__")
    own = {name: getattr(kind, name) for name in names}
    return type(kind.__name__, (Fused, kind), own | {"unfused": kind, "forward": forward})


def _blank(kind: type[nn.Module], *args) -> nn.Module:
    cls = _fused_class(kind)
    return cls.__new__(cls, *args)


def _specialise(container: nn.Module, recompute: bool) -> tuple[dict[str, str], str | None]:
    """Gives container its fused forwards, if it has any.

    Returns, by convolution, what each is fused in, and why its forward is not read, if it is not.
    """
    unfuse(container)
    kind = type(container)
    if kind.__reduce_ex__ is not object.__reduce_ex__ or hasattr(kind, "__deepcopy__"):
        return {}, f"{kind.__name__} is copied in a way of its own"
    names, optional, patterns = _parameters(container)
    programs, lines, failure = {}, {}, None
    for given in patterns:
        for training in (True, False):
            try:
                program, found = _program(container, training, given, recompute)
            except NotUnderstoodError as error:
                failure = failure or str(error)
                continue
            lines |= found
            if program is not None:
                programs[training, given] = program
    if programs:
        container.__class__ = _fused_class(kind)
        container._fusion = Fusion(recompute, names, optional, programs)
    return lines, failure


def _parameters(
    container: nn.Module,
) -> tuple[tuple[str, ...], frozenset[str], list[tuple[str, ...]]]:
    """Of container's forward: all by name, those that are None by default, and those given."""
    named = [p for p in parameters(container) if p.kind is p.POSITIONAL_OR_KEYWORD]
    names = tuple(p.name for p in named)
    least = sum(p.default is p.empty for p in named)
    patterns = [names[:n] for n in range(least, min(len(names), least + MOST_OPTIONAL) + 1)]
    return names, frozenset(p.name for p in named if p.default is None), patterns


def unfuse(container: nn.Module) -> None:
    """Gives a fused container its own class back."""
    if isinstance(container, Fused):
        container.__class__ = type(container).unfused
        for name in ("_fusion", "_warned"):
            vars(container).pop(name, None)


def copied(model: nn.Module) -> nn.Module:
    """A deep copy; of a weight that a hook makes anew for each call, as pruning does, its value."""
    memo = {
        id(value): value.detach().clone()
        for module in model.modules()
        for name, value in vars(module).items()
        if isinstance(value, Tensor)
        and not value.is_leaf
        and not module._parameters.keys().isdisjoint((f"{name}_orig", f"{name}_g"))
    }
    return copy.deepcopy(model, memo)


def fuse(model: nn.Module, recompute: bool = False, report: Report | None = None) -> nn.Module:
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
    """
    fused = copied(model)
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
        owners = [prefix for prefix in failures if name.startswith(prefix)]
        if name in lines:
            yield lines[name]
        elif why := _why_not(module):
            yield f"{name}: kept, for {why}"
        elif owners:
            yield f"{name}: kept, for {failures[max(owners, key=len)]}"
        else:
            yield f"{name}: kept, for no batch norm or activation alone uses its result"


def fold(model: nn.Module, report: Report | None = None) -> nn.Module:
    """A deep copy of model for inference, with each BatchNorm2d folded into the convolution before.

    The convolution's weight and bias take up the running statistics, weight and bias of the batch
    norm, which becomes an nn.Identity; a fused model stays fused.  The copy is in evaluation mode,
    and not meant to be trained.  A pair stays as it is where one of the two has hooks or a
    parametrization, is used elsewhere or more than once, or might be, by a forward that is not
    understood; and so do grouped transposed convolutions.  report, if given, is called with a line
    for each BatchNorm2d: what it was folded into, or why it was left.
    """
    folded = copied(model).eval()
    calls = _Calls(folded)
    left = {}
    for container, graph in calls.graphs:
        for found in _find(container, graph):
            conv, norm = _layer(container, found.conv), _layer(container, found.norm)
            if type(norm) is not modules.BatchNorm2d or norm in left:
                continue
            left[norm] = why = calls.why_not(container, graph, found)
            if why is not None:
                continue
            conv.weight, conv.bias = fusion.fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps,
                norm.weight, norm.bias, transpose=conv.transposed,
            )  # fmt: skip
            owner, _, name = calls.paths[norm][0].rpartition(".")
            setattr(folded.get_submodule(owner), name, nn.Identity())
            if report is not None:
                report(f"{calls.paths[norm][0]}: folded into {calls.paths[conv][0]}")
    for module, paths in calls.paths.items():
        if report is not None and isinstance(module, nn.BatchNorm2d):
            why = left.get(module, calls.why_alone(module))
            if why is not None:
                report(f"{paths[0]}: left, for {why}")
    for container in reversed(_containers(folded)):
        if isinstance(container, Fused) and container._fusion is not None:
            _specialise(container, container._fusion.recompute)
    return folded


class _Calls:
    """Who calls what in a model, in evaluation mode, as far as its forwards are understood."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.paths: dict[nn.Module, list[str]] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            self.paths.setdefault(module, []).append(name)
        self.graphs: list[tuple[nn.Module, fx.Graph]] = []  # of the inner containers first
        self.refused: dict[nn.Module, str] = {}
        self.partners: dict[nn.Module, set[nn.Module | None]] = {}
        entered: set[nn.Module] = set()  # whose calls are part of another's
        for container in _containers(model):
            alone = container not in entered or container in self.partners
            for given in _parameters(container)[2]:
                try:
                    graph, watched, _ = read(container, False, given)
                except NotUnderstoodError as error:
                    self.refused[container] = str(error)
                    continue
                self.graphs.insert(0, (container, graph))
                if alone:
                    self._count(container, graph)
                    paths = [".".join(w.path) for w in watched if w.entered]
                    entered.update(map(container.get_submodule, paths))

    def _count(self, container: nn.Module, graph: fx.Graph) -> None:
        """Notes what each layer is called with: a convolution's norm, or nothing."""
        pairs = {}
        for found in _find(container, graph):
            if found.norm is not None:
                pairs |= {found.conv: found.norm, found.norm: found.conv}
        for node in graph.nodes:
            if node.op == "call_module":
                module, partner = container.get_submodule(node.target), pairs.get(node)
                partner = None if partner is None else container.get_submodule(partner.target)
            elif node.op == "get_attr":
                module, partner = container.get_submodule(node.target.rpartition(".")[0]), None
            else:
                continue
            self.partners.setdefault(module, set()).add(partner)

    def why_not(self, container: nn.Module, graph: fx.Graph, found: Found) -> str | None:
        """Why a convolution and its batch norm cannot be made one, if they cannot."""
        conv, norm = _layer(container, found.conv), _layer(container, found.norm)
        targets = [n.target for n in graph.nodes if n.op == "call_module"]
        for module, partner, node in ((conv, norm, found.conv), (norm, conv, found.norm)):
            path = self.paths[module][0]
            if len(self.paths[module]) > 1 or targets.count(node.target) > 1:
                return f"{path} is used more than once"
            if self.partners[module] != {partner}:
                return f"{path} is used elsewhere"
            for owner, why in self.refused.items():
                inner = path.removeprefix(f"{self.paths[owner][0]}.".lstrip("."))
                if module in owner.modules() and opens(owner, inner.split(".")[0]):
                    return f"{path} may be used elsewhere: {why}"
        if norm.running_mean is None:
            return "it has no running statistics"
        if conv.transposed and conv.groups > 1:  # which fuse_conv_bn_weights gets wrong
            return f"{self.paths[conv][0]} is transposed and has groups"
        return None

    def why_alone(self, norm: nn.Module) -> str | None:
        """Why a batch norm was found behind no convolution."""
        if type(norm) is not modules.BatchNorm2d:
            return f"it is a {type(norm).__module__}.{type(norm).__name__}"
        if why := altered(norm, type(norm)):
            return f"it {why}"
        owner = self.paths[norm][0].rpartition(".")[0]
        while owner and isinstance(self.model.get_submodule(owner), LISTS):
            owner = owner.rpartition(".")[0]  # of whose layers another's forward decides
        if why := self.refused.get(self.model.get_submodule(owner)):
            return why
        return "no convolution that can be changed, and is used by it alone, comes before it"
