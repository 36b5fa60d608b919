"""What training steps and single operators cost the host: on a GPU that does nothing (tests/stub).

python -m benchmarks host runs them there, in an environment with a CUDA build of torch, steps by
callgrind where that is installed: instructions are the same in every run, however busy the machine.
An operator's call has a gradient, and is held against the least that any such call costs.
"""

import ctypes
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from .results import Results

ROOT = Path(__file__).parent.parent
PYTHON = ROOT / ".venv-torch-2.11.0/bin/python"
NETWORKS = ("resnet50", "resnet18", "resnext50_32x4d", "mobilenet_v2", "vgg16_bn")
SIDES = ("ours", "unfused")
COUNTED = ("launches", "torch kernels", "copies", "Python calls", "CPU ms")
BATCH = 16


def table(networks: Sequence[str], path: Path | None = None) -> str:
    """Markdown: a row for each network, fused and not, and for each operator; into a results file
    where one is given."""
    if not PYTHON.exists():
        raise SystemExit(f"host: expected {PYTHON}; run make {PYTHON.parent.parent.name}/installed")
    with tempfile.TemporaryDirectory() as folder:
        by_callgrind = []
        if shutil.which("valgrind"):
            by_callgrind = [
                "valgrind", "--quiet", "--tool=callgrind", "--instr-atstart=no",
                f"--callgrind-out-file={folder}/step",
            ]  # fmt: skip
        command = [PYTHON, ROOT / "tests/stub/run.py", *by_callgrind, PYTHON, "-m", __name__]
        done = subprocess.run(
            [*command, *networks], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
        )
        found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        rows = [row for row in found if "network" in row]
        ((machine, operators),) = [row.values() for row in found if "machine" in row]
        texts = [path.read_text(errors="replace") for path in Path(folder).iterdir()]
    for text in texts:
        if named := re.search(r"^desc: Trigger: Client Request: (\d+)", text, re.MULTILINE):
            total = int(re.search(r"^totals: (\d+)", text, re.MULTILINE)[1])
            rows[int(named[1])]["M instructions"] = f"{total / 1e6:.1f}"
    columns = ["network", "side", *COUNTED[:-1], "M instructions" if by_callgrind else COUNTED[-1]]
    lines = [columns, ["---"] * len(columns)]
    lines += [[str(row.get(column, "")) for column in columns] for row in rows]
    if path is not None:
        results = Results(path)
        results.machine = machine
        results.add_host(
            **{
                f"{row['network']} {row['side']}, {column}": float(row[column])
                for row in rows
                for column in columns[2:]
            },
            **{f"{name}, bare Functions": factor for name, factor in operators.items()},
        )
    heads = "an operator's call, launch included", "bare Functions"
    lines += [[], heads, ["---"] * 2, *((n, f"{x:.2f}") for n, x in operators.items())]
    return "\n".join(f"| {' | '.join(line)} |" if line else "" for line in lines)


def measured(step: Callable[[], object], number: int) -> dict[str, int | str]:
    """Counts of a step that ran before."""
    import torch

    driver, runtime = ctypes.CDLL("libcuda.so.1"), ctypes.CDLL("libcudart.so.13")
    names = (driver, "stub_launches"), (runtime, "stub_kernels"), (runtime, "stub_copies")

    def counts() -> list[int]:
        return [ctypes.c_ulong.in_dll(library, name).value for library, name in names]

    calls = 0

    def seen(frame, event: str, argument) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = counts()
    with torch.autograd.set_multithreading_enabled(False):
        sys.setprofile(seen)
        step()
        sys.setprofile(None)
    found = [now - then for now, then in zip(counts(), before, strict=True)]
    callgrind = Path(sysconfig.get_path("purelib"), "tritonconv_stub/callgrind.so")
    if callgrind.exists():
        library = ctypes.CDLL(str(callgrind))
        library.start()
        step()
        library.stop(str(number).encode())
    (us,) = microseconds(step, rounds=20, loops=1)
    return dict(zip(COUNTED, (*found, calls, f"{us / 1e3:.1f}"), strict=True))


def microseconds(*calls: Callable[[], object], rounds: int, loops: int) -> list[float]:
    """CPU time of each call, taken in turn; the least, since others' work on the CPU only adds."""
    times = [[] for _ in calls]
    for _ in range(rounds):
        for call, measured in zip(calls, times, strict=True):
            start = time.process_time()
            for _ in range(loops):
                call()
            measured.append(1e6 * (time.process_time() - start) / loops)
    return [min(measured) for measured in times]


def operators() -> dict[str, float]:
    """How many times as long as the bare Function's each operator's call takes."""
    import torch
    import tritonconv

    class BareFunction(torch.autograd.Function):
        """A Function over an op that allocates."""

        @staticmethod
        def forward(ctx, x, w, b):
            ctx.save_for_backward(x, w)
            return torch.ops.tritonconv_benchmark.bare.default(x, w, b)

    library = torch.library.Library("tritonconv_benchmark", "DEF")
    library.define("bare(Tensor x, Tensor w, Tensor b) -> Tensor")
    library.impl("bare", lambda x, w, b: torch.empty_like(x), "CompositeExplicitAutograd")
    x, w = (torch.randn(*shape, device="cuda") for shape in ((2, 8, 6, 6), (8, 8, 3, 3)))
    x, w = (t.contiguous(memory_format=torch.channels_last).requires_grad_() for t in (x, w))
    b, scale = (torch.randn(8, device="cuda").requires_grad_() for _ in range(2))
    calls = {
        "conv2d": lambda: tritonconv.conv2d(x, w, b, padding=1),
        "max_pool2d": lambda: tritonconv.max_pool2d(x, 2),
        "batch_norm": lambda: tritonconv.batch_norm(x, None, None, scale, b, training=True),
    }
    for call in calls.values():
        for _ in range(4):  # compiled, recorded, replayed
            call()
    bare, *found = microseconds(
        lambda: BareFunction.apply(x, w, b), *calls.values(), rounds=200, loops=20
    )
    return {name: us / bare for name, us in zip(calls, found, strict=True)}


def main(networks: Sequence[str]) -> None:
    from . import device
    from . import networks as table_of

    print(json.dumps({"machine": device.machine(), "operators": operators()}), flush=True)

    for number, (network, side) in enumerate((n, s) for n in networks for s in SIDES):
        row = table_of.NetworkRow(network, network, BATCH, "training", "bf16")
        step = table_of.MAKE[side](row, table_of.inputs(row, "cuda"))
        for _ in range(4):  # compiled, recorded, replayed
            step()
        print(json.dumps({"network": network, "side": side, **measured(step, number)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
