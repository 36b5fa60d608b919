"""The families on Hopper's tensor memory accelerator, which the interpreter runs when forced."""

import pytest
import torch
import triton.language as tl
import tritonconv
from reference import Case, assert_close, assert_equal, forward_backward, integers
from torch.nn import functional as F
from tritonconv import _common, _launch, _split, conv2d, conv_bn_relu
from tritonconv.conv import dispatch, tma
from tritonconv.conv.box import box_of
from tritonconv.conv.dispatch import convolve, force_family
from tritonconv.conv.epilogue import Epilogue
from tritonconv.conv.forward import conv2d_normalised_stats, conv2d_stats
from tritonconv.conv.geometry import Geometry
from tritonconv.conv.problem import Problem
from tritonconv.conv.stream.product import WALKS, Walk
from tritonconv.norm.activation import activate

pytestmark = pytest.mark.skipif(
    not _launch.INTERPRETED and torch.cuda.get_device_capability()[0] != 9,
    reason="the kernels need sm_90",
)

DTYPE_OF_SIZE = {2: torch.float16, 4: torch.float32}
EVERY_TILE = [(size, tile) for size, tiles in tma.TILES.items() for tile in tiles]


@pytest.fixture(autouse=True)
def tf32(ieee_float32):
    torch.backends.cudnn.conv.fp32_precision = "tf32"


@pytest.fixture
def three_splits(monkeypatch):
    monkeypatch.setattr(_split, "splits", lambda programs, steps, wanted: min(steps, 3))


def case(x_shape, w_shape, bias=True, **options) -> Case:
    return Case("conv2d", (x_shape, w_shape, w_shape[:1])[: 2 + bias], options)


def check(case: Case, family: str, config, dtype, device) -> None:
    """Output and every gradient are exact."""
    given = [
        t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t
        for t in case.tensors(device, dtype, integers)
    ]
    with force_family(family, config):
        y = case.ours(*given)
        dy = integers(*y.shape, most=1).to(y)
        expected = [t.to(dtype) for t in case.expected(given, dy)]
        assert_equal(forward_backward(case.ours, *given, dy=dy), expected)


ODD_1X1 = case((2, 40, 9, 10), (72, 40, 1, 1))
ODD_3X3 = case((2, 24, 9, 10), (40, 24, 3, 3), padding=1)


GEMMS = {
    "one pixel": case((3, 8, 1, 1), (16, 8, 1, 1)),
    "several blocks of every size": case((1, 136, 16, 17), (144, 136, 1, 1)),
    "fewer channels than 16 bytes in a unit": case((1, 8, 5, 7), (8, 8, 1, 1), bias=False),
}
BOXES = {
    "no padding": case((2, 16, 7, 6), (24, 16, 3, 3)),
    "asymmetric everything": case(
        (2, 16, 11, 9), (8, 16, 3, 2), padding=(2, 0), dilation=(2, 3), bias=False
    ),
    "images smaller than a box": case((3, 8, 2, 3), (16, 8, 3, 3), padding=1),
    "window larger than the image": case((1, 8, 2, 3), (8, 8, 5, 5), padding=2),
    "padding beyond the kernel": case((1, 8, 3, 3), (8, 8, 2, 2), padding=4),
    "11x11": case((1, 8, 3, 2), (8, 8, 11, 11), padding=5),
    "one row": case((2, 8, 1, 9), (8, 8, 1, 3), padding=(0, 1)),
    "same, even kernel pads one more after": case((1, 8, 5, 6), (8, 8, 4, 2), padding="same"),
    "channels beyond a block, in every block a tail": case((1, 136, 3, 4), (136, 136, 2, 2)),
    "a wide image of a few": case((1, 8, 3, 70), (8, 8, 3, 3), padding=1),
    "as many images as a step takes": case((65, 8, 3, 2), (8, 8, 3, 3), padding=1),
    "1x1 with padding": case((1, 8, 5, 4), (8, 8, 1, 1), padding=1),
}  # fmt: skip
STRIDED = {
    "stride 2": case((2, 16, 8, 10), (24, 16, 3, 3), stride=2, padding=1),
    "1x1 of stride 2, with three classes of zeros": case((2, 48, 8, 6), (16, 48, 1, 1), stride=2),
    "strides 4 and 2, dilated": case(
        (2, 16, 12, 8), (8, 16, 3, 2), stride=(4, 2), padding=(2, 1), dilation=(2, 3)
    ),
    "a stride beyond the kernel": case((1, 16, 8, 8), (8, 16, 2, 2), stride=4),
    "stride 2, images smaller than a box": case((3, 16, 2, 4), (16, 16, 3, 3), stride=2, padding=1),
    "stride 2, channels beyond a block": case((1, 144, 4, 4), (136, 144, 2, 2), stride=2),
}
NAMED = [
    pytest.param(family, case, id=f"{family}, {name}")
    for family, cases in (("gemm", GEMMS), ("stream", GEMMS), ("boxes", BOXES))
    for name, case in cases.items()
]
SMALL = {"gemm": tma.TILES[2][-1], "stream": Walk(16, 16, 4, 1), "boxes": tma.TILES[2][-1]}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("blocks", ["interpreted", "small"])
@pytest.mark.parametrize(("family", "case"), NAMED)
def test_tma_conv2d_is_exact(family, case, blocks, device):
    config = None if blocks == "interpreted" else SMALL[family]
    check(case, family, config, torch.float16, device)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("family", "case"), [("gemm", ODD_1X1), ("stream", ODD_1X1), ("boxes", ODD_3X3)]
)
def test_tma_conv2d_is_exact_in_every_dtype(family, case, dtype, device, monkeypatch):
    monkeypatch.setattr(_common, "WIDE_FROM", 0)  # and with 64-bit offsets
    check(case, family, None, dtype, device)


