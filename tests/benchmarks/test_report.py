"""Reports of a fixed results file."""

import json
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.cases import rows
from benchmarks.compare import compare
from benchmarks.results import Results, default_path, read

DATA = Path(__file__).parent / "data"
ROWS = {str(row): row for row in rows()}
MACHINE = {
    "device": "NVIDIA H100 80GB HBM3",
    "driver": "570.1",
    "cudnn": "91002",
    "torch": "2.11.0",
    "triton": "3.6.0",
    "python": "3.12.3",
    "date": "2026-01-31",
    "commit": "0123456",
}
# us of ours, eager, compile; None where a side has no figure
TIMES = {
    "r18_c64_56-forward-fp16": (100.0, 95.0, 96.0),
    "r18_c64_56-forward-bf16": (110.0, 88.0, 121.0),
    "r50_l3_c2-forward-fp16": (125.0, 100.0, None),
    "r18_c64_56-wgrad-fp16": (150.0, None, None),
    "mbv2_dw32_112-forward-fp16": (200.0, 450.0, 430.0),
    "odd_19-dgrad-bf16": (None, 80.0, None),
    "r50_max-backward-fp16": (300.0, 900.0, 500.0),
    "psp_bin6-forward-fp16": (90.0, 99.0, None),
    "kb_dw3-forward-tf32": (1000.0, 2550.0, 2480.0),
}


@pytest.fixture
def results(monkeypatch, tmp_path) -> dict:
    """What a run with TIMES on MACHINE leaves, read back from its file."""
    monkeypatch.setattr("benchmarks.device.machine", lambda: dict(MACHINE))
    run = Results(tmp_path / "results.json")
    for name, times in TIMES.items():
        for side, us in zip(("ours", "eager", "compile"), times, strict=True):
            if us is not None:
                figures = {"us": us, "spread": 0.012, "rounds": 100, "peak_MB": 51.4}
                run.add(ROWS[name], side, figures | {"graph": ROWS[name].graphed})
    run.add_host(conv2d_call_ratio=2.75, import_tritonconv_s=0.51)
    return read(run.path)


def test_a_run_leaves_the_expected_file(results):
    assert results == json.loads((DATA / "results.json").read_text())


def test_the_report_of_a_fixed_file_is_the_expected_one():
    assert report.report(read(DATA / "results.json")) == (DATA / "report.md").read_text()


def test_a_row_without_ours_has_no_ratio_and_no_headline(results):
    row = next(row for row in results["rows"] if row["tag"] == "odd_19")
    assert row["ratio"] == {}
    assert row not in report.headline(results["rows"])


def test_the_headline_takes_the_better_dtype_and_no_other_layout(results):
    chosen = {(row["tag"], row["dtype"]) for row in report.headline(results["rows"])}
    assert ("r18_c64_56", "fp16") in chosen
    assert ("r18_c64_56", "bf16") not in chosen
    assert "kb_dw3" not in {tag for tag, _ in chosen}


def test_a_goal_that_the_worst_layer_misses_is_not_met(results):
    text = report.summary(results)
    assert "| dense 3x3 | forward | cuDNN | 2 | 0.80 | 0.88 | 0.9 | no |" in text
    assert "| depthwise 3x3 | forward | cuDNN | 1 | 2.25 | 2.25 | 2 | yes |" in text


def test_fractions_are_of_the_device_s_floor(results):
    row = next(row for row in results["rows"] if row["tag"] == "mbv2_dw32_112")
    assert row["floor_us"] == 137.0
    assert row["sides"]["ours"]["of_floor"] == pytest.approx(0.685)


def test_an_unknown_device_has_no_floor(monkeypatch):
    monkeypatch.setattr("benchmarks.device.machine", lambda: MACHINE | {"device": "NVIDIA A100"})
    figures = Results(None).add(ROWS["r50_l3_c2-forward-fp16"], "ours", {"us": 1.0})
    assert "of_floor" not in figures
    assert default_path(MACHINE | {"device": "NVIDIA A100"}).name == "NVIDIA-A100-2026-01-31.json"
    assert default_path(MACHINE).name == "H100-2026-01-31.json"


def test_report_and_plots_are_written(results, tmp_path):
    paths = report.write(results, tmp_path / "out", "H100")
    assert [path.name for path in paths] == ["H100.md", "H100-ratios.png", "H100-roofline.png"]
    assert all(path.stat().st_size > 1000 for path in paths)


def test_a_run_that_measured_nothing_has_a_report(tmp_path):
    empty = {"machine": MACHINE, "rows": [], "host": {}}
    assert all(path.exists() for path in report.write(empty, tmp_path, "empty"))


def test_the_readme_s_block_is_replaced_and_nothing_else():
    readme = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    once = report.insert(readme, ["new"])
    assert once == f"before\n{report.BEGIN}\n\nnew\n\n{report.END}\nafter\n"
    assert report.insert(once, ["new"]) == once
    with pytest.raises(ValueError, match="expected one block"):
        report.insert("no markers", ["new"])


def test_compare_lists_what_both_hold_slowest_first(results):
    other = json.loads(json.dumps(results))
    other["rows"] = [row for row in other["rows"] if row["tag"] != "psp_bin6"]
    slower = next(row for row in other["rows"] if row["tag"] == "r50_max")
    slower["sides"]["ours"]["us"] *= 2
    lines = compare(results, other).splitlines()
    tags = [line.split(" | ")[0].strip("| ") for line in lines if line.startswith("| ")][2:]
    assert tags[0] == "r50_max"
    assert "| r50_max | backward | fp16 | 300.0 | 600.0 | 0.50 | 3.00 | 3.00 |" in lines
    assert set(tags) == {name.split("-")[0] for name in TIMES} - {"psp_bin6", "odd_19"}
