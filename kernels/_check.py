"""Checking a fused model against its own forwards, on a given input.

Each container that ran fused, then the model, is called both ways with the same arguments, random
numbers and gradients of its outputs: as it is with gradients, and in evaluation mode without.  With
r the results of its own forward in float64, the fused one's must be within

    EXACT * |r|                                in float64, which rounding hardly touches
    NOISE * |o - r| + FLOOR * |r| + ...        in the model's dtype

by norms of whole tensors, where o is its own forward's in that dtype, from parameters and arguments
that are a rounding away from those given.  FLOOR is a few roundings, and for gradients a few square
roots of one: values near zero may be rectified on one side and not on the other.  The rest is a few
roundings of the largest tensor of its kind, for what cancels.  Everything runs on copies.
"""

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ._stand_in import Fused, Program, copied

EXACT = 1e-7
NOISE = 8
ROUNDINGS = 4
FLIPS = 0.05  # of a gradient, at least: one value of 400
LEAST = 1e-3  # of the largest tensor of its kind: a smaller one may be rounding alone

Results = dict[str, Tensor]


class Call(NamedTuple):
    args: tuple
    kwargs: dict


def check_fused(model: nn.Module, fused: nn.Module, args: tuple) -> list[str]:
    """The paths of the fused containers that no call reached; RuntimeError where results differ."""
    reached, given = set(), Call(args, {})
    tensors = [t for t in (*model.parameters(), *tree_leaves(args)) if isinstance(t, Tensor)]
    devices = {t.device for t in tensors if t.is_cuda}
    with torch.random.fork_rng(devices=devices):
        for evaluation in (False, True):
            pair = [copied(m).eval() if evaluation else copied(m) for m in (model, fused)]
            ran, within = _fused_paths(copied(pair[1]), given, not evaluation)
            calls = _calls(copied(pair[0]), given, not evaluation)
            for path in [p for p in calls if p in ran or not p]:  # the model is the last to end
                both = [m.get_submodule(path) for m in pair]
                why = _difference(*both, calls[path], gradients=not evaluation)
                if why is not None:
                    kind = type(both[0]).__name__
                    raise RuntimeError(
                        f"fuse: {path or 'the model'}, a {kind}, gives {why}"
                        f"{' in evaluation' if evaluation else ''}; if a larger batch, whose batch "
                        "norms see more values, does no better, do not use the fused model, and "
                        f"report it with the forward of {kind}"
                    )
            reached |= ran | within
    containers = fused.named_modules()
    return [name for name, m in containers if isinstance(m, Fused) and name not in reached]


def _fused_paths(fused: nn.Module, call: Call, gradients: bool) -> tuple[set[str], set[str]]:
    """Of the containers whose programs run in a call, and of those that are part of these."""
    ran, within = set(), set()

    def noting(path: str, program: Program) -> Callable:
        def forward(*args: Any) -> Any:
            ran.add(path)
            entered = [w.path for w in program.watched if w.entered]
            within.update(".".join(filter(None, (path, *inner))) for inner in entered)
            return program.forward(*args)

        return forward

    for path, module in fused.named_modules():
        if isinstance(module, Fused) and module._fusion is not None:
            programs = {
                key: program._replace(forward=noting(path, program))
                for key, program in module._fusion.programs.items()
            }
            module._fusion = module._fusion._replace(programs=programs)
    with contextlib.suppress(Exception):  # which the container that raises it will raise again
        _results(fused, call, gradients)
    return ran, within


def _calls(model: nn.Module, call: Call, gradients: bool) -> dict[str, Call]:
    """Each module's first call, in the order in which they end."""
    began, ended = {}, {}
    for path, module in model.named_modules():

        def begin(module, args, kwargs, path=path):
            if path not in began:
                began[path] = tree_map(_clone, Call(args, kwargs))

        def end(module, args, y, path=path):
            ended.setdefault(path, began[path])

        module.register_forward_pre_hook(begin, with_kwargs=True)
        module.register_forward_hook(end)
    _results(model, call, gradients)
    return ended | {"": call}


