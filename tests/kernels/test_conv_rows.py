"""Grouped convolution as a walk down rows, against torch's convolution in float64."""

import math

import pytest
import torch
from reference import assert_equal, conv2d_case, forward_backward, integers
from torch.nn import functional as F
from tritonconv import conv2d, conv_bn_relu
from tritonconv.conv import dispatch, tma
from tritonconv.conv.dispatch import force_family
from tritonconv.conv.forward import conv2d_stats
from tritonconv.conv.geometry import Geometry
from tritonconv.conv.grouped.rows import Walk
from tritonconv.conv.problem import Problem, problem_on

CASES = {
    "8 a group": conv2d_case((3, 32, 5, 6), (32, 8, 3, 3), padding=1),
    "boxes that images fill": conv2d_case((8, 16, 3, 4), (16, 8, 3, 3), padding=1),
    "bundles that groups do not fill": conv2d_case((2, 40, 4, 8), (40, 4, 3, 3), padding=1),
    "images of one row": conv2d_case((5, 24, 1, 4), (24, 8, 3, 3), padding=1),
    "no padding": conv2d_case((2, 16, 4, 6), (16, 8, 2, 3)),
    "padding that windows do not reach across": conv2d_case(
        (2, 16, 3, 4), (16, 8, 3, 3), padding=(2, 3)
    ),
    "dilated columns": conv2d_case((2, 16, 3, 8), (16, 4, 2, 3), padding=(0, 2), dilation=(1, 2)),
    "a multiplier of 3": conv2d_case((2, 8, 3, 6), (24, 1, 3, 3), padding=1),
    "1x1": conv2d_case((2, 16, 3, 6), (16, 4, 1, 1)),
    "36 a group": conv2d_case((2, 72, 3, 4), (72, 36, 3, 3), padding=1),
    "10 a group, that start anywhere": conv2d_case((2, 80, 3, 4), (80, 10, 3, 3), padding=1),
}
STRIDED = {
    "stride 2": conv2d_case((3, 32, 6, 8), (32, 8, 3, 3), padding=1, stride=2),
    "stride 2, no padding": conv2d_case((2, 16, 6, 8), (16, 8, 3, 3), stride=2),
    "stride 2 down": conv2d_case((2, 16, 4, 4), (32, 8, 3, 2), padding=(2, 1), stride=(2, 1)),
    "stride 2 across": conv2d_case(
        (3, 40, 3, 8), (40, 4, 2, 3), padding=(0, 2), stride=(1, 2), dilation=(1, 2)
    ),
    "stride 2, 40 a group": conv2d_case((2, 80, 4, 4), (80, 40, 2, 2), stride=2),
}
WALKED = {  # strips of 16 pixels
    "no rows between strips": Walk(16, 1, 1, 1, 1),
    "two columns": Walk(16, 2, 1, 1, 4),
}


@pytest.mark.parametrize("walk", WALKED)
@pytest.mark.parametrize("name", CASES)
def test_rows_are_exact(name, walk, device, monkeypatch):
    """Output and gradient of the input, by one program that walks down all strips, or several."""
    monkeypatch.setattr(tma, "PROGRAMS", 1)
    case = CASES[name]
    x, w, b = case.tensors(device, torch.float16, integers)
    with force_family("rows", WALKED[walk]):
        y = case.ours(x.requires_grad_(), w, b)
        dy = integers(*y.shape, most=1).to(y)
        (dx,) = torch.autograd.grad(y, x, dy)
    assert_equal([y.detach(), dx], case.expected([x, w, b], dy)[:2])


