"""max_pool2d, avg_pool2d, adaptive_avg_pool2d: one contract, so one file of tests."""

import pytest
import torch
from reference import Dispatched, assert_close, assert_equal, forward_backward, in_float64
from torch.nn import functional as F
from tritonconv import _common, adaptive_avg_pool2d, avg_pool2d, max_pool2d

THEIRS = {
    max_pool2d: F.max_pool2d,
    avg_pool2d: F.avg_pool2d,
    adaptive_avg_pool2d: F.adaptive_avg_pool2d,
}
# name and reason, operator, options, input shape
CASES = {
    "max 2": (max_pool2d, {"kernel_size": 2}, (2, 3, 6, 8)),
    "max 2, odd size": (max_pool2d, {"kernel_size": 2}, (2, 3, 7, 5)),
    "max 3 s2, overlapping": (max_pool2d, {"kernel_size": 3, "stride": 2}, (2, 3, 9, 8)),
    "max 3 s2 p1": (max_pool2d, {"kernel_size": 3, "stride": 2, "padding": 1}, (2, 3, 8, 8)),
    "max 3 s1": (max_pool2d, {"kernel_size": 3, "stride": 1, "padding": 1}, (1, 5, 5, 6)),
    "max asymmetric": (
        max_pool2d,
        {"kernel_size": (3, 2), "stride": (1, 3), "padding": (1, 0)},
        (2, 3, 6, 11),
    ),
    "max stride beyond the window": (max_pool2d, {"kernel_size": 2, "stride": 3}, (1, 3, 8, 8)),
    "max dilated": (max_pool2d, {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2}, (1, 3, 9, 9)),
    "max ceil": (max_pool2d, {"kernel_size": 3, "stride": 2, "ceil_mode": True}, (1, 3, 8, 6)),
    "max ceil drops a window that starts in the padding": (
        max_pool2d,
        {"kernel_size": 2, "stride": 3, "padding": 1, "ceil_mode": True},
        (1, 2, 5, 8),
    ),
    "max of 256 taps: their numbers no longer fit a byte": (max_pool2d, {"kernel_size": 16}, (1, 2, 17, 18)),
    "max over many channels": (max_pool2d, {"kernel_size": 2}, (1, 130, 4, 4)),
    "avg 2": (avg_pool2d, {"kernel_size": 2}, (2, 3, 6, 8)),
    "avg 3 s2 p1": (avg_pool2d, {"kernel_size": 3, "stride": 2, "padding": 1}, (2, 3, 8, 7)),
    "avg without padding": (
        avg_pool2d,
        {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False},
        (2, 3, 8, 7),
    ),
    "avg ceil": (avg_pool2d, {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}, (1, 3, 8, 6)),
    "avg ceil without padding": (
        avg_pool2d,
        {"kernel_size": (2, 3), "stride": (3, 2), "padding": 1, "ceil_mode": True, "count_include_pad": False},
        (1, 3, 8, 6),
    ),
    "avg divisor": (avg_pool2d, {"kernel_size": 3, "divisor_override": 5}, (1, 3, 8, 6)),
    "avg negative divisor": (avg_pool2d, {"kernel_size": 2, "divisor_override": -3}, (1, 3, 4, 6)),
    "adaptive, global": (adaptive_avg_pool2d, {"output_size": 1}, (2, 3, 7, 7)),
    "adaptive, divisible": (adaptive_avg_pool2d, {"output_size": (2, 4)}, (2, 3, 6, 8)),
    "adaptive, overlapping": (adaptive_avg_pool2d, {"output_size": (5, 3)}, (2, 3, 7, 8)),
    "adaptive, larger than the input": (adaptive_avg_pool2d, {"output_size": (9, 5)}, (1, 3, 4, 3)),
    "adaptive, None keeps": (adaptive_avg_pool2d, {"output_size": (None, 2)}, (1, 3, 4, 5)),
}  # fmt: skip
SOME = ("max 3 s2 p1", "avg ceil without padding", "adaptive, overlapping")


def bind(name):
    op, options, shape = CASES[name]
    return (lambda x: op(x, **options)), (lambda x: THEIRS[op](x, **options)), shape


