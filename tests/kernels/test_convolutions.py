"""conv1d, conv_transpose1d and conv_transpose2d, which stand on conv2d's kernels."""

import pytest
import torch
import tritonconv
from reference import (
    Case,
    Dispatched,
    assert_close,
    assert_equal,
    forward_backward,
    in_float64,
    integers,
)
from torch import nn
from torch.nn import functional as F
from tritonconv import _common

pytestmark = pytest.mark.filterwarnings(  # torch's
    "ignore:Using padding='same' with even kernel:UserWarning"
)

# name and reason: operator, input, weight, options
CALLS = {
    "1d plain": ("conv1d", (2, 3, 9), (5, 3, 3), {}),
    "1d everything": ("conv1d", (2, 4, 17), (6, 2, 3), {"stride": 2, "padding": 3, "dilation": 3, "groups": 2}),
    "1d depthwise": ("conv1d", (2, 5, 8), (5, 1, 4), {"groups": 5, "padding": (2,)}),
    "1d same, even kernel pads one more after": ("conv1d", (1, 2, 7), (3, 2, 4), {"padding": "same"}),
    "1d valid": ("conv1d", (1, 2, 7), (3, 2, 2), {"padding": "valid"}),
    "1d pointwise": ("conv1d", (2, 18, 5), (20, 18, 1), {}),
    "1d more than 32 taps": ("conv1d", (1, 17, 40), (2, 17, 37), {"padding": 2}),
    "1d window larger than the input": ("conv1d", (1, 2, 2), (3, 2, 5), {"padding": 2}),
    "transposed plain": ("conv_transpose2d", (2, 3, 4, 5), (3, 5, 3, 3), {}),
    "transposed doubles the size": ("conv_transpose2d", (2, 4, 3, 4), (4, 3, 4, 4), {"stride": 2, "padding": 1}),
    "transposed, output padding": (
        "conv_transpose2d",
        (2, 3, 4, 3),
        (3, 4, 3, 3),
        {"stride": 2, "padding": 1, "output_padding": 1},
    ),
    "transposed, output padding below the dilation alone": (
        "conv_transpose2d",
        (1, 3, 4, 3),
        (3, 2, 3, 3),
        {"dilation": (2, 3), "output_padding": (1, 2), "padding": 1},
    ),
    "transposed, groups": ("conv_transpose2d", (2, 4, 4, 4), (4, 3, 3, 3), {"groups": 2, "padding": 1}),
    "transposed depthwise": ("conv_transpose2d", (1, 5, 4, 4), (5, 1, 3, 3), {"groups": 5, "stride": 2}),
    "transposed asymmetric": (
        "conv_transpose2d",
        (1, 4, 5, 3),
        (4, 3, 2, 3),
        {"stride": (3, 1), "padding": (0, 2), "output_padding": (2, 0), "dilation": (1, 2), "groups": 2},
    ),
    "transposed, stride beyond the kernel": ("conv_transpose2d", (1, 2, 3, 3), (2, 3, 2, 2), {"stride": 3}),
    "transposed 1x1": ("conv_transpose2d", (2, 18, 3, 4), (18, 20, 1, 1), {}),
    "transposed, more than 32 taps": ("conv_transpose2d", (1, 18, 4, 4), (18, 5, 7, 5), {"padding": 2}),
    "transposed 1d plain": ("conv_transpose1d", (2, 3, 6), (3, 4, 3), {}),
    "transposed 1d everything": (
        "conv_transpose1d",
        (2, 4, 5),
        (4, 3, 3),
        {"stride": 3, "padding": 2, "output_padding": 2, "groups": 2, "dilation": 2},
    ),
}  # fmt: skip


def case(operator, x_shape, w_shape, options) -> Case:
    transposed = "transpose" in operator
    channels = w_shape[1] * options.get("groups", 1) if transposed else w_shape[0]
    return Case(operator, (x_shape, w_shape, (channels,)), options)


CASES = {name: case(*call) for name, call in CALLS.items()}
SOME = ("1d everything", "transposed asymmetric", "transposed 1d everything")


@pytest.mark.covers("forward", "gradients")
@pytest.mark.parametrize("name", CASES)
def test_convolution_equals_torch(name, device):
    case = CASES[name]
    given = case.tensors(device)
    assert_close(forward_backward(case.ours, *given), case.expected(given), case.reduced)


