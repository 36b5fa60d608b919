"""What every operator shares: registration, the contract's checks, layouts and pixel tiles."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch._C import _len_torch_dispatch_stack
from torch._prims_common import suggest_memory_format
from torch.autograd import _profiler_enabled, forward_ad
from torch.nn import Parameter

from ._launch import INTERPRETED, INTERPRETED_BLOCK

Size = int | Sequence[int]  # one for all spatial axes, or one each
INT = (int, torch.SymInt)
PLAIN = (Tensor, Parameter)  # other types of tensors may have symbolic shapes, or none

LIBRARY = torch.library.Library("tritonconv", "DEF")
FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

# From here on offsets are 64-bit: half of what 32 bits hold, since padding makes some negative.
WIDE_FROM = 2**30


def op(schema: str, fake: Callable) -> Callable:
    """Registers the decorated launcher as an opaque private op; `fake` allocates its result.

    What it gives calls the op, or the launcher itself where the op would do no more: torch's
    dispatcher costs twice as much as the rest of a call.
    """

    def register(launcher: Callable) -> Callable:
        name = schema.split("(")[0]

        def dispatched(*args):
            # the dispatcher makes lists of them: a launcher sees the same from either side
            return launcher(*(tuple(a) if isinstance(a, list) else a for a in args))

        LIBRARY.define(schema)
        LIBRARY.impl(name, dispatched, "CompositeExplicitAutograd")
        torch.library.register_fake(f"tritonconv::{name}", fake, lib=LIBRARY)
        registered = getattr(torch.ops.tritonconv, name).default

        @functools.wraps(launcher)
        def call(*args):
            return launcher(*args) if _unobserved(args) else registered(*args)

        return call

    return register


def _unobserved(args: tuple) -> bool:
    """Whether nobody traces, records or replaces ops: no compiler, mode, profiler or subclass."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if _len_torch_dispatch_stack() or _profiler_enabled():
        return False
    for a in args:  # noqa: SIM110 what it suggests costs as much as it spares
        if isinstance(a, Tensor) and (type(a) not in PLAIN or a.is_meta):
            return False
    return True


def apply(name: str, function: type[torch.autograd.Function], *args: Any) -> Any:
    """function.apply(*args), for a public operator called `name`."""
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
    """Marks a public operator: torch.jit.script refuses it by its name, and what calls it."""
    function.__prepare_scriptable__ = functools.partial(no_script, function.__name__)
    return function


def ints(name: str, argument: str, value: Size, dims: int) -> tuple[int, ...]:
    """One int for all of dims axes, or one each, as a tuple of dims ints."""
    if isinstance(value, INT):
        return (value,) * dims
    if not isinstance(value, tuple | list) or not all(isinstance(v, INT) for v in value):
        raise TypeError(f"{name}: {argument} must be an int or a tuple of ints, got {value!r}")
    if len(value) not in (1, dims):
        raise RuntimeError(
            f"{name}: {argument} must be a single int or a tuple of {dims}, got {value!r}"
        )
    return tuple(value) if len(value) == dims else tuple(value) * dims


def require_at_least(name: str, argument: str, values: Sequence[int], least: int) -> None:
    if any(v < least for v in values):
        raise RuntimeError(
            f"{name}: {argument} must be {'positive' if least else 'non-negative'}, got "
            f"{tuple(values)}"
        )


def check_tensor(name: str, argument: str, x: Tensor, dims: tuple[int, ...]) -> None:
    """x is a tensor of a floating dtype we have kernels for, with one of the given ranks."""
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
    if x.dim() not in dims:
        ranks = " or ".join(f"{d}-D" for d in dims)
        raise RuntimeError(f"{name}: {argument} must be {ranks}, got shape {tuple(x.shape)}")


def autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors in autocast's dtype, where it is on; float64 stays, as with torch's operators."""
    device = tensors[0].device.type
    # what has autocast, by name: torch 2.11 cannot trace the question which device has it
    if device not in ("cuda", "cpu") or not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [
        t.to(dtype) if isinstance(t, Tensor) and t.dtype in FLOATING[:3] else t for t in tensors
    ]


def images(x: Tensor, dims: int) -> Tensor:
    """x, of dims spatial axes, as a batch of images [N, C, H, W]; a single axis as one row."""
    x = x if x.dim() == dims + 2 else x.unsqueeze(0)
    return x if dims == 2 else x.unsqueeze(-2)


def as_given(y: Tensor, dims: int, x: Tensor) -> Tensor:
    """What came of images(x, dims), in x's form."""
    y = y if dims == 2 else y.squeeze(-2)
    return y if x.dim() == dims + 2 else y.squeeze(0)


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


def leave(y: Tensor, memory_format: torch.memory_format) -> Tensor:
    """y [N, C, H, W] in memory_format, with that format's strides in dimensions of size 1 too."""
    _, C, H, W = y.shape
    if memory_format == torch.channels_last:
        strides = H * W * C, 1, W * C, C
    else:
        C, H, W = max(C, 1), max(H, 1), max(W, 1)
        strides = C * H * W, H * W, W, 1
    if y.stride() == strides:
        return y
    y = y.contiguous(memory_format=memory_format)
    return y if y.stride() == strides else y.as_strided(y.shape, strides)


def empty_nhwc(shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    _, C, H, W = shape
    strides = H * W * C, 1, W * C, C
    return torch.empty_strided(shape, strides, dtype=dtype or like.dtype, device=like.device)


def empty_in(shape: Sequence[int], like: Tensor, memory_format: torch.memory_format) -> Tensor:
    """What a fake returns: like's dtype and device, the memory format the result leaves in."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)


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
