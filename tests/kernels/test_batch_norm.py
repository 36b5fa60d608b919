import copy

import pytest
import torch
import tritonconv
from reference import Dispatched, assert_close, assert_equal, forward_backward, in_float64, integers
from torch import nn
from torch.nn import functional as F
from tritonconv import _common, _split, batch_norm

SHAPES = {
    "images": (3, 5, 4, 6),
    "many channels": (2, 130, 3, 3),
    "24 channels, eight at a time": (2, 24, 3, 4),
    "one channel": (4, 1, 5, 5),
    "rows": (7, 5),
    "signals": (3, 5, 8),
    "volumes": (2, 3, 2, 3, 4),
    "two values a channel": (2, 3, 1, 1),
    "more pixels than a block": (3, 2, 41, 50),
}
OPTIONS = {
    "training": {"training": True, "momentum": 0.3},
    "training, nothing tracked": {"training": True, "tracked": False},
    "training, no affine": {"training": True, "affine": False},
    "evaluation": {"eps": 1e-3},
    "evaluation, no affine": {"affine": False},
}


class Norm:
    """A call with its own running statistics: [running_mean, running_var] after it is in .running."""

    def __init__(self, f, channels, device, dtype, tracked=True, affine=True, **options):
        self.f, self.affine, self.options = f, affine, options
        generator = torch.Generator().manual_seed(2)
        mean, var = (
            torch.randn(channels, generator=generator),
            torch.rand(channels, generator=generator),
        )
        made = [t.to(device, dtype) for t in (mean, var + 0.5)]
        self.running = made if tracked else [None, None]

    def __call__(self, x, w, b):
        w, b = (w, b) if self.affine else (w * 0 + 1, b * 0)
        return self.f(x, *self.running, w, b, **self.options) + (
            0 if self.affine else 0 * (w + b).sum()
        )


def given_for(shape, device, dtype=torch.float64, vectors=None, make=torch.randn):
    C = shape[1]
    return [make(*s).to(device, d) for s, d in ((shape, dtype), ((C,), vectors or dtype), ((C,), vectors or dtype))]  # fmt: skip


@pytest.mark.covers("forward", "gradients", operator="batch_norm", option="training and evaluation")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_batch_norm_equals_torch(shape, options, device):
    given = given_for(shape, device)
    ours = Norm(batch_norm, shape[1], device, torch.float64, **options)
    theirs = Norm(F.batch_norm, shape[1], "cpu", torch.float64, **options)
    expected = forward_backward(theirs, *in_float64(given))
    for a, e in zip(forward_backward(ours, *given), expected, strict=True):
        torch.testing.assert_close(a.cpu(), e, rtol=1e-10, atol=1e-10)
    for a, e in zip(ours.running, theirs.running, strict=True):
        if e is not None:
            torch.testing.assert_close(a.cpu(), e, rtol=1e-12, atol=1e-12)


