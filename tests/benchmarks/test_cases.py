"""The data that benchmarks measure against."""

import csv

import pytest

from benchmarks.cases import ARITHMETIC, BANDWIDTH, DTYPES, HERE, SIDES, device_key, goal, rows

CASES = {row.case.tag: row.case for row in rows()}


def lines(name):
    with (HERE / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_line_is_a_case_of_its_own():
    read = [line["tag"] for n in ("shapes", "pools", "kernelbench") for line in lines(f"{n}.csv")]
    assert sorted(read) == sorted(CASES)
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


@pytest.mark.parametrize(("tag", "ms"), [("kb_dw3", 0.71), ("kb_dw3x7", 0.35), ("kb_max", 1.4)])
def test_kernelbench_floors_are_its_bandwidth_bounds(tag, ms):
    assert CASES[tag].floors["forward"]["H100"] == pytest.approx(1e3 * ms, rel=0.03)


def test_goals_are_set_for_families_and_passes_that_exist():
    kinds = {(row.case.family, row.direction) for row in rows()}
    for line in lines("goals.csv"):
        assert (line["family"], line["pass"]) in kinds
    assert goal("dense 3x3", "wgrad", "eager") == 0.9
    assert goal("dense 3x3", "wgrad", "compile") is None


def test_dense_3x3_has_the_channels_of_its_goal():
    dense = [case for case in CASES.values() if case.family == "dense 3x3"]
    assert dense
    assert all(case.x_shape[1] >= 64 and case.w_shape[0] >= 64 for case in dense)


def test_quick_covers_every_family_with_a_goal_and_stays_small():
    quick = [(row, side) for row in rows() for side in SIDES if row.quick(side)]
    families = {row.case.family for row, _ in quick}
    wanted = {"stem", "1x1", "strided", "dilated", "odd channels", "dense 3x3", "grouped"}
    wanted |= {"depthwise 3x3", "depthwise 7x7", "max pool", "avg pool", "adaptive avg pool"}
    assert wanted <= families
    assert len(quick) < 100
    assert {side for row, side in quick if row.case.family == "dense 3x3"} == {"ours", "eager"}
    assert all(row.dtype == row.case.dtypes[0] for row, _ in quick)


def test_rows_name_known_dtypes_and_devices():
    assert {row.dtype for row in rows()} == set(DTYPES)
    assert device_key("NVIDIA H100 80GB HBM3") == "H100"
    assert device_key("NVIDIA A100-SXM4-40GB") is None
    for row in rows():
        assert set(row.case.floors[row.direction]) == set(BANDWIDTH)


def test_short_launches_are_replayed_from_graphs():
    graphed = {str(row): row.graphed for row in rows()}
    assert graphed["r50_b1_l3_c2-forward-fp16"]
    assert not graphed["vgg_c2-forward-fp16"]
