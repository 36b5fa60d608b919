import pytest
import torch
import tritonconv
from reference import (
    Dispatched,
    assert_close,
    assert_equal,
    conv2d_case,
    forward_backward,
    integers,
)
from torch.nn import functional as F
from tritonconv import _common, _split, conv2d
from tritonconv.conv.dispatch import force_family
from tritonconv.conv.general.tiles import Tile
from tritonconv.conv.precision import input_precision

pytestmark = pytest.mark.filterwarnings(  # torch's
    "ignore:Using padding='same' with even kernel:UserWarning"
)


# name and reason: input shape, weight shape, options
GEOMETRIES = {
    "plain": ((2, 3, 7, 6), (5, 3, 3, 3), {}),
    "padded": ((2, 3, 7, 6), (5, 3, 3, 3), {"padding": 1}),
    "even size at stride 2": ((2, 3, 8, 8), (5, 3, 3, 3), {"padding": 1, "stride": 2}),
    "odd size at stride 2": ((2, 3, 9, 7), (5, 3, 3, 3), {"padding": 1, "stride": 2}),
    "1x1": ((2, 18, 5, 4), (20, 18, 1, 1), {}),
    "1x1 at stride 2 leaves pixels that no tap reaches": ((2, 18, 5, 4), (6, 18, 1, 1), {"stride": 2}),
    "stride beyond the kernel": ((1, 2, 11, 10), (3, 2, 2, 2), {"stride": (3, 4)}),
    "asymmetric everything": (
        (2, 4, 11, 9),
        (6, 4, 3, 2),
        {"stride": (1, 2), "padding": (2, 0), "dilation": (2, 3)},
    ),
    "dilation divides the stride's classes": ((1, 3, 12, 12), (2, 3, 3, 3), {"stride": 2, "dilation": 2}),
    "dilation coprime to the stride": ((1, 3, 14, 13), (2, 3, 3, 3), {"stride": 2, "dilation": 3}),
    "common factor of stride and dilation": (
        (1, 3, 17, 17),
        (2, 3, 3, 3),
        {"stride": 4, "dilation": 6, "padding": 5},
    ),
    "two groups": ((2, 4, 6, 6), (6, 2, 3, 3), {"groups": 2, "padding": 1}),
    "wide groups": ((1, 40, 4, 4), (36, 20, 3, 3), {"groups": 2, "padding": 1}),
    "depthwise": ((2, 5, 6, 6), (5, 1, 3, 3), {"groups": 5, "padding": 1}),
    "depthwise with multiplier, stride 2": ((1, 3, 7, 7), (6, 1, 3, 3), {"groups": 3, "stride": 2}),
    "one step of channels": ((1, 16, 5, 5), (3, 16, 3, 3), {"padding": 1}),
    "channels that no power of two divides": ((1, 17, 5, 5), (19, 17, 3, 3), {"padding": 1}),
    "several blocks of channels and a tail": ((1, 301, 3, 3), (3, 301, 2, 2), {}),
    "more than 32 taps": ((1, 18, 9, 9), (20, 18, 6, 6), {"padding": 2}),
    "more than 32 taps, stride 2": ((1, 18, 9, 9), (20, 18, 7, 5), {"padding": 2, "stride": 2}),
    "exactly 32 taps": ((1, 16, 8, 8), (4, 16, 4, 8), {"padding": (1, 3)}),
    "window of the whole image": ((2, 3, 5, 4), (4, 3, 5, 4), {}),
    "window larger than the image": ((1, 2, 2, 3), (3, 2, 5, 5), {"padding": 2}),
    "padding beyond the kernel": ((1, 2, 3, 3), (3, 2, 2, 2), {"padding": 4}),
    "one pixel": ((3, 4, 1, 1), (5, 4, 1, 1), {}),
    "same, odd kernel": ((1, 2, 5, 6), (3, 2, 3, 5), {"padding": "same"}),
    "same, even kernel pads one more after": ((1, 2, 5, 6), (3, 2, 4, 2), {"padding": "same"}),
    "same, dilated even kernel": ((1, 2, 7, 8), (3, 2, 4, 2), {"padding": "same", "dilation": 3}),
    "valid": ((1, 2, 5, 6), (3, 2, 3, 3), {"padding": "valid"}),
}  # fmt: skip
CASES = {name: conv2d_case(x, w, **options) for name, (x, w, options) in GEOMETRIES.items()}
DENSE = (
    "padded",
    "asymmetric everything",
    "two groups",
    "more than 32 taps, stride 2",
    "depthwise",
)


@pytest.mark.covers("forward", "gradients")
@pytest.mark.parametrize("name", CASES)
def test_conv2d_equals_torch(name, device):
    case = CASES[name]
    given = case.tensors(device)
    assert_close(forward_backward(case.ours, *given), case.expected(given), case.reduced)