@pytest.mark.covers("forward", "gradients")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_convolution_rounds_once(name, dtype, device):
    case = CASES[name]
    given = case.tensors(device, dtype)
    dy = torch.randn(case.ours(*given).shape).to(device, dtype)
    ours = forward_backward(case.ours, *given, dy=dy)
    assert_close(ours, case.expected(given, dy), case.reduced)
    assert all(t.dtype == dtype for t in ours)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("name", SOME)
def test_convolution_of_integers_is_exact(name, dtype, device):
    case = CASES[name]
    given = case.tensors(device, dtype, integers)
    dy = integers(*case.ours(*given).shape, most=1).to(given[0])
    assert_equal(forward_backward(case.ours, *given, dy=dy), case.expected(given, dy))


@pytest.mark.parametrize("name", SOME)
def test_convolution_with_64_bit_offsets(name, device, monkeypatch):
    monkeypatch.setattr(_common, "WIDE_FROM", 0)
    case = CASES[name]
    given = case.tensors(device)
    assert_close(forward_backward(case.ours, *given), case.expected(given), case.reduced)


@pytest.mark.covers("second gradients")
@pytest.mark.parametrize("name", CASES)
def test_convolution_second_gradients(name, device):
    case = CASES[name]
    given = [t[:1].requires_grad_() if i == 0 else t.requires_grad_() for i, t in enumerate(case.tensors(device))]  # fmt: skip
    assert torch.autograd.gradcheck(case.ours, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(case.ours, given, fast_mode=True)


@pytest.mark.covers("forward", "gradients", option="unbatched input")
@pytest.mark.parametrize("name", SOME)
def test_convolution_takes_one_item_and_an_empty_batch(name, device):
    case = CASES[name]
    x, w, b = case.tensors(device)
    single = [x[0], w, b]
    ours = forward_backward(case.ours, *single)
    assert_close(ours, case.expected(single), case.reduced)
    y, dx, dw, db = forward_backward(case.ours, x[:0], w, b)
    assert y.shape == case.theirs(*in_float64([x[:0], w, b])).shape
    assert dx.shape == x[:0].shape
    assert not dw.any()
    assert not db.any()


@pytest.mark.covers(
    "forward", "gradients", option="channels_last", operator="conv_transpose2d", dtype=torch.float32
)
@pytest.mark.parametrize("w_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("x_format", [torch.contiguous_format, torch.channels_last])
def test_conv_transpose2d_has_torchs_strides(x_format, w_format, device):
    x = torch.randn(2, 4, 5, 6).to(memory_format=x_format)
    w = torch.randn(4, 3, 3, 3).to(memory_format=w_format)
    ours = forward_backward(tritonconv.conv_transpose2d, x.to(device), w.to(device))
    assert ours[0].stride() == F.conv_transpose2d(x, w).stride()
    assert ours[1].stride() == x.stride()
    assert ours[2].stride() == w.stride()


@pytest.mark.covers(
    "forward", "gradients", option="any strides", operator="conv1d", dtype=torch.float32
)
@pytest.mark.parametrize(
    ("x", "w"),
    [
        (torch.randn(2, 4, 7), torch.randn(3, 4, 2)),
        (torch.randn(2, 7, 4).transpose(1, 2), torch.randn(3, 4, 2)),
        (torch.randn(2, 4, 7), torch.randn(3, 2, 4).transpose(1, 2)),
        (torch.randn(2, 4, 14)[..., ::2], torch.randn(3, 4, 2)),
    ],
    ids=["contiguous", "x transposed", "w transposed", "every second"],
)
def test_conv1d_has_torchs_strides(x, w, device):
    ours = forward_backward(tritonconv.conv1d, x.to(device), w.to(device))
    theirs = forward_backward(F.conv1d, x, w)
    assert ours[0].stride() == theirs[0].stride()
    assert_close(ours, forward_backward(F.conv1d, *in_float64([x, w])), 16)


@pytest.mark.parametrize(
    ("needed", "ops"),
    [
        ("x", ["conv2d_dgrad", "conv2d"]),
        ("w", ["conv2d_dgrad", "conv2d_wgrad"]),
        ("b", ["conv2d_dgrad", "conv2d_dbias"]),
        ("", ["conv2d_dgrad"]),
    ],
)
def test_conv_transpose2d_computes_only_needed_gradients(needed, ops, device):
    tensors = CASES["transposed plain"].tensors(device)
    given = dict(zip("xwb", tensors, strict=True))
    for name in needed:
        given[name].requires_grad_()
    with Dispatched() as dispatched:
        y = tritonconv.conv_transpose2d(*given.values())
        if needed:
            y.sum().backward()
    assert dispatched.ours == ops


@pytest.mark.parametrize("sizes", [None, (9, 8), [10, 7]])
def test_conv_transpose2d_module_takes_an_output_size(sizes, device):
    theirs = nn.ConvTranspose2d(2, 3, 3, stride=2)
    ours = tritonconv.ConvTranspose2d(2, 3, 3, stride=2)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 2, 4, 3)
    torch.testing.assert_close(ours.to(device)(x.to(device), sizes).cpu(), theirs(x, sizes))


@pytest.mark.covers(
    "forward", "gradients", option="no input channels", operator="conv2d", dtype=torch.float32
)
@pytest.mark.parametrize("padding", [0, 1])
def test_conv2d_of_no_channels_is_torchs(padding, device):
    x, w, b = torch.randn(2, 0, 4, 5), torch.randn(3, 0, 2, 2), torch.randn(3)

    def results(f, *given):
        leaves = [t.requires_grad_() for t in given]
        y = f(*leaves, padding=padding)
        return y, torch.autograd.grad(y.sum(), leaves)

    y, gradients = results(tritonconv.conv2d, x.to(device), w.to(device), b.to(device))
    expected, _ = results(F.conv2d, x, w, b)
    assert (y.shape, y.stride()) == (expected.shape, expected.stride())
    assert [g.shape for g in gradients] == [x.shape, w.shape, b.shape]
    assert not gradients[2].any()


X, W, B = (1, 4, 5), (4, 3, 3), (3,)
ERRORS = {
    "1d rank": ("conv1d", (5,), (6, 4, 3), (6,), {}, RuntimeError, "input must be 2-D or 3-D"),
    "1d kernel too large": ("conv1d", (1, 4, 2), (6, 4, 3), None, {}, RuntimeError, "kernel of at least 1"),
    "1d two strides": ("conv1d", X, (6, 4, 3), None, {"stride": (1, 1)}, RuntimeError, "stride must be a single int"),
    "1d channels": ("conv1d", (1, 3, 5), (6, 4, 3), None, {}, RuntimeError, "4 channels, got 3"),
    "channels": ("conv_transpose1d", (1, 3, 5), W, None, {}, RuntimeError, "4 channels, got 3"),
    "groups": ("conv_transpose1d", X, W, None, {"groups": 3}, RuntimeError, "multiple of groups=3"),
    "bias": ("conv_transpose1d", X, W, (4,), {}, RuntimeError, r"bias of shape \(3,\).*got \(4,\)"),
    "bias of groups": ("conv_transpose1d", X, W, B, {"groups": 2}, RuntimeError, r"bias of shape \(6,\)"),
    "output padding": ("conv_transpose1d", X, W, B, {"output_padding": 1}, RuntimeError, "smaller than either"),
    "negative output padding": ("conv_transpose1d", X, W, B, {"output_padding": -1}, RuntimeError, "non-negative"),
    "empty output": ("conv_transpose1d", (1, 4, 1), W, B, {"padding": 2}, RuntimeError, "would be empty"),
    "empty input": ("conv_transpose1d", (1, 4, 0), W, B, {}, RuntimeError, "must not be empty"),
    "empty weight": ("conv_transpose1d", X, (4, 0, 3), None, {}, RuntimeError, "must not be empty"),
    "padding by name": ("conv_transpose1d", X, W, B, {"padding": "same"}, TypeError, "padding must be an int"),
    "no stride": ("conv_transpose1d", X, W, B, {"stride": 0}, RuntimeError, "stride must be positive"),
    "2d rank": ("conv_transpose2d", X[1:], (4, 3, 3, 3), None, {}, RuntimeError, "input must be 3-D or 4-D"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_convolution_refuses_what_torch_refuses(name, device):
    operator, *shapes, options, error, message = ERRORS[name]
    given = [shape if shape is None else torch.randn(shape) for shape in shapes]
    with pytest.raises(error):
        getattr(F, operator)(*given, **options)
    with pytest.raises(error, match=f"{operator}: .*{message}"):
        getattr(tritonconv, operator)(*[t if t is None else t.to(device) for t in given], **options)