@pytest.mark.covers("forward", "gradients", operator="batch_norm", option="training and evaluation")
@pytest.mark.parametrize("vectors", ["alike", torch.float32], ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_batch_norm_rounds_once(dtype, training, vectors, device):
    shape, vectors = (4, 6, 5, 5), dtype if vectors == "alike" else vectors
    given = given_for(shape, device, dtype, vectors)
    dy = torch.randn(shape).to(device, dtype)
    ours = Norm(batch_norm, 6, device, vectors, training=training)
    theirs = Norm(F.batch_norm, 6, "cpu", vectors, training=training)
    theirs.running = in_float64(theirs.running)
    expected = forward_backward(theirs, *in_float64(given), dy=dy.cpu().double())
    actual = forward_backward(ours, *given, dy=dy)
    assert [t.dtype for t in actual] == [dtype, dtype, vectors, vectors]
    assert_close(actual, expected, 100)
    assert_close(ours.running, theirs.running, 100)


@pytest.mark.parametrize("splits", [None, 2, 40])
@pytest.mark.parametrize("shape", [(4, 3, 16, 16), (512, 3)], ids=str)
def test_batch_norm_is_accurate_far_from_zero(shape, splits, device, monkeypatch):
    """Mean 1e4, deviation 1: E[x^2] - E[x]^2 in float32 would have no correct digit, and rounding
    the means of splits to float32 before they are combined costs the variance two of its digits.
    """
    if splits:
        monkeypatch.setattr(_split, "splits", lambda *args: splits)
    x = (torch.randn(shape, dtype=torch.float64) + 1e4).float()
    running = [torch.zeros(3, device=device), torch.ones(3, device=device)]
    y = batch_norm(x.to(device), *running, training=True, momentum=1.0)
    axes = [i for i in range(x.dim()) if i != 1]
    torch.testing.assert_close(running[0].cpu().double(), x.double().mean(axes), rtol=1e-7, atol=0)
    torch.testing.assert_close(running[1].cpu().double(), x.double().var(axes), rtol=3e-6, atol=0)
    expected = F.batch_norm(x.double(), None, None, training=True)
    # the mean itself has float32's 1e-3 there
    torch.testing.assert_close(y.cpu().double(), expected, rtol=0, atol=2e-3)


def large(center: float, spread: float, shape=(4, 3, 9, 10)) -> torch.Tensor:
    return (center + spread * torch.randn(shape, dtype=torch.float64)).float()


LARGE = {
    "mean beyond the root of the largest": large(3e19, 4e18),
    "mean next to the largest": large(3e38, 1e10),
    "one value only": torch.full((4, 3, 9, 10), 2e19),
    "one value, whose sum rounds": torch.full((7, 3, 3, 3), 1.2345678e12),
    "variance next to the largest": large(0, 1.2e19),
    "first half apart": torch.cat([large(0, 1e15, (2, 3, 9, 10)), large(2e19, 1e15, (2, 3, 9, 10))]),
}  # fmt: skip


@pytest.mark.parametrize("splits", [None, 3])
@pytest.mark.parametrize("name", LARGE)
def test_batch_norm_of_large_values_equals_torch(name, splits, device, monkeypatch):
    """Every mean and variance that float32 holds: their sums it need not hold."""
    if splits:
        monkeypatch.setattr(_split, "splits", lambda *args: splits)
    x = LARGE[name]
    running = [torch.zeros(3, device=device), torch.zeros(3, device=device)]
    y, dx = forward_backward(lambda x: batch_norm(x, *running, training=True, momentum=1.0), x.to(device))  # fmt: skip
    expected = forward_backward(lambda x: F.batch_norm(x, None, None, training=True), x.double())
    axes = [0, 2, 3]
    mean, var = x.double().mean(axes), x.double().var(axes)
    torch.testing.assert_close(running[0].cpu().double(), mean, rtol=1e-6, atol=1e-6 * float(x.abs().max()))  # fmt: skip
    # nothing tells the deviation from zero but by float32's digits of the values
    least = (float(x.abs().max()) * torch.finfo(torch.float32).eps) ** 2
    torch.testing.assert_close(running[1].cpu().double(), var, rtol=1e-4, atol=least)
    rounded = float(mean.abs().max()) * torch.finfo(torch.float32).eps
    near = rounded / float((var + 1e-5).sqrt().min())  # of the mean to float32
    if near < 1:
        torch.testing.assert_close(y.cpu().double(), expected[0], rtol=1e-4, atol=1e-4 + near)
    assert y.isfinite().all()
    assert dx.isfinite().all()


def test_batch_norm_of_what_overflows_is_its_bias(device):
    """No float32 holds the variance: it is infinite, as torch's, and y what infinity leaves."""
    x = large(0, 1e20)
    running = [torch.zeros(3, device=device), torch.ones(3, device=device)]
    y = batch_norm(
        x.to(device), *running, None, torch.full((3,), 2.0, device=device), training=True
    )
    assert_equal([y], [torch.full(x.shape, 2.0)])
    assert running[0].isfinite().all()
    assert running[1].isposinf().all()
    batch_norm(torch.randn(x.shape, device=device), *running, training=True)
    assert running[1].isposinf().all()  # as torch's: what is infinite stays


def test_batch_norm_is_accurate_where_the_first_pixels_tell_nothing(device):
    """Sums run about the first pixels' mean: here a black margin, and the rest at 100 +- 1."""
    x = 100 + torch.randn(2, 3, 60, 70)
    x[0] = 0
    w, b = torch.ones(3, device=device), torch.zeros(3, device=device)
    mean, var = torch.zeros(3, device=device), torch.zeros(3, device=device)
    batch_norm(x.to(device), mean, var, w, b, training=True, momentum=1.0)
    values = x.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean.cpu().double(), values.mean(1), rtol=1e-5, atol=0)
    torch.testing.assert_close(var.cpu().double(), values.var(1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("splits", [1, 2, 3, 50])
def test_batch_norm_does_not_depend_on_splits(splits, device, monkeypatch):
    monkeypatch.setattr(_split, "splits", lambda programs, steps, wanted: min(splits, 150))
    given = given_for((3, 5, 10, 5), device)
    ours = Norm(batch_norm, 5, device, torch.float64, training=True)
    expected = forward_backward(
        Norm(F.batch_norm, 5, "cpu", torch.float64, training=True), *in_float64(given)
    )
    for a, e in zip(forward_backward(ours, *given), expected, strict=True):
        torch.testing.assert_close(a.cpu(), e, rtol=1e-11, atol=1e-11)


def test_batch_norm_with_64_bit_offsets(device, monkeypatch):
    monkeypatch.setattr(_common, "WIDE_FROM", 0)
    given = given_for((3, 5, 4, 6), device)
    expected = forward_backward(
        Norm(F.batch_norm, 5, "cpu", torch.float64, training=True), *in_float64(given)
    )
    ours = forward_backward(Norm(batch_norm, 5, device, torch.float64, training=True), *given)
    for a, e in zip(ours, expected, strict=True):
        torch.testing.assert_close(a.cpu(), e, rtol=1e-11, atol=1e-11)


@pytest.mark.covers("second gradients", operator="batch_norm", option="training and evaluation")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(3, 2, 2, 2), (4, 2)], ids=str)
def test_batch_norm_second_gradients(shape, training, device):
    given = [t.requires_grad_() for t in given_for(shape, device)]
    norm = Norm(batch_norm, 2, device, torch.float64, training=training)
    norm.options["momentum"] = 0.0
    assert torch.autograd.gradcheck(norm, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(norm, given, fast_mode=True)


def test_batch_norm_gradient_penalty_equals_torch(device):
    def penalty(f, x, w):
        x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
        y = f(x, None, None, w, training=True)
        dx, dw = torch.autograd.grad(y.pow(3).sum(), (x, w), create_graph=True)
        return torch.autograd.grad(dx.square().sum() + dw.square().sum(), (x, w))

    x, w = torch.randn(3, 2, 4, 4, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    ours = penalty(batch_norm, x.to(device), w.to(device))
    for a, e in zip(ours, penalty(F.batch_norm, x, w), strict=True):
        torch.testing.assert_close(a.cpu(), e)


@pytest.mark.covers(
    "forward", "gradients", operator="batch_norm", option="channels_last", dtype=torch.float32
)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.randn(2, 4, 5, 6),
        lambda: torch.randn(2, 4, 5, 6).to(memory_format=torch.channels_last),
        lambda: torch.randn(2, 4, 6, 5).transpose(2, 3),
        lambda: torch.randn(2, 6, 4).transpose(1, 2),
        lambda: torch.randn(8, 6)[::2],
    ],
)
def test_batch_norm_has_torchs_strides(make, training, device):
    x = make()
    C = x.shape[1]
    y, dx = forward_backward(lambda x: batch_norm(x, torch.zeros(C, device=device), torch.ones(C, device=device), training=training), x.to(device))  # fmt: skip
    theirs = forward_backward(
        lambda x: F.batch_norm(x, torch.zeros(C), torch.ones(C), training=training), x
    )
    assert y.stride() == theirs[0].stride()
    torch.testing.assert_close(y.cpu(), theirs[0])
    torch.testing.assert_close(dx.cpu(), theirs[1])


