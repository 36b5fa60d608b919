"""What a user pays besides the device's time, measured where there is no GPU, too."""

import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F
from tritonconv import _launch, fuse
from tritonconv.nets import LeNet, resnet50

from .host import INTERPRETED, kernels

pytestmark = [pytest.mark.quick, pytest.mark.full]
compiled = pytest.mark.skipif(_launch.INTERPRETED, reason=INTERPRETED)

IMPORTS = """
from time import perf_counter
start = perf_counter()
import torch
between = perf_counter()
import tritonconv
print(between - start, perf_counter() - between)
"""


@compiled
@pytest.mark.benchmark(group="host: kernels that a training step compiles")
def test_lenet_step_kernels(benchmark, results):
    model = LeNet()
    images, labels = torch.randn(256, 1, 28, 28), torch.randint(10, (256,))

    def step():
        F.cross_entropy(model(images), labels).backward()

    counts = benchmark.pedantic(kernels, (step,), rounds=5)
    benchmark.extra_info |= counts | {"total": counts.total()}
    results.add_host(lenet_step_kernels=counts.total())


@compiled
@pytest.mark.benchmark(group="host: kernels that a training step compiles")
def test_resnet50_step_kernels(benchmark, results):
    """Fused, with 256 images, in bfloat16; what is allocated is never written."""
    model = fuse(resnet50()).to(memory_format=torch.channels_last)
    images = torch.empty(256, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(256, dtype=torch.long)

    def step():
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()

    counts = benchmark.pedantic(kernels, (step,), rounds=1)
    benchmark.extra_info |= counts | {"total": counts.total()}
    results.add_host(resnet50_step_kernels=counts.total())


@pytest.mark.benchmark(group="host: a process that imports tritonconv")
def test_import(benchmark, results):
    def imported():
        command = [sys.executable, "-c", IMPORTS]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    of_torch, ours = map(float, benchmark.pedantic(imported, rounds=3).split())
    figures = {"import_torch_s": of_torch, "import_tritonconv_s": ours}
    benchmark.extra_info |= figures
    results.add_host(**figures)
