"""Reading what a forward does from its source: nothing runs, and nothing is guessed.

Statements are evaluated one by one.  What is known before a call (attributes, numbers, lists of
them) is computed, so that branches on it and loops over it vanish; what is not, tensors above all,
becomes a node of an fx.Graph.  Whatever else a forward does raises NotUnderstoodError, which names
the line.
"""

import ast
import inspect
import operator
import types
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.lazy import LazyModuleMixin

from . import modules
from ._others import KNOWN, BatchNormAct2d, Conv2dSame, acts_as, same
from ._source import CALLABLE, FUNCTIONS, harmless, source
from .fused import ABSENT, ConvBNReLU, Watched, altered, own_class

LAYERS = tuple(
    kind
    for kind in vars(modules).values()
    if isinstance(kind, type) and issubclass(kind, nn.Module)
)
OURS = (*LAYERS, *KNOWN.values())
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
SIMPLE = (
    bool, int, float, str, type(None), type(...), torch.dtype, torch.device, torch.memory_format,
)  # fmt: skip
UNSEEN = {"backward", "register_hook", "register_post_accumulate_grad_hook", "retain_grad"}
ATTRIBUTES = {"device", "dtype", "is_cuda", "mT", "ndim", "shape", "T"}
VALUES = {abs, bool, float, int, max, min, str}  # of what is known
ITERATORS = {enumerate, reversed, zip}
COLLECTIONS = {dict, list, tuple}
METHODS = {
    list: {"append", "extend", "insert", "pop", "reverse"},
    dict: {"get", "items", "keys", "pop", "update", "values"},
    str: {"endswith", "format", "join", "lower", "replace", "split", "startswith", "upper"},
}
CHILDREN = {
    nn.Module.children: lambda found: found.values(),
    nn.Module.named_children: lambda found: found.items(),
    nn.ModuleDict.items: lambda found: found.items(),
    nn.ModuleDict.keys: lambda found: found.keys(),
    nn.ModuleDict.values: lambda found: found.values(),
}
OPERATORS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
    ast.Pow: operator.pow, ast.MatMult: operator.matmul, ast.USub: operator.neg,
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b, ast.BitOr: operator.or_,
}  # fmt: skip


def _in_place(operation: Callable) -> Callable:
    """operation as a function of ours: fx would write torch's as a statement on its operand."""

    def written(a, b):
        return operation(a, b)

    written.__name__ = operation.__name__.removeprefix("i")
    return written


IN_PLACE = {
    ast.Add: _in_place(operator.iadd),
    ast.Sub: _in_place(operator.isub),
    ast.Mult: _in_place(operator.imul),
    ast.Div: _in_place(operator.itruediv),
}


def unpacked(values: Any, n: int) -> tuple:
    found = tuple(values)
    if len(found) != n:
        raise ValueError(f"expected {n} values to unpack, got {len(found)}")
    return found


def joined(*parts: Any) -> str:
    return "".join(map(str, parts))


class NotUnderstoodError(Exception):
    pass


class AbsentError(NotUnderstoodError):
    """A module has no attribute of a name."""


class Own(NamedTuple):
    """A module in the container that is read."""

    path: str
    module: nn.Module


class Method(NamedTuple):
    own: Own
    function: types.FunctionType


class Super(NamedTuple):
    own: Own
    kind: type


class Object(NamedTuple):
    """What an attribute of a module holds, which only its own plain values are read of."""

    own: Own
    name: str
    value: Any


class Held(list):
    """A list that an attribute holds: read, but not written to."""


class Returned(NamedTuple):
    value: Any


LISTS = (list, tuple, Held)
ITERABLE = (*LISTS, dict, range, *map(type, (iter([]), {}.keys(), {}.values(), {}.items())))
LIST_OPERATIONS = (operator.add, IN_PLACE[ast.Add])
OPTIONS = ("inplace", "negative_slope", "approximate")  # of activations
MOST_CALLS = 30  # within one another


class Reading(NamedTuple):
    """What a container's forward does, and what must stay as it is for it to do so."""

    graph: fx.Graph
    watched: list[Watched]
    of_mode: bool  # whether it is another one in the other mode


