"""Every argument takes what torch's takes, and refuses what torch's refuses, with its exceptions."""

import numpy as np
import pytest
import torch
import tritonconv
from launched import of_numbers
from reference import assert_close
from torch import nn
from torch.nn import functional as F

INTEGERS = [np.int64(2), np.int32(1), torch.tensor(2), (np.int64(2), 1), [2, np.int64(1)]]
NOT_INTEGERS = [True, (True, 1), 1.0, (1.0, 1), np.float64(2), np.bool_(True), "2", None, {1, 2}]
NOT_BOOLS = [0, 1, None, "yes", 1.0, np.bool_(True)]
SIZES = [0, 1, 2, 3, -1, (), [], (2,), (2, 1), (2, 2, 2), 2**31 - 1, 2**63]
FLOATS = [0, 1, True, 0.5, np.float32(0.5), np.int64(1), torch.tensor(0.5)]
NOT_FLOATS = [None, "a", 1j]

X, W = (2, 4, 7, 6), (4, 4, 3, 3)
CONVOLUTION = dict.fromkeys(("stride", "padding", "dilation"), SIZES + INTEGERS + NOT_INTEGERS)
GROUPS = {"groups": [1, 2, 3, 0, -1, np.int64(2), torch.tensor(2), 2**63, (2,), *NOT_INTEGERS]}
POOL = dict.fromkeys(("kernel_size", "stride", "padding"), SIZES + INTEGERS + NOT_INTEGERS)
POOL |= {"ceil_mode": NOT_BOOLS}
# no size that memory might hold after all; sets are iterated by torch's Python
OUTPUT = {"output_size": [*SIZES[:-2], 2**63, *NOT_INTEGERS[:-1], (np.int64(2), 1), (None, 2)]}
ARGUMENTS = {
    "conv": CONVOLUTION | GROUPS,
    "conv_transpose": CONVOLUTION | GROUPS | {"output_padding": SIZES + INTEGERS + NOT_INTEGERS},
    "max_pool": POOL | {"dilation": SIZES + INTEGERS + NOT_INTEGERS},
    "avg_pool": POOL | {"count_include_pad": NOT_BOOLS},
    "adaptive_avg_pool": OUTPUT,
    "adaptive_max_pool": OUTPUT,
}
DIVISORS = [1, -3, 0, 2**40, 2**63, np.int64(2), torch.tensor(2), *NOT_INTEGERS[:-2], (2,)]
CASES = [
    (f"{operator}{dims}d", argument)
    for operator, arguments in ARGUMENTS.items()
    for dims in (1, 2)
    for argument in arguments
]


def outcome(f, *args, **options):
    """What f gives, or raises."""
    try:
        return f(*args, **options)
    except Exception as error:
        return error


def assert_alike(ours, theirs, value) -> None:
    """Equal results, or exceptions of a type; where a number is out of range, any clear one.

    torch asks for ranges where it uses a number: by RuntimeError, ValueError or, in some
    operators, not at all, for results of wrapped numbers.
    """
    if isinstance(theirs, Exception):
        assert isinstance(ours, Exception), f"{value!r}: torch raises {theirs!r}"
        expected = {ValueError: RuntimeError}.get(type(theirs), type(theirs))
        assert type(ours) is expected, f"{value!r}: {ours!r} where torch raises {theirs!r}"
    else:
        assert not isinstance(ours, Exception), f"{value!r}: {ours!r}"
        assert ours.shape == theirs.shape, value
        assert_close([ours], [theirs], 64)


def out_of_range(value) -> bool:
    return isinstance(value, int) and abs(value) >= 2**31 - 1


@pytest.mark.parametrize(("operator", "argument"), CASES)
def test_integers_and_flags_are_taken_as_torch_takes_them(operator, argument, device):
    dims = int(operator[-2])
    x = torch.randn(X[: dims + 2])
    given = [x]
    if "conv" in operator:
        given.append(torch.randn(W[: dims + 2]))
    for value in ARGUMENTS[operator[:-2]][argument]:
        options = {argument: value}
        if "pool" in operator and "adaptive" not in operator:
            options = {"kernel_size": 3} | options
        ours = outcome(getattr(tritonconv, operator), *(t.to(device) for t in given), **options)
        if out_of_range(value):
            if isinstance(ours, Exception):
                assert type(ours) is RuntimeError, f"{value!r}: {ours!r}"
                assert operator in str(ours) or "fits no memory" in str(ours), value
                continue
            # what takes it gives what any other step past the only window does
            options[argument] = 7
        assert_alike(ours, outcome(getattr(F, operator), *given, **options), value)


