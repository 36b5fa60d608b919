"""The family for large depthwise windows, against torch's convolution in float64."""

import math

import pytest
import torch
import tritonconv
from launched import repeats
from reference import assert_close, assert_family_exact, conv2d_case
from tritonconv import _plan
from tritonconv.conv import dispatch, epilogue
from tritonconv.conv.dispatch import force_family
from tritonconv.conv.geometry import Geometry
from tritonconv.conv.problem import problem_on

CASES = {
    "9x15, padding beyond the half": conv2d_case((2, 2, 10, 9), (2, 1, 9, 15), padding=(6, 9)),
    "15x9": conv2d_case((1, 2, 9, 20), (2, 1, 15, 9), padding=(7, 4)),
    "window larger than the image": conv2d_case((2, 1, 4, 3), (1, 1, 8, 13), padding=6),
    "no padding, even window": conv2d_case((2, 2, 6, 38), (2, 1, 2, 30)),
    "wider than a block": conv2d_case((1, 2, 3, 150), (2, 1, 2, 21), padding=(1, 10)),
    "more columns than a product": conv2d_case((1, 1, 2, 140), (1, 1, 1, 100), padding=(0, 50)),
    "one pixel": conv2d_case((2, 3, 1, 1), (3, 1, 13, 13), padding=6),
    "padding beyond the window": conv2d_case((1, 2, 3, 5), (2, 1, 3, 9), padding=(4, 11)),
}


