"""Folding batch norm into the convolutions before it, for inference."""

from collections import OrderedDict

from torch import fx, nn
from torch.nn.utils import fusion

from ._groups import NORMS, Found, find, layer_of
from ._others import acts_as
from ._reading import NotUnderstoodError, containers, read
from ._source import opens
from ._stand_in import Fused, arguments, copied, specialise
from .fuse import Report
from .fused import altered

LISTS = (nn.ModuleList, nn.ModuleDict)  # which hold modules and call none


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
        for found in find(container, graph):
            conv, norm = layer_of(container, found.conv), layer_of(container, found.norm)
            if norm is None or norm in left:
                continue
            left[norm] = why = calls.why_not(container, graph, found)
            if why is not None:
                continue
            conv.weight, conv.bias = fusion.fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps,
                norm.weight, norm.bias, transpose=conv.transposed,
            )  # fmt: skip
            owner, _, name = calls.paths[norm][0].rpartition(".")
            # of a layer of another library
            behind = OrderedDict((n, getattr(norm, n)) for n in getattr(norm, "behind", ()))
            rest = nn.Sequential(behind) if behind else nn.Identity()
            setattr(folded.get_submodule(owner), name, rest.eval())
            if report is not None:
                report(f"{calls.paths[norm][0]}: folded into {calls.paths[conv][0]}")
    for module, paths in calls.paths.items():
        if report is not None and isinstance(module, nn.BatchNorm2d):
            why = left.get(module, calls.why_alone(module))
            if why is not None:
                report(f"{paths[0]}: left, for {why}")
    for container in reversed(containers(folded)):
        if isinstance(container, Fused) and container._fusion is not None:
            specialise(container, container._fusion.recompute)
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
        for container in containers(model):
            alone = container not in entered or container in self.partners
            for given in arguments(container).patterns:
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
        for found in find(container, graph):
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
        conv, norm = layer_of(container, found.conv), layer_of(container, found.norm)
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
        if acts_as(norm) not in NORMS:
            remedy = "; convert() the model first" if type(norm) is nn.BatchNorm2d else ""
            return f"it is a {type(norm).__module__}.{type(norm).__name__}{remedy}"
        if why := altered(norm, type(norm)):
            return f"it {why}"
        owner = self.paths[norm][0].rpartition(".")[0]
        while owner and isinstance(self.model.get_submodule(owner), LISTS):
            owner = owner.rpartition(".")[0]  # of whose layers another's forward decides
        if why := self.refused.get(self.model.get_submodule(owner)):
            return why
        return "no convolution that can be changed, and is used by it alone, comes before it"