@pytest.mark.parametrize("walk", WALKED)
@pytest.mark.parametrize("name", STRIDED)
def test_strided_rows_are_exact(name, walk, device, monkeypatch):
    """Also where something is not finite."""
    monkeypatch.setattr(tma, "PROGRAMS", 1)
    case = STRIDED[name]
    x, w, b = case.tensors(device, torch.float16, integers)
    for value in (1.0, math.nan):
        x[1, 1, 2, 1] = value
        with force_family("rows", WALKED[walk]):
            y = case.ours(x, w, b)
        right = case.theirs(*(t.cpu().double() for t in (x, w, b)))
        torch.testing.assert_close(y.cpu().double(), right, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("size", "stride", "mean"),
    [((1, 2), 1, 1e3), ((4, 8), 1, 1e3), ((4, 11), 1, 0.0), ((3, 11), 1, 1e3), ((4, 12), 2, 0.0)],
)
@pytest.mark.parametrize("walk", WALKED)
def test_statistics_of_rows_are_exact(walk, size, stride, mean, device, monkeypatch):
    """Of few pixels and of many, of strips partly beyond the images, far from zero."""
    monkeypatch.setattr(tma, "PROGRAMS", 2)
    if size[1] % WALKED[walk].columns:
        size = size[0], size[1] + 1
    x = torch.randn(4, 40, *size).contiguous(memory_format=torch.channels_last)
    x, w, b = (
        t.to(device, torch.float16) for t in (x, torch.randn(40, 4, 3, 3), torch.randn(40) + mean)
    )
    with force_family("rows", WALKED[walk]):
        y, found = conv2d_stats(x, w, b, torch.channels_last, (stride, stride, *[1] * 6, 10))
    values = y.double().transpose(0, 1).flatten(1)
    expected = torch.stack((values.mean(1), values.var(1, correction=0)))
    torch.testing.assert_close(found.double(), expected, rtol=3e-6, atol=3e-6)
    right = F.conv2d(*(t.double().cpu() for t in (x, w, b)), stride, 1, groups=10)
    torch.testing.assert_close(y.double().cpu(), right, rtol=2**-10, atol=2**-9)


