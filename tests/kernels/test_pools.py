"""The pools, maximum and average, by window and adaptive, 1-D and 2-D: one contract, one file."""

import pytest
import torch
import tritonconv
from reference import Case, Dispatched, assert_close, assert_equal, forward_backward
from torch.nn import functional as F
from tritonconv import _common, max_pool2d

# name and reason: operator, options, input shape
CALLS = {
    "max 2": ("max_pool2d", {"kernel_size": 2}, (2, 3, 6, 8)),
    "max 2, odd size": ("max_pool2d", {"kernel_size": 2}, (2, 3, 7, 5)),
    "max 3 s2, overlapping": ("max_pool2d", {"kernel_size": 3, "stride": 2}, (2, 3, 9, 8)),
    "max 3 s2 p1": ("max_pool2d", {"kernel_size": 3, "stride": 2, "padding": 1}, (2, 3, 8, 8)),
    "max 3 s1": ("max_pool2d", {"kernel_size": 3, "stride": 1, "padding": 1}, (1, 5, 5, 6)),
    "max asymmetric": (
        "max_pool2d",
        {"kernel_size": (3, 2), "stride": (1, 3), "padding": (1, 0)},
        (2, 3, 6, 11),
    ),
    "max stride beyond the window": ("max_pool2d", {"kernel_size": 2, "stride": 3}, (1, 3, 8, 8)),
    "max dilated": ("max_pool2d", {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2}, (1, 3, 9, 9)),
    "max 2 s1: pixels share windows along a row": ("max_pool2d", {"kernel_size": 2, "stride": 1}, (2, 3, 5, 6)),
    "max padded beyond the stride": ("max_pool2d", {"kernel_size": 4, "stride": 2, "padding": 2}, (1, 8, 9, 8)),
    "max of rows wider than are unrolled": ("max_pool2d", {"kernel_size": (3, 11), "stride": 2, "padding": (1, 5)}, (1, 3, 7, 12)),
    "max dilated, its first tap in the padding": (
        "max_pool2d",
        {"kernel_size": 3, "padding": 1, "dilation": (1, 3)},
        (1, 3, 6, 8),
    ),
    "max stride far beyond the window": ("max_pool2d", {"kernel_size": 2, "stride": 7}, (1, 3, 9, 16)),
    "max over 24 channels, eight at a time": ("max_pool2d", {"kernel_size": 3, "stride": 2, "padding": 1}, (1, 24, 6, 7)),
    "max ceil": ("max_pool2d", {"kernel_size": 3, "stride": 2, "ceil_mode": True}, (1, 3, 8, 6)),
    "max ceil drops a window that starts in the padding": (
        "max_pool2d",
        {"kernel_size": 2, "stride": 3, "padding": 1, "ceil_mode": True},
        (1, 2, 5, 8),
    ),
    "max of 256 taps: their numbers no longer fit a byte": ("max_pool2d", {"kernel_size": 16}, (1, 2, 17, 18)),
    "max over many channels": ("max_pool2d", {"kernel_size": 2}, (1, 130, 4, 4)),
    "avg 2": ("avg_pool2d", {"kernel_size": 2}, (2, 3, 6, 8)),
    "avg 3 s2 p1": ("avg_pool2d", {"kernel_size": 3, "stride": 2, "padding": 1}, (2, 3, 8, 7)),
    "avg without padding": (
        "avg_pool2d",
        {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False},
        (2, 3, 8, 7),
    ),
    "avg 3 s1": ("avg_pool2d", {"kernel_size": 3, "stride": 1, "padding": 1, "count_include_pad": False}, (1, 8, 5, 6)),
    "avg of more taps than are unrolled": ("avg_pool2d", {"kernel_size": (5, 9), "stride": (2, 3), "padding": (1, 4)}, (1, 3, 8, 13)),
    "avg of the whole": ("avg_pool2d", {"kernel_size": 7}, (2, 3, 7, 7)),
    "avg ceil": ("avg_pool2d", {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}, (1, 3, 8, 6)),
    "avg ceil without padding": (
        "avg_pool2d",
        {"kernel_size": (2, 3), "stride": (3, 2), "padding": 1, "ceil_mode": True, "count_include_pad": False},
        (1, 3, 8, 6),
    ),
    "avg divisor": ("avg_pool2d", {"kernel_size": 3, "divisor_override": 5}, (1, 3, 8, 6)),
    "avg negative divisor": ("avg_pool2d", {"kernel_size": 2, "divisor_override": -3}, (1, 3, 4, 6)),
    "adaptive, global": ("adaptive_avg_pool2d", {"output_size": 1}, (2, 3, 7, 7)),
    "adaptive, divisible": ("adaptive_avg_pool2d", {"output_size": (2, 4)}, (2, 3, 6, 8)),
    "adaptive, overlapping": ("adaptive_avg_pool2d", {"output_size": (5, 3)}, (2, 3, 7, 8)),
    "adaptive, larger than the input": ("adaptive_avg_pool2d", {"output_size": (9, 5)}, (1, 3, 4, 3)),
    "adaptive, None keeps": ("adaptive_avg_pool2d", {"output_size": (None, 2)}, (1, 3, 4, 5)),
    "1d max": ("max_pool1d", {"kernel_size": 3, "stride": 2, "padding": 1}, (2, 3, 8)),
    "1d max ceil, dilated": (
        "max_pool1d",
        {"kernel_size": (3,), "stride": (2,), "dilation": 2, "padding": 1, "ceil_mode": True},
        (2, 3, 10),
    ),
    "1d avg": ("avg_pool1d", {"kernel_size": 3, "stride": 2, "padding": 1}, (2, 3, 8)),
    "1d avg ceil without padding": (
        "avg_pool1d",
        {"kernel_size": (4,), "stride": 3, "padding": 2, "ceil_mode": True, "count_include_pad": False},
        (2, 3, 9),
    ),
    "1d adaptive avg": ("adaptive_avg_pool1d", {"output_size": 3}, (2, 3, 8)),
    "1d adaptive avg, larger than the input": ("adaptive_avg_pool1d", {"output_size": (9,)}, (2, 3, 4)),
    "1d adaptive max": ("adaptive_max_pool1d", {"output_size": (3,)}, (2, 3, 8)),
    "adaptive max, global": ("adaptive_max_pool2d", {"output_size": 1}, (2, 3, 7, 6)),
    "adaptive max, divisible": ("adaptive_max_pool2d", {"output_size": [2, 4]}, (2, 3, 6, 8)),
    "adaptive max, overlapping": ("adaptive_max_pool2d", {"output_size": (5, 3)}, (2, 3, 7, 8)),
    "adaptive max, larger than the input": ("adaptive_max_pool2d", {"output_size": (9, 5)}, (1, 3, 4, 3)),
    "adaptive max, None keeps": ("adaptive_max_pool2d", {"output_size": (None, 2)}, (1, 3, 4, 5)),
    "adaptive max over many channels": ("adaptive_max_pool2d", {"output_size": 2}, (1, 130, 4, 5)),
}  # fmt: skip
CASES = {name: Case(op, (shape,), options) for name, (op, options, shape) in CALLS.items()}
EMPTY = {
    "no output pixels": Case("adaptive_avg_pool2d", ((1, 3, 4, 5),), {"output_size": (0, 2)}),
    "no channels": Case("adaptive_avg_pool2d", ((2, 0, 4, 5),), {"output_size": 2}),
    "1d no channels": Case("adaptive_avg_pool1d", ((2, 0, 4),), {"output_size": 2}),
}
SOME = (
    "max 3 s2 p1",
    "avg ceil without padding",
    "adaptive, overlapping",
    "adaptive max, overlapping",
    "1d max",
    "1d avg",
    "1d adaptive avg",
    "1d adaptive max",
)


