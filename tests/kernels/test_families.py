"""Every family of convolution kernels in every configuration, pass by pass, exactly."""

import math
import random
from typing import NamedTuple

import pytest
import torch
from reference import DTYPE_OF_SIZE, integers
from torch.nn import functional as F
from tritonconv import _common, _split, conv2d
from tritonconv._launch import INTERPRETED
from tritonconv.conv import dispatch, tma
from tritonconv.conv.dgrad import conv2d_dgrad
from tritonconv.conv.dispatch import FAMILIES, choose, force_family
from tritonconv.conv.forward import conv2d_forward
from tritonconv.conv.geometry import Geometry
from tritonconv.conv.problem import Problem
from tritonconv.conv.wgrad import conv2d_wgrad

# whose configurations run here: those of older GPUs run on newer ones, and all are interpreted
CAPABILITIES = [
    capability
    for capability in ((8, 0), (9, 0))
    if INTERPRETED or capability <= torch.cuda.get_device_capability()
]


class Shape(NamedTuple):
    """x, w and a convolution's geometry."""

    x: tuple[int, ...]
    w: tuple[int, ...]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.stride, self.padding, self.padding, self.dilation, self.groups)

    @property
    def y(self) -> list[int]:
        return self.geometry.y_shape(self.x, self.w)

    def problem(self, work: str, dtype: torch.dtype, capability=CAPABILITIES[-1]) -> Problem:
        precision = "tf32" if dtype == torch.float32 else "ieee"
        index = _common.index_type()
        shapes = self.x, self.w, tuple(self.y)
        return Problem(work, *shapes, self.geometry, dtype, precision, index, capability)


# by family, and by the passes that it has
SHAPES = {
    "general": (
        Shape((2, 33, 9, 10), (40, 33, 3, 3), padding=(1, 1)),
        Shape((3, 3, 11, 12), (17, 3, 5, 5), (2, 2), (2, 2)),
        Shape((1, 34, 6, 6), (36, 17, 3, 3), padding=(1, 1), groups=2),
        Shape((2, 64, 7, 6), (192, 64, 3, 3), (2, 1), (1, 1)),  # epilogues in pieces
    ),
    "grouped": (
        Shape((2, 24, 5, 7), (24, 8, 3, 3), padding=(1, 1), groups=3),
        Shape((2, 40, 7, 6), (20, 4, 3, 3), (2, 2), (1, 1), groups=10),
        Shape((1, 26, 5, 4), (26, 13, 3, 3), padding=(1, 1), groups=2),
        Shape((2, 18, 5, 6), (42, 6, 3, 2), padding=(0, 1), groups=3),
    ),
    "rows": (
        Shape((2, 24, 5, 7), (24, 8, 3, 3), padding=(1, 1), groups=3),
        Shape((3, 40, 4, 6), (40, 4, 2, 5), padding=(0, 2), groups=10),
        Shape((2, 16, 7, 6), (32, 2, 3, 2), padding=(2, 0), dilation=(2, 3), groups=8),
        Shape((2, 40, 3, 6), (40, 4, 3, 3), padding=(1, 1), groups=10),
        Shape((2, 72, 3, 2), (72, 36, 2, 3), padding=(1, 1), groups=2),
        Shape((2, 40, 4, 4), (40, 4, 3, 3), (2, 2), (1, 1), groups=10),
        Shape((2, 80, 4, 2), (80, 40, 2, 2), (2, 2), groups=2),
    ),
    "padded": (
        Shape((2, 3, 11, 12), (24, 3, 7, 7), (2, 2), (3, 3)),
        Shape((2, 1, 7, 9), (70, 1, 3, 2), padding=(1, 0)),
        Shape((1, 4, 13, 10), (5, 4, 4, 3), (3, 4), (2, 1), (2, 1)),
    ),
    "stem": (
        Shape((2, 3, 11, 12), (24, 3, 7, 7), (2, 2), (3, 3)),
        Shape((2, 1, 7, 9), (70, 1, 3, 2), padding=(1, 0)),
    ),
    "cells": (
        Shape((2, 3, 11, 12), (24, 3, 7, 7), (2, 2), (3, 3)),
        Shape((2, 1, 7, 9), (70, 1, 3, 2), padding=(1, 0)),
        Shape((2, 3, 13, 10), (33, 3, 4, 5), (4, 3), (2, 4)),
    ),
    "boxes": (
        Shape((3, 72, 9, 10), (40, 72, 3, 3), padding=(1, 1)),
        Shape((2, 16, 11, 13), (88, 16, 4, 2), padding=(3, 0), dilation=(1, 2)),
        Shape((120, 8, 3, 2), (16, 8, 2, 2), padding=(0, 1)),
        Shape((3, 48, 8, 10), (40, 48, 3, 3), (2, 2), (1, 1)),
    ),
    "stream": (
        Shape((3, 72, 9, 10), (264, 72, 1, 1)),
        Shape((2, 16, 5, 3), (8, 16, 1, 1)),
    ),
    "gemm": (
        Shape((3, 72, 9, 10), (264, 72, 1, 1)),
        Shape((1, 16, 5, 3), (8, 16, 1, 1)),
    ),
    "columns": (
        Shape((2, 19, 13, 6), (19, 1, 3, 3), padding=(1, 1), groups=19),
        Shape((2, 70, 10, 9), (70, 1, 5, 5), (2, 2), (2, 2), groups=70),
        Shape((1, 5, 19, 17), (5, 1, 7, 4), (3, 2), (2, 3), (1, 2), groups=5),
        Shape((2, 8, 20, 8), (8, 1, 3, 3), padding=(1, 1), groups=8),
        Shape((1, 3, 12, 5), (3, 1, 2, 1), (3, 4), (3, 2), groups=3),
        Shape((1, 3, 21, 11), (3, 1, 4, 2), (2, 1), (7, 0), (2, 3), groups=3),
        Shape((2, 14, 9, 6), (14, 2, 3, 3), padding=(1, 1), groups=7),
        Shape((1, 9, 8, 7), (6, 3, 5, 3), (2, 2), (2, 1), groups=3),
        Shape((2, 5, 7, 9), (15, 1, 3, 3), padding=(1, 1), groups=5),
    ),
    "toeplitz": (
        Shape((3, 1, 13, 11), (1, 1, 3, 9), padding=(1, 5)),
        Shape((1, 2, 21, 6), (2, 1, 9, 3), padding=(3, 0), groups=2),
        Shape((1, 2, 3, 75), (2, 1, 2, 21), padding=(1, 10), groups=2),
        Shape((2, 1, 4, 40), (1, 1, 2, 20), padding=(0, 12)),
    ),
    "depthwise": (
        Shape((2, 19, 13, 6), (19, 1, 3, 3), padding=(1, 1), groups=19),
        Shape((2, 70, 10, 9), (70, 1, 5, 5), (2, 2), (2, 2), groups=70),
        Shape((1, 5, 19, 17), (5, 1, 7, 4), (3, 2), (2, 3), (1, 2), groups=5),
        Shape((1, 3, 13, 11), (3, 1, 9, 15), padding=(4, 7), groups=3),
        Shape((1, 3, 21, 11), (3, 1, 8, 2), (2, 1), (3, 0), (2, 1), groups=3),
    ),
}


