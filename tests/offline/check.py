"""The offline check: compiles every case for sm_80, sm_89 and sm_90, and judges the machine code.

    python tests/offline/check.py            prints the table; exit status 1 where anything is wrong
    python tests/offline/check.py --record   also raises the recorded loop lengths to those measured

Columns: shared = bytes of shared memory; loop = instructions of the inner loop; copies = its loads
from global memory, number x bytes, "a" for asynchronous ones and "t" for TMA; slots/cycles = issue
slots that the loop takes on each scheduler, and cycles that its products take on the matrix unit:
with more slots than cycles, issuing instructions bounds the loop.  A model, not a timing.
"""

import os

os.environ["TRITON_INTERPRET"] = "0"  # before any kernel is decorated

import csv
import itertools
import multiprocessing
import sys
import time
from functools import partial
from pathlib import Path

import triton
from cases import CASES, SM_90_KERNELS
from launches import CompilationError, launches
from machine import disassemble
from rules import HEADER, VERSION, Row, judge
from tritonconv.conv.general import tiles

SHARES = 8  # of the cases, each for one process at a time
BUDGETS = Path(__file__).with_name("budgets.csv")
NEWER = BUDGETS.with_name("budgets-3.8.csv")  # what triton makes longer from then on
EVERY_CASE = tuple({case[:2]: case for cases in CASES.values() for case in cases}.values())
SLACK = 1.05  # of a recorded loop length

Budgets = dict[tuple[str, str, str, int], int]  # instructions of the loop, by a row's first fields


def check(capability: int, share: int) -> tuple[list[Row], list[str]]:
    """A row for each binary that a share of the cases launches, and what does not compile."""
    found, errors = [], []
    for case in CASES[capability][share::SHARES]:
        try:
            call = partial(case.call, case.dtype)
            found += [(case, launch) for launch in launches(call, capability, case.family)]
        except CompilationError as error:
            errors.append(f"{case.name} {case.dtype} sm_{capability}: {error}")
    cubins = list(dict.fromkeys(launch.cubin for _, launch in found))
    codes = dict(zip(cubins, disassemble(cubins, capability), strict=True))
    rows = [judge(case, capability, launch, codes[launch.cubin]) for case, launch in found]
    return list(dict.fromkeys(rows)), errors


def beside_plain(rows: list[Row]) -> list[str]:
    """A line for each kernel with something fused into it, beside its plain form."""
    plain = {row[:5]: row for row in rows}
    lines = []
    for case, row in ((case, row) for case in EVERY_CASE for row in rows if row[:2] == case[:2]):
        other = plain.get((case.plain, *row[1:5]))
        if other is not None:
            lines.append(
                f"{_name(row)}: {other.registers} -> {row.registers} registers, "
                f"{other.loop} -> {row.loop} instructions in the loop"
            )
    return lines


def over_budget(rows: list[Row], budgets: Budgets) -> list[str]:
    """Loops longer than recorded, and records that miss or have no row."""
    found = [
        f"{_name(row)}: loop {row.loop} exceeds the recorded {budgets[row[:4]]}"
        for row in rows
        if row.loop > SLACK * budgets.get(row[:4], row.loop)
    ]
    keys = {row[:4] for row in rows}
    found += [f"{_name(key)}: no loop length is recorded" for key in sorted(keys - budgets.keys())]
    found += [f"{_name(key)}: recorded, but not launched" for key in sorted(budgets.keys() - keys)]
    return found


def _name(row: tuple) -> str:
    case, dtype, kernel, capability = row[:4]
    return f"{case} {dtype} {kernel} sm_{capability}"


def budgets_in_use() -> Budgets:
    return read_budgets(BUDGETS) | (read_budgets(NEWER) if VERSION >= (3, 8) else {})


def read_budgets(path: Path) -> Budgets:
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {
            (line["case"], line["dtype"], line["kernel"], capability): int(line[f"sm_{capability}"])
            for line in csv.DictReader(file)
            for capability in CASES
            if line[f"sm_{capability}"]
        }


def record_budgets(rows: list[Row]) -> None:
    """Writes the longer of measured and recorded loops; into NEWER, what exceeds BUDGETS."""
    path, common = BUDGETS, read_budgets(BUDGETS)
    longest = budgets_in_use()
    longest = {row[:4]: longest.get(row[:4], 0) for row in rows}
    for row in rows:
        longest[row[:4]] = max(longest[row[:4]], row.loop)
    if VERSION >= (3, 8):
        path = NEWER
        longest = {k: loop for k, loop in longest.items() if loop > SLACK * common.get(k, 0)}
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["case", "dtype", "kernel", *(f"sm_{c}" for c in CASES)])
        for key in dict.fromkeys(key[:3] for key in longest):
            writer.writerow([*key, *(longest.get((*key, c)) for c in CASES)])


def unneeded(rows: list[Row]) -> list[str]:
    """Exemptions from 16-byte copies that no row needs."""
    needed = {
        (row.case, row.dtype, kernel)
        for row in rows
        if row.narrowest < 16
        for kernel in (row.kernel, f"{row.kernel} sm_{row.capability}")
    }
    given = [(case.name, case.dtype, kernel) for case in EVERY_CASE for kernel in case.narrow]
    return [f"{' '.join(key)}: needs no exemption" for key in given if key not in needed]


def not_covered(rows: list[Row]) -> list[str]:
    """Kernels of the library, and tiles of the tables, that a device's cases do not launch."""
    kernels = {
        name.removeprefix("_").removesuffix("_kernel")
        for module in list(sys.modules.values())
        if module.__name__.startswith("tritonconv")
        for name, value in vars(module).items()
        if isinstance(value, triton.JITFunction) and name.endswith("_kernel")
    }
    missing = []
    for capability in CASES:
        dense = tiles.TILES | tiles.HOPPER if capability == 90 else tiles.TILES
        tables = [dense, tiles.EXACT, tiles.UNALIGNED]
        served = kernels if capability == 90 else kernels - SM_90_KERNELS
        expected = served | {
            f"{t.m}x{t.n}x{t.k} w{t.warps} s{t.stages}"
            for by_size in tables
            for table in by_size.values()
            for t in table
        }
        mine = [row for row in rows if row.capability == capability]
        launched = {row.kernel for row in mine} | {row.tile for row in mine}
        missing += [f"sm_{capability}: no case launches {x}" for x in sorted(expected - launched)]
    return missing


def main() -> int:
    started = time.monotonic()
    with multiprocessing.Pool() as pool:
        jobs = itertools.product(CASES, range(SHARES))
        results = pool.starmap(check, jobs, chunksize=1)
    position = {case[:2]: i for i, case in enumerate(EVERY_CASE)}
    rows = [row for found, _ in results for row in found]
    rows.sort(key=lambda row: (position[row[:2]], row.kernel, row.capability))
    print(HEADER, *rows, "With something fused, beside the plain kernel:", sep="\n")
    print(*beside_plain(rows), sep="\n")

    if "--record" in sys.argv:
        record_budgets(rows)
    budgets = budgets_in_use()
    failures = [error for _, errors in results for error in errors]
    failures += [f"{_name(row)}: {fault}" for row in rows for fault in row.faults]
    failures += over_budget(rows, budgets) + unneeded(rows) + not_covered(rows)
    for failure in failures:
        print("FAIL", failure)
    seconds = time.monotonic() - started
    print(
        f"triton {triton.__version__}: {len(rows)} rows, {len(failures)} failures, {seconds:.0f} s"
    )
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
