"""The source of functions, and what can be told of it without reading it statement by statement."""

import ast
import functools
import inspect
import linecache
import math
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .fused import own_class

# of torch's functions, all but those that change how torch works
FUNCTIONS = {
    function
    for name, function in [
        *vars(F).items(),
        *((name, getattr(torch, name)) for name in torch.functional.__all__),
        *((name, vars(torch).get(name)) for name in dir(torch._C._VariableFunctions)),
    ]
    if not name.startswith("_")
    and getattr(function, "__module__", "")
    in ("torch", "torch._C._nn", "torch.nn.functional", "torch.functional")
} | {torch._assert}

CALLABLE = (types.FunctionType, types.BuiltinFunctionType, type)
SIZES = {"dilation", "dtype", "groups", "kernel_size", "ndim", "padding", "shape", "stride"}
ASKED = {"dim", "numel", "size"}
COMPUTING = {abs, float, int, len, max, min, range, math.ceil, math.floor}
HARMLESS = (
    ast.BinOp, ast.BoolOp, ast.Compare, ast.Constant, ast.Expr, ast.If, ast.IfExp, ast.List,
    ast.Return, ast.Slice, ast.Subscript, ast.Tuple, ast.UnaryOp, ast.boolop, ast.cmpop,
    ast.expr_context, ast.keyword, ast.operator, ast.unaryop,
)  # fmt: skip


@functools.lru_cache(maxsize=4096)
def harmless(function: Callable, within: frozenset = frozenset()) -> bool:
    """Whether all that function may do is to compute with sizes and to call torch's functions.

    It writes to nothing but its own variables, and reads no more of a module than its sizes: it can
    be called as a whole, whatever it branches on.
    """
    found = source(function)
    if isinstance(found, str) or function in within:
        return False
    own = function.__code__.co_varnames
    todo = [*found.args.defaults, *found.body]
    while todo:
        node = todo.pop()
        match node:
            case ast.Call(ast.Attribute(value, name), args, keywords) if name in ASKED:
                todo += [value, *args, *keywords]
            case ast.Call(callee, args, keywords):
                if not _may_call(_named(function, callee), keywords, within | {function}):
                    return False
                todo += [*args, *keywords]
            case ast.Attribute(value, name) if name in SIZES:
                todo.append(value)
            case ast.Name(name) if name in own:
                pass
            case ast.Assign(targets, value) if all(map(_is_variable, targets)):
                todo.append(value)
            case _ if isinstance(node, HARMLESS):
                todo += ast.iter_child_nodes(node)
            case _:
                return False
    return True


def _is_variable(target: ast.expr) -> bool:
    if isinstance(target, ast.Tuple):
        return all(map(_is_variable, target.elts))
    return isinstance(target, ast.Name)


def _may_call(callee: Any, keywords: list[ast.keyword], within: frozenset) -> bool:
    if not isinstance(callee, CALLABLE):
        return False
    if callee in FUNCTIONS:
        written = {"out", "inplace"} & {keyword.arg for keyword in keywords}
        return not written and not callee.__name__.endswith("_")
    return callee in COMPUTING or harmless(callee, within)


def _named(function: types.FunctionType, node: ast.expr) -> Any:
    """What a name, or one in modules, stands for outside of function."""
    match node:
        case ast.Name(name):
            if name in (*function.__code__.co_varnames, *function.__code__.co_freevars):
                return None
            return function.__globals__.get(name, function.__builtins__.get(name))
        case ast.Attribute(value, name):
            owner = _named(function, value)
            return vars(owner).get(name) if isinstance(owner, types.ModuleType) else None
    return None


def source(function: Callable) -> ast.FunctionDef | str:
    """The function's definition, or why there is none to read."""
    if not isinstance(function, types.FunctionType) or inspect.isgeneratorfunction(function):
        return "is no Python function that returns"
    found = _definition(function.__code__)
    decorated = hasattr(function, "__wrapped__") or getattr(found, "decorator_list", ())
    return "has a decorator" if decorated else found


@functools.lru_cache(maxsize=4096)
def _definition(code: types.CodeType) -> ast.FunctionDef | str:
    text = "".join(linecache.getlines(code.co_filename))
    try:
        definitions, compiled = _file(code.co_filename, text)
    except (SyntaxError, ValueError):
        return "has no source"
    found = definitions.get((code.co_name, code.co_firstlineno))
    if found is None:
        return "has no source"
    if code not in compiled:  # a file that was written to, or code that another tool rewrote
        return "does not do what its source says"
    if any(isinstance(node, ast.Global | ast.Nonlocal) for node in ast.walk(found)):
        return "declares variables that are not its own"
    return found


@functools.lru_cache(maxsize=64)
def _file(name: str, text: str) -> tuple[dict[tuple[str, int], ast.FunctionDef], set]:
    """A file's functions by name and first line, and all the code it compiles to."""
    tree = ast.parse(text)
    definitions = {
        (node.name, min([node, *node.decorator_list], key=lambda n: n.lineno).lineno): node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    }
    compiled, todo = set(), [compile(tree, name, "exec", dont_inherit=True)]
    while todo:
        code = todo.pop()
        compiled.add(code)
        todo += [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return definitions, compiled


REACHING = {"children", "get_submodule", "modules", "named_children", "named_modules"}


def opens(container: nn.Module, child: str) -> bool:
    """Whether container's forward may do more with its child of this name than call it."""
    kind, done = own_class(container), set()
    todo = [kind.forward]
    while todo:
        function = inspect.unwrap(todo.pop())
        found = getattr(function, "__code__", None)
        tree = _definition(found) if found else "is no Python function"
        if isinstance(tree, str) or not tree.args.args:
            return True
        itself = tree.args.args[0].arg
        nodes = list(ast.walk(tree))
        called = [n.func for n in nodes if isinstance(n, ast.Call)]
        own = [n for n in nodes if isinstance(n, ast.Attribute) and _is_name(n.value, itself)]
        if len(own) < sum(_is_name(n, itself) for n in nodes) or any(
            _is_name(n, "super") for n in nodes
        ):
            return True  # passed on, or taken apart, as a whole
        for node in own:
            if node.attr in REACHING or (node.attr == child and node not in called):
                return True
            method = inspect.getattr_static(kind, node.attr, None)
            if not isinstance(method, types.FunctionType) and hasattr(method, "__get__"):
                return True  # a property, and so on
            if isinstance(method, types.FunctionType) and method not in done:
                done.add(method)
                todo.append(method)
    return False


def _is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name
