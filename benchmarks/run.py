"""pytest benchmarks, with a progress bar in place of its dots."""

import sys
from pathlib import Path

import pytest
from tqdm import tqdm

HERE = Path(__file__).parent


class Progress:
    """Counts what pytest reports."""

    def __init__(self) -> None:
        self.bar = tqdm(unit="test", file=sys.stderr, dynamic_ncols=True)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.bar.reset(total=len(session.items))

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.bar.set_description(nodeid.rpartition("::")[2], refresh=False)
        self.bar.update()

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        passed = report.when == "call" and report.passed
        return (report.outcome, "", report.outcome.upper()) if passed or report.skipped else None

    def pytest_sessionfinish(self) -> None:
        self.bar.close()


def run(results: Path, markers: str, keywords: str) -> int:
    """Measures what is marked and named so, into a file; returns pytest's exit status."""
    quiet = ["-q", "--no-header", "--tb=short", "-rs", "--show-capture=no", "--benchmark-quiet"]
    selected = ["-m", markers, "-k", keywords]
    return pytest.main([str(HERE), f"--results={results}", *quiet, *selected], [Progress()])
