"""The data that benchmarks measure against."""

import csv

import pytest

from benchmarks.cases import ARITHMETIC, BANDWIDTH, DTYPES, HERE, device_key, goal, rows
from benchmarks.networks import network_rows

CASES = {row.case.tag: row.case for row in rows()}


def lines(name):
    with (HERE / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_line_is_a_case_of_its_own():
    files = ("shapes", "pools", "norms", "kernelbench")
    read = [line["tag"] for name in files for line in lines(f"{name}.csv")]
    assert set(read) <= set(CASES)
    assert len(CASES) == len(read) + len(lines("fused.csv"))
    assert len(rows()) == len({str(row) for row in rows()})


@pytest.mark.parametrize("line", lines("shapes.csv"), ids=lambda line: line["tag"])
def test_shapes_give_the_listed_work_and_floors(line):
    case = CASES[line["tag"]]
    assert case.flop == pytest.approx(1e9 * float(line["GFLOP"]), rel=0.01, abs=5e6)
    assert 2 * case.moved == pytest.approx(1e6 * float(line["MB_fwd"]), rel=0.01, abs=5e4)
    for device, rate in BANDWIDTH.items():
        least = 1e6 * max(2 * case.moved / rate, case.flop / ARITHMETIC)
        if line[f"{device}_bound"] != "cuda":
            assert case.floors["forward"][device] == pytest.approx(least, rel=0.01, abs=0.06)


@pytest.mark.parametrize(
    ("tag", "ms"), [("kb_dw3", 0.71), ("kb_dw3x7", 0.35), ("kb_max", 1.4), ("kb_bn", 4.3)]
)
def test_kernelbench_floors_are_its_bandwidth_bounds(tag, ms):
    assert CASES[tag].floors["forward"]["H100"] == pytest.approx(1e3 * ms, rel=0.03)


def test_fused_layers_are_those_of_shapes_with_what_follows():
    case, layer = CASES["r50_l1_64_256_bn_add"], CASES["r50_l1_64_256"]
    assert (case.x_shape, case.w_shape, case.options) == (
        layer.x_shape,
        layer.w_shape,
        layer.options,
    )
    assert (case.activation, case.residual) == ("relu", True)
    assert (case.family, layer.family) == ("conv+BN+ReLU 1x1", "1x1")
    assert CASES["mbv2_dw144_56_bn"].activation == "relu6"
    assert CASES["mbv2_pw32_16_bn"].family == "conv+BN 1x1"


@pytest.mark.parametrize(
    ("tag", "moved"),
    [
        # x, y; where statistics come first, x, and in the backward dy, once more
        ("r50_bn256_56", {"inference": 2, "forward": 3, "backward": 5}),
        # in quarters of y: x [64 channels], y and the residual [256]; c written and read;
        # in the backward dx, dy and c twice, y and the residual's gradient
        ("r50_l1_64_256_bn_add", {"inference": 2.25, "forward": 4.25, "backward": 6.5}),
    ],
)
def test_floors_of_what_is_normalised_move_its_operands(tag, moved):
    case = CASES[tag]
    y = 256 * 256 * 56 * 56
    for direction, times in moved.items():
        least = 1e6 * 2 * times * y / BANDWIDTH["H100"]
        assert case.floors[direction]["H100"] == pytest.approx(least, rel=0.001)


def test_goals_are_set_for_families_and_passes_that_exist():
    kinds = {(row.case.family, row.direction) for row in rows()}
    kinds |= {(row.family, row.direction) for row in network_rows()}
    for line in lines("goals.csv"):
        assert (line["family"], line["pass"]) in kinds
    assert goal("dense 3x3", "wgrad", "eager") == 0.9
    assert goal("dense 3x3", "wgrad", "compile") is None


def test_dense_3x3_has_the_channels_of_its_goal():
    dense = [case for case in CASES.values() if case.family == "dense 3x3"]
    assert dense
    assert all(case.x_shape[1] >= 64 and case.w_shape[0] >= 64 for case in dense)


def test_quick_covers_every_family_with_a_goal_and_stays_small():
    quick = [(row, side) for row in rows() for side in row.sides if row.quick(side)]
    families = {row.case.family for row, _ in quick}
    wanted = {"stem", "1x1", "strided", "dilated", "odd channels", "dense 3x3", "grouped"}
    wanted |= {"depthwise 3x3", "depthwise 7x7", "max pool", "avg pool", "adaptive avg pool"}
    wanted |= {"batch norm", "conv+BN+ReLU 1x1", "conv+BN+ReLU depthwise 3x3"}
    assert wanted <= families
    assert len(quick) < 120
    assert {side for row, side in quick if row.case.family == "dense 3x3"} == {"ours", "eager"}
    assert all(row.dtype == row.case.dtypes[0] for row, _ in quick)


def test_rows_name_known_dtypes_and_devices():
    assert {row.dtype for row in rows()} == set(DTYPES) - {"fp64"}
    assert device_key("NVIDIA H100 80GB HBM3") == "H100"
    assert device_key("NVIDIA A100-SXM4-40GB") is None
    for row in rows():
        assert set(row.case.floors[row.direction]) == set(BANDWIDTH)


def test_short_launches_are_replayed_from_graphs():
    graphed = {str(row): row.graphed for row in rows()}
    assert graphed["r50_b1_l3_c2-forward-fp16"]
    assert not graphed["vgg_c2-forward-fp16"]
