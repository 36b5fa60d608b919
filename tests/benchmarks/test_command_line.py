"""python -m benchmarks as users run it; the timings are skipped where there is no GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent.parent


def benchmarks(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there the timings run, for minutes")
def test_run_report_and_compare_without_a_gpu(tmp_path, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # ours is set by importing tritonconv
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # there pytest-benchmark would not run
    file = tmp_path / "results.json"
    done = benchmarks("run", "-k", "step_kernels or lenet_c2", "--results", file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed, 6 skipped" in done.stdout
    assert "this machine has none" in done.stdout
    assert "8/8" in done.stderr  # the progress bar
    results = json.loads(file.read_text())
    assert results["rows"] == []
    assert results["host"]["lenet_step_kernels"] > 1
    assert 1 < results["host"]["resnet50_step_kernels"] <= 44
    readme = tmp_path / "README.md"
    readme.write_text("<!-- benchmarks: begin --><!-- benchmarks: end -->")
    done = benchmarks("report", file, "--readme", readme)
    assert done.returncode == 0, done.stderr
    assert "lenet_step_kernels" in (tmp_path / "results.md").read_text()
    assert "| family | pass |" in readme.read_text()
    done = benchmarks("compare", file, file)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("- A: ")


def test_a_missing_command_is_a_usage_error():
    done = benchmarks()
    assert done.returncode == 2
    assert "usage: python -m benchmarks" in done.stderr