@pytest.mark.parametrize("value", DIVISORS, ids=repr)
def test_divisor_is_taken_as_torch_takes_it(value, device):
    x = torch.randn(X)
    ours = outcome(tritonconv.avg_pool2d, x.to(device), 3, divisor_override=value)
    assert_alike(ours, outcome(F.avg_pool2d, x, 3, divisor_override=value), value)


@pytest.mark.parametrize("argument", ["momentum", "eps", "training"])
@pytest.mark.parametrize("training", [True, False])
def test_norm_takes_numbers_as_torch_takes_them(argument, training, device):
    x = torch.randn(X)
    values = NOT_BOOLS if argument == "training" else FLOATS + NOT_FLOATS + [-1e-5]
    for value in values:
        if argument == "eps" and value == 0 and not training:
            continue  # torch 2.11 refuses it there, too
        options = {"training": training, argument: value}
        results = []
        for f, where in ((tritonconv.batch_norm, device), (F.batch_norm, "cpu")):
            running = torch.zeros(4, device=where), torch.ones(4, device=where)
            y = outcome(f, x.to(where), *running, **options)
            results.append(y if isinstance(y, Exception) else torch.cat([y.flatten(), *running]))
        ours, theirs = results
        if isinstance(theirs, ValueError):
            assert type(ours) is ValueError, value
        else:
            assert_alike(ours, theirs, value)


def test_norm_wants_a_positive_eps_in_training(device):
    x, w = torch.randn(2, 3, 4, 4, device=device), torch.randn(3, 3, 1, 1, device=device)
    for norm in (
        lambda: tritonconv.batch_norm(x, None, None, training=True, eps=0.0),
        lambda: tritonconv.conv_bn_relu(x, w, training=True, eps=0.0),
    ):
        with pytest.raises(ValueError, match="eps must be positive in training, got 0.0"):
            norm()


@pytest.mark.parametrize("shape", [(), (4,), (0,)])
def test_norm_refuses_what_has_no_channels(shape, device):
    with pytest.raises(RuntimeError, match=r"input must be \[N, C, \.\.\.\], got shape"):
        tritonconv.batch_norm(torch.randn(shape, device=device), None, None, training=True)


@of_numbers
def test_norm_takes_any_rank(device):
    x = torch.randn((2, 3, *(2,) * 7))
    ours = tritonconv.batch_norm(x.to(device), None, None, training=True)
    torch.testing.assert_close(ours.cpu(), F.batch_norm(x, None, None, training=True))


def test_what_equals_an_int_is_refused_whatever_was_called_before(device):
    x, w = torch.randn(1, 4, 5, 5, device=device), torch.randn(4, 4, 3, 3, device=device)
    for padding in (1, (1, 1)):
        tritonconv.conv2d(x, w, padding=padding)
    for padding in (True, 1.0, (True, 1), (1.0, 1.0)):
        with pytest.raises(TypeError, match="padding must be an int or a tuple of ints"):
            tritonconv.conv2d(x, w, padding=padding)


def test_changed_tensor_as_an_option_is_read_again(device):
    x, w = torch.randn(1, 4, 5, 5, device=device), torch.randn(4, 4, 3, 3, device=device)
    padding = torch.tensor(1)
    assert tritonconv.conv2d(x, w, padding=padding).shape[2] == 5
    padding += 1
    assert tritonconv.conv2d(x, w, padding=padding).shape[2] == 7


FAR = [2**31 - 1, 2**31 - 2]


