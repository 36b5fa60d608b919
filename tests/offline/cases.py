"""What the offline check compiles: calls of the public operators, forward and backward."""

import json
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple
from unittest import mock

import torch
import tritonconv
from torch import Tensor
from tritonconv import _common, _split, tune
from tritonconv.conv import measured
from tritonconv.conv.geometry import from_flat
from tritonconv.conv.problem import problem_on
from tritonconv.conv.tuned import Tuned
from tritonconv.nets.resnet import BasicBlock
from tritonconv.norm.activation import FUNCTIONS

DTYPES = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "tf32": torch.float32,
    "fp32": torch.float32,
    "fp64": torch.float64,
}

# Kernels whose products run on the matrix unit, fed by asynchronous copies.
MATRIX_KERNELS = {"conv2d_fwd", "conv2d_dgrad", "conv2d_dgrad_sums", "conv2d_wgrad"}
TMA_KERNELS = {
    "conv2d_stream",
    "conv2d_stream_normalised",
    "conv2d_gemm",
    "conv2d_gemm_sums",
    "conv2d_gemm_wgrad",
    "conv2d_boxes",
    "conv2d_boxes_sums",
    "conv2d_boxes_wgrad",
    "conv2d_rows",
    "conv2d_rows_wgrad",
    "conv2d_toeplitz",
    "conv2d_toeplitz_wgrad",
}
MATRIX_KERNELS |= TMA_KERNELS
# Those and what is launched beside them.
SM_90_KERNELS = TMA_KERNELS | {"toeplitz_copy", "toeplitz_bands", "toeplitz_finish"}
# Those that load through the first cache, which keeps what other taps read again.
CACHED_KERNELS = {
    "conv2d_grouped_fwd",
    "conv2d_grouped_dgrad",
    "conv2d_grouped_wgrad",
    "conv2d_stem_fwd",
    "conv2d_stem_dgrad",
    "conv2d_stem_wgrad",
    "conv2d_padded_stem",
    "conv2d_padded_stem_wgrad",
}
MATRIX_KERNELS |= CACHED_KERNELS

# Kernels that cannot read 16 bytes at a time, whatever the case.
NARROW = {
    "max_pool2d_scatter": "the taps are bytes",
    "max_pool2d_gather": "each element reads where its own maximum lies",
    "corr2d": "a matrix's rows have any length",
    "conv2d_depthwise": "a channel's weights lie together, so a tap's lie apart",
    "conv2d_columns": "a thread has few channels, so that it can have many pixels",
    "conv2d_columns_sums": "a thread has few channels, so that it can have many pixels",
    "conv2d_columns_wgrad": "a thread has few channels, so that it can have many pixels",
    "conv2d_grouped_fwd": "a group's weights are narrower than a copy",
    "conv2d_grouped_dgrad": "a group's weights are narrower than a copy",
    "conv2d_stem_fwd": "a window's rows start at any element",
    "stem_copy": "pixels of 3 channels start at any element",
    "stem_cells": "a cell's weights lie apart",
    "conv2d_stem_dgrad": "a step's weights are fewer than 16 bytes a thread",
    "conv2d_padded_stem": "a window's rows are of whole pixels, of 8 bytes",
    "conv2d_padded_stem_wgrad": "a window's rows are of whole pixels, of 8 bytes",
    "conv2d_stem_wgrad": "a window's rows start at any element",
    "toeplitz_bands": "a band's weights start at any element",
    "toeplitz_finish": "what its loop takes anew are a tap's weights, which lie apart",
}


class Case(NamedTuple):
    name: str
    dtype: str
    call: Callable[[str], None]
    narrow: Mapping[str, str] = {}  # kernels that copy less than 16 bytes at a time here, and why
    plain: str = ""  # the case of the same kernels with nothing fused into them
    family: str = "general"  # of convolutions, which serves
    spilled: int = (
        32  # bytes, beside the loop: what ptxas gives for one more block a multiprocessor
    )


def empty(shape: tuple[int, ...], dtype: str, grad: bool = True) -> Tensor:
    memory_format = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    x = torch.empty(shape, dtype=DTYPES[dtype], memory_format=memory_format)
    return x.requires_grad_(grad)


