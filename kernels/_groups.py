"""What in a container's graph can run as one: convolutions and what follows them.

Found is a convolution with its batch norm and activation, or a batch norm before a convolution with
its activation; a Piece is one block, found one after another, with the addition that ends them; a
group is what one call of run_chain stands for.
"""

import ast
import itertools
import operator
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn import functional as F

from . import modules
from ._effects import Effects
from ._others import BatchNormAct2d, Conv2dSame, FrozenBatchNorm2d, acts_as
from ._reading import IN_PLACE
from .fused import altered
from .norm.activation import FUNCTIONS, gates, leaky_relu

CONVOLUTIONS = (modules.Conv2d, modules.ConvTranspose2d, Conv2dSame)
TORCHS = (nn.Conv2d, nn.ConvTranspose2d)
NORMS = (modules.BatchNorm2d, BatchNormAct2d, FrozenBatchNorm2d)
ACTIVATIONS = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.LeakyReLU: "leaky_relu",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
    nn.GELU: "gelu",
    nn.Sigmoid: "sigmoid",
    nn.Hardsigmoid: "hardsigmoid",
}
# as functions and as methods
CALLED = {f: name for name, f in FUNCTIONS.items() if hasattr(F, name)} | {
    F.relu_: "relu",
    F.leaky_relu_: "leaky_relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    torch.sigmoid: "sigmoid",
    torch.sigmoid_: "sigmoid",
    "relu": "relu",
    "relu_": "relu",
    "sigmoid": "sigmoid",
    "sigmoid_": "sigmoid",
}
OPTIONS = {"leaky_relu": ("negative_slope", 0.01), "gelu": ("approximate", "none")}
MOST_BLOCKS = 4  # in a row as one, unless they are to be computed again
ADDED_TO = (IN_PLACE[ast.Add], "add_")
ADDITIONS = (operator.add, torch.add, "add", *ADDED_TO)


class Found(NamedTuple):
    """A convolution in a graph and what follows it, each the only user of the one before."""

    nodes: tuple[fx.Node, ...]  # one after another; identities are among them
    norm: fx.Node | None
    activation: str

    @property
    def conv(self) -> fx.Node | None:
        return None if self.nodes[0] is self.norm else self.nodes[0]

    @property
    def start(self) -> fx.Node:
        return self.nodes[0].args[0]

    @property
    def layers(self) -> list[fx.Node]:
        return [n for n in (self.conv, self.norm) if n is not None]

    @property
    def alone(self) -> bool:
        """Whether nothing of its own follows the convolution: only an addition may make a group."""
        return self.norm is None and self.activation == "none"

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


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def layer_of(container: nn.Module, node: fx.Node | None) -> nn.Module | None:
    """The layer that node calls with one tensor, if it does."""
    if node is None or node.op != "call_module" or len(node.args) != 1 or node.kwargs:
        return None
    if not isinstance(node.args[0], fx.Node):
        return None
    return container.get_submodule(node.target)


def _activation(container: nn.Module, node: fx.Node | None) -> str | None:
    """What node does to its input, if that is an activation of the kernels'."""
    if node is None:
        return None
    layer = layer_of(container, node)
    if layer is not None:
        name = None if altered(layer, type(layer)) else ACTIVATIONS.get(type(layer))
        if name in OPTIONS:
            return _with_option(name, getattr(layer, OPTIONS[name][0]))
        return name
    name = CALLED.get(node.target) if node.op in ("call_function", "call_method") else None
    options = dict(node.kwargs)
    if name in OPTIONS:
        option, default = OPTIONS[name]
        first = node.args[1:2] or (options.pop(option, default),)
        name, rest = _with_option(name, *first), node.args[2:]
    else:
        rest = node.args[1:]
    # what is left says whether it is in place
    plain = len(rest) <= 1 and options.keys() <= {"inplace"} and node.args[:1]
    return name if plain and all(isinstance(v, bool) for v in (*rest, *options.values())) else None


def _with_option(name: str, value: Any) -> str | None:
    if name == "leaky_relu":
        return leaky_relu(value) if type(value) in (int, float) else None
    return {"none": "gelu", "tanh": "gelu_tanh"}.get(value) if isinstance(value, str) else None


def find(container: nn.Module, graph: fx.Graph) -> list[Found]:
    """Every convolution with what normalises or rectifies it."""
    found = []
    for conv in graph.nodes:
        if why_not(layer_of(container, conv)) is not None:
            continue
        nodes, norm = [conv], None
        follows = _past_identities(container, nodes)
        if _is_norm(layer_of(container, follows)):
            norm = follows
            nodes.append(norm)
        found.append(_with_activation(container, nodes, norm))
    return found


def _with_activation(container: nn.Module, nodes: list[fx.Node], norm: fx.Node | None) -> Found:
    follows = _past_identities(container, nodes)
    activation = _activation(container, follows)
    if activation is not None:
        nodes.append(follows)
        _past_identities(container, nodes)
    return Found(tuple(nodes), norm, activation or "none")