def is_layer(module: nn.Module) -> bool:
    """Whether a module is called as it is: it has no children, or is torch.nn's or ours."""
    kind = type(module)
    return (
        not any(module.children())
        or isinstance(module, (*OURS, ConvBNReLU))
        or (kind.__module__.startswith("torch.nn") and not isinstance(module, nn.Sequential))
    )


def is_known(module: nn.Module) -> bool:
    """Whether module is a layer of torch.nn's or ours that does what its class does."""
    kind = acts_as(module)
    return (
        (kind in (*OURS, ConvBNReLU) or kind.__module__.startswith("torch.nn.modules."))
        and is_layer(module)
        and altered(module, type(module)) is None
        and (kind is not BatchNormAct2d or all(map(is_known, module.children())))
    )


def is_leaf(module: nn.Module) -> bool:
    """Whether module holds nothing and is no layer of torch.nn or ours: all it has is a forward."""
    return (
        not (module._modules or module._parameters or module._buffers)
        and is_layer(module)
        and not is_known(module)
        and not own_class(module).__module__.startswith("torch.nn")
    )


def containers(model: nn.Module) -> list[nn.Module]:
    """What calls layers, outermost first."""
    return [m for m in model.modules() if not is_layer(m)]


def parameters(container: nn.Module) -> list[inspect.Parameter]:
    """Of the container's own forward, without self."""
    signature = inspect.signature(own_class(container).forward)
    return list(signature.parameters.values())[1:]


def is_required(parameter: inspect.Parameter) -> bool:
    named = parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    return named and parameter.default is parameter.empty


def read(
    container: nn.Module,
    training: bool,
    given: Sequence[str],
    inside: Callable[[str], bool] = lambda path: True,
) -> Reading:
    """container's forward, called in a mode with tensors for the parameters that are given.

    Of the others those without a default are None.

    Containers in it are entered where inside(path) says so and they are understood: then what they
    do is part of the graph.  A node's meta["owner"] is the path of the container that made it.
    """
    reader = _Reader(container, training, inside)
    values = {p.name: None for p in parameters(container) if is_required(p)}
    values |= {name: reader.record("", "placeholder", name, ()) for name in given}
    own = Own("", container)
    result = reader.enter(own_class(container).forward, own, (own,), values, "")
    try:
        reader.graph.output(reader.recorded(result))
    except TypeError as error:
        raise NotUnderstoodError(f"{type(container).__name__}.forward returns {error}") from error
    return Reading(reader.graph, _watched(reader.journal), reader.of_mode)


def _watched(journal: list[tuple]) -> list[Watched]:
    """What was read of each module."""
    found: dict[str, Watched] = {}
    for path, what, value in journal:
        this = found.setdefault(path, Watched(tuple(filter(None, path.split(".")))))
        if what == "attributes":
            value = tuple(dict([*this.attributes, value]).items())
        found[path] = this._replace(**{what: value})
    return list(found.values())