@pytest.mark.covers("forward", "gradients")
@pytest.mark.parametrize("name", CASES)
def test_pool_equals_torch(name, device):
    case = CASES[name]
    given = case.tensors(device)
    assert_close(forward_backward(case.ours, *given), case.expected(given), case.reduced)


@pytest.mark.covers(
    "forward", option="no channels, or no output pixels", operator="adaptive_avg_pool2d"
)
@pytest.mark.parametrize("case", EMPTY.values(), ids=EMPTY)
def test_adaptive_pool_of_nothing_is_torchs(case, device):
    (x,) = case.tensors(device)
    y, dx = forward_backward(case.ours, x)
    expected = case.theirs(x.cpu())
    assert (y.shape, y.stride()) == (expected.shape, expected.stride())
    assert dx.shape == x.shape  # torch's backward refuses
    assert not dx.any()


@pytest.mark.covers("forward", "gradients")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_pool_rounds_once(name, dtype, device):
    case = CASES[name]
    (x,) = case.tensors(device, dtype)
    dy = torch.randn(case.ours(x).shape).to(device, dtype)
    actual = forward_backward(case.ours, x, dy=dy)
    assert_close(actual, case.expected([x], dy), case.reduced)
    assert all(t.dtype == dtype for t in actual)


@pytest.mark.parametrize("name", SOME)
def test_pool_with_64_bit_offsets(name, device, monkeypatch):
    monkeypatch.setattr(_common, "WIDE_FROM", 0)
    case = CASES[name]
    given = case.tensors(device)
    assert_close(forward_backward(case.ours, *given), case.expected(given), case.reduced)