def problem(work: str, x: tuple, window: tuple, dtype=torch.bfloat16, capability=(9, 0)):
    """Of a window that leaves the image's size."""
    half, w = tuple(k // 2 for k in window), (x[1], 1, *window)
    g = Geometry((1, 1), half, half, (1, 1), x[1])
    return problem_on(capability, "", work, x, w, g.y_shape(x, w), g, dtype, "ieee")


@pytest.mark.parametrize("name", CASES)
def test_toeplitz_of_integers_is_exact(name, device):
    assert_family_exact(CASES[name], "toeplitz", device, torch.float16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_toeplitz_equals_torch(dtype, device):
    case = CASES["9x15, padding beyond the half"]
    x, w, b = case.tensors(device, dtype)
    with force_family("toeplitz"):
        y = case.ours(x, w, b)
    assert_close([y], [case.expected([x, w, b])[0]], case.reduced)


def test_toeplitz_rounds_once(device):
    """2049 and 1 are 2050, in float16 too; 2049 by itself would be rounded to 2048 before."""
    x = torch.ones(1, 1, 1, 2049, dtype=torch.float16, device=device)
    w = torch.ones(1, 1, 1, 2049, dtype=torch.float16, device=device)
    with force_family("toeplitz"):
        y = tritonconv.conv2d(x, w, torch.ones_like(x[0, 0, 0, :1]))
    assert y.item() == 2050


def test_toeplitz_stays_finite_where_no_window_reaches_what_is_not(device):
    """A band's zeros meet every column of a row, and zeros around the image every weight."""
    case = CASES["wider than a block"]
    x, w, b = case.tensors(device, torch.float16)
    x[0, 0, 1, 70], x[0, 1, 2, 0] = math.inf, math.nan
    with force_family("toeplitz"):
        y = case.ours(x, w, b)
    right = case.theirs(x.cpu().double(), w.cpu().double(), b.cpu().double())
    assert torch.equal(y.isfinite().cpu(), right.isfinite())
    assert 0 < right.isfinite().sum() < right.numel()
    inside = right.isfinite()
    assert_close([y.cpu()[inside]], [right[inside]], case.reduced)


@pytest.mark.parametrize("fused", [False, True])
def test_toeplitz_repeats_from_a_plan(fused, device, monkeypatch):
    """Copies, bands and sums before the kernel that makes the result are recorded with it."""
    replayed, call = [], _plan.Plan.__call__
    monkeypatch.setattr(
        _plan.Plan, "__call__", lambda plan, given: replayed.append(plan) or call(plan, given)
    )
    case = conv2d_case((2, 2, 5, 12), (2, 1, 3, 9), padding=(1, 4))
    x, w, b = (t.requires_grad_() for t in case.tensors(device, torch.float16))
    norm = [torch.rand(2, dtype=torch.float16, device=device) for _ in range(4)]
    given, how = (x, w, b, *norm), case.options

    def step() -> list[torch.Tensor]:
        y = tritonconv.conv_bn_relu(*given, **how) if fused else case.ours(x, w, b)
        return [y, *torch.autograd.grad(y, (x, w, b), torch.ones_like(y))]

    with force_family("toeplitz"):
        first, *others = (step() for _ in range(4))
    assert all(repeats(a, e) for other in others for a, e in zip(other, first, strict=True))
    starts = {s.kernel.__name__ for plan in replayed for s in plan.steps if hasattr(s, "kernel")}
    wanted = {"conv2d_toeplitz", "conv2d_toeplitz_wgrad", "toeplitz_copy", "toeplitz_bands"}
    assert {f"_{name}_kernel" for name in wanted | {"toeplitz_finish"}} <= starts


def test_sums_are_kept_in_their_own_precision_where_something_follows():
    t = torch.ones(1)
    assert epilogue.Epilogue().is_plain
    for name in ("bias", "mean", "residual", "gate"):
        assert not epilogue.Epilogue(**{name: t}).is_plain
    assert not epilogue.Epilogue(activation="relu").is_plain


@pytest.mark.parametrize("work", ["forward", "dgrad", "wgrad"])
def test_toeplitz_is_the_first_guess_for_large_windows_until_another_was_measured(work):
    for x, window in (((64, 256, 28, 28), (29, 29)), ((64, 128, 56, 56), (51, 5))):
        assert dispatch.choose(problem(work, x, window)).family.name == "toeplitz"
    measured = problem(work, (64, 128, 56, 56), (31, 31))
    assert dispatch.choose(measured).family.name == "depthwise"
    assert dispatch.guessed(measured)[0].name == "toeplitz"
    assert dispatch.choose(problem(work, (64, 128, 56, 56), (9, 9))).family.name == "depthwise"
    for other in (
        problem(work, (2, 256, 28, 28), (29, 29)),
        problem(work, (64, 256, 28, 28), (29, 29), torch.float32),
        problem(work, (64, 256, 28, 28), (29, 29), capability=(8, 0)),
        problem(work, (64, 256, 28, 28), (29, 29), capability=None),
    ):
        assert dispatch.choose(other).family.name == "depthwise"


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (conv2d_case((1, 4, 9, 9), (4, 2, 9, 9)), "one channel a group"),
        (conv2d_case((1, 2, 9, 9), (2, 1, 9, 9), stride=2), "stride 1 and dilation 1"),
        (conv2d_case((1, 2, 19, 19), (2, 1, 9, 9), dilation=2), "stride 1 and dilation 1"),
        (conv2d_case((1, 2, 9, 9), (2, 1, 5, 5)), "more than 25 taps"),
    ],
    ids=["2 channels a group", "stride 2", "dilated", "5x5"],
)
def test_toeplitz_tells_what_it_does_not_serve(case, reason, device):
    with force_family("toeplitz"), pytest.raises(RuntimeError, match=reason):
        case.ours(*case.tensors(device, torch.float16))


@pytest.mark.parametrize(
    ("p", "reason"),
    [
        (problem("forward", (1, 8, 9, 9), (9, 9), torch.float32), "float16 or bfloat16"),
        (problem("dgrad", (1, 8, 9, 9), (9, 9), capability=(8, 0)), "accelerator of sm_90"),
        (problem("wgrad", (1, 8, 2**14, 2**13), (9, 9)), "at most 67108864 pixels"),
        (problem("forward", (1, 2**13, 40, 64), (39, 39)), "bands of at most 134217728 elements"),
    ],
    ids=["float32", "sm_80", "pixels", "bands"],
)
def test_toeplitz_declines_by_name(p, reason):
    assert reason in dispatch.declined(p)["toeplitz"]
