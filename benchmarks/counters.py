"""Nsight Compute's counters of our kernels and cuDNN's, for a list of rows.

python -m benchmarks.counters ROW...     what it profiles: of each row ours, then torch's
"""

import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from . import device, sides
from .cases import rows
from .measure import use_backends

# of each family and pass one, those first that are furthest from their goals
ROWS = (
    "r50_l3_c2-forward-bf16",
    "r50_l3_c2-dgrad-bf16",
    "r50_l3_c2-wgrad-bf16",
    "r50_l1_64_256-forward-bf16",
    "r50_l1_64_256-wgrad-bf16",
    "r50_l1_64_256_bn_add-forward-bf16",
    "r50_l2_c2_s2-forward-bf16",
    "r50_l2_c2_s2-dgrad-bf16",
    "r50_l2_c2_s2-wgrad-bf16",
    "r50_stem-forward-bf16",
    "r50_stem-wgrad-bf16",
    "mbv2_dw144_56-forward-bf16",
    "mbv2_dw144_56-dgrad-bf16",
    "mbv2_dw144_56-wgrad-bf16",
    "cnx_dw7_96-forward-bf16",
    "rx50_g32_c4-forward-bf16",
    "rx50_g32_c4-wgrad-bf16",
    "r18_c64_56-forward-bf16",
    "r18_c64_56-wgrad-bf16",
    "r50_max-forward-bf16",
    "r50_max-backward-bf16",
)
SECTIONS = (
    "SpeedOfLight",
    "WarpStateStats",
    "Occupancy",
    "LaunchStats",
    "MemoryWorkloadAnalysis",
    "SchedulerStats",
    "ComputeWorkloadAnalysis",
)


def installed() -> bool:
    return shutil.which("ncu") is not None


def command(names: Iterable[str], table: Path) -> list[str]:
    """Writes the counters of the rows of those names into table, as CSV."""
    sections = [word for section in SECTIONS for word in ("--section", section)]
    options = ["--clock-control", "none", "--profile-from-start", "off", "--csv"]
    profiler = ["ncu", *options, "--page", "details", *sections, "--log-file", str(table)]
    return [*profiler, sys.executable, "-m", "benchmarks.counters", *names]


def main(names: Sequence[str]) -> None:
    known = {str(row): row for row in rows()}
    for name in names:
        row = known[name]
        use_backends(row, search=True)
        given = sides.inputs(row, device.DEVICE)
        for side in ("ours", "eager"):
            call = sides.MAKE[side](row, given)
            for _ in range(2):
                call()
            device.flush()
            torch.cuda.synchronize()
            print(name, side, flush=True)
            torch.cuda.cudart().cudaProfilerStart()
            call()
            torch.cuda.synchronize()
            torch.cuda.cudart().cudaProfilerStop()


if __name__ == "__main__":
    main(sys.argv[1:])
