"""What a few steps take: a trace to look at, and a table of kernels by time."""

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from .._files import replacing

SKIPPED = {"cuda": 13, "cpu": 1}  # steps, in which graphs are recorded and memory is found


class Profile:
    """The trace of `steps` steps into folder/trace.json, their kernels into folder/kernels.txt.

    It begins one step after those that are skipped; a shorter run writes what there is.
    """

    def __init__(self, steps: int, folder: Path, device: torch.device) -> None:
        self.folder, self.device = folder, device
        kinds = [ProfilerActivity.CPU]
        if device.type == "cuda":
            kinds.append(ProfilerActivity.CUDA)
        self.written = False
        self.profiler = profile(
            activities=kinds,
            schedule=schedule(wait=SKIPPED[device.type], warmup=1, active=steps, repeat=1),
            on_trace_ready=self._write,
        )

    def __enter__(self) -> "Profile":
        self.profiler.start()
        return self

    def __exit__(self, *_) -> None:
        self.profiler.stop()

    def step(self) -> None:
        """To be called after every step."""
        if not self.written:
            self.profiler.step()

    def _write(self, profiler: profile) -> None:
        self.written = True
        key = "self_device_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        with replacing(self.folder / "trace.json") as temporary:
            profiler.export_chrome_trace(str(temporary))
        table = profiler.key_averages().table(sort_by=key, row_limit=100)
        with replacing(self.folder / "kernels.txt") as temporary:
            temporary.write_text(table)
