"""What the nodes of a graph write to, and what memory they share: which may not change places.

What is not known to be fresh may lie in whatever it was made from, and what is not known to leave
its inputs alone may write to all of them.
"""

import inspect
import operator
import types
from collections.abc import Sequence

import torch
from torch import fx, nn

from ._others import KNOWN, acts_as
from ._reading import IN_PLACE, LAYERS, is_known
from .norm.activation import FUNCTIONS

FRESH = (
    operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.cat, torch.mul,
    torch.relu, torch.sigmoid, *FUNCTIONS.values(),
)  # fmt: skip
FRESH_LAYERS = (
    *LAYERS, *KNOWN.values(), nn.GELU, nn.Hardsigmoid, nn.Hardswish, nn.LeakyReLU, nn.Linear,
    nn.ReLU, nn.ReLU6, nn.SiLU, nn.Sigmoid,
)  # fmt: skip
ARGUMENT = "an argument"  # two of which may be one tensor

Memory = frozenset  # the nodes that made it, names of modules' tensors, ARGUMENT


class Effects:
    """Of a container's graph; those at the paths in harmless write to nothing from outside.

    strictly: as if every layer that can work in place did.
    """

    def __init__(
        self,
        container: nn.Module,
        graph: fx.Graph,
        harmless: frozenset[str] = frozenset(),
        strictly: bool = False,
    ) -> None:
        self.container, self.harmless, self.strictly = container, harmless, strictly
        self.nodes = list(graph.nodes)
        self.order = {node: i for i, node in enumerate(self.nodes)}
        self.shared: dict[fx.Node, Memory] = {}
        self.written: dict[fx.Node, Memory] = {}
        for node in self.nodes:
            to = self._outputs(node)
            self.written[node] = Memory().union(*(self.shared[n] for n in to))
            inputs = Memory().union(*(self.shared[n] for n in node.all_input_nodes))
            if node.op == "placeholder":
                self.shared[node] = Memory([ARGUMENT])
            elif node.op == "get_attr":
                self.shared[node] = Memory([node.target])
            elif not to and self._fresh(node):
                self.shared[node] = Memory([node])
            else:
                self.shared[node] = inputs | {node}

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.container.get_submodule(node.target) if node.op == "call_module" else None

    def _fresh(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return acts_as(self._module(node)) in FRESH_LAYERS and is_known(self._module(node))
        return node.op == "call_function" and node.target in FRESH

    def _outputs(self, node: fx.Node) -> Sequence[fx.Node]:
        """Those of node's inputs that it may write to."""
        if node.op == "call_module":
            module = self._module(node)
            if is_known(module):
                works = hasattr(module, "inplace") if self.strictly else _in_place(vars(module))
            else:
                works = node.target not in self.harmless
            return node.all_input_nodes if works else ()
        if node.op not in ("call_function", "call_method"):
            return ()
        name = getattr(node.target, "__name__", node.target)
        works = node.target in IN_PLACE.values() or name.endswith("_")
        if isinstance(node.target, types.FunctionType) and not works:
            bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
            works = _in_place(bound.arguments)
        return node.all_input_nodes if works else ()

    def movable(self, nodes: Sequence[fx.Node]) -> bool:
        """Whether all of nodes, in order, may run where the last one does.

        They write to nothing but what they make themselves, and to what their modules hold.
        """
        members = set(nodes)
        at = [self.order[n] for n in nodes]
        layers = {self._module(n): f"{n.target}." for n in nodes if n.op == "call_module"}
        counting = {layer for layer in layers if layer._buffers}  # batch norms
        for i in range(min(at), max(at)):
            node = self.nodes[i]
            if node in members:
                continue
            if node.op == "call_module" and not counting.isdisjoint(self._module(node).modules()):
                return False
            written = self.written[node] | (self.shared[node] if node.op == "get_attr" else set())
            if any(str(m).startswith(tuple(layers.values())) for m in written):
                return False
            read = (n for m in nodes if self.order[m] < i for n in m.all_input_nodes)
            if any(written & self.shared[n] for n in read if n not in members):
                return False
        return True


def _in_place(options: dict) -> bool:
    return bool(options.get("inplace"))


def harmless(container: nn.Module, graph: fx.Graph) -> frozenset[str]:
    """The containers entered in graph that write to nothing from outside."""
    effects = Effects(container, graph, strictly=True)
    owners = {node.meta.get("owner", "") for node in graph.nodes}
    found = {path[: i or None] for path in owners for i in _dots(path)}
    for node, memory in effects.written.items():
        for m in memory:
            outer = m.meta["owner"] if isinstance(m, fx.Node) else ""
            found -= {
                path
                for path in found
                if _within(node.meta["owner"], path) and not _within(outer, path)
            }
    return frozenset(found)


def _dots(path: str) -> list[int]:
    """Where path's leading parts end."""
    return [i for i, c in enumerate(path) if c == "."] + [0]


def _within(path: str, outer: str) -> bool:
    return f"{path}.".startswith(f"{outer}.")
