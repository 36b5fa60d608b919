"""The documents say what is so: tables are what programs write today, examples run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = (ROOT / "docs/your_own_model.md").read_text()
PROGRAMS = re.findall(
    r"^## (.+?)$.*?^```python\n(.*?)^```$(?:\n\nIt prints:\n\n```text\n(.*?)^```$)?",
    EXAMPLES,
    re.MULTILINE | re.DOTALL,
)


def run(*command: str | Path) -> str:
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout


def test_operators_table_is_up_to_date():
    table = run(ROOT / "tests/operators_table.py")
    assert (ROOT / "docs/operators.md").read_text() == table, "run make docs"


def test_there_are_six_examples():
    assert len(PROGRAMS) == 6


@pytest.mark.parametrize(
    ("program", "said"), [p[1:] for p in PROGRAMS], ids=[name for name, *_ in PROGRAMS]
)
def test_example_runs(program, said, device, tmp_path):
    file = tmp_path / "example.py"  # fuse reads what is in a file
    file.write_text(f"import torch\ntorch.set_default_device({device!r})\n{program}")
    assert run(file) == said