class _Reader:
    """What the readings of all functions in a container's forward share."""

    def __init__(self, container: nn.Module, training: bool, inside: Callable) -> None:
        self.container, self.training, self.inside = container, training, inside
        self.graph = fx.Graph()
        self.journal: list[tuple[str, str, Any]] = []  # path, what was read there, and its value
        self.of_mode = False
        self.lent: list[list | dict] = []  # to modules that may have written to them
        self.depth = 0

    def enter(self, function: Callable, own: Own, args: Sequence, kwargs: dict, owner: str) -> Any:
        """What the function returns; what it does is in the graph."""
        name = getattr(function, "__qualname__", str(function))
        tree = source(function)
        if isinstance(tree, str):
            raise NotUnderstoodError(f"{name} {tree}")
        signature = inspect.signature(function)
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise NotUnderstoodError(f"{name}: {error}") from error
        for parameter in signature.parameters.values():
            default = parameter.default
            if parameter.name not in bound.arguments and not isinstance(default, (*SIMPLE, type)):
                raise NotUnderstoodError(f"{name} has a default that is {_described(default)}")
        bound.apply_defaults()
        if self.depth == MOST_CALLS:
            raise NotUnderstoodError(f"{name} calls itself")
        self.depth += 1
        try:
            returned = _Frame(self, function, own, owner, dict(bound.arguments)).block(tree.body)
        finally:
            self.depth -= 1
        return returned.value if isinstance(returned, Returned) else None

    def recorded(self, value: Any) -> Any:
        """value as a node's argument; TypeError where it cannot be one."""
        if isinstance(value, (fx.Node, *SIMPLE)):
            return value
        if type(value) is tuple:
            return tuple(self.recorded(v) for v in value)
        if type(value) in (list, Held):
            return [self.recorded(v) for v in value]
        if type(value) is dict and all(isinstance(key, str) for key in value):
            return {key: self.recorded(v) for key, v in value.items()}
        if isinstance(value, slice):
            return slice(*map(self.recorded, (value.start, value.stop, value.step)))
        raise TypeError(_described(value))

    def record(
        self, owner: str, op: str, target: Any, args: Sequence, kwargs: dict | None = None
    ) -> fx.Node:
        args, kwargs = self.recorded(tuple(args)), self.recorded(kwargs or {})
        node = self.graph.create_node(op, target, args, kwargs)
        node.meta["owner"] = owner
        return node

    def call(self, owner: str, own: Own, args: Sequence, kwargs: dict) -> Any:
        """A module called: what it returns where it can be entered, or a node."""
        path, module = own
        values = (*args, *kwargs.values())
        mutable = _mutable(values)
        # called otherwise, it will not run its own fused forward, but can be a part of this one
        plain = all(v is None or isinstance(v, fx.Node) for v in values)
        if acts_as(module) in (BatchNormAct2d, Conv2dSame) and len(values) == len(args) == 1:
            found = self.in_parts(owner, own, values[0])
            if found is not None:
                return found
        leaf = is_leaf(module)
        if is_layer(module) and not leaf:
            self.lent += [] if is_known(module) else mutable
            options = {name: vars(module)[name] for name in OPTIONS if name in vars(module)}
            self.journal += [(path, "attributes", option) for option in options.items()]
        elif leaf or self.inside(path) or not plain:
            before = self.mark()
            try:
                why = altered(module, own_class(module))
                if why or type(module).__call__ is not nn.Module.__call__:
                    raise NotUnderstoodError(f"{path} {why or 'is called in its own way'}")
                self.journal += [(path, "kind", own_class(module)), (path, "entered", True)]
                inner = path if plain and not leaf else owner
                return self.enter(own_class(module).forward, own, (own, *args), kwargs, inner)
            except NotUnderstoodError:
                if mutable and not leaf:  # which it may have written to
                    raise
                self.back_to(before)
                self.lent += mutable
        else:
            self.lent += mutable
        return self.record(owner, "call_module", path, args, kwargs)

    def in_parts(self, owner: str, own: Own, x: Any) -> fx.Node | None:
        """A layer of another library called: what comes before it and behind it is on its own."""
        path, module = own
        if altered(module, own_class(module)) is not None:
            return None
        self.journal += [(path, "kind", own_class(module)), (path, "entered", True)]
        if acts_as(module) is Conv2dSame:
            sizes = {name: getattr(module, name) for name in ("kernel_size", "stride", "dilation")}
            self.journal += [(path, "attributes", read) for read in sizes.items()]
            x = self.record(owner, "call_function", same, (x, *sizes.values()))
        node = self.record(owner, "call_module", path, (x,))
        node.meta["alone"] = True
        for name in module.behind:
            child = Own(f"{path}.{name}", getattr(module, name))
            self.journal.append((child.path, "kind", own_class(child.module)))
            node = self.call(owner, child, (node,), {})
        return node

    def mark(self) -> tuple[fx.Node | None, int]:
        return next(iter(reversed(self.graph.nodes)), None), len(self.journal)

    def back_to(self, mark: tuple[fx.Node | None, int]) -> None:
        """Forgets what was recorded since."""
        last, entries = mark
        del self.journal[entries:]
        for node in reversed(list(self.graph.nodes)):
            if node is last:
                break
            self.graph.erase_node(node)


