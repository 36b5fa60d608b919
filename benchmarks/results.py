"""The file that a run leaves, written anew after every figure, so that none is lost.

{"version": of this form,
 "machine": {device, driver, ...},
 "rows": [{tag, net, ..., "sides": {"ours": {us, ...}, "eager": ...}, "ratio": {"eager": ...}}],
 "host": {figures that need no GPU},
 "configurations": {row: {a configuration of its convolution: us}},
 "failed": [what, and why],
 "left_out": [what a run had no time or no means for]}
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from . import device
from .cases import Row, device_key

if TYPE_CHECKING:  # tritonconv's import decides whether it is interpreted: not yet here
    from .configurations import Named
    from .networks import NetworkRow

VERSION = 2
FOLDER = Path(__file__).parent / "results"


def default_path(machine: dict[str, str]) -> Path:
    name = device_key(machine["device"]) or machine["device"].replace(" ", "-")
    return FOLDER / f"{name}-{machine['date']}.json"


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def differences(results: dict) -> list[str]:
    """What results have of another form, commit or GPU than this checkout and machine."""
    here, there = device.machine(), results["machine"]
    pairs = {
        "version": (results.get("version", 1), VERSION),
        "commit": (there["commit"], here["commit"]),
    }
    if torch.cuda.is_available():
        pairs["device"] = there["device"], here["device"]
    return [f"{name} {its}, not {ours}" for name, (its, ours) in pairs.items() if its != ours]


class Results:
    """What a run has found so far, in `path` where one is given."""

    def __init__(self, path: Path | None, rehearsed: bool = False) -> None:
        """rehearsed: its times are nobody's."""
        self.path = path
        self.rows: dict[str, dict] = {}
        self.host: dict[str, float] = {}
        self.configurations: dict[str, dict[str, float]] = {}
        self.failed: list[str] = []
        self.left_out: list[str] = []
        self.machine = device.machine()
        if rehearsed:
            self.machine["device"] = "none: a rehearsal"
        self._write()

    def add(self, row: "Row | NetworkRow", side: str, figures: dict) -> dict:
        """Adds a side's figures to its row; returns them with what the row knows."""
        entry = self.rows.setdefault(str(row), self._entry(row))
        if entry["floor_us"] is not None:
            figures = {**figures, "of_floor": entry["floor_us"] / figures["us"]}
        if "examples" in entry:
            figures = {**figures, "examples_per_s": 1e6 * entry["examples"] / figures["us"]}
        measured = entry["sides"]
        measured[side] = figures
        if "ours" in measured:
            entry["ratio"] = {
                other: theirs["us"] / measured["ours"]["us"]
                for other, theirs in measured.items()
                if other != "ours"
            }
        self._write()
        return {key: entry[key] for key in ("shape", "dtype", "layout", "pass")} | figures

    def add_host(self, **figures: float) -> None:
        self.host |= figures
        self._write()

    def add_kernels(
        self, row: "NetworkRow", side: str, kernels: dict[str, tuple[int, float]]
    ) -> None:
        """How often each runs in a call, and for how many us, beside the side's figures if any."""
        if measured := self.rows.get(str(row), {}).get("sides", {}).get(side):
            measured["kernels"] = kernels
        self._write()

    def add_configuration(self, named: "Row | Named", configuration: str, us: float) -> None:
        self.configurations.setdefault(str(named), {})[configuration] = us
        self._write()

    def add_failure(self, what: str) -> None:
        self.failed.append(what)
        self._write()

    def leave_out(self, what: list[str]) -> None:
        self.left_out += what
        self._write()

    def _entry(self, row: "Row | NetworkRow") -> dict:
        return row.entry(device_key(self.machine["device"])) | {"sides": {}, "ratio": {}}

    def content(self) -> dict:
        return {
            "version": VERSION,
            "machine": self.machine,
            "rows": [*self.rows.values()],
            "host": self.host,
            "configurations": self.configurations,
            "failed": self.failed,
            "left_out": self.left_out,
        }

    def _write(self) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = self.content()
        temporary = self.path.with_name(f".{os.getpid()}-{self.path.name}")
        temporary.write_text(json.dumps(content, indent=1) + "\n")
        temporary.replace(self.path)