@pytest.mark.covers("second gradients")
@pytest.mark.parametrize("name", CASES)
def test_pool_second_gradients(name, device):
    case = CASES[name]
    (x,) = case.tensors(device)
    x = x[:1, :2].clone().requires_grad_()
    assert torch.autograd.gradcheck(case.ours, (x,), fast_mode=True)
    assert torch.autograd.gradgradcheck(case.ours, (x,), fast_mode=True)


@pytest.mark.covers("forward", "gradients", option="channels_last", dtype=torch.float32)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", [name for name in SOME if not name.startswith("1d")])
def test_pool_has_torchs_strides(name, memory_format, channels, device):
    case = CASES[name]
    (shape,) = case.shapes
    x = torch.randn(shape[0], channels, *shape[2:]).to(memory_format=memory_format)
    y, dx = forward_backward(case.ours, x.to(device))
    assert y.stride() == case.theirs(x).stride()
    assert dx.stride() == x.stride()


@pytest.mark.covers("forward", "gradients", option="any strides")
@pytest.mark.parametrize("name", SOME)
def test_pool_accepts_any_strides(name, device):
    case = CASES[name]
    (x,) = case.tensors(device)
    x = x.transpose(1, -1).contiguous().transpose(1, -1)
    dy = torch.ones((), dtype=torch.float64, device=device).expand(case.ours(x).shape)
    assert_close(forward_backward(case.ours, x, dy=dy), case.expected([x], dy), case.reduced)


@pytest.mark.covers("forward", "gradients", option="unbatched input")
@pytest.mark.parametrize("name", SOME)
def test_pool_takes_one_item_and_an_empty_batch(name, device):
    case = CASES[name]
    (x,) = case.tensors(device)
    assert_close(forward_backward(case.ours, x[0]), case.expected([x[0]]), case.reduced)
    y, dx = forward_backward(case.ours, x[:0])
    assert y.shape == case.theirs(x[:0].cpu()).shape
    assert dx.shape == x[:0].shape


@pytest.mark.parametrize("name", SOME)
def test_pool_repeats_bit_for_bit(name, device):
    case = CASES[name]
    given = case.tensors(device, torch.float32)
    assert_equal(forward_backward(case.ours, *given), forward_backward(case.ours, *given))


def test_max_pool2d_picks_the_first_of_ties(device):
    x = torch.ones(1, 1, 4, 4, device=device, requires_grad=True)
    max_pool2d(x, 2).sum().backward()
    assert x.grad[0, 0].tolist() == [[1, 0, 1, 0], [0] * 4, [1, 0, 1, 0], [0] * 4]


def test_adaptive_max_pool2d_picks_the_first_of_ties(device):
    x = torch.ones(1, 1, 3, 3, device=device, requires_grad=True)
    tritonconv.adaptive_max_pool2d(x, 2).sum().backward()
    assert x.grad[0, 0].tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]


