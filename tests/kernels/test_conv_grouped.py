"""The family for few channels a group, against torch's convolution in float64."""

import pytest
import torch
from reference import DTYPE_OF_SIZE, assert_family_exact, assert_family_fuses, conv2d_case
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
        (conv2d_case((1, 12, 5, 5), (12, 6, 3, 3)), "multiples of 4 channels"),
        (conv2d_case((1, 16, 9, 9), (16, 8, 7, 7)), "at most 32 taps"),
    ],
    ids=["dense", "wide groups", "6 a group", "7x7"],
)
def test_grouped_tells_what_it_does_not_serve(case, reason, device):
    with force_family("grouped"), pytest.raises(RuntimeError, match=reason):
        case.ours(*case.tensors(device))