@pytest.mark.covers("forward", "gradients")
@pytest.mark.parametrize(
    ("dtype", "precision"),
    [
        (torch.float32, "ieee"),
        (torch.float32, "tf32"),
        (torch.float16, "ieee"),
        (torch.bfloat16, "ieee"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", CASES)
def test_conv2d_rounds_once(name, dtype, precision, device):
    torch.backends.cudnn.conv.fp32_precision = precision  # ieee_float32 puts it back
    case = CASES[name]
    given = case.tensors(device, dtype)
    dy = torch.randn(case.ours(*given).shape).to(device, dtype)
    ours = forward_backward(case.ours, *given, dy=dy)
    operand_eps = 2**-10 if precision == "tf32" else 0.0
    assert_close(ours, case.expected(given, dy), case.reduced, operand_eps)
    assert all(t.dtype == dtype for t in ours)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", DENSE)
def test_conv2d_of_integers_is_exact(name, dtype, device):
    case = CASES[name]
    given = case.tensors(device, dtype, integers)
    y = case.ours(*given)
    dy = integers(*y.shape, most=1).to(y)
    expected = case.expected(given, dy)
    if dtype == torch.bfloat16:  # 8 bits hold integers to 256: larger sums round
        expected = [t.to(dtype) for t in expected]
    assert_equal(forward_backward(case.ours, *given, dy=dy), expected)


@pytest.mark.parametrize("splits", [1, 2, 5, 100])
def test_conv2d_gradients_do_not_depend_on_splits(splits, device, monkeypatch):
    case = conv2d_case((5, 3, 9, 9), (4, 3, 3, 3), padding=1)
    given = case.tensors(device, torch.float32, integers)
    monkeypatch.setattr(_split, "splits", lambda programs, steps, wanted: min(splits, steps))
    dy = integers(5, 4, 9, 9)
    with force_family("general", Tile(16, 16, 16, 4, 2)):
        assert_equal(forward_backward(case.ours, *given, dy=dy), case.expected(given, dy))


@pytest.mark.parametrize("name", DENSE)
def test_conv2d_with_64_bit_offsets(name, device, monkeypatch):
    monkeypatch.setattr(_common, "WIDE_FROM", 0)
    case = CASES[name]
    given = case.tensors(device)
    assert_close(forward_backward(case.ours, *given), case.expected(given), case.reduced)


@pytest.mark.covers("second gradients", operator="conv2d")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"padding": 1},
        {"stride": 2, "padding": 1, "groups": 2},
        {"stride": (2, 3), "dilation": (2, 1), "padding": 2},
    ],
    ids=str,
)
def test_conv2d_second_gradients(options, bias, device):
    def leaf(*shape):
        return torch.randn(*shape, dtype=torch.float64, device=device, requires_grad=True)

    x, w = leaf(1, 4, 5, 4), leaf(2, 4 // options.get("groups", 1), 3, 2)
    b = leaf(2) if bias else None

    def f(*given):
        return conv2d(*given, **options)

    given = (x, w, b) if bias else (x, w)
    assert torch.autograd.gradcheck(f, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(f, given, fast_mode=True)


def test_conv2d_gradient_penalty_equals_torch(device):
    """The second gradient flows through dgrad into both of its arguments."""

    def penalty(f, x, w):
        x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
        (dx,) = torch.autograd.grad(
            f(x, w, stride=2, padding=1).square().sum(), x, create_graph=True
        )
        return torch.autograd.grad(dx.square().sum(), (x, w))

    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    w = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    ours = penalty(conv2d, x.to(device), w.to(device))
    for a, e in zip(ours, penalty(F.conv2d, x, w), strict=True):
        torch.testing.assert_close(a.cpu(), e)


@pytest.mark.covers("forward", "gradients", option="channels_last", operator="conv2d")
@pytest.mark.parametrize("w_shape", [(6, 4, 3, 3), (6, 4, 1, 1), (4, 1, 3, 3)], ids=str)
@pytest.mark.parametrize("w_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("x_format", [torch.contiguous_format, torch.channels_last])
def test_conv2d_has_torchs_strides(x_format, w_format, w_shape, device):
    x = torch.randn(2, 4, 5, 6).to(memory_format=x_format)
    w = torch.randn(w_shape).to(memory_format=w_format)
    groups = 4 // w_shape[1]
    ours = forward_backward(lambda x, w: conv2d(x, w, groups=groups), x.to(device), w.to(device))
    theirs = forward_backward(lambda x, w: F.conv2d(x, w, groups=groups), x, w)
    assert ours[0].stride() == theirs[0].stride()
    assert ours[1].stride() == x.stride()
    assert ours[2].stride() == w.stride()


@pytest.mark.parametrize("channels", [1, 3])
def test_conv2d_output_views_as_rows(channels, device):
    x = torch.randn(2, channels, 5, 5, device=device)
    y = conv2d(x, torch.randn(1, channels, 5, 5, device=device))
    assert y.view(2, -1).shape == (2, 1)
    assert y.stride() == (1, 1, 1, 1)


SMALL = conv2d_case((2, 3, 6, 6), (4, 3, 3, 3))
STRIDED = {
    "every second pixel": lambda t: torch.cat([t, t], -1)[..., ::2].copy_(t),
    "transposed": lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2),
    "slice of torch.cat": lambda t: torch.cat([t, t], 1)[:, : t.shape[1]],
    "an offset into memory": lambda t: (
        torch.cat([t.flatten(), t.flatten()])[3:][: t.numel()].view(t.shape).copy_(t)
    ),
}


@pytest.mark.covers("forward", "gradients", option="any strides", operator="conv2d")
@pytest.mark.parametrize("strided", STRIDED.values(), ids=STRIDED)
def test_conv2d_accepts_any_strides(strided, device):
    x, w, b = SMALL.tensors(device)
    dy = torch.randn(2, 4, 4, 4, dtype=torch.float64, device=device)
    expected = SMALL.expected([x, w, b], dy)
    bias = torch.stack([b, b], 1)[:, 0]
    ours = forward_backward(conv2d, strided(x), strided(w), bias, dy=strided(dy))
    assert_close(ours, expected, 144)


def test_conv2d_accepts_an_expanded_gradient(device):
    given = SMALL.tensors(device)
    dy = torch.ones((), dtype=torch.float64, device=device).expand(2, 4, 4, 4)
    assert_close(forward_backward(conv2d, *given, dy=dy), SMALL.expected(given, dy), 144)


@pytest.mark.covers("forward", "gradients", option="unbatched input", operator="conv2d")
def test_conv2d_takes_one_image(device):
    given = SMALL.tensors(device)
    given[0] = given[0][0]
    ours = forward_backward(conv2d, *given)
    assert ours[0].shape == (4, 4, 4)
    assert_close(ours, SMALL.expected(given), 36)


def test_conv2d_takes_an_empty_batch(device):
    x, w, b = conv2d_case((0, 3, 6, 6), (4, 3, 3, 3)).tensors(device)
    y, dx, dw, db = forward_backward(conv2d, x, w, b)
    assert y.shape == (0, 4, 4, 4)
    assert dx.shape == x.shape
    assert not dw.any()
    assert not db.any()


@pytest.mark.parametrize(
    ("needed", "ops"),
    [
        ("x", ["conv2d", "conv2d_dgrad"]),
        ("w", ["conv2d", "conv2d_wgrad"]),
        ("b", ["conv2d", "conv2d_dbias"]),
        ("xw", ["conv2d", "conv2d_dgrad", "conv2d_wgrad"]),
        ("", ["conv2d"]),
    ],
)
def test_conv2d_computes_only_needed_gradients(needed, ops, device):
    given = dict(zip("xwb", conv2d_case((1, 2, 4, 4), (3, 2, 3, 3)).tensors(device), strict=True))
    for name in needed:
        given[name].requires_grad_()
    with Dispatched() as dispatched:
        y = conv2d(*given.values())
        if needed:
            y.sum().backward()
    assert dispatched.ours == ops
    assert "".join(name for name, t in given.items() if t.grad is not None) == needed


def test_conv2d_repeats_bit_for_bit(device):
    given = conv2d_case((4, 20, 9, 9), (24, 20, 3, 3)).tensors(device, torch.float32)
    first, second = forward_backward(conv2d, *given), forward_backward(conv2d, *given)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_conv2d_notices_an_edited_input(device):
    x, w, b = conv2d_case((1, 2, 4, 4), (3, 2, 3, 3)).tensors(device)
    y = conv2d(x, w.requires_grad_(), b)
    x.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize(
    ("precision", "dtype", "expected"),
    [
        ("tf32", torch.float32, "tf32"),
        ("ieee", torch.float32, "ieee"),
        ("tf32", torch.float64, "ieee"),
        ("tf32", torch.float16, "ieee"),
    ],
)
def test_conv2d_obeys_torchs_tf32_switch(precision, dtype, expected):
    torch.backends.cudnn.conv.fp32_precision = precision  # ieee_float32 puts it back
    assert input_precision(torch.empty(1, dtype=dtype)) == expected


X, W, B = (1, 4, 5, 5), (6, 4, 3, 3), (6,)
ERRORS = {
    "input's rank": ((5, 5), W, B, {}, RuntimeError, r"input must be 3-D or 4-D, got shape \(5, 5\)"),
    "weight's rank": (X, (6, 4, 3), B, {}, RuntimeError, "weight must be 4-D"),
    "channels": ((1, 3, 5, 5), W, B, {}, RuntimeError, "expected input to have 4 channels, got 3"),
    "groups of outputs": (X, (5, 2, 3, 3), None, {"groups": 2}, RuntimeError, "multiple of groups=2"),
    "groups of inputs": (X, W, B, {"groups": 2}, RuntimeError, "8 channels, got 4"),
    "no groups": (X, W, B, {"groups": 0}, RuntimeError, "groups must be positive"),
    "bias's shape": (X, W, (5,), {}, RuntimeError, r"bias of shape \(6,\).*got \(5,\)"),
    "bias's rank": (X, W, (6, 1), {}, RuntimeError, "bias must be 1-D"),
    "kernel too large": ((1, 4, 2, 2), W, B, {}, RuntimeError, "fits the padded input"),
    "dilated kernel too large": (X, W, B, {"dilation": 3}, RuntimeError, "fits the padded input"),
    "no stride": (X, W, B, {"stride": 0}, RuntimeError, r"stride must be positive, got \(0, 0\)"),
    "no dilation": (X, W, B, {"dilation": 0}, RuntimeError, "dilation must be positive"),
    "negative padding": (X, W, B, {"padding": -1}, RuntimeError, "padding must be non-negative"),
    "unknown padding": (X, W, B, {"padding": "full"}, RuntimeError, "padding must be 'same', 'valid'"),
    "same at stride 2": (X, W, B, {"padding": "same", "stride": 2}, RuntimeError, "strided"),
    "three strides": (X, W, B, {"stride": (1, 1, 1)}, RuntimeError, "stride must be a single int"),
    "a float stride": (X, W, B, {"stride": 1.5}, TypeError, "stride must be an int"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_conv2d_refuses_what_torch_refuses(name, device):
    x, w, b, options, error, message = ERRORS[name]
    given = [t if t is None else torch.randn(t) for t in (x, w, b)]
    with pytest.raises(error):
        F.conv2d(*given, **options)
    with pytest.raises(error, match=f"conv2d: .*{message}"):
        conv2d(*[t if t is None else t.to(device) for t in given], **options)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x, w, b: (x.half(), w, b), RuntimeError, "same dtype and device.*float16.*float32"),
        (lambda x, w, b: (x, w, b.double()), RuntimeError, "same dtype and device.*float64"),
        (
            lambda x, w, b: (x.int(), w.int(), b.int()),
            NotImplementedError,
            "got torch.int32; convert",
        ),
        (lambda x, w, b: (x.to(torch.complex64), w, b), NotImplementedError, "got torch.complex64"),
        (lambda x, w, b: (x.to_sparse(), w, b), NotImplementedError, "must be a dense tensor"),
        (lambda x, w, b: (None, w, b), TypeError, "input must be a Tensor, got NoneType"),
        (lambda x, w, b: (x, w.to("meta"), b), RuntimeError, "same dtype and device.*meta"),
    ],
)
def test_conv2d_refuses_other_tensors(change, error, message, device):
    given = [torch.randn(shape, device=device) for shape in (X, W, B)]
    with pytest.raises(error, match=f"conv2d: .*{message}"):
        conv2d(*change(*given))


def test_conv2d_parameter_counts():
    def count(*args, **options):
        return sum(p.numel() for p in tritonconv.Conv2d(*args, **options).parameters())

    assert [count(3, 6, 3), count(6, 4, 3), count(4, 16, 5), count(16, 3, 5)] == [
        168,
        220,
        1616,
        1203,
    ]
    assert [count(4, 8, 3), count(4, 8, 3, groups=2)] == [296, 152]
    bottleneck = count(256, 32, 1) + count(32, 32, 3) + count(32, 256, 1)
    assert (bottleneck, count(256, 256, 3)) == (25_920, 590_080)
    separable = count(4, 8, 3, groups=4, bias=False) + count(8, 8, 1, bias=False)
    assert (separable, count(4, 8, 3, bias=False)) == (72 + 64, 288)
    with pytest.raises(ValueError, match="in_channels must be divisible by groups"):
        tritonconv.Conv2d(4, 8, 3, groups=3)


def test_conv2d_output_sizes(device):
    assert tritonconv.Conv2d(3, 4, 3, padding=2).to(device)(
        torch.randn(3, 100, 100, device=device)
    ).shape == (4, 102, 102)
    assert tritonconv.Conv2d(2, 3, (3, 5), padding=(1, 2)).to(device)(
        torch.randn(4, 2, 3, 5, device=device)
    ).shape == (4, 3, 3, 5)