def _with_heads(container: nn.Module, graph: fx.Graph, found: list[Found]) -> list[Found]:
    """found, and the batch norms that are behind no convolution, in the graph's order.

    Those with an activation, or before a convolution that alone uses what they give.
    """
    behind = {this.norm for this in found}
    firsts = {this.nodes[0] for this in found}
    heads = []
    for norm in graph.nodes:
        if norm in behind or not _is_norm(layer_of(container, norm)):
            continue
        head = _with_activation(container, [norm], norm)
        if head.activation != "none" or _only_user(head.end) in firsts:
            heads.append(head)
    order = {node: i for i, node in enumerate(graph.nodes)}
    return sorted([*found, *heads], key=lambda this: order[this.nodes[0]])


def _past_identities(container: nn.Module, nodes: list[fx.Node]) -> fx.Node | None:
    """The only user of the last of nodes, which identities before it are appended to."""
    while (user := _only_user(nodes[-1])) is not None:
        layer = layer_of(container, user)
        if type(layer) is not nn.Identity or altered(layer, nn.Identity):
            break
        nodes.append(user)
    return user


def why_not(conv: nn.Module | None) -> str | None:
    """Why conv is no convolution that can be fused, if it is none."""
    kind = type(conv)
    if acts_as(conv) not in CONVOLUTIONS:
        remedy = "; convert() the model first" if kind in TORCHS else ""
        return f"it is a {kind.__module__}.{kind.__name__}{remedy}"
    if conv.padding_mode != "zeros":
        return f"it pads with {conv.padding_mode}"
    why = altered(conv, kind)
    return None if why is None else f"it {why}"


def _is_norm(module: nn.Module | None) -> bool:
    return acts_as(module) in NORMS and altered(module, type(module)) is None


def _runs(container: nn.Module, found: list[Found]) -> list[list[Found]]:
    """What follows one another, as long as it lies in one container, or fills it."""
    runs = []
    by_end = {}
    for this in found:
        run = by_end.pop(this.start, None)
        linked = run is not None and _only_user(this.start) is this.nodes[0]
        if linked and not run[-1].alone and this.conv is not None:
            run.append(this)
        else:
            run = [this]
            runs.append(run)
        by_end[this.end] = run
    return [part for run in runs for part in _split(container, run)]


def _split(container: nn.Module, run: list[Found]) -> Iterator[list[Found]]:
    convolutions = {found.conv.target for found in run if found.conv is not None}
    part = run[:1]
    for before, this in itertools.pairwise(run):
        names = [n.target for f in (before, this) for n in f.layers]
        owner = common_owner([name.rpartition(".")[0] for name in names])
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


def common_owner(names: list[str]) -> str:
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
    for run in _runs(container, _with_heads(container, graph, find(container, graph))):
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
            if n in by_end and by_end[n][-1].activation == "none" and _only_user(n) is add
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
    return [kept for piece in pieces.values() if (kept := _worth(piece)).main]


def _worth(piece: Piece) -> Piece:
    """The piece, or one of nothing where it is a single layer."""
    single = len(piece.main) == 1 and len(piece.main[0].layers) == 1 and not piece.tail
    return piece._replace(main=()) if single and piece.main[0].activation == "none" else piece


def _with_shortcut(container: nn.Module, add: fx.Node, ends: list[list[Found]]) -> Piece | None:
    """The piece that the addition ends, one of these runs being its main part."""
    if not ends:
        return None
    main, side = ends[0], ends[1] if len(ends) == 2 else None
    other = next((n for n in add.args if n is not main[-1].end), None)
    if not isinstance(other, fx.Node):
        return None
    if add.target in ADDED_TO and add.args[0] is other:
        return None  # what it writes to may be read elsewhere
    alike = side is not None and len(side) == 1 and side[0].conv is not None
    if alike and side[0].start is main[0].start:
        return Piece(tuple(main), "unit", side=side[0])
    if other is main[0].start:
        return Piece(tuple(main), "identity")
    return Piece(tuple(main), "given")


def find_groups(
    container: nn.Module, graph: fx.Graph, effects: Effects, recompute: bool
) -> list[list[Piece]]:
    """Pieces by the call that stands for them: those in a row, with recompute whoever calls them,
    otherwise a few that one container calls."""
    groups = [[piece] for piece in _pieces(container, graph, effects)]
    by_end = {}
    for group in list(groups):
        (piece,) = group
        before = by_end.get(piece.start)
        if (
            before is not None
            and (recompute or (len(before) < MOST_BLOCKS and _of_one_row(before, piece)))
            and set(piece.start.users) <= set(piece.nodes)
            and effects.movable([n for p in (*before, piece) for n in p.nodes])
        ):
            before.extend(group)
            groups.remove(group)
            group = before
        if (
            piece.shortcut in ("identity", "unit")
            and all(f.norm is not None and f.conv is not None for f in piece.found)
            and gates(piece.activation)
        ):
            by_end[piece.end] = group
    return groups


def _of_one_row(group: list[Piece], piece: Piece) -> bool:
    """Whether it is one container that calls what made the group, and the piece."""
    one, other = (owner_of(pieces).rpartition(".")[0] for pieces in (group[:1], [piece]))
    return one == other


def owner_of(group: list[Piece]) -> str:
    """The path of the container whose forward, with what it calls, made the group."""
    return common_owner([n.meta["owner"] for piece in group for n in piece.nodes])
