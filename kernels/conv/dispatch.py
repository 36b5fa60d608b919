"""Which kernel serves a convolution, and its launch."""

import contextlib
import functools
from collections.abc import Sequence
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _plan, _split
from .._common import empty_in, empty_nhwc, leave, nhwc, strides_in
from .._launch import start, within
from ..norm.normalise import NO_RESIDUAL, batch_norm, row
from ..norm.stats import Running, combined, partial_statistics
from . import measured, tuned
from .boxes.walk import DGRAD as BOXES_DGRAD
from .boxes.walk import FORWARD as BOXES_FORWARD
from .boxes.wgrad import WGRAD as BOXES_WGRAD
from .depthwise.columns import DGRAD as COLUMNS_DGRAD
from .depthwise.columns import FORWARD as COLUMNS_FORWARD
from .depthwise.columns_wgrad import WGRAD as COLUMNS_WGRAD
from .depthwise.walk import DGRAD as DEPTHWISE_DGRAD
from .depthwise.walk import FORWARD as DEPTHWISE_FORWARD
from .depthwise.wgrad import WGRAD as DEPTHWISE_WGRAD
from .epilogue import Epilogue
from .family import Call, Config, Family
from .gemm.product import DGRAD as GEMM_DGRAD
from .gemm.product import FORWARD as GEMM_FORWARD
from .gemm.wgrad import WGRAD as GEMM_WGRAD
from .general.dgrad import DGRAD as GENERAL_DGRAD
from .general.forward import FORWARD as GENERAL_FORWARD
from .general.wgrad import WGRAD as GENERAL_WGRAD
from .geometry import from_flat
from .grouped.dgrad import DGRAD as GROUPED_DGRAD
from .grouped.forward import FORWARD as GROUPED_FORWARD
from .grouped.rows import DGRAD as ROWS_DGRAD
from .grouped.rows import FORWARD as ROWS_FORWARD
from .grouped.rows_wgrad import WGRAD as ROWS_WGRAD
from .grouped.wgrad import WGRAD as GROUPED_WGRAD
from .precision import input_precision
from .problem import Problem, problem
from .stem.dgrad import DGRAD as CELLS_DGRAD
from .stem.forward import FORWARD as STEM_FORWARD
from .stem.padded import FORWARD as PADDED_FORWARD
from .stem.padded_wgrad import WGRAD as PADDED_WGRAD
from .stem.wgrad import WGRAD as STEM_WGRAD
from .stream.product import DGRAD as STREAM_DGRAD
from .stream.product import FORWARD as STREAM_FORWARD
from .toeplitz.product import DGRAD as TOEPLITZ_DGRAD
from .toeplitz.product import FORWARD as TOEPLITZ_FORWARD
from .toeplitz.wgrad import WGRAD as TOEPLITZ_WGRAD
from .tuned import Tuned

# those that serve by default, where they can, first
FAMILIES = {
    "forward": (
        COLUMNS_FORWARD,
        TOEPLITZ_FORWARD,
        DEPTHWISE_FORWARD,
        ROWS_FORWARD,
        GROUPED_FORWARD,
        PADDED_FORWARD,
        STEM_FORWARD,
        STREAM_FORWARD,
        GEMM_FORWARD,
        BOXES_FORWARD,
        GENERAL_FORWARD,
    ),
    "dgrad": (
        COLUMNS_DGRAD,
        TOEPLITZ_DGRAD,
        DEPTHWISE_DGRAD,
        ROWS_DGRAD,
        GROUPED_DGRAD,
        CELLS_DGRAD,
        STREAM_DGRAD,
        GEMM_DGRAD,
        BOXES_DGRAD,
        GENERAL_DGRAD,
    ),
    "wgrad": (
        COLUMNS_WGRAD,
        TOEPLITZ_WGRAD,
        DEPTHWISE_WGRAD,
        ROWS_WGRAD,
        GROUPED_WGRAD,
        PADDED_WGRAD,
        STEM_WGRAD,
        GEMM_WGRAD,
        BOXES_WGRAD,
        GENERAL_WGRAD,
    ),
}
SEPARATE = "separate"  # no family: passes of their own for what dgrad's epilogue may take, too
NAMES = sorted({SEPARATE, *(family.name for families in FAMILIES.values() for family in families)})

MOST_PARTS = 8192  # of batch norm's sums: to add up more takes as long as a pass of their own

_forced: ContextVar[tuple[str, Config | None] | None] = ContextVar("_forced", default=None)


class Choice(NamedTuple):
    """How a problem is served."""

    problem: Problem
    family: Family
    config: Config
    call: Call

    @property
    def tuned(self) -> Tuned:
        return Tuned(self.family.name, self.config)