@pytest.fixture(autouse=True)
def tf32(ieee_float32):
    """In which small integers are exact, and which some families need."""
    torch.backends.cudnn.conv.fp32_precision = "tf32"


def configured():
    """Each configuration that a device would take for one of the shapes."""
    for work, families in FAMILIES.items():
        for family in families:
            for size, dtype in DTYPE_OF_SIZE.items():
                for shape in SHAPES[family.name]:
                    problems = [shape.problem(work, dtype, c) for c in CAPABILITIES]
                    configs = {
                        config
                        for p in problems
                        if family.declines(p) is None
                        for config in family.configs(p)
                    }
                    for config in sorted(configs):
                        name = f"{family.name}-{work}-{size}-{shape.w}-{tuple(config)}"
                        yield pytest.param(family.name, work, dtype, shape, config, id=name)


def run(work: str, shape: Shape, x, w, dy):
    """The pass's result, by the op."""
    last = torch.channels_last
    if work == "forward":
        return conv2d_forward(x, w, None, last, shape.geometry.flat)
    if work == "dgrad":
        return conv2d_dgrad(dy, w, None, list(shape.x), last, shape.geometry.flat)
    return conv2d_wgrad(dy, x, list(shape.w), last, shape.geometry.flat)


def expected(work: str, shape: Shape, x, w, dy):
    x, w, dy = (t.cpu().double() for t in (x, w, dy))
    how = shape.stride, shape.padding, shape.dilation, shape.groups
    if work == "forward":
        return F.conv2d(x, w, None, *how)
    if work == "dgrad":
        return torch.nn.grad.conv2d_input(shape.x, w, dy, *how)
    return torch.nn.grad.conv2d_weight(x, shape.w, dy, *how)


