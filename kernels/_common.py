"""What every operator shares: registration, the contract's checks, layouts and pixel tiles."""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch._C import (
    DispatchKey,
    _dispatch_tls_is_dispatch_key_included,
    _is_tracing,
    _len_torch_dispatch_stack,
)
from torch._prims_common import suggest_memory_format
from torch.autograd import _profiler_enabled, forward_ad
from torch.overrides import handle_torch_function, has_torch_function_variadic

from ._later import collecting
from ._launch import INTERPRETED, INTERPRETED_BLOCK, watched
from ._plan import plannable
from ._signature import PLAIN

Size = int | Sequence[int]  # one for all spatial axes, or one each

LIBRARY = torch.library.Library("tritonconv", "DEF")
FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

# Pixels along one axis, with padding: a pixel's coordinate has 32 bits, a tile's overhang included.
LONGEST = 2**31 - 2**20

# From here on offsets are 64-bit: half of what 32 bits hold, since padding makes some negative.
WIDE_FROM = 2**30


def op(schema: str, fake: Callable) -> Callable:
    """Registers the decorated launcher as an opaque private op; `fake` allocates its result.

    What it gives calls the op, or the launcher itself where the op would do no more.
    """

    def register(launcher: Callable) -> Callable:
        name = schema.split("(")[0]

        def dispatched(*args):
            # the dispatcher makes lists of them: a launcher sees the same from either side
            with collecting(None):  # who looks on may read what it gives
                return launcher(*(tuple(a) if isinstance(a, list) else a for a in args))

        # torch.jit.trace knows no lists of SymInt, torch.compile needs them
        for form in (schema, schema.replace("(", ".traced(", 1).replace("SymInt[]", "int[]")):
            overload = form.split("(")[0]
            LIBRARY.define(form)
            LIBRARY.impl(overload, dispatched, "CompositeExplicitAutograd")
            torch.library.register_fake(f"tritonconv::{overload}", fake, lib=LIBRARY)
        registered = getattr(torch.ops.tritonconv, name).default
        traced = getattr(torch.ops.tritonconv, name).traced

        @functools.wraps(launcher)
        def call(*args):
            if torch.compiler.is_compiling():
                return registered(*args)
            if _is_tracing():
                return traced(*args)
            return launcher(*args) if _unobserved(args) else registered(*args)

        return call

    return register


def _unobserved(args: tuple) -> bool:
    """Whether the dispatcher would only call the launcher: nobody records or replaces ops, and each
    tensor is what its memory holds."""
    if _profiler_enabled() or (_len_torch_dispatch_stack() and not watched()):
        return False
    if _dispatch_tls_is_dispatch_key_included(DispatchKey.PreDispatch):
        return False
    for a in args:
        # a subclass; negated lazily; on meta, a lazy zero, a functional wrapper, or empty
        if isinstance(a, Tensor) and (type(a) not in PLAIN or a.is_neg() or a.data_ptr() == 0):
            return False
    return True


def apply(name: str, function: type[torch.autograd.Function], *args: Any) -> Any:
    """function.apply(*args), for a public operator called `name`."""
    if plannable():  # past what Function.apply does for transforms
        return super(torch.autograd.Function, function).apply(*args)
    refuse_transforms(name, *args)
    return function.apply(*args)


def refuse_transforms(name: str, *args: Any) -> None:
    """What would differentiate past the autograd Functions: silently wrong, if let through."""
    if torch._C._are_functorch_transforms_active():
        raise NotImplementedError(
            f"{name}: torch.func transforms are not supported; use torch.autograd"
        )
    if forward_ad._current_level >= 0 and any(
        isinstance(a, Tensor) and forward_ad.unpack_dual(a).tangent is not None for a in args
    ):
        raise NotImplementedError(
            f"{name}: forward-mode differentiation is not supported; use torch.autograd.grad"
        )


def no_script(name: str) -> None:
    raise NotImplementedError(
        f"{name}: torch.jit.script is not supported; use torch.compile or torch.export"
    )


def public(function: Callable) -> Callable:
    """Makes a public operator of a function.

    As torch's own it is seen by what overrides functions (torch.fx's proxies, subclasses of Tensor,
    modes), and, unlike them, refused by its name by torch.jit.script.
    """

    @functools.wraps(function)
    def operator(*args, **kwargs):
        given = (*args, *kwargs.values()) if kwargs else args
        if has_torch_function_variadic(*given):
            return handle_torch_function(operator, given, *args, **kwargs)
        return function(*args, **kwargs)

    operator.__prepare_scriptable__ = functools.partial(no_script, function.__name__)
    return operator


def integer(name: str, argument: str, value: Any, expected: str = "an int") -> int:
    """value as torch takes it for an int: numpy's and tensors' integers, too, but no bool."""
    if isinstance(value, int | torch.SymInt) and not isinstance(value, bool):
        return value
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise TypeError(f"{name}: {argument} must be {expected}, got {value!r}")


