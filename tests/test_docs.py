"""The documents that are written by a program are what it writes today."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_operators_table_is_up_to_date():
    result = subprocess.run(
        [sys.executable, ROOT / "tests/operators_table.py"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (ROOT / "docs/operators.md").read_text() == result.stdout, "run make docs"