def test_batch_norm_accepts_any_strides_of_vectors_and_gradient(device):
    x, w, b = given_for((3, 4, 5, 5), device)
    dy = torch.ones((), dtype=torch.float64, device=device).expand(x.shape)
    every_second = [torch.stack([t, t], 1)[:, 0] for t in (w, b)]
    ours = forward_backward(Norm(batch_norm, 4, device, torch.float64), x, *every_second, dy=dy)
    expected = forward_backward(
        Norm(F.batch_norm, 4, "cpu", torch.float64), *in_float64([x, w, b]), dy=dy.cpu()
    )
    for a, e in zip(ours, expected, strict=True):
        torch.testing.assert_close(a.cpu(), e, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 2), (2, 0, 2, 2)], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_of_nothing_is_torchs(shape, training, device):
    C = shape[1]
    running = [torch.zeros(C, device=device), torch.ones(C, device=device)]
    y, dx, dw = forward_backward(
        lambda x, w: batch_norm(x, *running, w, training=training),
        torch.randn(shape, device=device),
        torch.randn(C, device=device),
    )
    expected = F.batch_norm(torch.randn(shape), torch.zeros(C), torch.ones(C), training=training)
    assert (y.shape, y.stride()) == (expected.shape, expected.stride())
    assert dx.shape == shape
    assert not dw.any()
    assert_equal(running, [torch.zeros(C), torch.ones(C)])