def ints(name: str, argument: str, value: Size, dims: int) -> tuple[int, ...]:
    """One int for all of dims axes, or one each, as a tuple of dims ints."""
    given = value if isinstance(value, tuple | list) else (value,)
    values = tuple(integer(name, argument, v, "an int or a tuple of ints") for v in given)
    if len(values) not in (1, dims):
        raise RuntimeError(
            f"{name}: {argument} must be a single int or a tuple of {dims}, got {value!r}"
        )
    return values if len(values) == dims else values * dims


def real(name: str, argument: str, value: Any) -> float:
    """value as torch takes it for a float: numpy's numbers and tensors of one element, too."""
    if isinstance(value, float | torch.SymFloat):
        return value
    try:
        if not isinstance(value, str):
            return float(value)
    except TypeError:
        pass
    raise TypeError(f"{name}: {argument} must be a number, got {value!r}")


def flag(name: str, argument: str, value: bool) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name}: {argument} must be a bool, got {value!r}")
    return value


def require_at_least(name: str, argument: str, values: Sequence[int], least: int) -> None:
    if any(v < least for v in values):
        raise RuntimeError(
            f"{name}: {argument} must be {'positive' if least else 'non-negative'}, got "
            f"{tuple(values)}"
        )
    if any(isinstance(v, int) and v >= 2**31 for v in values):
        raise RuntimeError(f"{name}: {argument} must be less than 2**31, got {tuple(values)}")


