"""Fused forwards that stand in for a container's own: how they are made, found, copied and pickled.

The container gets a subclass of its own class, with what was read of its forward as programs, one
for each mode and each pattern of given arguments.  Where what was read has changed since (hooks,
children, attributes), the container runs its own forward again.
"""

import copy
import functools
import operator
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, fx, nn

from ._effects import Effects, harmless
from ._groups import ADDED_TO, Found, Piece, find_groups, owner_of
from ._others import alone
from ._reading import NotUnderstoodError, is_layer, is_required, parameters, read
from .fused import BlockOf, UnitOf, Watched, run_chain, warn_once

MOST_OPTIONAL = 2  # parameters that a program is made for both with and without


class Program(NamedTuple):
    """A container's fused forward, and what must not have changed for it to stand in."""

    forward: Callable
    watched: tuple[Watched, ...]


class Made(NamedTuple):
    """What there is to fuse in a container's forward."""

    program: Program | None
    lines: dict[str, str]  # by convolution, or first layer: what it is fused with
    called: set[str]
    of_mode: bool  # whether it is another one in the other mode


def _make(container: nn.Module, training: bool, given: tuple[str, ...], recompute: bool) -> Made:
    graph, watched, of_mode = read(container, training, given)
    calls = {n.target for n in graph.nodes if n.op == "call_module"}
    groups = find_groups(container, graph, Effects(container, graph), recompute)
    owners = {n.meta["owner"] for g in groups if owner_of(g) == "" for p in g for n in p.nodes}
    if not owners:
        return Made(None, {}, calls, of_mode)
    inside = {
        ".".join(path.split(".")[:i]) for path in owners for i in range(1, path.count(".") + 2)
    }
    apart = harmless(container, graph)
    entered = {".".join(w.path) for w in watched if w.entered} - inside
    if not all(is_layer(container.get_submodule(path)) for path in entered):
        graph, watched, _ = read(container, training, given, inside.__contains__)
    lines, called = {}, set()
    # those too of the containers entered, whose own forwards will not run
    for group in find_groups(container, graph, Effects(container, graph, apart), recompute):
        nodes = [n for piece in group for n in piece.nodes]
        called |= {n.target for n in nodes if n.op == "call_module"}
        line = ", ".join(n.target if n.op == "call_module" else n.name for n in nodes) + " fused"
        lines |= {found.layers[0].target: line for piece in group for found in piece.found}
        _replace(container, graph, group, recompute)
    for node in [n for n in graph.nodes if n.meta.get("alone")]:  # which are in no group
        with graph.inserting_before(node):
            layer = graph.get_attr(node.target)
            node.replace_all_uses_with(graph.call_function(alone, (layer, *node.args)))
        graph.erase_node(node)
    graph.lint()
    code = graph.python_code("self")
    names = dict(code.globals)
    exec(code.src, names)
    stands_for = [w._replace(entered=True) if ".".join(w.path) in called else w for w in watched]
    return Made(Program(names["forward"], tuple(stands_for)), lines, calls, of_mode)


def _replace(container: nn.Module, graph: fx.Graph, group: list[Piece], recompute: bool) -> None:
    """Puts one call of run_chain in the place of the group."""
    names: list[str] = []

    def place(node: fx.Node) -> int:
        if node.target not in names:
            names.append(node.target)
        return names.index(node.target)

    def unit(found: Found, activation: str) -> UnitOf:
        conv, norm = (None if n is None else place(n) for n in (found.conv, found.norm))
        return UnitOf(conv, norm, activation)

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


class Arguments(NamedTuple):
    """Of a container's forward, by name."""

    names: tuple[str, ...]
    required: frozenset[str]
    optional: frozenset[str]  # those that may be None
    patterns: list[tuple[str, ...]]  # those that tensors are given for


def arguments(container: nn.Module) -> Arguments:
    named = [p for p in parameters(container) if p.kind is p.POSITIONAL_OR_KEYWORD]
    names = tuple(p.name for p in named)
    required = tuple(filter(is_required, named))
    least = len(required)
    patterns = [names[:n] for n in range(least, min(len(names), least + MOST_OPTIONAL) + 1)]
    if 1 < least <= 1 + MOST_OPTIONAL:  # the last ones may be None all the same
        patterns += [names[:n] for n in range(1, least)]
    optional = frozenset(p.name for p in named if is_required(p) or p.default is None)
    return Arguments(names, frozenset(p.name for p in required), optional, patterns)


class Outcome(NamedTuple):
    """What became of a container."""

    lines: dict[bool, dict[str, str]]  # by mode and convolution: what it is fused with
    called: set[str]  # what its graphs call
    failure: str | None = None  # why its forward is not read, if it is not


class Fusion(NamedTuple):
    """A container's fused forwards, by mode and by which parameters tensors are given for."""

    recompute: bool
    arguments: Arguments | None = None
    programs: dict[tuple[bool, tuple[str, ...]], Program] = {}  # noqa: RUF012 never written to

    def find(
        self, training: bool, args: tuple, kwargs: dict
    ) -> tuple[Program | None, list[Tensor]]:
        """The program for a call, if there is one, and what to call it with."""
        names, required, optional, _ = self.arguments
        by_name = dict(zip(names, args, strict=False)) | kwargs
        if len(by_name) != len(args) + len(kwargs) or not required <= by_name.keys():
            return None, []
        none = [name for name, value in by_name.items() if value is None]
        for name in optional.intersection(none):
            del by_name[name]
        given = tuple(name for name in names if name in by_name)
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
            failure = specialise(self, self._fusion.recompute).failure
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


def specialise(container: nn.Module, recompute: bool) -> Outcome:
    """Gives container its fused forwards, if it has any."""
    unfuse(container)
    kind = type(container)
    outcome = Outcome({True: {}, False: {}}, set())
    if kind.__reduce_ex__ is not object.__reduce_ex__ or hasattr(kind, "__deepcopy__"):
        return outcome._replace(failure=f"{kind.__name__} is copied in a way of its own")
    found = arguments(container)
    programs = {}
    for given in found.patterns:
        made = None
        for training in (True, False):
            try:
                if made is None or made.of_mode:
                    made = _make(container, training, given, recompute)
            except NotUnderstoodError as error:
                outcome = outcome._replace(failure=outcome.failure or str(error))
                continue
            outcome.lines[training].update(made.lines)
            outcome.called.update(made.called)
            if made.program is not None:
                programs[training, given] = made.program
    if programs:
        container.__class__ = _fused_class(kind)
        container._fusion = Fusion(recompute, found, programs)
    return outcome


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
