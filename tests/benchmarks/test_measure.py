"""What is timed, and that nothing wrong ever is."""

from collections import Counter
from collections.abc import Iterator
from itertools import count
from types import SimpleNamespace

import pytest
import torch

from benchmarks import device, measure, sides
from benchmarks.cases import Row, rows
from benchmarks.gate import WrongResultError, require_right, require_same_problem

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
}


def small(name: str, direction: str, dtype: str = "fp16") -> Row:
    case = next(row.case for row in rows() if row.case.operator == name.split()[0])
    return Row(case._replace(tag=f"small {name}", **SMALL[name]), direction, dtype)


ROWS = [
    small(name, direction)
    for name in SMALL
    for direction in (
        ("forward", "dgrad", "wgrad") if name == "conv2d" else ("forward", "backward")
    )
]


@pytest.mark.parametrize("row", ROWS, ids=str)
@pytest.mark.parametrize("dtype", ["fp16", "bf16", "tf32"])
def test_ours_passes_the_gate(row, dtype, device):
    row = row._replace(dtype=dtype)
    given = sides.tensors(row, device)
    actual, expected = sides.ours(row, given)(), sides.expected(row, given)
    require_right(str(row), actual, expected, tf32=dtype == "tf32")


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_torch_solves_the_same_problem(row, device):
    row = row._replace(dtype="fp32")
    given = sides.tensors(row, device)
    expected = sides.expected(row, given)
    require_same_problem(str(row), sides.eager(row, given)(), expected)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_expected_is_what_autograd_computes(row, device):
    given = sides.tensors(row, device)
    x, w = (None if t is None else t.double().requires_grad_() for t in given[:2])
    y = sides.eager(row._replace(direction="forward"), given._replace(x=x, w=w))()
    leaf = {"forward": None, "wgrad": w}.get(row.direction, x)
    right = y if leaf is None else torch.autograd.grad(y, leaf, given.dy.double())[0]
    torch.testing.assert_close(sides.expected(row, given), right.detach())


def test_bias_is_added_where_a_case_has_one(device):
    row = small("conv2d", "forward")
    row = row._replace(case=row.case._replace(bias=True))
    given = sides.tensors(row, device)
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


class Benchmark:
    """pytest-benchmark's fixture, as far as a measurement uses it."""

    def __init__(self) -> None:
        self.stats = SimpleNamespace(stats=SimpleNamespace(data=[]))

    def pedantic(self, call, setup, rounds, warmup_rounds):
        for _ in range(rounds):
            setup()
            start = device.now()
            call()
            self.stats.stats.data.append(device.now() - start)


@pytest.fixture
def done(monkeypatch, request) -> Iterator[Counter]:
    """How often each of the device's functions was called; every moment is a millisecond later."""
    calls, milliseconds = Counter(), count()

    def stand_in(name, result):
        def call(*args):
            calls[name] += 1
            return result(*args)

        monkeypatch.setattr(device, name, call)

    monkeypatch.setattr(device, "DEVICE", request.getfixturevalue("device"))
    stand_in("now", lambda: next(milliseconds) / 1e3)
    stand_in("flush", lambda: None)
    stand_in("captured", lambda call: call)
    stand_in("peak_bytes", lambda call: 5_000_000)
    measure.problem.cache_clear()
    yield calls
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = False, True  # the defaults


@pytest.mark.parametrize("side", ["ours", "eager"])
def test_a_right_call_is_timed_from_a_cold_cache(side, done):
    benchmark = Benchmark()
    figures = measure.measure(small("conv2d", "forward"), side, benchmark)
    assert figures["rounds"] == measure.MOST_ROUNDS
    assert figures["us"] == pytest.approx(1000)
    assert figures["spread"] == pytest.approx(0, abs=1e-6)
    assert figures["peak_MB"] == 5
    assert done["flush"] == measure.MOST_ROUNDS + 1


def test_both_sides_are_graphed_where_a_launch_is_short(done):
    row = small("conv2d", "forward")
    slow = row._replace(case=row.case._replace(floors={"forward": {"H100": 900.0, "H200": 600.0}}))
    for side in ("ours", "eager"):
        assert measure.measure(row, side, Benchmark())["graph"]
    assert done["captured"] == 2
    assert not measure.measure(slow, "ours", Benchmark())["graph"]
    assert done["captured"] == 2


@pytest.mark.parametrize("side", ["ours", "eager"])
@pytest.mark.parametrize("wrong", [float("nan"), 9.0])
def test_a_wrong_kernel_is_never_timed(side, wrong, done, monkeypatch):
    def broken(row, given):
        right = sides.eager(row, given)()
        right[0, 0, 0] += wrong
        return lambda: right

    monkeypatch.setitem(measure.MAKE, side, broken)
    benchmark = Benchmark()
    with pytest.raises(WrongResultError):
        measure.measure(small("conv2d", "forward"), side, benchmark)
    assert not done
    assert not benchmark.stats.stats.data


def test_an_element_that_ours_leaves_unwritten_is_seen(done, monkeypatch):
    torch.use_deterministic_algorithms(False)  # memory comes as it is, but for the gate
    monkeypatch.setitem(
        measure.MAKE, "ours", lambda row, given: lambda: given.x.new_empty(row.case.y_shape)
    )
    row = small("conv2d", "forward")
    with pytest.raises(WrongResultError, match=rf"{row.case.y_shape.numel()} NaN of"):
        measure.measure(row, "ours", Benchmark())
