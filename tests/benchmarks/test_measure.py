"""What is timed, and that nothing wrong ever is."""

import functools

import pytest
import torch
from torch.nn import functional as F

from benchmarks import device, measure, sides
from benchmarks.cases import FUSED_SIDES, Row, rows
from benchmarks.gate import (
    WrongResultError,
    require_as_close,
    require_right,
    require_same_problem,
)

TIMER = functools.partial(device.times, rounds=4)
CONVOLUTION = {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2), "groups": 2}
SMALL = {
    "conv2d": {"x_shape": (2, 4, 9, 8), "w_shape": (6, 2, 3, 2), "options": CONVOLUTION},
    "max_pool2d": {
        "x_shape": (2, 3, 9, 8),
        "options": {"kernel_size": 3, "stride": 2, "padding": 1},
    },
    "avg_pool2d": {"x_shape": (2, 3, 9, 8), "options": {"kernel_size": 2}},
    "adaptive_avg_pool2d": {"x_shape": (2, 3, 9, 8), "options": {"output_size": 2}},
    "adaptive_avg_pool2d to one pixel": {"x_shape": (2, 3, 9, 8), "options": {"output_size": 1}},
    "batch_norm": {"x_shape": (2, 3, 9, 8)},
    "conv_bn_relu": {
        "x_shape": (2, 6, 9, 8),
        "w_shape": (6, 3, 3, 2),
        "options": CONVOLUTION,
        "activation": "relu6",
        "residual": False,
    },
    "conv_bn_relu with residual": {
        "x_shape": (2, 6, 9, 8),
        "w_shape": (4, 3, 3, 2),
        "options": CONVOLUTION,
        "residual": True,
    },
}


def small(name: str, direction: str, dtype: str = "fp16") -> Row:
    case = next(row.case for row in rows() if row.case.operator == name.split()[0])
    return Row(case._replace(tag=f"small {name}", **SMALL[name]), direction, dtype)


ROWS = [
    small(name, direction) for name in SMALL for direction in small(name, "forward").case.floors
]
EXACT = [row for row in ROWS if row.exact]
OTHERS = [row for row in ROWS if not row.exact]


@pytest.mark.parametrize("row", EXACT, ids=str)
@pytest.mark.parametrize("dtype", ["fp16", "bf16", "tf32"])
def test_ours_passes_the_gate(row, dtype, device):
    row = row._replace(dtype=dtype)
    given = sides.inputs(row, device)
    (actual,) = measure.listed(sides.ours(row, given)())
    (expected,) = measure.listed(sides.expected(row, given))
    require_right(str(row), actual, expected, tf32=dtype == "tf32")


@pytest.mark.parametrize(
    ("row", "side"),
    [(row, side) for row in OTHERS for side in ("ours", "unfused") if side in row.sides],
    ids=str,
)
def test_what_normalises_is_as_close_as_torch(row, side, device):
    row = row._replace(dtype="fp32")
    given = sides.inputs(row, device)
    actual, torchs = (measure.listed(sides.MAKE[s](row, given)()) for s in (side, "eager"))
    require_as_close(str(row), actual, measure.listed(sides.expected(row, given)), torchs)


@pytest.mark.parametrize("row", [row for row in OTHERS if row.direction != "backward"], ids=str)
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision_normalises_beside_float32(row, dtype, device):
    row = row._replace(dtype=dtype)
    given = sides.inputs(row, device)
    assert given.mean.dtype == torch.float32
    (actual,) = measure.listed(sides.ours(row, given)())
    (expected,) = measure.listed(sides.expected(row, given))
    assert actual.dtype == given.x.dtype
    require_same_problem(str(row), actual, expected)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_torch_solves_the_same_problem(row, device):
    row = row._replace(dtype="fp32")
    given = sides.inputs(row, device)
    expected = measure.listed(sides.expected(row, given))
    for actual, right in zip(measure.listed(sides.eager(row, given)()), expected, strict=True):
        require_same_problem(str(row), actual, right)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_expected_is_what_autograd_computes(row, device):
    given = sides.inputs(row, device)
    exact = sides.Tensors(*(None if t is None else t.double() for t in given))
    names = {"dgrad": ("x",), "wgrad": ("w",), "backward": ("x", "w", "scale", "shift", "residual")}
    names = [n for n in names.get(row.direction, ()) if getattr(exact, n) is not None]
    leaves = [getattr(exact, name).requires_grad_() for name in names]
    y = by_hand(row, exact)
    right = torch.autograd.grad(y, leaves, exact.dy) if leaves else [y]
    for actual, expected in zip(measure.listed(sides.expected(row, given)), right, strict=True):
        torch.testing.assert_close(actual, expected)


def by_hand(row: Row, t: sides.Tensors) -> torch.Tensor:
    case, y = row.case, t.x
    if case.operator in ("conv2d", "conv_bn_relu"):
        y = F.conv2d(y, t.w, None, **case.options)
    if row.exact:
        return y if case.w_shape else getattr(F, case.operator)(y, **case.options)
    y = F.batch_norm(y, t.mean, t.var, t.scale, t.shift, row.direction != "inference")
    if t.residual is not None:
        y = y + t.residual
    return {"relu": F.relu, "relu6": F.relu6, None: lambda y: y}[case.activation](y)