def force_family(
    name: str, config: Config | None = None
) -> contextlib.AbstractContextManager[None]:
    """Serves every convolution in this context by the family called name.

    So are the backward passes that start in it, whichever context their forward was in; other
    threads are not.  Names are what explain() prints.  A pass that has no kernel in the family is
    served as always.  "separate" is none, and leaves the sums of batch norm's backward to passes of
    their own, which a chain takes in dgrad's epilogue otherwise.  Raises RuntimeError where the
    family does not serve a convolution, telling why.  For reports of bugs and comparisons.
    """
    if name not in NAMES:
        raise ValueError(f"force_family: name must be one of {', '.join(NAMES)}, got {name!r}")
    return within(_forced, (name, config))


def choose(p: Problem) -> Choice:
    """What is forced; else what the user's tuning found; else what was measured on such a GPU; else
    the first guess of the first family to serve."""
    families = {family.name: family for family in FAMILIES[p.work]}
    name, config = _forced.get() or (None, None)
    if name in families:
        family = families[name]
        if reason := family.declines(p):
            raise RuntimeError(
                f"force_family: expected what {name} serves, got {p}: {reason}; force another "
                "family"
            )
        config = config or family.configs(p)[0]
    else:
        family, config = found(p, tuned.lookup(p)) or shipped(p)
    return Choice(p, family, config, family.prepare(p, config))


def found(p: Problem, entry: Tuned | None) -> tuple[Family, Config] | None:
    """What a table has for problems like p, if it serves p."""
    if entry is None:
        return None
    for family in FAMILIES[p.work]:
        if family.name == entry.family and family.declines(p) is None:
            return next(((family, c) for c in family.configs(p) if c == entry.config), None)
    return None


def shipped(p: Problem) -> tuple[Family, Config]:
    """The choice for who has tuned and forces nothing."""
    return found(p, measured.lookup(p)) or guessed(p)


def guessed(p: Problem) -> tuple[Family, Config]:
    """The first guess of the first family that serves p and does not yield."""
    family = next(
        family for family in FAMILIES[p.work] if family.declines(p) is None and not family.yields(p)
    )
    return family, family.configs(p)[0]


@functools.lru_cache(maxsize=4096)
def chosen(
    work: str,
    x: tuple[int, ...],
    w: tuple[int, ...],
    y: tuple[int, ...] | None,
    geometry: tuple[int, ...],
    dtype: torch.dtype,
    precision: str,
    device: torch.device,
    forced: tuple[str, Config | None] | None,
    statistics: bool = False,
) -> Choice:
    """choose(problem(...)), remembered; y, where it is None, follows from the others.

    forced is what this context forces: what else it is remembered by.
    """
    g = from_flat(geometry)
    y = y or g.y_shape(x, w)
    return choose(problem(device, work, x, w, y, g, dtype, precision, statistics))


def forget() -> None:
    """Chooses anew, for all contexts."""
    chosen.cache_clear()
    _plan.forget()


def depends_on(x: Tensor) -> tuple:
    """All that chosen() depends on beside tensors' sizes and dtypes."""
    return _plan.generation(), _forced.get(), input_precision(x)


