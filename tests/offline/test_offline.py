"""The kernels as a GPU's compiler sees them, and whether the check that reads them sees faults.

Both run in processes of their own: here the interpreter may be on.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


def run(script: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, FOLDER / script], capture_output=True, text=True)


def test_kernels_compile_as_designed():
    result = run("check.py")
    failures = [line for line in result.stdout.splitlines() if line.startswith("FAIL")]
    assert result.returncode == 0, "\n".join([*failures, result.stderr])


@pytest.fixture(scope="module")
def planted() -> dict[str, list[str]]:
    result = run("planted.py")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    "plant", ["sound on sm_80", "sound on sm_90", "two blocks", "loop within budget"]
)
def test_check_passes_what_is_sound(planted, plant):
    assert planted[plant] == []


@pytest.mark.parametrize(
    ("plant", "fault"),
    [
        ("one block", "1 block a multiprocessor"),
        ("spill", "spills"),
        ("shared memory", "shared memory exceed"),
        ("narrow copies", "less than 16 bytes"),
        ("synchronous copies", "not copy asynchronously"),
        ("no matrix unit", "not by HGMMA"),
        ("serialised", "serialises wgmma"),
        ("overwritten operand", "overwrites an operand"),
        ("narrow offsets", "offsets have 32 bits"),
        ("does not compile", "must be a power of 2"),
        ("longer loop", "exceeds the recorded"),
        ("loop without budget", "no loop length is recorded"),
        ("budget without loop", "not launched"),
    ],
)
def test_check_finds(planted, plant, fault):
    assert len(planted[plant]) == 1
    assert fault in planted[plant][0]