@pytest.mark.parametrize("name", CASES)
def test_pool_equals_torch(name, device):
    ours, theirs, shape = bind(name)
    x = torch.randn(shape, dtype=torch.float64).to(device)
    assert_close(forward_backward(ours, x), forward_backward(theirs, *in_float64([x])), 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", SOME)
def test_pool_rounds_once(name, dtype, device):
    ours, theirs, shape = bind(name)
    x = torch.randn(shape).to(device, dtype)
    dy = torch.randn(ours(x).shape).to(device, dtype)
    expected = forward_backward(theirs, *in_float64([x]), dy=dy.cpu().double())
    actual = forward_backward(ours, x, dy=dy)
    assert_close(actual, expected, 9)
    assert all(t.dtype == dtype for t in actual)


@pytest.mark.parametrize("name", SOME)
def test_pool_with_64_bit_offsets(name, device, monkeypatch):
    monkeypatch.setattr(_common, "WIDE_FROM", 0)
    ours, theirs, shape = bind(name)
    x = torch.randn(shape, dtype=torch.float64).to(device)
    assert_close(forward_backward(ours, x), forward_backward(theirs, *in_float64([x])), 16)


@pytest.mark.parametrize(
    "name", ["max 3 s2 p1", "max dilated", "avg 3 s2 p1", "adaptive, overlapping"]
)
def test_pool_second_gradients(name, device):
    ours, _, shape = bind(name)
    x = torch.randn(1, 2, *shape[2:], dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(ours, (x,), fast_mode=True)
    assert torch.autograd.gradgradcheck(ours, (x,), fast_mode=True)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", SOME)
def test_pool_has_torchs_strides(name, memory_format, channels, device):
    ours, theirs, shape = bind(name)
    x = torch.randn(shape[0], channels, *shape[2:]).to(memory_format=memory_format)
    y, dx = forward_backward(ours, x.to(device))
    assert y.stride() == theirs(x).stride()
    assert dx.stride() == x.stride()


@pytest.mark.parametrize("name", SOME)
def test_pool_accepts_any_strides(name, device):
    ours, theirs, shape = bind(name)
    x = torch.randn(*shape[:2], shape[3], shape[2], dtype=torch.float64, device=device)
    x = x.transpose(2, 3)
    dy = torch.ones((), dtype=torch.float64, device=device).expand(ours(x).shape)
    expected = forward_backward(theirs, *in_float64([x]), dy=dy.cpu())
    assert_close(forward_backward(ours, x, dy=dy), expected, 9)


@pytest.mark.parametrize("name", SOME)
def test_pool_takes_one_image_and_an_empty_batch(name, device):
    ours, theirs, shape = bind(name)
    x = torch.randn(shape, dtype=torch.float64, device=device)
    assert_close(forward_backward(ours, x[0]), forward_backward(theirs, *in_float64([x[0]])), 16)
    y, dx = forward_backward(ours, x[:0])
    assert y.shape == theirs(x[:0].cpu()).shape
    assert dx.shape == x[:0].shape


@pytest.mark.parametrize("name", SOME)
def test_pool_repeats_bit_for_bit(name, device):
    ours, _, shape = bind(name)
    x = torch.randn(shape, device=device)
    assert_equal(forward_backward(ours, x), forward_backward(ours, x))


def test_max_pool2d_picks_the_first_of_ties(device):
    x = torch.ones(1, 1, 4, 4, device=device, requires_grad=True)
    max_pool2d(x, 2).sum().backward()
    assert x.grad[0, 0].tolist() == [[1, 0, 1, 0], [0] * 4, [1, 0, 1, 0], [0] * 4]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_max_pool2d_treats_special_values_as_torch(value, device):
    x = torch.randn(1, 2, 7, 7, dtype=torch.float64)
    x[0, 0, 2:5, 1:4] = value
    x[0, 1] = value
    options = {"kernel_size": 3, "stride": 2, "padding": 1, "return_indices": True}
    y, indices = max_pool2d(x.to(device), **options)
    expected, expected_indices = F.max_pool2d(x, **options)
    torch.testing.assert_close(y.cpu(), expected, equal_nan=True, rtol=0, atol=0)
    assert torch.equal(indices.cpu(), expected_indices)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("max")])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_max_pool2d_indices_are_torchs(name, memory_format, device):
    _, options, shape = CASES[name]
    x = torch.randint(0, 4, shape).float().to(memory_format=memory_format)
    y, indices = max_pool2d(x.to(device), **options, return_indices=True)
    expected, expected_indices = F.max_pool2d(x, **options, return_indices=True)
    assert_equal([y, indices], [expected, expected_indices])
    assert indices.dtype == torch.int64
    assert indices.stride() == expected_indices.stride()