@pytest.mark.parametrize("name", ["conv2d", "max_pool2d", "conv_bn_relu with residual"])
def test_a_compiled_backward_repeats(name, device, monkeypatch):
    """On another compiler's back end, which is here and quick."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    row = small(name, "dgrad" if name == "conv2d" else "backward", "fp32")
    given = sides.inputs(row, device)
    call, expected = sides.compiled(row, given), measure.listed(sides.expected(row, given))
    for _ in range(2):
        for actual, right in zip(measure.listed(call()), expected, strict=True):
            require_same_problem(str(row), actual, right)


def test_bias_is_added_where_a_case_has_one(device):
    row = small("conv2d", "forward")
    row = row._replace(case=row.case._replace(bias=True))
    given = sides.inputs(row, device)
    expected = sides.expected(row, given._replace(b=None)) + given.b.double()[:, None, None]
    torch.testing.assert_close(sides.expected(row, given), expected)


EXPECTED = torch.randn(4, 8, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "wrong", [float("nan"), float("inf"), 0.01], ids=["unwritten", "inf", "off"]
)
def test_the_gate_sees_one_wrong_element(wrong):
    actual = EXPECTED.half()
    require_right("right", actual, EXPECTED)
    actual[1, 2, 3, 4] += wrong
    with pytest.raises(WrongResultError, match="times the bound"):
        require_right("wrong", actual, EXPECTED)


def test_the_gate_sees_another_shape():
    with pytest.raises(WrongResultError, match="expected shape"):
        require_right("wrong", EXPECTED[..., :1].half(), EXPECTED)


def test_tf32_rounds_its_operands_and_no_more():
    rounded = EXPECTED * (1 + 2.0**-11)
    require_right("tf32", rounded.float(), EXPECTED, tf32=True)
    with pytest.raises(WrongResultError):
        require_right("fp32", rounded.float(), EXPECTED)
    with pytest.raises(WrongResultError):
        require_right("tf32", (EXPECTED * 1.02).float(), EXPECTED, tf32=True)


@pytest.mark.parametrize("wrong", [float("nan"), 1.0])
def test_the_other_side_may_round_but_not_be_wrong(wrong):
    require_same_problem("other", (EXPECTED * 1.001).half(), EXPECTED)
    with pytest.raises(WrongResultError):
        require_same_problem("other", EXPECTED + wrong, EXPECTED)


def test_results_of_many_roundings_are_as_close_as_torch_s_own():
    half = [EXPECTED.half(), EXPECTED.bfloat16().float()]
    require_as_close("right", half, [EXPECTED] * 2, half)
    require_as_close("closer", [EXPECTED] * 2, [EXPECTED] * 2, half)
    for wrong in (
        EXPECTED * 1.02,
        EXPECTED + 0.02,
        EXPECTED.where(EXPECTED[0, 0, 0, 0] != EXPECTED, 0),
    ):
        with pytest.raises(WrongResultError, match="result 1 is"):
            require_as_close("wrong", [half[0], wrong], [EXPECTED] * 2, half)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_rounding_decides_is_finite_at_least(wrong):
    noise = [-EXPECTED]
    require_as_close("lost", [3 * EXPECTED], [EXPECTED], noise)
    with pytest.raises(WrongResultError):
        require_as_close("lost", [EXPECTED.where(EXPECTED < 1, wrong)], [EXPECTED], noise)


@pytest.mark.parametrize("side", ["ours", "eager"])
def test_a_right_call_is_timed_from_a_cold_cache(side, done, benchmark):
    timer = functools.partial(measure.by_pytest, benchmark=benchmark)
    figures = measure.measure(small("conv2d", "forward"), side, timer)
    assert figures["rounds"] == measure.MOST_ROUNDS
    assert figures["us"] == pytest.approx(1000)
    assert figures["spread"] == pytest.approx(0, abs=1e-6)
    assert figures["peak_MB"] == 5
    assert done["flush"] == measure.MOST_ROUNDS + 1


def test_both_sides_are_graphed_where_a_launch_is_short(done):
    row = small("conv2d", "forward")
    slow = row._replace(case=row.case._replace(floors={"forward": {"H100": 900.0, "H200": 600.0}}))
    for side in ("ours", "eager"):
        assert measure.measure(row, side, TIMER)["graph"]
    assert done["captured"] == 2
    assert not measure.measure(slow, "ours", TIMER)["graph"]
    assert done["captured"] == 2


@pytest.mark.parametrize("side", FUSED_SIDES)
@pytest.mark.parametrize("name", ["conv2d", "conv_bn_relu"])
@pytest.mark.parametrize("wrong", [float("nan"), 9.0])
def test_a_wrong_kernel_is_never_timed(name, side, wrong, done, monkeypatch):
    def broken(row, given):
        right = sides.eager(row, given)()
        right[0, 0, 0] += wrong
        return lambda: right

    monkeypatch.setitem(sides.MAKE, side, broken)
    with pytest.raises(WrongResultError):
        measure.measure(small(name, "forward", "tf32"), side, TIMER)
    assert not done


def test_an_element_that_ours_leaves_unwritten_is_seen(done, monkeypatch):
    torch.use_deterministic_algorithms(False)  # memory comes as it is, but for the gate
    monkeypatch.setitem(
        sides.MAKE, "ours", lambda row, given: lambda: given.x.new_empty(row.case.y_shape)
    )
    row = small("conv2d", "forward")
    with pytest.raises(WrongResultError, match=rf"{row.case.y_shape.numel()} NaN of"):
        measure.measure(row, "ours", TIMER)
