"""Options, marks and fixtures of `pytest benchmarks`."""

import os
from pathlib import Path

# A kernel here runs on a GPU or not at all, and host costs are those of a GPU's user.
os.environ.setdefault("TRITON_INTERPRET", "0")

import pytest

from .results import Results


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--results", type=Path, metavar="FILE", help="write what is measured to FILE")


def pytest_configure(config: pytest.Config) -> None:
    for marker in (
        "quick: a selection of every operator's family, within 5 minutes on an H100",
        "full: all there is, for hours",
        "baseline: the other side only, cuDNN's and torch.compile's",
    ):
        config.addinivalue_line("markers", marker)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("default"))  # torch's compiler has a few


@pytest.fixture(scope="session")
def results(pytestconfig: pytest.Config) -> Results:
    return Results(pytestconfig.getoption("results", None))
