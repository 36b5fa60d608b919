"""Prints docs/operators.md: which passes of which operators the tests cover, by option and dtype.

A test that compares an operator with torch carries the marker covers(*passes): the options are
those of its Case, or what the marker names.
"""

import contextlib
import io
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
PASSES = ("forward", "gradients", "second gradients")
COLUMNS = ("float32", "tf32", "float16", "bfloat16", "float64")
INTRODUCTION = """\
# Operators

What the tests cover, written by `make docs` from the tests themselves: an operator's options, by dtype. In a cell, F:
the output is compared with torch's in float64; G: the gradients, too; S: the second gradients, too. tf32 is float32
with TF32 products. Every operator refuses what torch refuses, with torch's type of exception and a message that says
what was expected, what came and the remedy.

On purpose unlike torch:

- every result and gradient repeats bit for bit, and half precision rounds once;
- `torch.func` transforms, forward-mode differentiation and `torch.jit.script` are refused by name;
- sizes of 2**31 and more, and padded axes about as long, are refused by name; `batch_norm` wants [N, C, ...];
- integer and complex tensors are refused by name, where torch pools some integers;
- `adaptive_avg_pool1d/2d` differentiate an output without elements, where torch's backward refuses;
- `max_pool1d` always follows its input's strides, where torch's does so only where a gradient is needed."""


class Collector:
    def __init__(self) -> None:
        self.passes = defaultdict(set)  # by operator, option and column

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            for marker in item.iter_markers("covers"):
                params = item.callspec.params if hasattr(item, "callspec") else {}
                self._add(marker, params, item.module)

    def _add(self, marker: pytest.Mark, params: dict, module) -> None:
        case = module.CASES.get(params.get("name")) if hasattr(module, "CASES") else None
        operator = marker.kwargs.get("operator") or params.get("operator")
        if case is not None:
            operator = case.operator
        if "option" in marker.kwargs:
            options = [marker.kwargs["option"]]
        else:
            options = _names(params.get("options", {}) if case is None else case.options, case)
        dtype = params.get("dtype", marker.kwargs.get("dtype", torch.float64))
        column = "tf32" if params.get("precision") == "tf32" else str(dtype).removeprefix("torch.")
        for option in options:
            self.passes[operator, option, column] |= set(marker.args)


def _names(options: dict, case) -> list[str]:
    """The options of a call, as a row's name each."""
    names = []
    for name, value in options.items():
        without_none = name == "output_size" and None not in (
            value if isinstance(value, tuple) else ()
        )
        if name == "kernel_size" or without_none:
            continue
        if isinstance(value, str):
            name = f"{name}={value!r}"
        elif name == "output_size":
            name = "output_size with None"
        elif name == "groups" and case is not None and value == case.shapes[0][1]:
            name = "groups: depthwise"
        names.append(name)
    return names or ["defaults"]


def table(passes: dict) -> str:
    lines = [INTRODUCTION]
    operators = sorted({operator for operator, _, _ in passes})
    for operator in operators:
        lines += ["", f"## {operator}", "", f"| option | {' | '.join(COLUMNS)} |"]
        lines += ["|---" * (len(COLUMNS) + 1) + "|"]
        for option in sorted({option for o, option, _ in passes if o == operator}):
            cells = [
                "".join(p[0].upper() for p in PASSES if p in passes.get((operator, option, c), ()))
                for c in COLUMNS
            ]
            lines.append(f"| {option} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    collector = Collector()
    log = io.StringIO()
    with contextlib.redirect_stdout(log):
        status = pytest.main(
            ["--collect-only", "-q", "-p", "no:cacheprovider", str(ROOT / "tests/kernels")],
            plugins=[collector],
        )
    if status:
        sys.exit(log.getvalue())
    print(table(collector.passes), end="")


if __name__ == "__main__":
    main()