def test_max_pool2d_keeps_one_byte_a_window(device):
    kept = []
    x = torch.randn(2, 8, 8, 8, device=device, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        max_pool2d(x, 2)
    assert [(t.dtype, t.numel()) for t in kept] == [(torch.uint8, 2 * 8 * 4 * 4)]


def test_max_pool2d_writes_no_taps_unasked(device, monkeypatch):
    from tritonconv.max_pool2d import _max_pool2d

    window = ([2, 2], [2, 2], [0, 0], [1, 1], False)
    _, taps = _max_pool2d(torch.randn(1, 1, 4, 4, device=device), False, *window)
    assert taps.numel() == 0
    with Dispatched() as dispatched:
        max_pool2d(torch.randn(1, 1, 4, 4, device=device), 2)
    assert dispatched.ours == ["max_pool2d"]


@pytest.mark.parametrize(
    ("op", "options", "error", "message"),
    [
        (max_pool2d, {"kernel_size": 3, "padding": 2}, RuntimeError,
         "padding must be at most half of the .* kernel_size, got padding=2 for kernel_size=3"),
        (avg_pool2d, {"kernel_size": 3, "padding": 2}, RuntimeError, "padding must be at most half"),
        (max_pool2d, {"kernel_size": 0}, RuntimeError, "kernel_size must be positive"),
        (max_pool2d, {"kernel_size": 2, "stride": 0}, RuntimeError, "stride must be positive"),
        (max_pool2d, {"kernel_size": 2, "dilation": 0}, RuntimeError, "dilation must be positive"),
        (max_pool2d, {"kernel_size": (2, 2, 2)}, RuntimeError, "kernel_size must be a single int"),
        (max_pool2d, {"kernel_size": 2.5}, TypeError, "kernel_size must be an int"),
        (max_pool2d, {"kernel_size": 6}, RuntimeError, "output would be empty"),
        (avg_pool2d, {"kernel_size": 6}, RuntimeError, "output would be empty"),
        (avg_pool2d, {"kernel_size": 2, "padding": -1}, RuntimeError, "padding must be non-negative"),
        (avg_pool2d, {"kernel_size": 2, "divisor_override": 0}, RuntimeError, "must not be zero"),
        (adaptive_avg_pool2d, {"output_size": -1}, RuntimeError, "output_size must be non-negative"),
        (adaptive_avg_pool2d, {"output_size": (1, 2, 3)}, RuntimeError, "must have two elements"),
        (adaptive_avg_pool2d, {"output_size": 2.5}, TypeError, "output_size must be an int"),
    ],
)  # fmt: skip
def test_pool_refuses_what_torch_refuses(op, options, error, message, device):
    x = torch.randn(1, 2, 5, 5)
    with pytest.raises(error):
        THEIRS[op](x, **options)
    with pytest.raises(error, match=f"{op.__name__}: .*{message}"):
        op(x.to(device), **options)


@pytest.mark.parametrize("op", THEIRS)
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.randn(5, 5), RuntimeError, "input must be 3-D or 4-D"),
        (torch.randn(1, 2, 0, 5), RuntimeError, "non-zero channels, height and width"),
        (torch.ones(1, 2, 5, 5, dtype=torch.int64), NotImplementedError, "got torch.int64; convert"),
        (None, TypeError, "input must be a Tensor"),
    ],
)  # fmt: skip
def test_pool_refuses_other_tensors(op, x, error, message, device):
    with pytest.raises(error, match=f"{op.__name__}: .*{message}"):
        op(x if x is None else x.to(device), 2)