@pytest.mark.parametrize("far", FAR)
@pytest.mark.parametrize("groups", [1, 2, 4])
@of_numbers
def test_steps_that_lead_nowhere_change_nothing(far, groups, device):
    """A single tap has no distance to another, a single window none to the next."""
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    one, wide = (
        torch.randn(4, 4 // groups, 1, 1).double(),
        torch.randn(4, 4 // groups, 3, 3).double(),
    )
    for w, big, small in (
        (one, {"dilation": far}, {}),
        (one, {"stride": far}, {"stride": 8}),
        (wide, {"stride": (far, 1), "padding": 1}, {"stride": (8, 1), "padding": 1}),
    ):
        results = []
        for f, options, where in ((tritonconv.conv2d, big, device), (F.conv2d, small, "cpu")):
            leaves = [t.to(where).requires_grad_() for t in (x, w)]
            y = f(*leaves, groups=groups, **options)
            gradients = torch.autograd.grad(y.square().sum(), leaves)
            results.append([t.detach().cpu() for t in (y, *gradients)])
        torch.testing.assert_close(*results)


@pytest.mark.parametrize("far", FAR)
@of_numbers
def test_far_steps_of_other_operators_change_nothing(far, device):
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    pixel, w = x[:, :, :1, :1].contiguous(), torch.randn(4, 4, 3, 3).double()
    bn = {"running_mean": torch.zeros(4).double(), "running_var": torch.ones(4).double()}
    for name, given, big, small in (
        ("max_pool2d", (x, 1), {"dilation": far, "stride": 1}, {"stride": 1}),
        ("max_pool2d", (x, 3), {"stride": far}, {"stride": 8}),
        ("max_pool2d", (x, 3), {"stride": far, "ceil_mode": True}, {"stride": 8}),
        ("avg_pool2d", (x, 3), {"stride": far, "padding": 1}, {"stride": 10, "padding": 1}),
        ("conv_transpose2d", (pixel, w), {"stride": far}, {}),
        ("conv_transpose2d", (x, w[:, :, :1, :1]), {"dilation": far}, {}),
    ):
        where = [t.to(device) if isinstance(t, torch.Tensor) else t for t in given]
        actual = getattr(tritonconv, name)(*where, **big)
        torch.testing.assert_close(actual.cpu(), getattr(F, name)(*given, **small))
    ours = tritonconv.conv_bn_relu(
        x.to(device), w[:, :, :1, :1].to(device), None, *(t.to(device) for t in bn.values()),
        dilation=far,
    )  # fmt: skip
    expected = F.relu(F.batch_norm(F.conv2d(x, w[:, :, :1, :1]), **bn))
    torch.testing.assert_close(ours.cpu(), expected)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("conv2d", {"padding": 2**30, "stride": 2**30}),
        ("conv_transpose2d", {"padding": 2**30, "stride": 2**30 + 1}),
        ("max_pool2d", {"kernel_size": 2**17, "padding": 2**16}),
        ("avg_pool2d", {"kernel_size": 2**31 - 1, "padding": 2**30 - 1, "stride": 2**30}),
    ],
)
def test_what_coordinates_cannot_hold_is_refused(name, options, device):
    given = [torch.randn(1, 2, 4, 4, device=device)]
    if "conv" in name:
        given.append(torch.randn(2, 2, 3, 3, device=device))
    with pytest.raises(RuntimeError, match=f"{name}: "):
        getattr(tritonconv, name)(*given, **options)


def test_max_pool_padding_is_at_most_half_the_window(device):
    """Of the window as it is, whatever dilation makes of it."""
    x = torch.randn(1, 2, 9, 9)
    for f, given in ((F.max_pool2d, x), (tritonconv.max_pool2d, x.to(device))):
        with pytest.raises(RuntimeError, match="pad"):
            f(given, 3, 1, padding=2, dilation=2)


@of_numbers
def test_layers_of_numpy_integers_run(device):
    x = torch.randn(1, 4, 8, 8)
    for theirs in (
        nn.MaxPool2d(np.int64(2)),
        nn.AvgPool2d(np.int64(2), padding=np.int64(1)),
        nn.Conv2d(4, 4, 3, padding=np.int64(1)),
        nn.Conv2d(4, 4, 3, groups=np.int64(4), stride=np.int32(2)),
        nn.ConvTranspose2d(4, 4, 3, stride=np.int64(2), output_padding=np.int64(1)),
        nn.AdaptiveAvgPool2d((np.int64(2), 1)),
    ):
        ours = tritonconv.convert(theirs).to(device)
        torch.testing.assert_close(ours(x.to(device)).cpu(), theirs(x))


@pytest.mark.parametrize("momentum", [0.1, None])
@of_numbers
def test_norm_layer_without_a_count_of_batches(momentum, device):
    x = torch.randn(4, 3, 2, 2)
    results = []
    for kind, where in ((tritonconv.BatchNorm2d, device), (nn.BatchNorm2d, "cpu")):
        bn = kind(3, momentum=momentum).to(where)
        bn.num_batches_tracked = None
        y = bn(x.to(where))
        results.append([t.detach().cpu() for t in (y, bn.running_mean, bn.running_var)])
    torch.testing.assert_close(*results)


@of_numbers
def test_norm_layer_whose_statistics_are_switched_on_later(device):
    x = torch.randn(4, 3, 2, 2)
    results = []
    for kind, where in ((tritonconv.BatchNorm2d, device), (nn.BatchNorm2d, "cpu")):
        bn = kind(3, track_running_stats=False).to(where)
        bn.track_running_stats = True
        results.append([bn(x.to(where)).detach().cpu(), bn.eval()(x.to(where)).detach().cpu()])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("far", FAR)
def test_far_steps_of_a_fused_layer_change_nothing(far, device):
    layer = tritonconv.ConvBNReLU(4, 4, 1, dilation=far).to(device)
    near = tritonconv.ConvBNReLU(4, 4, 1).to(device)
    near.load_state_dict(layer.state_dict())
    x = torch.randn(2, 4, 5, 5, device=device)
    torch.testing.assert_close(layer(x), near(x))