@pytest.mark.parametrize("tile", [t._replace(k=t.k // 2) for _, t in EVERY_TILE[1::2]], ids=str)
@pytest.mark.parametrize("images", [2, 33])
def test_tma_conv2d_wgrad_is_exact_with_half_the_pixels_a_step(images, tile, device, three_splits):
    shapes = (images, 24, 3, 4), (40, 24, 2, 3)
    check(case(*shapes, padding=1), "boxes", tile, torch.float16, device)


@pytest.mark.parametrize(("family", "k"), [("gemm", 1), ("stream", 1), ("boxes", 3)])
def test_tma_conv2d_takes_unaligned_memory(family, k, device):
    def shifted(t):
        memory = torch.empty(t.numel() + 1, dtype=t.dtype, device=device)[1:]
        return memory.as_strided(t.shape, t.stride()).copy_(t)

    given = [integers(2, 8, 5, 4), integers(16, 8, k, k)]
    x, w = (t.half().contiguous(memory_format=torch.channels_last).to(device) for t in given)
    dy = integers(*F.conv2d(*given).shape).half().contiguous(memory_format=torch.channels_last)
    expected = forward_backward(F.conv2d, *(t.double() for t in given), dy=dy)
    with force_family(family):
        ours = forward_backward(conv2d, shifted(x), shifted(w), dy=shifted(dy.to(device)))
    assert_equal(ours, expected)


@pytest.mark.parametrize(("family", "k"), [("gemm", 1), ("stream", 1), ("boxes", 3)])
@pytest.mark.parametrize("blocks", ["interpreted", "small"])
def test_tma_conv_bn_relu_equals_torch(family, k, blocks, device, monkeypatch):
    """The epilogue's statistics in the forward, its residual and gate in the backward."""
    monkeypatch.setattr(tma, "PROGRAMS", 2)  # so that a program of stream's walks
    tile = None if blocks == "interpreted" else SMALL[family]
    x, w = torch.randn(3, 8, 7, 6).double(), torch.randn(8, 8, k, k).double()
    scale, shift = torch.randn(8).double(), torch.randn(8).double()

    def torchs(x, w, scale, shift):
        y = F.batch_norm(F.conv2d(x, w, padding=k // 2), None, None, scale, shift, training=True)
        return F.relu(y + x)

    def ours(x, w, scale, shift):
        return conv_bn_relu(
            x, w, None, None, None, scale, shift,
            training=True, residual=x, activation="relu", padding=k // 2,
        )  # fmt: skip

    given = [t.float().to(device) for t in (x, w, scale, shift)]
    dy = torch.randn(x.shape)
    expected = forward_backward(torchs, *(t.cpu().double() for t in given), dy=dy)
    with force_family(family, tile):
        assert_close(forward_backward(ours, *given, dy=dy), expected, 8 * x.numel(), 2**-10)


def check_statistics(y, found, rtol=3e-6) -> None:
    values = y.double().transpose(0, 1).flatten(1)
    expected = torch.stack((values.mean(1), values.var(1, correction=0)))
    torch.testing.assert_close(found.double(), expected, rtol=rtol, atol=3e-6)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("mean", [0.0, 1e3])
@pytest.mark.parametrize("pixels", [(1, 1), (5, 3), (9, 11)])
@pytest.mark.parametrize(
    ("family", "tile", "k"),
    [
        ("stream", SMALL["stream"], 1),
        ("gemm", SMALL["gemm"], 1),
        ("gemm", tma.TILES[2][1], 1),  # whose epilogue takes it in pieces
        ("boxes", SMALL["boxes"], 3),
        ("boxes", tma.TILES[2][1], 3),
    ],
)
def test_statistics_of_a_walk_are_exact(family, tile, k, pixels, mean, bias, device, monkeypatch):
    """Of many blocks, of one, and of blocks partly beyond the last pixel, far from zero."""
    monkeypatch.setattr(tma, "PROGRAMS", 2)
    x = torch.randn(3, 8, *pixels).contiguous(memory_format=torch.channels_last)
    w, b = torch.randn(24, 8, k, k), torch.randn(24) + mean if bias else None
    x, w, b = (None if t is None else t.to(device, torch.float16) for t in (x, w, b))
    with force_family(family, tile):
        y, found = conv2d_stats(x, w, b, torch.channels_last, (1, 1, *[k // 2] * 4, 1, 1, 1))
    check_statistics(y, found)
    right = F.conv2d(
        x.double().cpu(), w.double().cpu(), None if b is None else b.double().cpu(), padding=k // 2
    )
    torch.testing.assert_close(y.double().cpu(), right, rtol=2**-10, atol=2**-9)


EVERY_WALK = [None, *(walk for walks in WALKS.values() for walk in walks)]


@pytest.mark.parametrize("walk", EVERY_WALK, ids=str)
@pytest.mark.parametrize(
    ("channels", "pixels", "activation"),
    [(8, (1, 1), "relu"), (72, (5, 3), "none"), (200, (9, 11), "relu6"), (64, (9, 11), "silu")],
)
def test_a_convolution_of_what_it_normalises_equals_torch(
    walk, channels, pixels, activation, device, monkeypatch
):
    """Of few channels and of several blocks of them, with pixels beyond the last block's."""
    monkeypatch.setattr(tma, "PROGRAMS", 2)
    c = torch.randn(3, channels, *pixels).contiguous(memory_format=torch.channels_last)
    mean, scale, shift = torch.randn(3, channels)
    var, w, b = torch.rand(channels) + 0.5, torch.randn(24, channels, 1, 1), torch.randn(24)
    w = w / channels**0.5
    given = [t.to(device, torch.float16) for t in (c, w, b)]
    norm = [t.to(device) for t in (mean, var, scale, shift)]
    with force_family("stream", walk):
        y, found = conv2d_normalised_stats(
            given[0], *norm, 1e-3, activation, *given[1:],
            torch.channels_last, (1, 1, 0, 0, 0, 0, 1, 1, 1),
        )  # fmt: skip
    check_statistics(y, found)
    c, w, b = (t.double().cpu() for t in given)
    norm = [t.double() for t in (mean, var, scale, shift)]
    z = activate(F.batch_norm(c, *norm, eps=1e-3), activation).half().double()
    torch.testing.assert_close(y.double().cpu(), F.conv2d(z, w, b), rtol=2**-9, atol=2**-9)


def test_a_chain_normalises_on_the_way_where_stream_serves(device):
    torch.manual_seed(0)
    layers = []
    for c, co in ((8, 16), (16, 16), (16, 24)):
        layers += [
            tritonconv.Conv2d(c, co, 1, bias=False),
            tritonconv.BatchNorm2d(co),
            torch.nn.ReLU(),
        ]
    net = tritonconv.fuse(torch.nn.Sequential(*layers)).to(device).half()
    x = torch.randn(2, 8, 7, 6).to(device).half().requires_grad_()
    found = []
    for family in ("general", "stream"):
        with force_family(family):
            names = [launch.kernel for launch in tritonconv.explain(net, x)]
            found.append(forward_backward(net, x))
        on_the_way = 2 * (family == "stream")
        assert names.count("_conv2d_stream_normalised_kernel") == on_the_way
        assert names.count("_batch_norm_fwd_kernel") == 3 - on_the_way
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("size", [(2, 2), (7, 6)])
def test_statistics_of_classes_are_exact(size, device, monkeypatch):
    """Of a transposed convolution, whose boxes hold every second pixel, some of them none."""
    monkeypatch.setattr(tma, "PROGRAMS", 1)
    x, w = torch.randn(3, 16, *size), torch.randn(16, 8, 3, 3)
    x, w = (t.contiguous(memory_format=torch.channels_last) for t in (x, w))
    shape = (3, 8, 2 * size[0] - 1, 2 * size[1] - 1)
    with force_family("boxes", SMALL["boxes"]):
        y, found = convolve(
            "dgrad", x.half().to(device), w.half().to(device), shape, Epilogue(), True,
            torch.channels_last, (2, 2, 1, 1, 1, 1, 1, 1, 1),
        )  # fmt: skip
    check_statistics(y, found)
    right = F.conv_transpose2d(x.half().double(), w.half().double(), stride=2, padding=1)
    torch.testing.assert_close(y.double().cpu(), right, rtol=2**-10, atol=2**-9)


@pytest.mark.parametrize("family", ["stream", "gemm", "boxes"])
def test_statistics_of_a_walk_leave_one_part_a_program(family):
    """As many parts as programs for each tile of channels, however many pixels."""
    p = posed("forward", (256, 64, 56, 56), (256, 64, 1, 1))._replace(statistics=True)
    served = {f.name: f for f in dispatch.FAMILIES["forward"]}[family]
    for config in served.configs(p):
        call = served.prepare(p, config)
        tiles_c = -(-256 // config.n)
        assert call.programs == call.parts * tiles_c <= 132 * 8
        assert served.prepare(p._replace(statistics=False), config).parts >= call.parts


@pytest.mark.parametrize(("channels", "stages"), [(64, 1), (72, 2), (192, 3), (256, 4)])
def test_short_sums_take_no_more_stages_than_steps(channels, stages):
    """So that a multiprocessor holds more programs; where it does not, stages stay."""
    p = posed("forward", (256, channels, 56, 56), (64, channels, 1, 1))
    (gemm,) = (f for f in dispatch.FAMILIES["forward"] if f.name == "gemm")
    small, large = tma.TILES[2][2], tma.TILES[2][1]
    assert gemm.prepare(p, small).constants["STAGES"] == stages
    assert gemm.prepare(p, large).constants["STAGES"] == large.stages


@pytest.mark.parametrize("family", ["gemm", "boxes"])
def test_statistics_of_huge_values_overflow_no_sooner_than_their_variance(
    family, device, monkeypatch
):
    monkeypatch.setattr(tma, "PROGRAMS", 1)
    x = torch.randn(40, 8, 16, 16).contiguous(memory_format=torch.channels_last) * 2e17
    w = torch.eye(8)[:, :, None, None]
    with force_family(family, tma.TILES[4][-1]):
        y, found = conv2d_stats(
            x.to(device), w.to(device), None, torch.channels_last, (1, 1, 0, 0, 0, 0, 1, 1, 1)
        )
    check_statistics(y, found, rtol=1e-5)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("blocks", ["interpreted", "small"])
@pytest.mark.parametrize("name", STRIDED)
def test_strided_boxes_are_exact(name, blocks, dtype, wide, device, monkeypatch, three_splits):
    if wide:
        monkeypatch.setattr(_common, "WIDE_FROM", 0)
    check(STRIDED[name], "boxes", SMALL["boxes"] if blocks == "small" else None, dtype, device)


@pytest.mark.parametrize("images", [2, 33])
def test_strided_boxes_wgrad_is_exact_across_images_and_along_rows(images, device, three_splits):
    for size in ((4, 2), (2, 70)):
        given = case((images, 16, *size), (24, 16, 3, 3), stride=2, padding=1)
        check(given, "boxes", tma.TILES[2][-1], torch.float16, device)


def posed(work, x, w, dtype=torch.float16, stride=1, padding=0, groups=1):
    g = Geometry((stride,) * 2, (padding,) * 2, (padding,) * 2, (1, 1), groups)
    return Problem(work, x, w, tuple(g.y_shape(x, w)), g, dtype, "ieee", tl.int32, (9, 0))


AMPERE = posed("forward", (1, 8, 4, 4), (8, 8, 3, 3))._replace(capability=(8, 0))


@pytest.mark.parametrize(
    ("family", "reason", "p"),
    [
        ("gemm", "1x1", posed("forward", (1, 8, 4, 4), (8, 8, 3, 3))),
        ("gemm", "1x1", posed("forward", (1, 8, 4, 4), (8, 8, 1, 1), padding=1)),
        ("gemm", "stride 1", posed("forward", (1, 8, 3, 3), (8, 8, 1, 1), stride=2)),
        ("boxes", "powers of two", posed("forward", (1, 16, 6, 6), (8, 16, 3, 3), stride=3)),
        ("boxes", "the stride divides", posed("forward", (1, 16, 5, 4), (8, 16, 3, 3), stride=2)),
        ("boxes", "multiples of 16", posed("forward", (1, 24, 4, 4), (8, 24, 3, 3), stride=2)),
        ("boxes", "powers of two", posed("wgrad", (1, 16, 6, 6), (8, 16, 3, 3), stride=3)),
        ("boxes", "the stride divides", posed("wgrad", (1, 16, 4, 5), (8, 16, 3, 3), stride=2)),
        ("stream", "1x1", posed("dgrad", (1, 8, 4, 4), (8, 8, 3, 3))),
        ("stream", "at most 256 channels", posed("forward", (1, 264, 4, 4), (8, 264, 1, 1))),
        ("stream", "at most 256 channels", posed("dgrad", (1, 8, 4, 4), (264, 8, 1, 1))),
        ("boxes", "one group", posed("forward", (1, 16, 4, 4), (16, 8, 3, 3), groups=2)),
        ("boxes", "multiples of 8", posed("dgrad", (1, 12, 4, 4), (8, 12, 3, 3))),
        ("gemm", "multiples of 8", posed("wgrad", (1, 8, 4, 4), (12, 8, 1, 1))),
        ("boxes", "TF32", posed("wgrad", (1, 8, 4, 4), (8, 8, 3, 3), dtype=torch.float64)),
        ("boxes", "TF32", posed("dgrad", (1, 8, 4, 4), (8, 8, 3, 3), dtype=torch.float32)),
        ("gemm", "pixels", posed("forward", (2**15, 8, 2**8, 2**8), (8, 8, 1, 1))),
        ("boxes", "sm_90", AMPERE),
    ],
)  # fmt: skip
def test_tma_conv2d_declines_what_it_cannot_serve(family, reason, p):
    served = {f.name: f for f in dispatch.FAMILIES[p.work]}[family]
    assert reason in served.declines(p)


@pytest.mark.parametrize(
    ("pixels", "images", "halo", "box"),
    [
        (128, (8, 56, 56), (2, 2), (2, 8, 8)),  # no pixel is wasted
        (128, (64, 14, 14), (2, 2), (32, 2, 2)),
        (128, (2, 7, 7), (2, 2), (2, 8, 8)),
        (64, (1, 1, 9), (0, 2), (1, 1, 64)),  # the least halo
    ],
)
def test_boxes_waste_least(pixels, images, halo, box):
    assert box_of(pixels, images, halo) == box