@pytest.mark.parametrize(
    ("needed", "training", "ops"),
    [
        ("x", True, ["batch_norm_stats", "batch_norm", "batch_norm_sums", "batch_norm_bwd"]),
        ("x", False, ["batch_norm", "batch_norm_bwd"]),
        ("w", False, ["batch_norm", "batch_norm_sums"]),
        ("", True, ["batch_norm_stats", "batch_norm"]),
    ],
)
def test_batch_norm_computes_only_needed_gradients(needed, training, ops, device):
    given = dict(zip("xwb", given_for((2, 3, 4, 4), device), strict=True))
    for name in needed:
        given[name].requires_grad_()
    norm = Norm(batch_norm, 3, device, torch.float64, training=training)
    with Dispatched() as dispatched:
        y = norm(*given.values())
        if needed:
            y.sum().backward()
    assert dispatched.ours == ops
    assert "".join(name for name, t in given.items() if t.grad is not None) == needed


def test_batch_norm_repeats_bit_for_bit(device):
    given = given_for((4, 20, 9, 9), device, torch.float32)
    first, second = (
        forward_backward(Norm(batch_norm, 20, device, torch.float32, training=True), *given)
        for _ in range(2)
    )
    assert_equal(first, second)


def test_batch_norm_notices_statistics_that_moved_before_the_backward(device):
    layer = tritonconv.BatchNorm2d(2).to(device).eval()
    x = torch.randn(2, 2, 3, 3, device=device, requires_grad=True)
    y = layer(x)
    layer.train()(x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


X, V = (2, 3, 4, 4), (3,)
ERRORS = {
    "one value a channel": ((1, 3), V, V, None, {"training": True}, ValueError, "Expected more than 1 value per channel"),
    "one pixel": ((1, 3, 1, 1), V, V, None, {"training": True}, ValueError, "Expected more than 1 value per channel"),
    "no statistics": (X, None, None, None, {}, RuntimeError, "running_mean must be given in evaluation"),
    "no variance": (X, V, None, None, {}, RuntimeError, "running_var must be given in evaluation"),
    "statistics' size": (X, (2,), V, None, {}, RuntimeError, r"running_mean of shape \(3,\)"),
    "weight's size": (X, V, V, (4,), {}, RuntimeError, r"weight of shape \(3,\).*got \(4,\)"),
    "input's rank": ((3,), V, V, None, {}, RuntimeError, r"input must be \[N, C"),
    "eps": (X, V, V, None, {"eps": -1.0}, ValueError, "eps must be non-negative"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_batch_norm_refuses_what_torch_refuses(name, device):
    *shapes, options, error, message = ERRORS[name]
    given = [s if s is None else torch.rand(s) for s in shapes]
    with pytest.raises(error):
        F.batch_norm(*given, **options)
    with pytest.raises(error, match=f"batch_norm: .*{message}"):
        batch_norm(*[t if t is None else t.to(device) for t in given], **options)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x, m, v: (x.int(), m, v), NotImplementedError, "got torch.int32"),
        (lambda x, m, v: (x, m.double(), v.double()), RuntimeError, "must be torch.float32"),
        (lambda x, m, v: (x.half(), m.half(), v), RuntimeError, "must have one dtype"),
        (lambda x, m, v: (x, m.requires_grad_(), v), RuntimeError, "cannot require a gradient"),
        (lambda x, m, v: (x, m.to("meta"), v), RuntimeError, "on its device.*meta"),
    ],
)
def test_batch_norm_refuses_other_tensors(change, error, message, device):
    given = [torch.rand(X, device=device), *torch.rand(2, 3, device=device)]
    with pytest.raises(error, match=f"batch_norm: .*{message}"):
        batch_norm(*change(*given))


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize(
    "options", [{}, {"affine": False}, {"track_running_stats": False}], ids=str
)
@pytest.mark.parametrize("name", ["BatchNorm1d", "BatchNorm2d"])
def test_batch_norm_module_follows_torchs(name, options, momentum, device):
    theirs = getattr(nn, name)(4, momentum=momentum, **options)
    ours = getattr(tritonconv, name)(4, momentum=momentum, **options)
    if theirs.affine:
        nn.init.normal_(theirs.weight)
        nn.init.normal_(theirs.bias)
    ours.load_state_dict(theirs.state_dict())
    ours.to(device)
    shape = (3, 4, 5, 6) if name == "BatchNorm2d" else (3, 4, 5)
    for training in (True, True, False):
        ours.train(training)
        theirs.train(training)
        x = torch.randn(shape)
        torch.testing.assert_close(ours(x.to(device)).cpu(), theirs(x))
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key].cpu(), value)


