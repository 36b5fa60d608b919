"""The family for few channels a group, against torch's convolution in float64."""

import math

import pytest
import torch
import tritonconv
from reference import (
    DTYPE_OF_SIZE,
    assert_family_exact,
    assert_family_fuses,
    conv2d_case,
    forward_backward,
)
from torch.nn import functional as F
from tritonconv import _common, _split
from tritonconv.conv.dispatch import force_family
from tritonconv.conv.grouped.bundles import BUNDLES, WGRAD_BUNDLES

CASES = {
    "4 a group": conv2d_case((2, 32, 9, 7), (32, 4, 3, 3), padding=1),
    "8 a group, stride 2": conv2d_case((2, 64, 9, 8), (64, 8, 3, 3), padding=1, stride=2),
    "24 a group": conv2d_case((1, 72, 7, 7), (72, 24, 3, 3), padding=1),
    "32 a group, stride 2": conv2d_case((1, 64, 7, 6), (64, 32, 3, 3), padding=1, stride=2),
    "12 a group": conv2d_case((2, 36, 6, 7), (36, 12, 3, 3), padding=1),
    "8 in, 4 out": conv2d_case((2, 40, 6, 7), (20, 8, 3, 3), padding=1),
    "2 in, 16 out": conv2d_case((1, 8, 6, 6), (64, 2, 3, 3)),
    "a multiplier of 8": conv2d_case((1, 4, 7, 7), (32, 1, 3, 3), padding=1),
    "bundles that groups do not fill": conv2d_case((1, 44, 6, 6), (44, 4, 3, 3), stride=2),
    "asymmetric everything": conv2d_case(
        (2, 16, 11, 9), (32, 4, 3, 2), stride=(1, 2), padding=(2, 0), dilation=(2, 3)
    ),
    "stride beyond the window": conv2d_case((1, 16, 9, 11), (16, 8, 2, 2), stride=(3, 4)),
    "dilation divides the stride's classes": conv2d_case(
        (1, 16, 9, 9), (16, 8, 3, 3), stride=2, dilation=2
    ),
    "1x1": conv2d_case((2, 16, 5, 5), (32, 4, 1, 1), stride=2),
    "window larger than the image": conv2d_case((1, 8, 2, 3), (8, 4, 5, 3), padding=2),
}
EVERY_BUNDLE = sorted(
    {
        (size, bundle)
        for table in (BUNDLES, WGRAD_BUNDLES)
        for size, bundles in table.items()
        for bundle in bundles
    }
)


@pytest.mark.parametrize("name", CASES)
def test_grouped_of_integers_is_exact(name, device):
    assert_family_exact(CASES[name], "grouped", device)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_grouped_of_integers_is_exact_in_every_dtype(dtype, device):
    assert_family_exact(CASES["8 a group, stride 2"], "grouped", device, dtype)


@pytest.mark.parametrize(("size", "bundle"), EVERY_BUNDLE, ids=str)
def test_grouped_is_exact_with_every_bundle(size, bundle, device, monkeypatch):
    """Several programs of pixels, of bundles, of rows of the window and of the reduction."""
    monkeypatch.setattr(_split, "splits", lambda programs, steps, wanted: min(steps, 3))
    case = conv2d_case((2, 24, 7, 11), (24, 8, 3, 3), padding=1, stride=(1, 2))
    assert_family_exact(case, "grouped", device, DTYPE_OF_SIZE[size], bundle)


def test_grouped_with_64_bit_offsets(device, monkeypatch):
    monkeypatch.setattr(_common, "WIDE_FROM", 0)
    for name in ("8 a group, stride 2", "asymmetric everything"):
        assert_family_exact(CASES[name], "grouped", device)


def test_grouped_conv_bn_relu_equals_torch(device):
    assert_family_fuses(CASES["8 a group, stride 2"], "grouped", device)


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (conv2d_case((1, 16, 5, 5), (16, 16, 3, 3)), "several groups"),
        (conv2d_case((1, 80, 5, 5), (80, 40, 3, 3)), "at most 32 channels a group"),
        (conv2d_case((1, 16, 9, 9), (16, 8, 7, 7)), "at most 32 taps"),
    ],
    ids=["dense", "wide groups", "7x7"],
)
def test_grouped_tells_what_it_does_not_serve(case, reason, device):
    with force_family("grouped"), pytest.raises(RuntimeError, match=reason):
        case.ours(*case.tensors(device))