SPECIAL = {
    "max_pool2d": Case("max_pool2d", (), {"kernel_size": 3, "stride": 2, "padding": 1}),
    "adaptive_max_pool2d": Case("adaptive_max_pool2d", (), {"output_size": (3, 4)}),
}


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 2, "padding": 1, "dilation": 2},
        {"kernel_size": 6, "stride": 4, "padding": 3},
    ],
)
def test_max_pool2d_of_lowest_values_is_torchs(options, device):
    """Where nothing is greater than what a search starts from, the first tap inside wins."""
    x = torch.full((1, 2, 6, 5), float("-inf"))
    case = Case("max_pool2d", (), options | {"return_indices": True})
    for a, e in zip(case.ours(x.to(device)), case.theirs(x), strict=True):
        assert torch.equal(a.cpu(), e)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("case", SPECIAL.values(), ids=SPECIAL)
def test_max_pool_treats_special_values_as_torch(case, value, device):
    x = torch.randn(1, 2, 7, 7, dtype=torch.float64)
    x[0, 0, 2:5, 1:4] = value
    x[0, 1] = value
    case.options["return_indices"] = True
    y, indices = case.ours(x.to(device))
    expected, expected_indices = case.theirs(x)
    torch.testing.assert_close(y.cpu(), expected, equal_nan=True, rtol=0, atol=0)
    assert torch.equal(indices.cpu(), expected_indices)


@pytest.mark.covers("forward", option="return_indices", dtype=torch.float32)
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "max" in case.operator])
@pytest.mark.parametrize("channels_last", [False, True])
def test_max_pool_indices_are_torchs(name, channels_last, device):
    case = CASES[name]
    (shape,) = case.shapes
    x = torch.randint(0, 4, shape).float()
    if channels_last:
        x = x.transpose(1, -1).contiguous().transpose(1, -1)
        x = x.to(memory_format=torch.channels_last) if x.dim() == 4 else x
    case = case._replace(options=case.options | {"return_indices": True})
    y, indices = case.ours(x.to(device))
    expected, expected_indices = case.theirs(x)
    assert_equal([y, indices], [expected, expected_indices])
    assert indices.dtype == torch.int64
    if x.dim() == 4:
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