def steps(
    name: str,
    padded: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> dict[str, tuple[int, ...]]:
    """Stride and dilation, by name, of windows that move over axes so long, padding included.

    Without what leads nowhere, for kernels count as far as it: a single tap has no distance to
    another, and a stride that leaves the axis after the first window is cut to the axis's length,
    which leaves just one window, too.  Lengths are checked.
    """
    if any(isinstance(n, int) and n > LONGEST for n in padded):
        raise RuntimeError(
            f"{name}: expected at most {LONGEST} pixels along an axis, with its padding, got "
            f"{tuple(padded)}; reduce the padding"
        )
    axes = list(zip(padded, kernel, stride, dilation, strict=True))
    return {
        "stride": tuple(s if s <= d * (k - 1) + 1 else min(s, n) for n, k, s, d in axes),
        "dilation": tuple(1 if k == 1 else d for _, k, _, d in axes),
    }


def check_tensor(name: str, argument: str, x: Tensor, dims: tuple[int, ...] | None) -> None:
    """x is a tensor of a floating dtype we have kernels for, its rank one of dims."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: {argument} must be a Tensor, got {type(x).__name__}")
    if x.layout != torch.strided:
        raise NotImplementedError(
            f"{name}: {argument} must be a dense tensor, got layout {x.layout}; call .to_dense()"
        )
    if x.dtype not in FLOATING:
        raise NotImplementedError(
            f"{name}: {argument} must be float32, float16, bfloat16 or float64, got {x.dtype}; "
            "convert it first"
        )
    if dims is not None and x.dim() not in dims:
        ranks = " or ".join(f"{d}-D" for d in dims)
        raise RuntimeError(f"{name}: {argument} must be {ranks}, got shape {tuple(x.shape)}")


def autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors in autocast's dtype, where it is on; float64 stays, as with torch's operators."""
    dtype = autocast_dtype(tensors[0])
    if dtype is None:
        return list(tensors)
    return [
        t.to(dtype) if isinstance(t, Tensor) and t.dtype in FLOATING[:3] else t for t in tensors
    ]


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    # what has autocast, by name: torch 2.11 cannot trace the question which device has it
    device = "cuda" if x.is_cuda else "cpu"
    if not (x.is_cuda or x.is_cpu) or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def images(x: Tensor, dims: int) -> Tensor:
    """x, of dims spatial axes, as a batch of images [N, C, H, W]; a single axis as one row."""
    x = x if x.dim() == dims + 2 else x.unsqueeze(0)
    return x if dims == 2 else x.unsqueeze(-2)


def as_given(y: Tensor, dims: int, rank: int) -> Tensor:
    """What came of images(x, dims), in the form of an x of that rank."""
    return reshaped(y, (*y.shape[: rank - dims - 1], y.shape[1], *y.shape[4 - dims :]))


def reshaped(y: Tensor, shape: Sequence[int]) -> Tensor:
    """y, a result that nobody else holds, in another shape; not a view of it (see leave)."""
    if y.shape == shape:
        return y
    if torch.jit.is_tracing():  # which sees where the sizes come from in this one alone
        return y.reshape(shape)
    return torch.ops.aten._unsafe_view.default(y, shape)


def layout(x: Tensor) -> torch.memory_format:
    """channels_last or contiguous_format, as torch's operators read it from the strides."""
    if x.dim() != 4 or torch.compiler.is_compiling():
        return suggest_memory_format(x)
    # the same in a tenth of the time, which every call of a convolution pays twice
    (N, C, H, W), (step_n, step_c, step_h, step_w) = x.shape, x.stride()
    if 0 in (N, C, H, W, step_c) or H * step_h == step_c:
        return torch.contiguous_format
    in_order = C * step_c <= step_w and W * step_w <= step_h and H * step_h <= step_n
    return torch.channels_last if in_order else torch.contiguous_format


def nhwc(x: Tensor) -> Tensor:
    """The same logical [N, C, H, W], laid out [N, H, W, C] in memory; no copy where it is so."""
    return x.contiguous(memory_format=torch.channels_last)


def strides_in(shape: Sequence[int], memory_format: torch.memory_format) -> tuple[int, ...]:
    """torch's strides of images in a memory format, in dimensions of size 1 too."""
    _, C, H, W = shape
    if memory_format == torch.channels_last:
        return H * W * C, 1, W * C, C
    C, H, W = max(C, 1), max(H, 1), max(W, 1)
    return C * H * W, H * W, W, 1


def leave(y: Tensor, memory_format: torch.memory_format) -> Tensor:
    """y [N, C, H, W] in memory_format: itself if it has that format's strides, or else a copy.

    Never a view: what an autograd Function returns can be changed in place only if it is none.
    """
    strides = strides_in(y.shape, memory_format)
    if y.stride() == strides:
        return y
    return y.new_empty_strided(y.shape, strides).copy_(y)


def empty_nhwc(
    shape: Sequence[int],
    like: Tensor,
    memory_format: torch.memory_format = torch.channels_last,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Room for [N, H, W, C] in memory, which is to leave in memory_format.

    Images of one channel or one pixel lie alike in both: they have its strides from the start.
    """
    _, C, H, W = shape
    if C > 1 and H * W > 1:
        memory_format = torch.channels_last
    strides = strides_in(shape, memory_format)
    if shape[0] * strides[0] >= 2**60:
        raise RuntimeError(f"tritonconv: a result of shape {tuple(shape)} fits no memory")
    return torch.empty_strided(shape, strides, dtype=dtype or like.dtype, device=like.device)


def empty_in(
    shape: Sequence[int],
    like: Tensor,
    memory_format: torch.memory_format,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """What a fake returns: dtype (or like's), like's device, and the format it leaves in."""
    dtype = dtype or like.dtype
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=memory_format)


def accumulator(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if dtype == torch.float64 else tl.float32


def index_type(*tensors: Tensor, most: int = 0) -> tl.dtype:
    """The integer type that holds every offset into these tensors, and numbers up to `most`."""
    largest = max((most, *(t.numel() for t in tensors)))
    return tl.int64 if largest >= WIDE_FROM else tl.int32


def pixel_blocks(pixels: int, channels: int, block: int = 1024) -> tuple[int, dict[str, int]]:
    """Programs, BLOCK_P and BLOCK_C, for a kernel that owns tiles of `block` [pixels, channels]."""
    block_c = min(triton.next_power_of_2(max(channels, 1)), 64)
    block_p = block // block_c
    if INTERPRETED:
        block_p = min(INTERPRETED_BLOCK // block_c, triton.next_power_of_2(max(pixels, 1)))
    programs = triton.cdiv(pixels, block_p) * triton.cdiv(channels, block_c)
    return programs, {"UNIT": unit(channels), "BLOCK_P": block_p, "BLOCK_C": block_c}


def unit(channels: int) -> int:
    """The power of two, up to 16, that divides channels: as many may be loaded at once."""
    return max(min(channels & -channels, 16), 1)


@triton.jit
def units(C, UNIT: tl.constexpr):
    """C, a multiple of UNIT, such that the compiler sees it; by itself it looks for 16 only."""
    return C // UNIT * UNIT


@triton.jit
def unravel(start, BLOCK: tl.constexpr, H, W):
    """Image, row and column of pixels start to start + BLOCK of [N, H, W].

    Only start may need 64 bits: dividing vectors of 64 bits costs hundreds of instructions.
    """
    w = start + tl.arange(0, BLOCK)
    if w.dtype == tl.int64:
        w = tl.cast(start % W, tl.int32) + tl.arange(0, BLOCK)
        h = tl.cast(start // W % H, tl.int32) + w // W
        n = start // W // H + h // H
    else:
        h = w // W
        n = h // H
    return n, h % H, w % W


@triton.jit
def tile(pixels, C, INDEX: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """The program's tile of [pixels, C]: first pixel, channels [BLOCK_C], offsets, inside."""
    program = tl.cast(tl.program_id(0), INDEX)
    tiles_c = tl.cdiv(C, BLOCK_C)
    start = program // tiles_c * BLOCK_P
    p = start + tl.arange(0, BLOCK_P)
    c = (program % tiles_c * BLOCK_C).to(tl.int32) + tl.arange(0, BLOCK_C)
    return start, c, p[:, None] * C + c[None, :], (p < pixels)[:, None] & (c < C)[None, :]


@triton.jit
def pixel_tile(
    pixels, C, H, W, INDEX: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """The program's tile of [N, H, W, C]: n, h, w [BLOCK_P, 1], c [1, BLOCK_C], offset, inside."""
    start, c, offs, inside = tile(pixels, C, INDEX, BLOCK_P, BLOCK_C)
    n, h, w = unravel(start, BLOCK_P, H, W)
    return n[:, None], h[:, None], w[:, None], c[None, :], offs, inside