def declined(p: Problem) -> dict[str, str]:
    """The families that do not serve p, and why."""
    reasons = {family.name: family.declines(p) for family in FAMILIES[p.work]}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def convolve(
    work: str,
    source: Tensor,
    w: Tensor,
    x_shape: Sequence[int],
    end: Epilogue,
    with_stats: bool,
    memory_format: torch.memory_format,
    geometry: Sequence[int],
    running: Running | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Forward or dgrad and, where wanted, [mean, var] of its channels, which move running."""
    if 0 in x_shape:
        return _nothing(work, source, w, x_shape, memory_format, geometry), None
    choice = chosen(
        work, tuple(x_shape), w.shape, None if work == "forward" else source.shape,
        tuple(geometry), source.dtype, input_precision(source), source.device, _forced.get(),
        with_stats,
    )  # fmt: skip
    return convolved(choice, source, w, end, with_stats, memory_format, running)


def convolve_normalised(
    c: Tensor,
    norm: Sequence,
    activation: str,
    w: Tensor,
    bias: Tensor | None,
    memory_format: torch.memory_format,
    geometry: Sequence[int],
    running: Running | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Forward of activation(norm(c)) with statistics, as convolve; norm as of undone.

    By one kernel, if the family that serves it has one.
    """
    forced = _forced.get()
    choice = None
    if 0 not in c.shape:
        choice = chosen(
            "forward", c.shape, w.shape, None, tuple(geometry), c.dtype, input_precision(c),
            c.device, forced, True,
        )  # fmt: skip
    if choice is None or choice.family.normalised is None or forced == (SEPARATE, None):
        z = batch_norm(c, *norm, *NO_RESIDUAL, activation, torch.channels_last)
        if choice is None:
            return _nothing("forward", z, w, z.shape, memory_format, geometry), None
        return convolved(choice, z, w, Epilogue(bias), True, memory_format, running)
    call, (*vectors, eps) = _normalising(choice.problem, choice.family, choice.config), norm
    y = empty_nhwc(choice.problem.y, c, memory_format)
    partial = partial_statistics(call.parts, y.shape[1], y)
    given = *map(row, (*vectors, bias)), partial, eps, activation
    args = *call.operands(nhwc(c), nhwc(w)), y, *call.sizes, *given
    start(call.kernel, call.programs, args, (y, partial), call.constants, choice)
    return leave(y, memory_format), combined(partial, running)


@functools.lru_cache(maxsize=1024)
def _normalising(p: Problem, family: Family, config: Config) -> Call:
    return family.normalised(p, config)


def convolved(
    choice: Choice,
    source: Tensor,
    w: Tensor,
    end: Epilogue,
    with_stats: bool,
    memory_format: torch.memory_format,
    running: Running | None = None,
) -> tuple[Tensor, Tensor | None]:
    """As convolve, by the kernel of that choice."""
    p, call = choice.problem, choice.call
    result = empty_nhwc(p.y if p.work == "forward" else p.x, source, memory_format)
    partial = partial_statistics(call.parts, result.shape[1], result) if with_stats else None
    given = call.operands(nhwc(source), nhwc(w))
    if call.sums is not None:
        given = call.sums(*given, result.dtype if end.is_plain else _split.sum_dtype(result.dtype))
    args = *given, result, *call.sizes, *end.arguments(partial)
    outs = (result, partial) if with_stats else (result,)
    start(call.kernel, call.programs, args, outs, call.constants, choice)
    return leave(result, memory_format), combined(partial, running) if with_stats else None


def takes_sums(
    dy: Tensor, w: Tensor, x_shape: Sequence[int], geometry: Sequence[int]
) -> Choice | None:
    """How dgrad is served with batch norm's sums, where the family that serves it takes them."""
    forced = _forced.get()
    if 0 in x_shape or forced == (SEPARATE, None):
        return None
    choice = chosen(
        "dgrad", tuple(x_shape), w.shape, dy.shape, tuple(geometry), dy.dtype, input_precision(dy),
        dy.device, forced, True,
    )  # fmt: skip
    takes = choice.family.undoes is not None and choice.call.parts <= MOST_PARTS
    return choice if takes else None


def undone(
    choice: Choice, dy: Tensor, w: Tensor, c: Tensor, norm: Sequence, activation: str
) -> tuple[Tensor, Tensor, Tensor]:
    """From the gradient of what w made of z = activation(norm(c)), by the kernel of that choice:
    the gradient of norm(c), z, and the sums for c's; norm is mean, var, scale, shift and eps."""
    call, (*vectors, eps) = choice.call, norm
    g, z = empty_nhwc(c.shape, dy), empty_nhwc(c.shape, dy)
    sums = dy.new_empty((2, c.shape[1]), dtype=_split.sum_dtype(dy.dtype))
    partial = _split.partial_sums(call.parts, sums)
    given = nhwc(c), z, *map(row, vectors), partial
    args = *call.operands(nhwc(dy), nhwc(w)), g, *call.sizes, *given, eps, activation
    start(choice.family.undoes, call.programs, args, (g, z, partial), call.constants, choice)
    return g, z, _split.add_splits(partial, sums)


def _nothing(work, source, w, x_shape, memory_format, geometry) -> Tensor:
    """The result for a batch of no images."""
    y_shape = from_flat(geometry).y_shape(x_shape, w.shape)
    return empty_in(y_shape if work == "forward" else x_shape, source, memory_format)


def reduce(
    dy: Tensor,
    x: Tensor,
    w_shape: Sequence[int],
    memory_format: torch.memory_format,
    geometry: Sequence[int],
    dtype: torch.dtype | None = None,
) -> Tensor:
    """wgrad, in dtype or x's."""
    if dy.numel() == 0 or x.numel() == 0:
        return x.new_zeros(w_shape, dtype=dtype).contiguous(memory_format=memory_format)
    choice = chosen(
        "wgrad", x.shape, tuple(w_shape), dy.shape, tuple(geometry), x.dtype, input_precision(x),
        x.device, _forced.get(),
    )  # fmt: skip
    return reduced(choice, dy, x, memory_format, dtype)


def reduced(
    choice: Choice,
    dy: Tensor,
    x: Tensor,
    memory_format: torch.memory_format,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """As reduce, by the kernel of that choice; its sum of splits may be taken later."""
    p, call = choice.problem, choice.call
    dw = empty_nhwc(p.w, x, memory_format, dtype)
    partial = _split.partial_sums(call.parts, dw)
    args = *call.operands(nhwc(dy), nhwc(x)), partial, *call.sizes
    start(call.kernel, call.programs, args, (partial,), call.constants, choice)
    if dw.stride() == strides_in(dw.shape, memory_format):
        return _split.add_splits_later(partial, dw)
    return leave(_split.add_splits(partial, dw), memory_format)