def conv(
    c, co, k, size=28, bias=False, grads="xw", groups=1, images=8, **options
) -> Callable[[str], None]:
    def call(dtype: str) -> None:
        torch.backends.cudnn.conv.fp32_precision = "tf32" if dtype == "tf32" else "ieee"
        x = empty((images, c, size, size), dtype, "x" in grads)
        w = empty((co, c // groups, k, k), dtype, "w" in grads)
        b = empty((co,), dtype) if bias else None
        y = tritonconv.conv2d(x, w, b, groups=groups, **options)
        if y.requires_grad:
            y.backward(torch.empty_like(y))

    return call


def conv_transpose(c, co, k, **options) -> Callable[[str], None]:
    def call(dtype: str) -> None:
        x, w, b = empty((8, c, 14, 14), dtype), empty((c, co, k, k), dtype), empty((co,), dtype)
        y = tritonconv.conv_transpose2d(x, w, b, **options)
        y.backward(torch.empty_like(y))

    return call


def pool(operator, *args, **options) -> Callable[[str], None]:
    """Forward, backward, and double backward where that is a kernel of ours."""

    def call(dtype: str) -> None:
        x = empty((8, 64, 28, 28), dtype)
        y = operator(x, *args, **options)
        dy = torch.empty_like(y).requires_grad_()
        (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
        if operator is not tritonconv.adaptive_max_pool2d:
            dx.backward(torch.empty_like(dx))

    return call


def batch_norm(dtype: str) -> None:
    x, w, b = empty((8, 64, 28, 28), dtype), empty((64,), dtype), empty((64,), dtype)
    running = empty((64,), dtype, False), empty((64,), dtype, False)
    y = tritonconv.batch_norm(x, *running, w, b, training=True)
    y.backward(torch.empty_like(y))


def sums_together(dtype: str) -> None:
    """Of many parts and of few."""
    with _split.together():
        for splits in (20, 3):
            partial = torch.empty(splits, 4096, dtype=_split.sum_dtype(DTYPES[dtype]))
            _split.add_splits_later(partial, torch.empty(4096, dtype=DTYPES[dtype]))


def stream_normalised(c: int, co: int) -> Callable[[str], None]:
    """A convolution with statistics, of what it normalises."""

    def call(dtype: str) -> None:
        torch.backends.cudnn.conv.fp32_precision = "tf32"
        x, w = empty((8, c, 28, 28), dtype, False), empty((co, c, 1, 1), dtype, False)
        v, how = torch.empty(c), (1, 1, 0, 0, 0, 0, 1, 1, 1)
        given = x, v, v, v, v, 1e-5, "relu", w, None, torch.channels_last, how
        torch.ops.tritonconv.conv2d_normalised_stats(*given)

    return call


def normalised_pair(dtype: str) -> None:
    """Backward of a block with a normalised shortcut."""
    x, v = empty((8, 64, 28, 28), dtype, False), empty((64,), dtype, False)
    sums = torch.empty(4, 64, dtype=torch.float64 if dtype == "fp64" else torch.float32)
    ops = torch.ops.tritonconv
    ops.batch_norm_pair_sums(x, x, x, v, v, 1e-5, x, v, v, 1e-5, "relu")
    ops.batch_norm_pair_bwd(x, x, x, v, v, v, 1e-5, x, v, v, v, 1e-5, "relu", sums)


def epilogues(
    c: int, co: int, k: int, stride: int = 1, groups: int = 1, undoes: bool = False
) -> dict[str, Callable[[str], None]]:
    """By name: a convolution with what may follow in its epilogue; undoes: what dgrad's may, too."""
    how = (stride, stride, *[k // 2] * 4, 1, 1, groups)
    last, ops = torch.channels_last, torch.ops.tritonconv

    def tensors(dtype: str) -> list[Tensor]:
        torch.backends.cudnn.conv.fp32_precision = "tf32" if dtype == "tf32" else "ieee"
        shapes = (8, c, 28, 28), (co, c // groups, k, k), (8, co, 28 // stride, 28 // stride), (co,)
        return [empty(shape, dtype, False) for shape in shapes]

    def statistics(dtype: str) -> None:
        x, w, *_ = tensors(dtype)
        ops.conv2d_stats(x, w, None, last, how)

    def normalised(dtype: str) -> None:
        x, w, r, v = tensors(dtype)
        ops.conv2d_fused(x, w, None, v, v, v, v, r, None, 1e-5, "relu", last, how)

    def added(dtype: str) -> None:
        x, w, dy, _ = tensors(dtype)
        nothing = (None,) * 5
        ops.conv2d_dgrad_fused(dy, w, *nothing, x, x, 0.0, "relu", list(x.shape), last, how)

    def undone(dtype: str) -> None:
        c, w, dy, _ = tensors(dtype)
        v = empty((c.shape[1],), dtype, False)
        ops.conv2d_dgrad_undone(dy, w, c, v, v, v, v, 1e-5, "relu", how)

    found = {"statistics": statistics, "normalised": normalised, "added": added}
    return found | {"undone": undone} if undoes else found


def with_activations(name: str, dtype: str, c: int, co: int, k: int, **of_case) -> list[Case]:
    """A convolution with batch norm and an activation in its epilogue: the costly ones."""
    groups = c if of_case.get("family") == "depthwise" else 1
    how = (1, 1, *[k // 2] * 4, 1, 1, groups)

    def calling(activation: str) -> Callable[[str], None]:
        def call(dtype: str) -> None:
            torch.backends.cudnn.conv.fp32_precision = "ieee"
            x, w = empty((8, c, 28, 28), dtype, False), empty((co, c // groups, k, k), dtype, False)
            v = empty((co,), dtype, False)
            end = (v, v, v, v, v, None, None, 1e-5, activation)
            torch.ops.tritonconv.conv2d_fused(x, w, *end, torch.channels_last, how)

        return call

    return [Case(f"{name} {act}", dtype, calling(act), **of_case) for act in ("silu", "gelu")]


def activations(dtype: str) -> None:
    """Forward and backward of each activation, with batch norm and without."""
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    x, w = empty((8, 64, 28, 28), dtype), empty((64, 64, 1, 1), dtype)
    v, running = empty((64,), dtype), [empty((64,), dtype, False) for _ in range(2)]
    costly = ("silu", "gelu", "gelu_tanh")
    for name in sorted(FUNCTIONS.keys() - {"none"}) if dtype == "fp16" else costly:
        y = tritonconv.conv_bn_relu(x, w, v, *running, v, v, training=True, activation=name)
        y.backward(torch.empty_like(y))
    for act in (torch.nn.ReLU(), torch.nn.Sigmoid(), torch.nn.SiLU()):
        convs = tritonconv.Conv2d(64, 64, 1), act, tritonconv.Conv2d(64, 64, 1), act
        net = tritonconv.fuse(torch.nn.Sequential(*convs)).to(DTYPES[dtype])
        y = net(empty((8, 64, 28, 28), dtype))
        y.backward(torch.empty_like(y))


EPILOGUE_SUMS = {"statistics": ["batch_norm_combine"], "undone": ["add_splits"]}


def epilogue_narrow(c: int, dtype: str, name: str) -> dict[str, str]:
    """Which kernels of epilogues' cases copy less than 16 bytes at a time."""
    kernel = {"added": "conv2d_dgrad", "undone": "conv2d_dgrad_sums"}.get(name, "conv2d_fwd")
    if c % 8 and dtype == "fp16":
        return narrow(ODD["conv2d_fwd"], kernel, *EPILOGUE_SUMS.get(name, ()))
    if dtype == "tf32" and kernel != "conv2d_fwd":
        return narrow(TF32["conv2d_dgrad sm_90"], f"{kernel} sm_90")
    return {}


def block(c: int) -> Callable[[str], None]:
    """Two 3x3 convolutions, and what they get added to: forward and backward."""

    def call(dtype: str) -> None:
        torch.backends.cudnn.conv.fp32_precision = "tf32" if dtype == "tf32" else "ieee"
        fused = tritonconv.fuse(BasicBlock(c, c)).to(DTYPES[dtype])
        y = fused(empty((8, c, 28, 28), dtype))
        y.backward(torch.empty_like(y))

    return call


def transposed_and_shortcut(dtype: str) -> None:
    """Statistics in dgrad's epilogue, and a normalised shortcut."""
    conv, norm = tritonconv.ConvTranspose2d(64, 64, 4, 2, 1), tritonconv.BatchNorm2d(64)
    with torch.no_grad():
        for net, size in ((torch.nn.Sequential(conv, norm), 14), (BasicBlock(64, 128, 2), 28)):
            tritonconv.fuse(net).to(DTYPES[dtype])(empty((8, 64, size, size), dtype))


def given_residual(dtype: str) -> None:
    """Backward of what adds a given residual: with the batch's statistics, and with given ones."""
    x, w, v = empty((8, 64, 28, 28), dtype), empty((64, 64, 1, 1), dtype), empty((64,), dtype)
    mean, var = empty((64,), dtype, False), empty((64,), dtype, False)
    for training, scale in ((False, None), (True, v)):
        y = tritonconv.conv_bn_relu(
            x, w, None, mean, var, scale, scale, training=training, residual=empty(x.shape, dtype)
        )
        y.backward(torch.empty_like(y))


def corr2d(dtype: str) -> None:
    y = tritonconv.corr2d(empty((30, 30), dtype), empty((3, 3), dtype))
    y.backward(torch.empty_like(y))


def wide(call: Callable[[str], None]) -> Callable[[str], None]:
    """call as with tensors so large that offsets take 64 bits."""

    def with_wide_offsets(dtype: str) -> None:
        with mock.patch.object(_common, "WIDE_FROM", 0):
            call(dtype)

    return with_wide_offsets


def narrow(reason: str, *kernels: str) -> dict[str, str]:
    return dict.fromkeys(kernels, reason)


PASSES = ("conv2d_fwd", "conv2d_dgrad", "conv2d_wgrad")
NORM = ("batch_norm_fwd", "batch_norm_sums", "batch_norm_bwd", "batch_norm_combine")
FEW = narrow("with few channels, taps and channels are one index, read by element", *PASSES)
FEW_IN = narrow(FEW["conv2d_fwd"], "conv2d_fwd")
FEW_OUT = narrow(FEW["conv2d_dgrad"], "conv2d_dgrad")
ODD = narrow("channels are no multiple of 16: rows may start unaligned", *PASSES)
BYTES = narrow("the taps are bytes", "max_pool2d_scatter_any")
ODD_SUM = narrow("the weights are no multiple of 16 elements", "add_splits")
ODD_BLOCK = ODD | ODD_SUM | narrow(ODD["conv2d_fwd"], "conv2d_dgrad_sums", *NORM)
TF32 = narrow(
    "wgmma reads tf32 along the reduction only; what lies across it is copied by element",
    "conv2d_dgrad sm_90",
    "conv2d_wgrad sm_90",
)


def depthwise(
    name: str, dtype: str, k: int, c=64, stride=1, calling=lambda call: call, family="depthwise"
) -> Case:
    call = calling(conv(c, c, k, groups=c, stride=stride, padding=k // 2))
    odd = family == "depthwise" and c % 8
    exempt = narrow(ODD["conv2d_wgrad"], "conv2d_depthwise_wgrad") if odd else {}
    exempt |= ODD_SUM if k * k * c % 16 else {}
    return Case(f"{name} {family} {c}", dtype, call, exempt, family=family)


def toeplitz(dtype: str, k: int, c: int, calling=lambda call: call, **options) -> Case:
    name = f"{k}x{k}{' wide' if calling is wide else ''} toeplitz {c}"
    call = calling(conv(c, c, k, groups=c, padding=k // 2, **options))
    exempt = narrow(ODD["conv2d_wgrad"], "toeplitz_copy") if c % 8 else {}
    exempt |= ODD_SUM if k * k * c % 16 else {}
    return Case(name, dtype, call, exempt, family="toeplitz")


def grouped(c: int, dtype: str, groups=32, stride=1) -> Case:
    call = conv(c * groups, c * groups, 3, groups=groups, stride=stride, padding=1)
    name = f"3x3{'/2' if stride > 1 else ''} groups of {c}"
    exempt = narrow(ODD["conv2d_wgrad"], "conv2d_grouped_wgrad") if c % 4 else {}
    return Case(name, dtype, call, exempt, family="grouped")


def stem(c: int, co: int, k: int, dtype: str, stride=1, family="stem", grads="w") -> Case:
    call = conv(c, co, k, size=64, stride=stride, padding=k // 2, grads=grads)
    name = (
        f"{k}x{k}{f'/{stride}' if stride > 1 else ''} {c}-{co} {family}{' dgrad' * (grads == 'x')}"
    )
    return Case(name, dtype, call, ODD_SUM if k * k * c * co % 16 else {}, family=family)


max_pool2d, avg_pool2d = tritonconv.max_pool2d, tritonconv.avg_pool2d
adaptive_avg_pool2d = tritonconv.adaptive_avg_pool2d
adaptive_max_pool2d = tritonconv.adaptive_max_pool2d

# By dtype, channels that between them take every tile.
EVERY_TILE = {
    "fp16": (128, 64, 32, 16, 130, 19),
    "tf32": (64, 32, 16),
    "fp32": (64, 32, 16),
    "fp64": (32, 16),
}

# Each tile in each pass, each kernel: for every device.
TILES = (
    Case("3x3 64 undone", "bf16", epilogues(64, 64, 3, undoes=True)["undone"], plain="3x3 64"),
    Case(
        "3x3 columns 64 undone",
        "fp16",
        epilogues(64, 64, 3, groups=64, undoes=True)["undone"],
        plain="3x3 columns 64",
        family="columns",
    ),
    Case("batch norm pair 64", "fp16", normalised_pair),
    Case("sums together", "fp32", sums_together),
    Case("3x3 128", "fp16", conv(128, 128, 3, padding=1, bias=True)),
    Case("3x3 64", "fp16", conv(64, 64, 3, padding=1)),
    Case("3x3 32", "fp16", conv(32, 32, 3, padding=1)),
    Case("3x3 16", "fp16", conv(16, 16, 3, padding=1)),
    Case("3x3 130", "fp16", conv(130, 130, 3, padding=1), ODD | ODD_SUM),
    Case("3x3 36", "fp16", conv(36, 36, 3, padding=1), ODD),
    Case("3x3 20", "fp16", conv(20, 20, 3, padding=1), ODD),
    Case("3x3 67", "fp16", conv(67, 67, 3, padding=1), ODD | ODD_SUM),
    Case("3x3 35", "fp16", conv(35, 35, 3, padding=1), ODD | ODD_SUM),
    Case("3x3 19", "fp16", conv(19, 19, 3, padding=1), ODD | ODD_SUM),
    Case("3x3 128", "bf16", conv(128, 128, 3, padding=1)),
    Case("3x3 64", "tf32", conv(64, 64, 3, padding=1, bias=True), TF32),
    Case("3x3 32", "tf32", conv(32, 32, 3, padding=1), TF32),
    Case("3x3 16", "tf32", conv(16, 16, 3, padding=1), TF32),
    Case("3x3 36", "tf32", conv(36, 36, 3, padding=1), TF32),
    Case("3x3 20", "tf32", conv(20, 20, 3, padding=1), TF32),
    Case("3x3 64", "fp32", conv(64, 64, 3, padding=1)),
    Case("3x3 32", "fp32", conv(32, 32, 3, padding=1)),
    Case("3x3 16", "fp32", conv(16, 16, 3, padding=1)),
    Case("3x3 20", "fp32", conv(20, 20, 3, padding=1)),
    Case("3x3 32", "fp64", conv(32, 32, 3, padding=1, bias=True)),
    Case("3x3 16", "fp64", conv(16, 16, 3, padding=1)),
    Case("3x3 20", "fp64", conv(20, 20, 3, padding=1)),
    depthwise("3x3", "fp16", 3),
    depthwise("7x7", "fp16", 7),
    depthwise("3x3", "fp16", 3, family="columns"),
    depthwise("7x7", "fp16", 7, family="columns"),
    grouped(4, "fp16"),
    stem(3, 64, 7, "fp16", stride=2),
    stem(3, 64, 7, "fp16", 2, "padded"),
    stem(3, 64, 7, "fp16", 2, "cells", "x"),
    Case("max 5x5", "fp16", pool(max_pool2d, 5, 1, 2), BYTES),
    Case("avg 5x5", "fp16", pool(avg_pool2d, 5, 1, 2)),
    Case("max 3x3/2", "fp16", pool(max_pool2d, 3, 2, 1)),
    Case("avg 3x3/2", "fp16", pool(avg_pool2d, 3, 2, 1)),
    Case("adaptive avg 6x6", "fp16", pool(adaptive_avg_pool2d, 6)),
    Case("adaptive max 6x6", "fp16", pool(adaptive_max_pool2d, 6)),
    Case("batch norm 64", "fp16", batch_norm),
    Case("corr2d 3x3", "fp16", corr2d),
)

# Other reductions, geometries, channels and dtypes on the same tiles: for sm_80 and sm_90.
FORMS = (
    # reductions that a tile's k divides, or does not, where the above do not have them
    Case("3x3 144", "fp16", conv(144, 144, 3, padding=1)),
    Case("3x3 80", "fp16", conv(80, 80, 3, padding=1)),
    Case("3x3 48", "fp16", conv(48, 48, 3, padding=1)),
    Case("3x3 128-32", "fp16", conv(128, 32, 3, padding=1, grads="")),
    Case("3x3 128-16", "fp16", conv(128, 16, 3, padding=1, grads="")),
    Case("3x3 32-128", "fp16", conv(32, 128, 3, padding=1, grads="x")),
    Case("3x3 16-128", "fp16", conv(16, 128, 3, padding=1, grads="x")),
    # other geometries
    Case("1x1 64-256", "fp16", conv(64, 256, 1)),
    Case("1x1/2 256-128", "fp16", conv(256, 128, 1, stride=2)),
    Case("3x3/2 128", "fp16", conv(128, 128, 3, stride=2, padding=1)),
    Case("3x3/2 32", "fp16", conv(32, 32, 3, stride=2, padding=1)),
    Case("3x3 8 groups of 64", "fp16", conv(512, 512, 3, padding=1, groups=8)),
    Case("7x7 128", "fp16", conv(128, 128, 7, padding=3)),
    Case("7x7 80", "fp16", conv(80, 80, 7, padding=3)),
    Case(
        "transposed 4x4/2 128",
        "fp16",
        conv_transpose(128, 128, 4, stride=2, padding=1),
    ),
    # few channels
    Case("7x7/2 3-64", "fp16", conv(3, 64, 7, size=64, stride=2, padding=3), FEW),
    Case("3x3 3-128", "fp16", conv(3, 128, 3, padding=1, grads=""), FEW_IN),
    Case("3x3 8-32", "fp16", conv(8, 32, 3, padding=1)),
    Case("3x3 128-3", "fp16", conv(128, 3, 3, padding=1, grads="x"), FEW_OUT),
    Case("3x3 64-8", "fp16", conv(64, 8, 3, padding=1, grads="x")),
    Case("3x3 32-8", "fp16", conv(32, 8, 3, padding=1, grads="x")),
    Case("5x5 1-6", "fp16", conv(1, 6, 5, padding=2), FEW | ODD_SUM),
    grouped(8, "fp16", stride=2),
    grouped(16, "bf16"),
    *(grouped(c, dtype) for c in (17, 18) for dtype in ("fp16", "bf16")),
    *(grouped(17, dtype) for dtype in ("tf32", "fp32", "fp64")),
    grouped(32, "fp16"),
    grouped(32, "tf32"),
    grouped(8, "fp32"),
    grouped(4, "fp64"),
    *(stem(3, 64, 7, dtype, stride=2) for dtype in ("tf32", "fp32", "fp64")),
    stem(3, 32, 3, "bf16", stride=2),
    stem(3, 96, 11, "fp16", stride=4),
    stem(1, 6, 5, "fp16"),
    *(stem(3, 64, 7, dtype, 2, "cells", "x") for dtype in ("bf16", "tf32", "fp32", "fp64")),
    stem(3, 96, 11, "fp16", 4, "cells", "x"),
    stem(3, 64, 7, "bf16", 2, "padded"),
    stem(3, 32, 3, "fp16", 2, "padded"),
    *(
        Case(f"7x7/2 3-64 padded {name}", "fp16", call, plain="7x7/2 3-64 padded", family="padded")
        for name, call in epilogues(3, 64, 7, 2).items()
        if name != "added"
    ),
    depthwise("3x3/2", "fp16", 3, stride=2),
    depthwise("5x5", "bf16", 5),
    depthwise("31x31", "fp16", 31),
    depthwise("7x7/2", "fp32", 7, stride=2),
    *(depthwise(f"{k}x{k}", "fp64", k) for k in (3, 7)),
    depthwise("3x3", "fp16", 3, c=36),
    depthwise("3x3", "bf16", 3, family="columns"),
    depthwise("3x3", "fp32", 3, family="columns"),
    depthwise("3x3/2", "fp16", 3, stride=2, family="columns"),
    depthwise("5x5", "bf16", 5, family="columns"),
    depthwise("5x5", "fp32", 5, family="columns"),
    depthwise("7x7/2", "fp32", 7, stride=2, family="columns"),
    *(depthwise(f"{k}x{k}", "fp64", k, family="columns") for k in (3, 5, 7)),
    depthwise("3x3", "fp16", 3, c=36, family="columns"),
    *(
        Case(
            f"{k}x{k} columns 64 {name}", dtype, call, plain=f"{k}x{k} columns 64", family="columns"
        )
        for k, dtype in ((3, "bf16"), (3, "fp32"), (7, "fp16"))
        for name, call in epilogues(64, 64, k, groups=64, undoes=True).items()
    ),
    Case(
        "3x3 30x30 depthwise 64",
        "fp16",
        conv(64, 64, 3, size=30, groups=64, padding=1, grads="w"),
        family="depthwise",
    ),
    # 64-bit offsets
    Case("3x3 128 wide", "fp16", wide(conv(128, 128, 3, padding=1, bias=True))),
    depthwise("3x3 wide", "fp16", 3, calling=wide),
    depthwise("3x3 wide", "fp16", 3, calling=wide, family="columns"),
    Case("7x7 128 wide", "fp16", wide(conv(128, 128, 7, padding=3))),
    Case("7x7/2 3-64 wide", "fp16", wide(conv(3, 64, 7, size=64, stride=2, padding=3)), FEW),
    # other dtypes
    Case("3x3/2 64", "tf32", conv(64, 64, 3, stride=2, padding=1), TF32),
    Case("7x7 64", "tf32", conv(64, 64, 7, padding=3), TF32),
    Case("7x7/2 3-64", "tf32", conv(3, 64, 7, size=64, stride=2, padding=3), FEW),
    Case("7x7/2 3-64", "fp32", conv(3, 64, 7, size=64, stride=2, padding=3), FEW),
    Case("7x7/2 3-64", "fp64", conv(3, 64, 7, size=64, stride=2, padding=3), FEW),
    # pools and corr2d
    *(Case("max 3x3/2", dtype, pool(max_pool2d, 3, 2, 1)) for dtype in ("bf16", "fp32", "fp64")),
    Case("max 20x20", "fp16", pool(max_pool2d, 20)),
    Case("max 3x3/2 wide", "fp16", wide(pool(max_pool2d, 3, 2, 1))),
    *(Case("avg 3x3/2", dtype, pool(avg_pool2d, 3, 2, 1)) for dtype in ("fp32", "fp64")),
    Case("avg 3x3/2 inside", "fp16", pool(avg_pool2d, 3, 2, 1, count_include_pad=False)),
    Case("avg 3x3/2 by 3", "fp16", pool(avg_pool2d, 3, 2, 1, divisor_override=3)),
    *(Case("adaptive avg 6x6", dtype, pool(adaptive_avg_pool2d, 6)) for dtype in ("fp32", "fp64")),
    Case("adaptive avg 1x1", "fp16", pool(adaptive_avg_pool2d, 1)),
    Case("adaptive avg 6x6 wide", "fp16", wide(pool(adaptive_avg_pool2d, 6))),
    Case("adaptive max 6x6", "fp32", pool(adaptive_max_pool2d, 6)),
    Case("adaptive max 6x6 wide", "fp16", wide(pool(adaptive_max_pool2d, 6))),
    Case("avg 3x3/2 wide", "fp16", wide(pool(avg_pool2d, 3, 2, 1))),
    *(Case("batch norm 64", dtype, batch_norm) for dtype in ("bf16", "fp32", "fp64")),
    Case("batch norm 64 wide", "fp16", wide(batch_norm)),
    *(Case("sums together", dtype, sums_together) for dtype in ("bf16", "fp64")),
    Case("sums together wide", "fp32", wide(sums_together)),
    *(Case("batch norm pair 64", dtype, normalised_pair) for dtype in ("bf16", "fp32", "fp64")),
    *(Case("corr2d 3x3", dtype, corr2d) for dtype in ("fp32", "fp64")),
    # fused: every tile with each epilogue, and what surrounds them
    *(
        Case(
            f"3x3 {c} {name}",
            dtype,
            call,
            epilogue_narrow(c, dtype, name),
            plain=f"3x3 {c}",
            spilled=64 if name == "undone" else 32,  # once in a program
        )
        for dtype, widths in EVERY_TILE.items()
        for c in widths
        for name, call in epilogues(c, c, 3, undoes=True).items()
    ),
    *(
        Case(f"1x1 64-256 {name}", "fp16", call, plain="1x1 64-256")
        for name, call in epilogues(64, 256, 1).items()
    ),
    *(
        Case("3x3 64 block", dtype, block(64), plain="batch norm 64")
        for dtype in ("fp16", "bf16", "fp32", "fp64")
    ),
    Case("3x3 36 block", "fp16", block(36), ODD_BLOCK),
    Case("1x1 64 given residual", "fp16", given_residual),
    Case("3x3 64 block wide", "fp16", wide(block(64))),
    Case("transposed and shortcut", "fp16", transposed_and_shortcut),
    *(Case("activations", dtype, activations) for dtype in ("fp16", "fp32", "fp64")),
    *with_activations("3x3 128", "fp16", 128, 128, 3, plain="3x3 128"),
    *with_activations("3x3 64", "fp32", 64, 64, 3, plain="3x3 64"),
    *with_activations("3x3 32", "fp64", 32, 32, 3, plain="3x3 32"),
    *with_activations("3x3 depthwise 64", "fp16", 64, 64, 3, family="depthwise"),
)
# By the tensor memory accelerator: for sm_90; in bfloat16 are those that were measured.
TMA = (
    *(
        case
        for dtype in ("fp16", "tf32")
        for case in (
            Case("1x1 256-512 gemm", dtype, conv(256, 512, 1), family="gemm"),
            Case("3x3 256 boxes", dtype, conv(256, 256, 3, padding=1), family="boxes"),
        )
    ),
    *(
        Case(f"1x1 {c}-{co} stream", dtype, conv(c, co, 1, grads="x"), family="stream")
        for dtype in ("fp16", "tf32")
        for c, co in ((64, 128), (128, 64))
    ),
    *(
        Case(f"3x3 groups of {c} rows", dtype, call, family="rows")
        for c, dtype, grads in ((4, "fp16", "xw"), (32, "bf16", "w"))
        for call in (conv(32 * c, 32 * c, 3, groups=32, padding=1, grads=grads),)
    ),
    Case(
        "3x3 groups of 40 rows",
        "bf16",
        conv(320, 320, 3, groups=8, padding=1, grads="w"),
        family="rows",
    ),
    Case(
        "3x3/2 groups of 8 rows",
        "bf16",
        conv(256, 256, 3, groups=32, stride=2, padding=1, grads=""),
        family="rows",
    ),
    Case(
        "3x3 groups of 4 rows wide",
        "fp16",
        wide(conv(128, 128, 3, groups=32, padding=1, grads="")),
        family="rows",
    ),
    toeplitz("fp16", 31, 64, size=56, images=64),
    toeplitz("bf16", 31, 64, grads="x"),
    toeplitz("fp16", 29, 36),
    toeplitz("fp16", 9, 64, wide),
    *(
        Case(
            f"31x31 toeplitz 64 {name}", "fp16", call, plain="31x31 toeplitz 64", family="toeplitz"
        )
        for name, call in epilogues(64, 64, 31, groups=64).items()
        if name == "statistics"
    ),
    Case("1x1 256-64 stream", "fp16", conv(256, 64, 1, grads=""), family="stream"),
    *(
        Case(f"1x1 {c}-256 stream normalised", dtype, stream_normalised(c, 256), family="stream")
        for dtype in ("fp16", "tf32")
        for c in (64, 128)
    ),
    Case("1x1 256-64 stream normalised", "fp16", stream_normalised(256, 64), family="stream"),
    Case("1x1 16-24 stream", "fp16", conv(16, 24, 1, grads="x"), family="stream"),
    *(
        Case(f"{k}x{k}/2 256 boxes", dtype, call, family="boxes")
        for dtype in ("fp16", "tf32")
        for k in (1, 3)
        for call in (conv(256, 256, k, stride=2, padding=k // 2),)
    ),
    Case("3x3/2 48-72 boxes", "fp16", conv(48, 72, 3, stride=2, padding=1), family="boxes"),
    Case("1x1 64-64 gemm", "fp16", conv(64, 64, 1), family="gemm"),
    Case("1x1 72-264 gemm", "fp16", conv(72, 264, 1), family="gemm"),
    Case("5x5 72-264 boxes", "fp16", conv(72, 264, 5, padding=2), family="boxes"),
    Case("1x1 64-128 stream wide", "fp16", wide(conv(64, 128, 1, grads="x")), family="stream"),
    Case("1x1 256-512 gemm wide", "fp16", wide(conv(256, 512, 1)), family="gemm"),
    Case("3x3 256 boxes wide", "fp16", wide(conv(256, 256, 3, padding=1)), family="boxes"),
    *(
        # 128x128 spills once in a tile for what dgrad's undoes: a third of a percent of what it moves
        Case(f"{plain} {name}", dtype, call, plain=plain, family=family, spilled=256)
        for dtype in ("fp16", "tf32")
        for plain, family, shape in (
            ("1x1 64-128 stream", "stream", (64, 128, 1)),
            ("3x3/2 256 boxes", "boxes", (256, 256, 3, 2)),
            ("1x1 256-512 gemm", "gemm", (256, 512, 1)),
            ("3x3 256 boxes", "boxes", (256, 256, 3)),
        )
        for name, call in epilogues(*shape, undoes=family != "stream").items()
    ),
    *(
        Case(
            f"3x3 groups of 4 rows {name}",
            "fp16",
            call,
            plain="3x3 groups of 4 rows",
            family="rows",
        )
        for name, call in epilogues(128, 128, 3, groups=32).items()
        if name != "added"
    ),
    *with_activations("1x1 64-128 stream", "fp16", 64, 128, 1, family="stream"),
    *with_activations("1x1 256-512 gemm", "fp16", 256, 512, 1, family="gemm"),
    # 256x128 spills once in a program for gelu, of whose loop these are 1%
    *with_activations("3x3 256 boxes", "fp16", 256, 256, 3, family="boxes", spilled=128),
)


def measured_choices(capability: tuple[int, int]) -> tuple[Case, ...]:
    """What the package ships for GPUs of that capability, each at the shape that was measured."""
    cases = []
    for path in sorted(measured.FOLDER.glob("*.json")):
        content = json.loads(path.read_text())
        if tuple(content["capability"]) == capability:
            choices = content["choices"].items()
            cases += [_measured_choice(capability, key, choice) for key, choice in choices]
    return tuple(cases)


def _measured_choice(capability: tuple[int, int], key: str, choice: dict) -> Case:
    g, x, w = from_flat(choice["geometry"]), choice["x"], choice["w"]
    work, bits, precision = key.split()[:3]
    dtype = {"16-bit": "bf16", "32-bit": "tf32" if precision == "tf32" else "fp32"}[bits]
    numbers = DTYPES[dtype], precision, key.endswith(" with statistics")
    p = problem_on(capability, "", work, x, w, g.y_shape(x, w), g, *numbers)
    entry = Tuned(choice["family"], tuple(choice["config"]))

    def call(dtype: str) -> None:
        (chosen,) = (c for c in tune.candidates(p) if c.tuned == entry)
        tune.run(chosen, *tune.operands(p, "cpu"))

    exempt = ODD_SUM if work == "wgrad" and math.prod(w) % 16 else {}
    exempt |= FEW_OUT if work == "dgrad" and choice["family"] == "general" and w[1] < 8 else {}
    return Case(key, dtype, call, exempt)


CASES = {80: TILES + FORMS, 89: TILES, 90: TILES + FORMS + TMA + measured_choices((9, 0))}