def _clone(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _difference(own: nn.Module, fused: nn.Module, call: Call, gradients: bool) -> str | None:
    """What of the results is not the same, if anything."""
    dtypes = [p.dtype for p in own.parameters() if p.is_floating_point()]
    dtype = max(dtypes, key=lambda d: torch.finfo(d).eps, default=torch.float32)
    exactly = tree_map(lambda v: v.double() if _is_float(v) else v, call)
    with _Drawn(dtype):
        right = _results(copied(own).double(), exactly, gradients)
    roughly = copied(own)
    with torch.no_grad():
        for p in roughly.parameters():
            p.copy_(_rounded_otherwise(p))
    near = _results(roughly, tree_map(_rounded_otherwise, call), gradients)
    try:
        with _Drawn(dtype):
            rewritten = _results(copied(fused).double(), exactly, gradients)
        found = _results(copied(fused), call, gradients)
    except Exception as error:
        return f"{type(error).__name__} ({error})"

    largest = {}
    for name, r in right.items():
        kind = name.split()[0]
        largest[kind] = max(largest.get(kind, 0.0), r.double().norm().item())
    for name in right | rewritten | near | found:
        missing = [name in results for results in (right, rewritten, near, found)]
        if not all(missing):
            return f"{'no' if name in right else 'a'} {name}"
        r, e, o, f = (results[name] for results in (right, rewritten, near, found))
        if (f.shape, f.dtype) != (o.shape, o.dtype) or e.shape != r.shape:
            return f"another {name} ({f.dtype} {tuple(f.shape)} for {o.dtype} {tuple(o.shape)})"
        if not f.is_floating_point():
            if not torch.equal(f, o):
                return f"another {name}"
            continue
        kind, r = name.split()[0], r.double()
        size = max(r.norm().item(), LEAST * largest[kind])
        eps = torch.finfo(f.dtype).eps
        floor = ROUNDINGS * eps
        if kind == "gradient":
            floor = max(FLIPS, ROUNDINGS * math.sqrt(eps))
        noise = (o.double() - r).norm().item()
        rounding = NOISE * noise + floor * size + ROUNDINGS * eps * largest[kind]
        for y, bound in ((e, EXACT * size), (f, rounding)):
            error = (y.double() - r).norm().item()
            if not error <= bound and not r.isnan().any():
                return f"another {name} ({y.dtype}: off by {error:.2g}, rounding by {bound:.2g})"
    return None


def _results(module: nn.Module, call: Call, gradients: bool) -> Results:
    """What a call gives and leaves behind, by name."""
    torch.manual_seed(0)
    leaves = {f"argument {i}": t for i, t in enumerate(tree_leaves(call)) if isinstance(t, Tensor)}
    wanted = {name: t for name, t in leaves.items() if gradients and _is_float(t)}
    fresh = {id(t): t.detach().clone().requires_grad_(name in wanted) for name, t in leaves.items()}
    # no leaves: they may be written to
    given = {key: t.clone() for key, t in fresh.items()}
    args, kwargs = tree_map(lambda value: given.get(id(value), value), call)
    with torch.set_grad_enabled(gradients):
        y = module(*args, **kwargs)
    outputs = [t for t in tree_leaves(y) if isinstance(t, Tensor)]
    results = {f"output {i}": t.detach() for i, t in enumerate(outputs)}
    if not results:
        raise TypeError(f"fuse: check found no tensor in what {type(module).__name__} returns")
    differentiable = [t for t in outputs if t.requires_grad]
    if differentiable:
        generator = torch.Generator().manual_seed(0)
        dys = [torch.randn(t.shape, generator=generator).to(t) for t in differentiable]
        torch.autograd.backward(differentiable, dys)
    sources = {name: fresh[id(t)] for name, t in wanted.items()} | dict(module.named_parameters())
    results |= {f"gradient of {n}": t.grad for n, t in sources.items() if t.grad is not None}
    results |= {f"buffer {name}": t for name, t in module.named_buffers()}
    return results | {name: given[id(t)].detach() for name, t in leaves.items()}


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _cast(value: Any, given: torch.dtype, to: torch.dtype) -> Any:
    """A tensor of the given dtype, or this dtype, as another."""
    if isinstance(value, Tensor):
        return value.to(to) if value.dtype == given else value
    return to if value is given else value


def _rounded_otherwise(value: Any) -> Any:
    if not _is_float(value):
        return value
    generator = torch.Generator().manual_seed(0)
    off = torch.rand(value.shape, generator=generator, dtype=torch.float64) * 2 - 1
    factor = 1 + torch.finfo(value.dtype).eps * off.to(value.device)
    return (value.double() * factor).to(value.dtype)


class _Drawn(TorchDispatchMode):
    """Random numbers of float64 are drawn in dtype: then runs in either draw the same."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.narrow = functools.partial(_cast, given=torch.float64, to=dtype)
        self.wide = functools.partial(_cast, given=dtype, to=torch.float64)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        drawn = func(*tree_map(self.narrow, args), **tree_map(self.narrow, kwargs))
        if func._schema.is_mutable:
            return args[0].copy_(drawn)
        return tree_map(self.wide, drawn)