@pytest.mark.parametrize(
    ("channels", "value", "walk"),
    [
        ((4, 4), math.nan, "two columns"),
        ((12, 12), -math.inf, "no rows between strips"),
        ((8, 2), math.inf, "two columns"),
        ((36, 36), math.nan, "no rows between strips"),
    ],
    ids=str,
)
def test_rows_keep_in_their_group_what_is_not_finite(channels, value, walk, device, monkeypatch):
    """In output and gradient of the input, wherever it is: x, w or dy."""
    monkeypatch.setattr(tma, "PROGRAMS", 1)
    ins, outs = channels
    groups = 8 if ins < 36 else 2
    shapes = (2, groups * ins, 3, 4), (groups * outs, ins, 3, 3), (2, groups * outs, 3, 4)
    places = (1, ins, 2, 2), (outs, ins - 1, 1, 1), (0, 2 * outs - 1, 2, 2)  # in the second group
    for operand, place in enumerate(places):
        given = [torch.randint(1, 3, shape).double() for shape in shapes]
        given[operand][place] = value
        results = []
        for f, on in ((conv2d, device), (F.conv2d, "cpu")):
            dtype = torch.float64 if f is F.conv2d else torch.float32
            x, w, dy = (t.to(on, dtype) for t in given)
            with force_family("rows", WALKED[walk]):
                y = f(x.requires_grad_(), w, padding=1, groups=groups)
                results.append([y.detach(), *torch.autograd.grad(y, x, dy)])
        for a, e in zip(*results, strict=True):
            torch.testing.assert_close(a.cpu().double(), e, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("value", [0.0, math.nan], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_rows_conv_bn_relu_equals_torch(training, value, device, monkeypatch):
    """Statistics, batch norm, residual and gate, also of walks that are taken group by group."""
    monkeypatch.setattr(tma, "PROGRAMS", 1)
    x, w = torch.randn(2, 16, 4, 3).double(), torch.randn(16, 4, 3, 3).double()
    residual, scale = torch.randn(2, 16, 4, 3).double(), torch.randn(16).double()
    x[0, 5, 3, 2] = value
    running = torch.zeros(16).double(), torch.ones(16).double()

    def theirs(x, scale, residual):
        y = F.conv2d(x, w, padding=1, groups=4)
        return F.relu(F.batch_norm(y, *(t.clone() for t in running), scale, None, training) + residual)  # fmt: skip

    def ours(x, scale, residual):
        kept = [t.to(device, copy=True) for t in running]
        return conv_bn_relu(
            x, w.to(device), None, *kept, scale, training=training, residual=residual, padding=1,
            groups=4,
        )  # fmt: skip

    given = x, scale, residual
    with force_family("rows"):
        actual = forward_backward(ours, *(t.to(device) for t in given))
        with torch.no_grad():
            actual.append(ours(*(t.to(device) for t in given)))
    expected = forward_backward(theirs, *given)
    expected.append(expected[0])
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.cpu(), e, rtol=1e-9, atol=1e-9, equal_nan=True)


def test_rows_give_the_same_bits(device, monkeypatch):
    monkeypatch.setattr(tma, "PROGRAMS", 2)
    x, w = torch.randn(3, 32, 5, 6, device=device), torch.randn(32, 8, 3, 3, device=device)
    with force_family("rows"):
        first, second = (forward_backward(lambda x: conv2d(x, w, padding=1, groups=4), x) for _ in range(2))  # fmt: skip
    assert all(map(torch.equal, first, second))


def posed(x, w, work="forward", dtype=torch.bfloat16, capability=(9, 0), **how) -> Problem:
    pairs = ((how.get(name, default),) * 2 for name, default in (("stride", 1), ("padding", 1), ("padding", 1), ("dilation", 1)))  # fmt: skip
    g = Geometry(*pairs, x[1] // w[1])
    return problem_on(capability, "", work, x, w, g.y_shape(x, w), g, dtype, "ieee")


def served(p: Problem) -> dispatch.Choice:
    with force_family("rows"):
        return dispatch.choose(p)


@pytest.mark.parametrize(
    ("p", "reason"),
    [
        (posed((1, 32, 5, 5), (32, 32, 3, 3)), "several groups"),
        (posed((1, 144, 5, 5), (144, 72, 3, 3)), "at most 64 channels"),
        (posed((1, 32, 6, 6), (32, 8, 3, 3), stride=3), "stride 1, or in forward 2"),
        (posed((1, 32, 6, 6), (32, 8, 1, 1), stride=2), "windows of no less"),
        (posed((1, 32, 6, 6), (32, 8, 3, 3), dilation=2), "not dilated"),
        (posed((1, 32, 6, 6), (32, 8, 5, 5), padding=2), "at most 3x3"),
        (posed((1, 32, 6, 6), (32, 8, 3, 3), padding=3), "less padding"),
        (posed((1, 36, 6, 6), (36, 12, 3, 3)), "multiples of 8"),
        (posed((1, 488, 6, 6), (488, 61, 3, 3)), "from each 8th on"),
        (posed((1, 32, 6, 6), (32, 8, 3, 3), dtype=torch.float32), "float16 or bfloat16"),
        (posed((1, 32, 6, 6), (32, 8, 3, 3), capability=(8, 0)), "sm_90"),
        (posed((2**17, 32, 2**7, 2**7), (32, 8, 3, 3)), "pixels"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_rows_tell_what_they_do_not_serve(p, reason):
    for work in ("forward", "dgrad"):
        with pytest.raises(RuntimeError, match=reason):
            served(p._replace(work=work))


def test_strided_rows_have_no_dgrad_and_want_whole_steps():
    p = posed((1, 32, 6, 6), (32, 8, 3, 3), stride=2)
    assert served(p).family.name == "rows"
    with pytest.raises(RuntimeError, match="in forward 2"):
        served(p._replace(work="dgrad"))
    with pytest.raises(RuntimeError, match="sizes the stride divides"):
        served(posed((1, 32, 6, 7), (32, 8, 3, 3), stride=2))


@pytest.mark.parametrize("statistics", [False, True])
@pytest.mark.parametrize("work", ["forward", "dgrad"])
@pytest.mark.parametrize(("size", "channels"), [(56, 4), (28, 8), (14, 16), (7, 32), (28, 40)])
def test_rows_fill_the_device_and_leave_one_part_a_program(size, channels, work, statistics):
    """Every pixel is of one box alone, and shares differ little."""
    width = max(channels, 32)
    groups = 32 if channels <= 32 else 8
    p = posed((256, groups * channels, size, size), (groups * channels, channels, 3, 3), work)
    p = p._replace(statistics=statistics)
    for config in served(p).family.configs(p):
        call = served(p).family.prepare(p, config)
        bundles = -(-groups * channels // width)
        assert call.programs == call.parts * bundles <= 132 * config.resident
        *_, rows, a_walk, lead = call.sizes
        steps = a_walk + lead + 1  # of a walk: of all of them, hardly more than there must be
        assert rows <= call.parts * a_walk < rows + a_walk
        assert steps <= 1.35 * max(rows * bundles / (132 * config.resident), 12)
        assert size % 2 == 0 or config.columns == 1
