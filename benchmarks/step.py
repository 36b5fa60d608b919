"""What a network's training step costs the host: on a GPU that does nothing (tests/stub).

python -m benchmarks host runs it there, in an environment with a CUDA build of torch, by callgrind
where that is installed: instructions are the same in every run, however busy the machine.
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

ROOT = Path(__file__).parent.parent
PYTHON = ROOT / ".venv-torch-2.11.0/bin/python"
NETWORKS = ("resnet50", "resnet18", "resnext50_32x4d", "mobilenet_v2", "vgg16_bn")
SIDES = ("ours", "unfused")
COUNTED = ("launches", "torch kernels", "copies", "Python calls", "CPU ms")
BATCH = 16


def table(networks: Sequence[str]) -> str:
    """Markdown: a row for each network, fused and not."""
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
        rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        texts = [path.read_text(errors="replace") for path in Path(folder).iterdir()]
    for text in texts:
        if named := re.search(r"^desc: Trigger: Client Request: (\d+)", text, re.MULTILINE):
            total = int(re.search(r"^totals: (\d+)", text, re.MULTILINE)[1])
            rows[int(named[1])]["M instructions"] = f"{total / 1e6:.1f}"
    columns = ["network", "side", *COUNTED[:-1], "M instructions" if by_callgrind else COUNTED[-1]]
    lines = [columns, ["---"] * len(columns)]
    lines += [[str(row.get(column, "")) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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
    times = []
    for _ in range(20):
        start = time.process_time()
        step()
        times.append(1e3 * (time.process_time() - start))
    return dict(zip(COUNTED, (*found, calls, f"{min(times):.1f}"), strict=True))


def main(networks: Sequence[str]) -> None:
    from . import networks as table_of

    for number, (network, side) in enumerate((n, s) for n in networks for s in SIDES):
        row = table_of.NetworkRow(network, network, BATCH, "training", "bf16")
        step = table_of.MAKE[side](row, table_of.inputs(row, "cuda"))
        for _ in range(4):  # compiled, recorded, replayed
            step()
        print(json.dumps({"network": network, "side": side, **measured(step, number)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