def test_batch_norm_module_refuses_other_ranks(device):
    with pytest.raises(ValueError, match="expected 4D input"):
        tritonconv.BatchNorm2d(3).to(device)(torch.randn(2, 3, device=device))


def test_sync_batch_norm_takes_our_place_with_equal_values():
    """torch's conversion goes by isinstance: it replaces ours as it replaces torch's."""
    model = nn.Sequential(tritonconv.Conv2d(2, 3, 3), tritonconv.BatchNorm2d(3, momentum=0.2))
    nn.init.normal_(model[1].weight)
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert [type(m) for m in synced] == [tritonconv.Conv2d, nn.SyncBatchNorm]
    assert synced[1].momentum == 0.2
    assert_equal(list(synced.state_dict().values()), list(model.state_dict().values()))


def test_batch_norm_of_integers_is_exact(device):
    """A power of two of pixels, and a variance of 4, eps 12: every value is exact."""
    x = torch.tensor([-2.0, 2.0]).repeat(8).view(4, 1, 2, 2).expand(4, 3, 2, 2) + torch.arange(
        3.0
    ).view(3, 1, 1)
    w, b = integers(3, dtype=torch.float32), integers(3, dtype=torch.float32)
    y = batch_norm(x.to(device), None, None, w.to(device), b.to(device), training=True, eps=12.0)
    sign = (x - torch.arange(3.0).view(3, 1, 1)) / 4
    assert_equal([y], [sign * w[:, None, None] + b[:, None, None]])