# channels a group, in and out: every number that divides a tile, alike and not
CHANNELS = [
    (1, 4),
    (2, 2),
    (4, 4),
    (8, 2),
    (4, 16),
    (8, 8),
    (16, 16),
    (32, 32),
    (12, 12),
    (6, 6),
    (3, 5),
]


@pytest.mark.parametrize("value", [math.nan, -math.inf], ids=str)
@pytest.mark.parametrize("channels", CHANNELS, ids=str)
def test_grouped_keeps_in_its_group_what_is_not_finite(channels, value, device):
    """In output and every gradient, wherever it is: x, w or dy."""
    cg, cog = channels
    groups = 5 if 5 * cg % 4 == 0 == 5 * cog % 4 else 8
    shapes = (2, groups * cg, 6, 5), (groups * cog, cg, 3, 3), (2, groups * cog, 6, 5)
    places = (1, 2 * cg, 3, 2), (2 * cog, cg - 1, 1, 1), (0, 2 * cog + cog - 1, 2, 2)  # in group 2
    for operand, place in enumerate(places):
        given = [torch.randint(1, 3, shape).double() for shape in shapes]
        given[operand][place] = value
        results = []
        for f, on in ((tritonconv.conv2d, device), (F.conv2d, "cpu")):
            x, w, dy = (t.to(on) for t in given)
            with force_family("grouped"):
                found = forward_backward(lambda x, w, f=f: f(x, w, padding=1, groups=groups), x, w, dy=dy)  # fmt: skip
            results.append([t.cpu() for t in found])
        for i, (a, e) in enumerate(zip(*results, strict=True)):
            if (operand, i) == (1, 1):  # torch leaves out what w meets beside the image
                inside = slice(1, -1)
                a, e = a[..., inside, inside], e[..., inside, inside]
            torch.testing.assert_close(a, e, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_grouped_conv_bn_relu_keeps_in_its_group_what_is_not_finite(training, device):
    """Statistics, normalisation and residual of the tiles that are taken group by group."""
    x, w = torch.randn(2, 16, 7, 6).double(), torch.randn(16, 4, 3, 3).double()
    residual, scale = torch.randn(2, 16, 7, 6).double(), torch.randn(16).double()
    x[0, 5, 3, 3] = math.nan
    running = torch.zeros(16).double(), torch.ones(16).double()

    def theirs(x, w, scale, residual):
        y = F.conv2d(x, w, padding=1, groups=4)
        return F.relu(F.batch_norm(y, *(t.clone() for t in running), scale, None, training) + residual)  # fmt: skip

    def ours(x, w, scale, residual):
        kept = [t.to(device, copy=True) for t in running]
        return tritonconv.conv_bn_relu(
            x, w, None, *kept, scale, training=training, residual=residual, padding=1, groups=4
        )

    given = x, w, scale, residual
    expected = forward_backward(theirs, *given)
    with force_family("grouped"):
        actual = forward_backward(ours, *(t.to(device) for t in given))
        with torch.no_grad():
            actual.append(ours(*(t.to(device) for t in given)))
    expected.append(expected[0])
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.cpu(), e, rtol=1e-9, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("operator", ["conv1d", "conv_transpose1d", "conv_transpose2d"])
def test_grouped_operators_keep_in_its_group_what_is_not_finite(operator, device):
    dims = int(operator[-2])
    x, w = torch.randn(2, 16, *(6,) * dims).double(), torch.randn(16, 4, *(3,) * dims).double()
    x[(1, 6, *(2,) * dims)] = math.inf
    results = []
    for module, on in ((tritonconv, device), (F, "cpu")):
        f = getattr(module, operator)
        given = x.to(on), w.to(on)
        results.append(forward_backward(lambda x, w, f=f: f(x, w, padding=1, groups=4), *given))
    for a, e in zip(*results, strict=True):
        torch.testing.assert_close(a.cpu(), e, rtol=1e-9, atol=1e-9, equal_nan=True)