def touched(y: torch.Tensor) -> torch.Tensor:
    """Which channels of y, or of a weight which pairs, have something that is not finite."""
    return (~y.isfinite()).any(-1, keepdim=True).any(-2, keepdim=True).expand(y.shape)


def tensors(shape: Shape, device, dtype):
    return (
        integers(*shape.x, device=device, dtype=dtype),
        integers(*shape.w, device=device, dtype=dtype),
        integers(*shape.y, most=1, device=device, dtype=dtype),
    )


@pytest.mark.parametrize(("name", "work", "dtype", "shape", "config"), list(configured()))
def test_exact_in_every_configuration(name, work, dtype, shape, config, device, monkeypatch):
    monkeypatch.setattr(_split, "splits", lambda programs, steps, wanted: min(steps, 3))
    monkeypatch.setattr(tma, "PROGRAMS", 1)  # so that one walks
    given = tensors(shape, device, dtype)
    with force_family(name, config):
        actual = run(work, shape, *given)
    assert torch.equal(actual.cpu().double(), expected(work, shape, *given))


def planted(t: torch.Tensor) -> torch.Tensor:
    """t with a NaN and both infinities, each anywhere."""
    t = t.clone().contiguous()
    for value in (math.nan, math.inf, -math.inf):
        t.view(-1)[random.randrange(t.numel())] = value
    return t


OPERANDS = {"forward": (0, 1), "dgrad": (2, 1), "wgrad": (0, 2)}  # of x, w and dy


# float16 has the most configurations, and no family's masks depend on the dtype
ONE_DTYPE = [p for p in configured() if p.values[2] == torch.float16]


@pytest.mark.parametrize(("name", "work", "dtype", "shape", "config"), ONE_DTYPE)
def test_what_is_not_finite_stays_where_it_belongs(
    name, work, dtype, shape, config, device, monkeypatch
):
    """No zero that a kernel multiplies with for its own sake makes NaN of it.

    But for one place: zeros around an image count as numbers, for which torch's own kernels differ.
    """
    monkeypatch.setattr(_split, "splits", lambda programs, steps, wanted: min(steps, 3))
    monkeypatch.setattr(tma, "PROGRAMS", 1)
    random.seed(0)
    source, other = OPERANDS[work]
    given = list(tensors(shape, device, dtype))
    given[source] = planted(given[source])
    with force_family(name, config):
        actual = run(work, shape, *given).cpu().double()
    right = expected(work, shape, *given)
    if work == "wgrad" and name in (
        "boxes",
        "columns",
        "rows",
        "toeplitz",
    ):  # reads beside what it has of dy
        assert actual.isfinite()[~touched(right)].all()
    else:
        assert torch.equal(actual.isfinite(), right.isfinite())
        assert torch.equal(actual[right.isfinite()], right[right.isfinite()])

    given = list(tensors(shape, device, dtype))
    given[other] = planted(given[other])
    with force_family(name, config):
        actual = run(work, shape, *given).cpu().double()
    right = expected(work, shape, *given)
    assert actual.isfinite()[~touched(right)].all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        pytest.param(name, shape, id=f"{name}-{shape.w}")
        for name in SHAPES
        for shape in SHAPES[name]
    ],
)
def test_exact_with_64_bit_offsets(name, shape, dtype, device, monkeypatch):
    monkeypatch.setattr(_common, "WIDE_FROM", 0)
    given = tensors(shape, device, dtype)
    for work, families in FAMILIES.items():
        family = next((f for f in families if f.name == name), None)
        if family and family.declines(shape.problem(work, dtype)) is None:
            with force_family(name):
                actual = run(work, shape, *given)
            wanted = expected(work, shape, *given)
            wanted = wanted.to(dtype) if dtype == torch.bfloat16 else wanted
            assert torch.equal(actual.cpu().double(), wanted.double()), work


@pytest.mark.parametrize("name", SHAPES)
def test_each_family_serves_what_it_is_for(name):
    """By default, on one of the devices, or where it is forced what always yields to another; only
    the general family serves what no other takes."""
    for work, families in FAMILIES.items():
        for family in (family for family in families if family.name == name):
            problems = [
                shape.problem(work, torch.float16, capability)
                for shape in SHAPES[name]
                for capability in CAPABILITIES
            ]
            if all(map(family.yields, problems)):
                assert not all(map(family.declines, problems))
            else:
                assert name in {choose(p).family.name for p in problems}


