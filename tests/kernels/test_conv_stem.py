"""The family for few input channels, against torch's convolution in float64."""

import pytest
import torch
from reference import DTYPE_OF_SIZE, assert_family_exact, assert_family_fuses, conv2d_case
from tritonconv import _common, _split
from tritonconv.conv.dispatch import force_family
from tritonconv.conv.stem.rows import TILES, WGRAD_TILES

CASES = {
    "7x7 of stride 2": conv2d_case((2, 3, 19, 20), (24, 3, 7, 7), padding=3, stride=2),
    "rows of odd length": conv2d_case((2, 3, 20, 19), (24, 3, 7, 7), padding=3, stride=2),
    "3x3 of stride 2": conv2d_case((2, 3, 9, 12), (32, 3, 3, 3), padding=1, stride=2),
    "3x3": conv2d_case((2, 3, 9, 8), (20, 3, 3, 3), padding=1),
    "11x11 of stride 4": conv2d_case((1, 3, 23, 24), (16, 3, 11, 11), padding=2, stride=4),
    "one channel": conv2d_case((3, 1, 12, 12), (6, 1, 5, 5), padding=2),
    "two channels": conv2d_case((2, 2, 9, 9), (12, 2, 3, 3)),
    "four channels": conv2d_case((2, 4, 9, 8), (12, 4, 3, 3), padding=1, stride=2),
    "asymmetric everything": conv2d_case(
        (2, 3, 11, 10), (5, 3, 3, 2), stride=(1, 3), padding=(4, 1), dilation=(3, 1)
    ),
    "stride beyond the window": conv2d_case((1, 3, 11, 12), (5, 3, 2, 2), stride=(3, 4)),
    "1x1": conv2d_case((2, 3, 4, 5), (8, 3, 1, 1)),
    "window larger than the image": conv2d_case((1, 2, 2, 3), (3, 2, 5, 5), padding=2),
    "more output channels than a program takes": conv2d_case((1, 3, 5, 6), (130, 3, 3, 3)),
    "many images of few pixels": conv2d_case((33, 3, 4, 4), (8, 3, 3, 3)),
}
EVERY_TILE = sorted(
    {
        (size, tile)
        for table in (TILES, WGRAD_TILES)
        for size, tiles in table.items()
        for tile in tiles
    }
)


@pytest.mark.parametrize("family", ["stem", "padded"])
@pytest.mark.parametrize("name", CASES)
def test_stem_of_integers_is_exact(name, family, device):
    if family == "padded" and CASES[name].shapes[1][2] > 7:
        pytest.skip("shared memory does not hold the weights of such a window")
    assert_family_exact(CASES[name], family, device)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_stem_of_integers_is_exact_in_every_dtype(dtype, device):
    assert_family_exact(CASES["3x3 of stride 2"], "stem", device, dtype)


@pytest.mark.parametrize(("size", "tile"), EVERY_TILE, ids=str)
@pytest.mark.parametrize(
    "case",
    [
        conv2d_case((2, 3, 11, 14), (36, 3, 5, 5), padding=2, stride=2),
        conv2d_case((2, 3, 6, 7), (36, 3, 3, 3), padding=1),
    ],
    ids=["aligned", "unaligned"],
)
def test_stem_is_exact_with_every_tile(case, size, tile, device, monkeypatch):
    """Several programs of pixels, of rows of the window and of the reduction."""
    monkeypatch.setattr(_split, "splits", lambda programs, steps, wanted: min(steps, 3))
    assert_family_exact(case, "stem", device, DTYPE_OF_SIZE[size], tile)


def test_stem_with_64_bit_offsets(device, monkeypatch):
    monkeypatch.setattr(_common, "WIDE_FROM", 0)
    for name in ("3x3 of stride 2", "asymmetric everything"):
        assert_family_exact(CASES[name], "stem", device)


@pytest.mark.parametrize("family", ["stem", "padded"])
def test_stem_reads_nothing_beside_the_window(family, device):
    """What a step loads beyond a row of the window meets weights of zero, and NaN times zero."""
    case = CASES["7x7 of stride 2"]
    x, w, b = case.tensors(device)
    x[0, :, 10, 10] = torch.nan
    with force_family(family):
        y = case.ours(x, w, b)
    assert torch.equal(y.isnan().cpu(), case.theirs(x.cpu(), w.cpu(), b.cpu()).isnan())


@pytest.mark.parametrize("family", ["stem", "padded"])
def test_stem_conv_bn_relu_equals_torch(family, device):
    assert_family_fuses(CASES["7x7 of stride 2"], family, device)


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (conv2d_case((1, 5, 5, 5), (8, 5, 3, 3)), "at most 4 channels"),
        (conv2d_case((1, 4, 5, 5), (8, 2, 3, 3), groups=2), "in one group"),
        (conv2d_case((1, 3, 9, 9), (8, 3, 3, 3), dilation=2), "not dilated"),
        (conv2d_case((1, 3, 3, 30), (8, 3, 1, 25)), "at most 31 rows of 64 elements"),
    ],
    ids=["5 channels", "groups", "dilated", "1x25"],
)
def test_stem_tells_what_it_does_not_serve(case, reason, device):
    with force_family("stem"), pytest.raises(RuntimeError, match=reason):
        case.ours(*case.tensors(device))