class _Frame:
    """The reading of one function."""

    def __init__(
        self, reader: _Reader, function: types.FunctionType, own: Own, owner: str, names: dict
    ) -> None:
        self.reader, self.function, self.own, self.owner = reader, function, own, owner
        self.names = names

    def refusal(self, node: ast.AST, why: str) -> NotUnderstoodError:
        said = " ".join(ast.unparse(node).split())
        said = said if len(said) <= 60 else f"{said[:57]}..."
        name = self.function.__qualname__
        return NotUnderstoodError(f"{name} {why} (line {node.lineno}: {said})")

    def record(
        self, node: ast.AST, op: str, target: Any, args: Sequence, kwargs: dict | None = None
    ) -> fx.Node:
        try:
            return self.reader.record(self.owner, op, target, args, kwargs)
        except TypeError as error:
            raise self.refusal(node, f"passes on {error}") from error

    def watch(self, own: Own, what: str, value: Any) -> None:
        self.reader.journal.append((own.path, what, value))

    def block(self, statements: list[ast.stmt]) -> Any:
        """Returned, or the Break or Continue that ended it, or None."""
        for statement in statements:
            ended = self.statement(statement)
            if ended is not None:
                return ended
        return None

    def statement(self, node: ast.stmt) -> Any:
        match node:
            case ast.Pass() | ast.Expr(ast.Constant()) | ast.AnnAssign(value=None):
                return None
            case ast.Expr(value):
                self.evaluate(value)
            case ast.Return(value):
                return Returned(None if value is None else self.evaluate(value))
            case ast.Break() | ast.Continue():
                return node
            case ast.Assign(targets, value):
                found = self.evaluate(value)
                for target in targets:
                    self.assign(target, found)
            case ast.AnnAssign(target, _, ast.expr() as value):
                self.assign(target, self.evaluate(value))
            case ast.AugAssign(ast.Name(name) as target, op, value) if type(op) in IN_PLACE:
                held, added = self.name(target), self.evaluate(value)
                if isinstance(held, Held) or (type(held) is list and isinstance(added, fx.Node)):
                    raise self.refusal(node, "writes to a list")
                self.names[name] = self.apply(node, IN_PLACE[type(op)], held, added)
            case ast.If(test, body, orelse):
                return self.block(body if self.test(test) else orelse)
            case ast.For(target, iterable, body, []):
                for value in self.items(iterable, self.evaluate(iterable)):
                    self.assign(target, value)
                    ended = self.block(body)
                    if isinstance(ended, ast.Break):
                        break
                    if isinstance(ended, Returned):
                        return ended
            case ast.Assert(test) if self.test(test):
                return None
            case ast.AugAssign():
                raise self.refusal(node, "writes to what is not a variable")
            case _:
                raise self.refusal(node, f"has a statement {type(node).__name__.lower()!r}")
        return None

    def assign(self, target: ast.expr, value: Any) -> None:
        match target:
            case ast.Name(name):
                self.names[name] = value
            case ast.Tuple(targets) | ast.List(targets):
                n = len(targets)
                if isinstance(value, fx.Node):
                    value = self.record(target, "call_function", unpacked, (value, n))
                    values = [
                        self.record(target, "call_function", operator.getitem, (value, i))
                        for i in range(n)
                    ]
                else:
                    values = self.items(target, value)
                if len(values) != n:
                    raise self.refusal(target, "unpacks another number of values")
                for each, found in zip(targets, values, strict=True):
                    self.assign(each, found)
            case ast.Subscript(owner, index):
                held, key = self.evaluate(owner), self.evaluate(index)
                if type(held) not in (list, dict) or not isinstance(key, int | str):
                    raise self.refusal(target, "writes to an element")
                self.attempt(target, operator.setitem, held, key, value)
            case _:
                raise self.refusal(target, "writes to an attribute")

    def evaluate(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value):
                return value
            case ast.Name():
                return self.name(node)
            case ast.Attribute(value, name):
                return self.attribute(node, self.evaluate(value), name)
            case ast.Subscript(value, index):
                return self.subscript(node, self.evaluate(value), self.evaluate(index))
            case ast.Slice(lower, upper, step):
                parts = (lower, upper, step)
                return slice(*(None if part is None else self.evaluate(part) for part in parts))
            case ast.Call():
                return self.call(node)
            case ast.Tuple(elements):
                return tuple(self.elements(elements))
            case ast.List(elements):
                return self.elements(elements)
            case ast.Dict(keys, values) if None not in keys:
                keys = [self.known(key, self.evaluate(key)) for key in keys]
                return dict(zip(keys, self.elements(values), strict=True))
            case ast.ListComp(element, [loop]):
                return self.comprehended(element, loop)
            case ast.GeneratorExp(element, [loop]):
                return iter(self.comprehended(element, loop))
            case ast.IfExp(test, body, orelse):
                return self.evaluate(body if self.test(test) else orelse)
            case ast.BoolOp(op, [*others, last]):
                for value in others:
                    found = self.evaluate(value)
                    if self.truth(value, found) == isinstance(op, ast.Or):
                        return found
                return self.evaluate(last)
            case ast.UnaryOp(ast.Not(), operand):
                return not self.test(operand)
            case ast.UnaryOp(op, operand) if type(op) in OPERATORS:
                return self.apply(node, OPERATORS[type(op)], self.evaluate(operand))
            case ast.BinOp(left, op, right) if type(op) in OPERATORS:
                operands = self.evaluate(left), self.evaluate(right)
                return self.apply(node, OPERATORS[type(op)], *operands)
            case ast.Compare(left, [ast.Is() | ast.IsNot() as op], [ast.Constant(None)]):
                return self.is_none(node, self.evaluate(left)) == isinstance(op, ast.Is)
            case ast.Compare(left, [op], [right]) if type(op) in OPERATORS:
                operands = self.evaluate(left), self.evaluate(right)
                return self.apply(node, OPERATORS[type(op)], *operands)
            case ast.JoinedStr(parts):
                found = [self.evaluate(part) for part in parts]
                if all(isinstance(part, str) for part in found):
                    return "".join(found)
                return self.record(node, "call_function", joined, found)
            case ast.FormattedValue(value, -1, None):
                found = self.evaluate(value)
                return found if isinstance(found, fx.Node) else str(self.known(node, found))
        raise self.refusal(node, f"has what is not read, a {type(node).__name__}")

    def elements(self, nodes: list[ast.expr]) -> list:
        found = []
        for node in nodes:
            if isinstance(node, ast.Starred):
                found += self.items(node, self.evaluate(node.value))
            else:
                found.append(self.evaluate(node))
        return found

    def comprehended(self, element: ast.expr, loop: ast.comprehension) -> list:
        if loop.is_async:
            raise self.refusal(element, "is asynchronous")
        outer, found = self.names, []
        values = self.items(loop.iter, self.evaluate(loop.iter))
        self.names = dict(outer)
        for value in values:
            self.assign(loop.target, value)
            if all(self.test(condition) for condition in loop.ifs):
                found.append(self.evaluate(element))
        self.names = outer
        return found

    def attempt(self, node: ast.AST, function: Callable, *args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            raise self.refusal(node, f"raises {type(error).__name__}") from error

    def apply(self, node: ast.AST, operation: Callable, *operands: Any) -> Any:
        """operation, now where it can be, or else in the graph."""
        if any(isinstance(v, fx.Node) for v in operands):
            if operation in (OPERATORS[ast.In], OPERATORS[ast.NotIn]):
                raise self.refusal(node, "looks for a value")
            return self.record(node, "call_function", operation, operands)
        lists = operation in LIST_OPERATIONS and all(type(v) in LISTS for v in operands)
        if not lists and not all(_is_plain(v) for v in operands):
            raise self.refusal(node, "computes with what is not read")
        return self.attempt(node, operation, *operands)

    def test(self, node: ast.expr) -> bool:
        return self.truth(node, self.evaluate(node))

    def truth(self, node: ast.expr, value: Any) -> bool:
        if isinstance(value, Own):
            kind = type(value.module)
            if not hasattr(kind, "__bool__") and not hasattr(kind, "__len__"):
                return True
            return len(self.items(node, value)) > 0
        if type(value) in (*LISTS, dict) or isinstance(value, SIMPLE):
            return bool(value)
        raise self.refusal(node, "branches on a value")

    def is_none(self, node: ast.AST, value: Any) -> bool:
        if isinstance(value, fx.Node):
            container = self.reader.container
            index = value.args[1] if value.target is operator.getitem else ()
            # what has these may be no tensor, and hold anything
            held = value.target is unpacked or isinstance(index, (int, str, fx.Node))
            if held or (
                value.op == "call_module" and not is_known(container.get_submodule(value.target))
            ):
                raise self.refusal(node, "branches on a value")
        if isinstance(value, Object):
            raise self.refusal(node, f"branches on {_described(value)}")
        return value is None

    def known(self, node: ast.AST, value: Any) -> Any:
        if isinstance(value, SIMPLE):
            return value
        raise self.refusal(node, f"needs the value of {_described(value)}")

    def items(self, node: ast.AST, value: Any) -> list:
        if isinstance(value, Own):
            iterator = type(value.module).__iter__ if hasattr(value.module, "__iter__") else None
            found = self.children(node, value)
            if iterator is nn.ModuleDict.__iter__:
                return list(found)
            if iterator in (nn.Sequential.__iter__, nn.ModuleList.__iter__):
                return list(found.values())
        elif type(value) in ITERABLE:
            return list(value)
        raise self.refusal(node, f"iterates over {_described(value)}")

    def children(self, node: ast.AST, own: Own) -> dict[str, Own | None]:
        found = own.module._modules
        self.watch(own, "children", tuple(found))
        return {name: self.child(own, name, module) for name, module in found.items()}

    def child(self, owner: Own, name: str, module: nn.Module | None) -> Own | None:
        """The child of owner called name."""
        if module is None:
            self.watch(owner, "attributes", (name, None))
            return None
        own = Own(f"{owner.path}.{name}".lstrip("."), module)
        if not isinstance(module, LazyModuleMixin):  # which will be of another class
            self.watch(own, "kind", own_class(module))
        return own

    def name(self, node: ast.Name) -> Any:
        name, function = node.id, self.function
        code = function.__code__
        if name in self.names:
            found = self.names[name]
            if any(found is lent for lent in self.reader.lent):
                raise self.refusal(node, "reads what a module may have written to")
            return found
        closure = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
        if name in closure:
            found = self.attempt(node, lambda: closure[name].cell_contents)
        elif name in code.co_varnames or name in code.co_cellvars:
            raise self.refusal(node, "reads a variable that may have no value")
        else:
            found = function.__globals__.get(name, function.__builtins__.get(name))
        if isinstance(found, nn.Module) or not (callable(found) or inspect.ismodule(found)):
            raise self.refusal(node, "reads a variable that is not its own")
        return found

    def attribute(self, node: ast.AST, value: Any, name: str) -> Any:
        match value:
            case Own():
                return self.own_attribute(node, value, name)
            case Super(own, kind):
                order = own_class(own.module).__mro__
                for base in order[order.index(kind) + 1 :]:
                    if isinstance(vars(base).get(name), types.FunctionType):
                        return Method(own, vars(base)[name])
            case Object(own, outer, held) if name in vars(held):
                found = getattr(held, name)
                if isinstance(found, SIMPLE) and found is vars(held)[name]:
                    self.watch(own, "attributes", (f"{outer}.{name}", found))
                    return found
            case types.ModuleType() if name in vars(value):
                found = vars(value)[name]
                constant = value.__name__ in ("math", "torch") and isinstance(found, SIMPLE)
                if constant or callable(found) or inspect.ismodule(found):
                    return found
            case fx.Node() if name in ATTRIBUTES:
                return self.record(node, "call_function", getattr, (value, name))
        raise self.refusal(node, f"reads {name} of {_described(value)}")

    def own_attribute(self, node: ast.AST, own: Own, name: str) -> Any:
        path, module = own
        kind = own_class(module)
        in_class = inspect.getattr_static(kind, name, ABSENT)
        if (
            kind.__getattr__ is not nn.Module.__getattr__
            or kind.__getattribute__ is not object.__getattribute__
            or hasattr(in_class, "__set__")
        ):
            raise self.refusal(node, "looks an attribute up in its own way")
        if name == "training":
            if own != self.own:
                raise self.refusal(node, "reads another module's mode")
            self.reader.of_mode = True
            self.watch(own, "of_mode", True)
            return self.reader.training
        if name in vars(module):
            found = vars(module)[name]
        elif in_class is not ABSENT:
            found = in_class.__func__ if isinstance(in_class, staticmethod) else in_class
            if isinstance(in_class, types.FunctionType):
                return Method(own, in_class)
        elif name in module._modules:
            return self.child(own, name, module._modules[name])
        else:
            found = (module._parameters | module._buffers).get(name, ABSENT)
        if found is ABSENT:
            raise AbsentError(str(self.refusal(node, f"reads {name}, which there is not")))
        if isinstance(found, Tensor):
            self.watch(own, "attributes", (name, Tensor))
            return self.record(node, "get_attr", f"{path}.{name}".lstrip("."), ())
        lists = type(found) in (list, tuple) and _is_plain(found)
        functions = types.FunctionType, types.BuiltinFunctionType
        if name in vars(module) and hasattr(found, "__dict__") and not callable(found):
            return Object(own, name, found)
        if not lists and not isinstance(found, (*functions, *SIMPLE)):
            raise self.refusal(node, f"reads {name}, {_described(found)}")
        self.watch(own, "attributes", (name, type(found)(found) if lists else found))
        return Held(found) if type(found) is list else found

    def subscript(self, node: ast.AST, value: Any, index: Any) -> Any:
        if isinstance(value, Own):
            found = self.children(node, value)
            get = type(value.module).__getitem__
            if isinstance(index, str) and get is nn.ModuleDict.__getitem__:
                return self.attempt(node, found.__getitem__, index)
            if isinstance(index, int) and get in (
                nn.Sequential.__getitem__, nn.ModuleList.__getitem__,
            ):  # fmt: skip
                return self.attempt(node, list(found.values()).__getitem__, index)
        elif isinstance(value, fx.Node) or isinstance(index, fx.Node):
            return self.record(node, "call_function", operator.getitem, (value, index))
        elif type(value) in (*LISTS, dict, str):
            return self.attempt(node, operator.getitem, value, index)
        raise self.refusal(node, f"takes an element of {_described(value)}")

    def call(self, node: ast.Call) -> Any:
        match node.func:
            case ast.Name("super") if not node.args and "super" not in self.names:
                free = self.function.__code__.co_freevars
                if self.names and "__class__" in free:
                    cell = self.function.__closure__[free.index("__class__")]
                    first = next(iter(self.names.values()))
                    if isinstance(first, Own):
                        return Super(first, cell.cell_contents)
                raise self.refusal(node, "is not understood")
            case ast.Attribute(value, name):
                owner = self.evaluate(value)
                if owner is None:
                    raise self.refusal(node, "calls a method of None")
            case _:
                owner, name, callee = None, "", self.evaluate(node.func)
        args = self.elements(node.args)
        if None in [keyword.arg for keyword in node.keywords]:
            raise self.refusal(node, "passes on keywords")
        kwargs = {keyword.arg: self.evaluate(keyword.value) for keyword in node.keywords}
        if isinstance(owner, fx.Node):
            if name.startswith("_") or name in UNSEEN or not hasattr(Tensor, name):
                raise self.refusal(node, f"calls {name}")
            return self.record(node, "call_method", name, (owner, *args), kwargs)
        if name in METHODS.get(type(owner), ()):
            if isinstance(owner, str) and not all(map(_is_plain, (*args, *kwargs.values()))):
                raise self.refusal(node, "makes a string")
            return self.attempt(node, getattr(owner, name), *args, **kwargs)
        if owner is not None:
            callee = self.attribute(node.func, owner, name)
        return self.called(node, callee, args, kwargs)

    def called(self, node: ast.Call, callee: Any, args: list, kwargs: dict) -> Any:
        reader = self.reader
        if isinstance(callee, Own):
            try:
                return reader.call(self.owner, callee, args, kwargs)
            except TypeError as error:
                raise self.refusal(node, f"passes on {error}") from error
        if isinstance(callee, Method):
            own, function = callee
            if function in CHILDREN and not args and not kwargs:
                return iter(list(CHILDREN[function](self.children(node, own))))
            return reader.enter(function, self.own, (own, *args), kwargs, self.owner)
        if not isinstance(callee, CALLABLE):
            raise self.refusal(node, f"calls {_described(callee)}")
        if callee is torch.jit.is_scripting:
            return False
        if callee is getattr and len(args) in (2, 3) and isinstance(args[1], str):
            owner, name, *default = args
            try:
                return self.attribute(node, owner, name)
            except AbsentError:
                if not default:
                    raise
            self.watch(owner, "attributes", (name, ABSENT))
            return default[0]
        if callee is isinstance and len(args) == 2:
            return self.is_instance(node, *args)
        if callee is len and len(args) == 1:
            return len(self.items(node, args[0]))
        if callee is range or callee in VALUES:
            args = [self.known(node, a) for a in args]
            return self.attempt(node, callee, *args, **kwargs)
        if callee in COLLECTIONS and len(args) <= 1 and not kwargs:
            return self.attempt(node, callee, *(self.items(node, a) for a in args))
        if callee in ITERATORS:
            made = self.attempt(node, callee, *(self.items(node, a) for a in args), **kwargs)
            return iter(list(made))
        if (
            callee in FUNCTIONS
            or hasattr(callee, "__prepare_scriptable__")
            or callee.__new__.__module__ == f"namedtuple_{callee.__name__}"
        ):
            if "out" in kwargs:
                raise self.refusal(node, "writes to out")
            return self.record(node, "call_function", callee, args, kwargs)
        of_torch = (callee.__module__ or "").startswith("torch.")
        if isinstance(callee, types.FunctionType) and not of_torch:
            before = reader.mark()
            try:
                return reader.enter(callee, self.own, args, kwargs, self.owner)
            except NotUnderstoodError:
                if not harmless(callee):
                    raise
            reader.back_to(before)
            args = [
                self.record(node, "get_attr", a.path, ()) if isinstance(a, Own) else a for a in args
            ]
            return self.record(node, "call_function", callee, args, kwargs)
        raise self.refusal(node, f"calls {getattr(callee, '__qualname__', _described(callee))}")

    def is_instance(self, node: ast.AST, value: Any, kinds: Any) -> bool:
        if isinstance(value, Own):
            return self.attempt(node, isinstance, value.module, kinds)
        if isinstance(value, fx.Node) and value.op == "placeholder":  # a tensor of some class
            if self.attempt(node, issubclass, Tensor, kinds):
                return True
            each = kinds if type(kinds) is tuple else get_args(kinds) or (kinds,)
            if any(issubclass(kind, Tensor) for kind in each):
                raise self.refusal(node, "tells tensors apart")
            return False
        if type(value) in (*LISTS, dict) or isinstance(value, SIMPLE):
            return self.attempt(node, isinstance, value, kinds)
        raise self.refusal(node, "branches on what a value is")


def _is_plain(value: Any) -> bool:
    """Whether all of it is known."""
    if type(value) in (*LISTS, range):
        return all(map(_is_plain, value))
    return isinstance(value, (type, types.UnionType, *SIMPLE))


def _mutable(value: Any) -> list:
    """The lists and dicts in it."""
    if type(value) not in (list, tuple, dict):
        return []
    inner = value.values() if type(value) is dict else value
    found = [] if type(value) is tuple else [value]
    return found + [m for v in inner for m in _mutable(v)]


def _described(value: Any) -> str:
    if isinstance(value, fx.Node):
        return "a value"
    if isinstance(value, Own):
        return f"a {type(value.module).__name__}"
    if isinstance(value, Object):
        return f"a {type(value.value).__name__}"
    if type(value) is Held:
        return "a list that an attribute holds"
    return "nothing" if value is ABSENT else f"a {type(value).__name__}"
