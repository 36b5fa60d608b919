"""Reports of a fixed results file."""

import copy
import json
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.cases import goals, rows
from benchmarks.compare import compare
from benchmarks.networks import network_rows
from benchmarks.results import Results, default_path, read

DATA = Path(__file__).parent / "data"
ROWS = {str(row): row for row in (*rows(), *network_rows())}
MACHINE = {
    "device": "NVIDIA H100 80GB HBM3",
    "capability": "9.0",
    "driver": "570.1",
    "cudnn": "91002",
    "torch": "2.11.0",
    "triton": "3.6.0",
    "python": "3.12.3",
    "date": "2026-01-31",
    "commit": "0123456",
}
# us of ours, eager, compile and ours unfused; None where a side has no figure
TIMES = {
    "r18_c64_56-forward-fp16": (100.0, 95.0, 96.0),
    "r18_c64_56-forward-bf16": (110.0, 88.0, 121.0),
    "r50_l3_c2-forward-fp16": (125.0, 100.0, None),
    "r18_c64_56-wgrad-fp16": (150.0, None, None),
    "mbv2_dw32_112-forward-fp16": (200.0, 450.0, 430.0),
    "odd_19-dgrad-bf16": (None, 80.0, None),
    "r50_max-backward-fp16": (300.0, 900.0, 500.0),
    "psp_bin6-forward-fp16": (90.0, 99.0, None),
    "r50_bn256_56-forward-fp16": (500.0, 600.0, None),
    "r50_bn256_56_fp32-forward-fp32": (1000.0, 3000.0, None),
    "r50_l1_64_256_bn_add-forward-fp16": (600.0, 1200.0, 900.0, 1000.0),
    "resnet50_b256-training-bf16": (32000.0, 80000.0, 48000.0, 64000.0),
    "mobilenet_v2_b256-training-bf16": (40000.0, 60000.0, None),
    "resnet50_b1-inference_graph-fp16": (500.0, 1000.0, None),
    "kb_dw3-forward-tf32": (1000.0, 2550.0, 2480.0),
}


@pytest.fixture
def results(monkeypatch, tmp_path) -> dict:
    """What a run with TIMES on MACHINE leaves, read back from its file."""
    monkeypatch.setattr("benchmarks.device.machine", lambda: dict(MACHINE))
    run = Results(tmp_path / "results.json")
    for name, times in TIMES.items():
        for side, us in zip(("ours", "eager", "compile", "unfused"), times, strict=False):
            if us is not None:
                figures = {"us": us, "spread": 0.012, "rounds": 100, "peak_MB": 51.4}
                if name.startswith("resnet50_b256") and side == "ours":
                    figures["host_ms"] = 5.5
                run.add(ROWS[name], side, figures | {"graph": ROWS[name].graphed})
    run.add_host(conv2d_call_ratio=2.75, import_tritonconv_s=0.51)
    row = ROWS["r18_c64_56-forward-bf16"]
    run.add_configuration(row, "boxes 128 64 64 4 4", 110.0)
    kernels = {"_conv2d_gemm_kernel": (66, 9000.0), "add": (2, 1000.0)}
    run.add_kernels(ROWS["resnet50_b256-training-bf16"], "ours", kernels)
    run.add_failure(f"{row}: boxes 64 64 64 4 4: its process died")
    run.leave_out(["vgg_c2-forward-bf16: eager, ours"])
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
    assert not {"kb_dw3", "r50_bn256_56_fp32"} & {tag for tag, _ in chosen}


def test_a_goal_that_the_worst_layer_misses_is_not_met(results):
    text = report.summary(results)
    assert "| dense 3x3 | forward | cuDNN | 2 | 0.80 | 0.88 | 0.9 | no |" in text
    assert "| depthwise 3x3 | forward | cuDNN | 1 | 2.25 | 2.25 | - | - |" in text
    assert "| MobileNetV2 batch 256 | training | cuDNN | 1 | 1.50 | 1.50 | 1.8 | no |" in text


GOALS = [
    ("ResNet-50 batch 256", "training", "cuDNN", "1.5", "2.50", "1 of 1", "yes"),
    ("ResNet-50 batch 256", "training", "torch.compile", "1.15", "1.50", "1 of 1", "yes"),
    ("ResNet-50 batch 256", "training", "examples/s on one H100", "7006", "8000", "1 of 1", "yes"),
    ("ResNet-50 batch 1", "inference_graph", "cuDNN", "1.5", "2.00", "1 of 1", "yes"),
    ("MobileNetV2 batch 256", "training", "cuDNN", "1.8", "1.50", "1 of 1", "no"),
    (
        "depthwise 3x3",
        "forward",
        "the floor, its share of our time",
        "0.85",
        "0.69",
        "1 of 5",
        "no",
    ),
    ("conv+BN+ReLU 1x1", "forward", "cuDNN", "1.8", "2.00", "1 of 6", "so far"),
    ("VGG-16 batch 256", "training", "cuDNN", "1.15", "not measured", "0 of 1", "not measured"),
]


def test_goals_are_met_missed_or_not_measured(results):
    lines = report.report(results).splitlines()
    for goal in GOALS:
        assert f"| {' | '.join(goal)} |" in lines


@pytest.mark.parametrize(("faster", "reached", "met"), [(0.5, "0.50", "no"), (1.0, "1.00", "yes")])
def test_a_network_as_called_is_held_against_its_own_graph(results, faster, reached, met):
    called = next(row for row in results["rows"] if row["tag"] == "resnet50_b256")
    graph = copy.deepcopy(called) | {"pass": "training_graph"}
    graph["sides"]["ours"]["us"] *= faster
    results["rows"].append(graph)
    line = (
        f"| ResNet-50 batch 256 | training | ours under a CUDA graph | 0.95 | {reached} | 1 of 1 |"
    )
    assert f"{line} {met} |" in report.report(results)


def test_networks_come_first_in_the_summary(results):
    kinds = [line.split(" | ")[0] for line in report.summary(results).splitlines()[4:]]
    families = [kind.removeprefix("| ") for kind in kinds]
    first_layer = next(i for i, family in enumerate(families) if "batch" not in family)
    assert first_layer > 0
    assert not any(" batch 256" in family for family in families[first_layer:])


def test_how_a_file_was_taken_is_said(results):
    results["machine"]["taken"] = "By other scripts."
    assert "By other scripts." in report.summary(results)


def test_a_run_that_measured_nothing_shows_every_goal_as_such():
    text = report.report({"machine": MACHINE, "rows": [], "host": {}})
    shown = [line for line in text.splitlines() if line.endswith("| not measured |")]
    assert len(shown) == len(goals())
    assert "| yes |" not in text


def test_a_speed_on_an_h100_is_not_measured_elsewhere(results):
    results["machine"]["device"] = "NVIDIA H200"
    assert "| examples/s on one H100 | 7006 | not measured |" in report.report(results)


def test_networks_show_examples_per_second_and_memory(results):
    line = next(x for x in report.report(results).splitlines() if "| ResNet-50 | 256x3x224" in x)
    cells = line.strip("| ").split(" | ")
    assert cells[2:9] == ["training", "bf16", "32.000", "1.2%", "5.5", "8000", "51.4"]
    assert cells[9:15] == ["64.000", "4000", "51.4", "2.00", "-", "-"]
    assert cells[15:21] == ["80.000", "3200", "51.4", "2.50", "1.5", "yes"]


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