def test_force_family_holds_for_both_passes_and_ends():
    shape = SHAPES["depthwise"][0]
    before = choose(shape.problem("dgrad", torch.float32)).family
    with force_family("general"):
        assert choose(shape.problem("forward", torch.float32)).family.name == "general"
        assert choose(shape.problem("dgrad", torch.float32)).family.name == "general"
    assert choose(shape.problem("dgrad", torch.float32)).family is before


def test_force_family_refuses(device):
    with pytest.raises(ValueError, match="name must be one of .*depthwise.*, got 'fast'"):
        force_family("fast").__enter__()
    x, w = torch.ones(1, 4, 4, 4, device=device), torch.ones(4, 4, 3, 3, device=device)
    with force_family("depthwise"), pytest.raises(RuntimeError, match="one channel a group"):
        conv2d(x, w)
    assert dispatch._forced.get() is None


# layers of a batch of 256, in half precision, and what an H200 took least time with of all that
# our tables hold: benchmarks/NOTES.md
FASTEST = [
    ("wgrad", "grouped", Shape((256, 256, 28, 28), (256, 8, 3, 3), padding=(1, 1), groups=32), (32, 32, 2, 1, 3)),
    ("wgrad", "grouped", Shape((256, 512, 14, 14), (512, 16, 3, 3), padding=(1, 1), groups=32), (64, 16, 1, 1, 9)),
    ("wgrad", "gemm", Shape((256, 64, 56, 56), (256, 64, 1, 1)), (64, 64, 64, 4, 4)),
    ("wgrad", "gemm", Shape((256, 256, 56, 56), (64, 256, 1, 1)), (64, 64, 64, 4, 4)),
    ("wgrad", "gemm", Shape((256, 32, 112, 112), (16, 32, 1, 1)), (64, 64, 64, 4, 4)),
    ("wgrad", "gemm", Shape((256, 512, 28, 28), (128, 512, 1, 1)), (64, 128, 64, 4, 4)),
    ("wgrad", "boxes", Shape((256, 512, 7, 7), (512, 512, 3, 3), padding=(1, 1)), (128, 256, 32, 8, 5)),
    ("wgrad", "boxes", Shape((256, 256, 14, 14), (256, 256, 3, 3), padding=(1, 1)), (128, 128, 32, 4, 6)),
    ("wgrad", "general", Shape((8, 256, 14, 14), (256, 256, 3, 3), padding=(1, 1)), (128, 128, 64, 8, 3)),
    ("forward", "boxes", Shape((256, 512, 7, 7), (512, 512, 3, 3), padding=(1, 1)), (256, 128, 64, 8, 3)),
    ("dgrad", "general", Shape((256, 64, 56, 56), (128, 64, 3, 3), (2, 2), (1, 1)), (128, 64, 64, 4, 4)),
]  # fmt: skip


@pytest.mark.parametrize(("work", "family", "shape", "config"), FASTEST)
def test_first_guess_is_what_was_measured_fastest(work, family, shape, config):
    guess, guessed = dispatch.guessed(shape.problem(work, torch.bfloat16, (9, 0)))
    assert (guess.name, tuple(guessed)) == (family, config)


# the same of a family that was measured before another came that serves these layers first
OVERTAKEN = [
    ("forward", "grouped", Shape((256, 128, 56, 56), (128, 4, 3, 3), padding=(1, 1), groups=32), (128, 32, 4, 3, 1)),
    ("dgrad", "grouped", Shape((256, 256, 28, 28), (256, 8, 3, 3), padding=(1, 1), groups=32), (128, 32, 4, 3, 1)),
    ("forward", "depthwise", Shape((256, 960, 7, 7), (960, 1, 3, 3), padding=(1, 1), groups=960), (4, 16, 64, 4)),
    ("dgrad", "depthwise", Shape((256, 384, 14, 14), (384, 1, 3, 3), padding=(1, 1), groups=384), (4, 16, 64, 4)),
    ("wgrad", "depthwise", Shape((256, 384, 14, 14), (384, 1, 3, 3), padding=(1, 1), groups=384), (4, 16, 64, 4)),
]  # fmt: skip


@pytest.mark.parametrize(("work", "name", "shape", "config"), OVERTAKEN)
def test_a_family_that_was_overtaken_still_offers_its_fastest_first(work, name, shape, config):
    p = shape.problem(work, torch.bfloat16, (9, 0))
    assert dispatch.guessed(p)[0].name == {"depthwise": "columns", "grouped": "rows"}[name]
    with force_family(name):
        assert tuple(choose(p).config) == config
