"""A GPU that does nothing, for a CUDA build of torch on a machine without one.

    python tests/stub/run.py COMMAND ...

runs COMMAND where libcudart, libcuda and cuBLAS are stubs: torch and Triton find two H200s, compile
for them, allocate and launch, and every result is whatever was in memory.  What the host does is a
GPU's user's: which kernels are launched with which parameters, on which stream, and how long it
takes.  The stubs are built from the headers in torch's own wheels, by gcc, on the first run.
"""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).parent
SITE = Path(sysconfig.get_path("purelib"))
BUILT = SITE / "tritonconv_stub"
CUDA = SITE / "nvidia/cu13"
TRITON = SITE / "triton/backends/nvidia/include"
# our file, the library it stands for, the name it is loaded by, and how its symbols are versioned
LIBRARIES = (
    ("cuda.c", None, "libcuda.so.1", None),
    ("cudart.c", "libcudart.so.13", "libcudart.so.13", "libcudart.so.13"),
    ("cublas.c", "libcublas.so.13", "libstubcublas.so", "libcublas.so.13"),
    ("cublaslt.c", "libcublasLt.so.13", "libstubcublaslt.so", "libcublasLt.so.13"),
)


def exported(library: str | None) -> set[str]:
    """The functions that stand in a library; of the driver, which is in no wheel, in its header."""
    if library is None:
        header = (CUDA / "include/cuda.h").read_text()
        names = set(re.findall(r"CUDAAPI (cu[A-Z]\w+)\(", header))
        names |= set(re.findall(r"#define cu\w+\s+(?:__CUDA_API\w+\()?(cu[A-Z]\w+)", header))
        return names | {f"{name}_v2" for name in names}
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", CUDA / "lib" / library],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    symbols = [line.split()[1:] for line in listed.stdout.splitlines()]
    return {name.split("@")[0] for kind, name in symbols if kind in "TW"}


def build(source: str, library: str | None, name: str, version: str | None) -> None:
    ours = (HERE / source).read_text()
    written = set(re.findall(r"(\w+)\s*\(", ours))
    rest = sorted(n for n in exported(library) - written if library or n.startswith("cu"))
    if source == "cublaslt.c":  # its library exports more than its interface
        rest = [n for n in rest if n.startswith("cublasLt")]
    (BUILT / f"rest_{source}").write_text("".join(f"int {n}() {{ return 0; }}\n" for n in rest))
    (BUILT / f"{name}.map").write_text(f"{version or ''} {{ global: *; }};\n")
    subprocess.run(
        ["gcc", "-O2", "-w", "-shared", "-fPIC", "-fno-builtin", f"-I{CUDA / 'include'}",
         f"-I{TRITON}", "-o", BUILT / name, HERE / source, BUILT / f"rest_{source}",
         f"-Wl,-soname,{name}", f"-Wl,--version-script={BUILT / f'{name}.map'}", "-ldl"],
        check=True,
    )  # fmt: skip


def environment() -> dict[str, str]:
    """What makes a process find the stubs, built if they are not."""
    if not (CUDA / "lib/libcudart.so.13").exists():
        raise SystemExit("run.py: expected a build of torch for CUDA 13, as TORCH=2.11.0 makes one")
    sources = max(path.stat().st_mtime for path in HERE.iterdir())
    done = BUILT / "done"
    if not done.exists() or done.stat().st_mtime < sources:
        BUILT.mkdir(exist_ok=True)
        for library in LIBRARIES:
            build(*library)
        # where valgrind is installed
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-o", BUILT / "callgrind.so", HERE / "callgrind.c"],
            capture_output=True,
        )  # fmt: skip
        done.touch()
    # the runtime calls the driver
    return {
        "TRITON_LIBCUDA_PATH": str(BUILT),
        "LD_LIBRARY_PATH": str(BUILT),
        "LD_PRELOAD": ":".join(str(BUILT / name) for _, _, name, _ in LIBRARIES),
    }


if __name__ == "__main__":
    added = environment()
    os.execvpe(sys.argv[1], sys.argv[1:], os.environ | added)