def test_adaptive_max_pool2d_keeps_only_positions(device):
    kept = []
    x = torch.randn(2, 8, 8, 8, device=device, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        tritonconv.adaptive_max_pool2d(x, 4)
    assert [(t.dtype, t.numel()) for t in kept] == [(torch.int32, 2 * 8 * 4 * 4)]


def test_adaptive_pools_count_beyond_32_bits(device):
    """A window's bounds are products of sizes: here 70,000 * 70,000."""
    x = torch.arange(70_000, dtype=torch.float32, device=device)[None]
    y = tritonconv.adaptive_avg_pool1d(x, 70_000)
    z, indices = tritonconv.adaptive_max_pool1d(x, 70_000, return_indices=True)
    assert_equal([y, z, indices], [x, x, x])


ERRORS = [
    ("max_pool2d", {"kernel_size": 3, "padding": 2}, RuntimeError,
     "padding must be at most half of kernel_size, got padding=2 for kernel_size=3"),
    ("avg_pool2d", {"kernel_size": 3, "padding": 2}, RuntimeError, "padding must be at most half"),
    ("max_pool2d", {"kernel_size": 0}, RuntimeError, "kernel_size must be positive"),
    ("max_pool2d", {"kernel_size": 2, "stride": 0}, RuntimeError, "stride must be positive"),
    ("max_pool2d", {"kernel_size": 2, "dilation": 0}, RuntimeError, "dilation must be positive"),
    ("max_pool2d", {"kernel_size": (2, 2, 2)}, RuntimeError, "kernel_size must be a single int"),
    ("max_pool2d", {"kernel_size": 2.5}, TypeError, "kernel_size must be an int"),
    ("max_pool2d", {"kernel_size": 6}, RuntimeError, "output would be empty"),
    ("avg_pool2d", {"kernel_size": 6}, RuntimeError, "output would be empty"),
    ("avg_pool2d", {"kernel_size": 2, "padding": -1}, RuntimeError, "padding must be non-negative"),
    ("avg_pool2d", {"kernel_size": 2, "divisor_override": 0}, RuntimeError, "other than zero"),
    ("adaptive_avg_pool2d", {"output_size": -1}, RuntimeError, "output_size must be non-negative"),
    ("adaptive_avg_pool2d", {"output_size": (1, 2, 3)}, RuntimeError, "int or a tuple of 2"),
    ("adaptive_avg_pool2d", {"output_size": 2.5}, TypeError, "output_size must be an int"),
    ("adaptive_avg_pool2d", {"output_size": None}, TypeError, "output_size must be an int"),
    ("adaptive_max_pool2d", {"output_size": -1}, RuntimeError, "output_size must be non-negative"),
    ("adaptive_max_pool2d", {"output_size": (3,)}, RuntimeError, "int or a tuple of 2"),
    ("adaptive_max_pool2d", {"output_size": None}, TypeError, "output_size must be an int"),
    ("max_pool1d", {"kernel_size": (2, 2)}, RuntimeError, "kernel_size must be a single int"),
    ("max_pool1d", {"kernel_size": 3, "padding": 2}, RuntimeError, "padding must be at most half"),
    ("max_pool1d", {"kernel_size": 6}, RuntimeError, "output would be empty"),
    ("avg_pool1d", {"kernel_size": (2, 2)}, RuntimeError, "kernel_size must be a single int"),
    ("avg_pool1d", {"kernel_size": 6}, RuntimeError, "output would be empty"),
    ("adaptive_avg_pool1d", {"output_size": (2, 2)}, RuntimeError, "int or a tuple of 1"),
    ("adaptive_avg_pool1d", {"output_size": None}, TypeError, "output_size must be an int"),
    ("adaptive_max_pool1d", {"output_size": (2, 2)}, RuntimeError, "int or a tuple of 1"),
]  # fmt: skip
SIZES = {
    "max_pool": {"kernel_size": 2},
    "avg_pool": {"kernel_size": 2},
    "adaptive": {"output_size": 2},
}
POOLS = {
    name: next(options for start, options in SIZES.items() if name.startswith(start))
    for name in sorted({case.operator for case in CASES.values()})
}


@pytest.mark.parametrize(("op", "options", "error", "message"), ERRORS)
def test_pool_refuses_what_torch_refuses(op, options, error, message, device):
    x = torch.randn(1, 2, 5, 5) if op.endswith("2d") else torch.randn(1, 2, 5)
    with pytest.raises(error):
        getattr(F, op)(x, **options)
    with pytest.raises(error, match=f"{op}: .*{message}"):
        getattr(tritonconv, op)(x.to(device), **options)


@pytest.mark.parametrize("op", POOLS)
@pytest.mark.parametrize(
    ("leading", "message"), [((), "input must be"), ((1, 2, 3), "input must be"), ((2,), "pixels")]
)
def test_pool_refuses_other_shapes(op, leading, message, device):
    dims = int(op[-2])
    x = torch.randn(*leading, *(5,) * (dims - 1), 0 if message == "pixels" else 5)
    with pytest.raises((RuntimeError, IndexError)):  # torch's avg_pool2d looks for a third axis
        getattr(F, op)(x, **POOLS[op])
    with pytest.raises(RuntimeError, match=f"{op}: .*{message}"):
        getattr(tritonconv, op)(x.to(device), **POOLS[op])


@pytest.mark.parametrize("op", POOLS)
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.ones(2, 5, 5, dtype=torch.int64), NotImplementedError, "got torch.int64; convert"),
        (torch.ones(2, 5, 5, dtype=torch.complex64), NotImplementedError, "got torch.complex64"),
        (None, TypeError, "input must be a Tensor"),
    ],
)
def test_pool_refuses_other_tensors(op, x, error, message, device):
    with pytest.raises(error, match=f"{op}: .*{message}"):
        getattr(tritonconv, op)(x if x is None else x.to(device), **POOLS[op])
