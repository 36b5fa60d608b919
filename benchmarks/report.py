"""A results file as Markdown: a summary by family, which the README shows, then every row."""

import statistics
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from . import plots
from .cases import goal

BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
OTHERS = {"eager": "cuDNN", "compile": "torch.compile"}
NONE = "-"


def write(results: dict, folder: Path, stem: str) -> list[Path]:
    """The report and its plots; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{stem}{end}" for end in (".md", "-ratios.png", "-roofline.png")]
    paths[0].write_text(report(results))
    plots.ratios(headline(results["rows"]), paths[1])
    plots.roofline(results, paths[2])
    return paths


def report(results: dict) -> str:
    layers = [row for row in results["rows"] if not row["published_ms"]]
    kernelbench = [row for row in results["rows"] if row["published_ms"]]
    sections = [
        f"# Benchmarks on {results['machine']['device']}",
        "\n".join(f"- {name}: {value}" for name, value in results["machine"].items()),
        "A time is the median of the device's, in microseconds, from a cold L2 cache.  A ratio is "
        "the other's time / ours.  The floor is the least time possible, 'of floor' the floor / "
        "our time.  Peak memory is what a call holds besides its inputs.",
        "## Summary",
        summary(results),
        "## Layers",
        table(LAYER_HEADS, map(_layer, layers)),
        "## KernelBench",
        "In its shapes, dtype and layout (NCHW, which flatters us); published with torch 2.5 on an "
        "H100.",
        table((*LAYER_HEADS, "published cuDNN", "published compile"), map(_published, kernelbench)),
        "## Host",
        table(("what", "value"), [(k, f"{v:.4g}") for k, v in sorted(results["host"].items())]),
    ]
    return "\n\n".join(sections) + "\n"


def summary(results: dict) -> str:
    """By family and pass: worst and median ratio, and whether the worst reaches the goal."""
    machine = results["machine"]
    caption = (
        f"{machine['device']}, driver {machine['driver']}, torch {machine['torch']}, triton "
        f"{machine['triton']}, {machine['date']}, commit {machine['commit']}.  channels_last, the "
        "better of fp16 and bf16; ratio = the other's time / ours."
    )
    lines = []
    for (family, direction), rows in groupby(sorted(headline(results["rows"]), key=_kind), _kind):
        members = list(rows)
        for side, name in OTHERS.items():
            ratios = [row["ratio"][side] for row in members if side in row["ratio"]]
            if ratios:
                worst, median = min(ratios), statistics.median(ratios)
                figures = f"{worst:.2f}", f"{median:.2f}", *_goal(family, direction, side, worst)
                lines.append((family, direction, name, len(ratios), *figures))
    heads = ("family", "pass", "against", "layers", "worst", "median", "goal", "met")
    return f"{caption}\n\n{table(heads, lines)}"


def headline(rows: Iterable[dict]) -> list[dict]:
    """The rows in channels_last, of a layer's dtypes the one in which it does best."""
    best = {}
    for row in rows:
        if row["layout"] == "channels_last" and row["ratio"]:
            key = row["tag"], row["pass"]
            best[key] = max(row, best.get(key, row), key=lambda r: r["ratio"].get("eager", 0))
    return list(best.values())


def insert(readme: str, summaries: Sequence[str]) -> str:
    """readme with the block between its markers replaced."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise ValueError(f"expected one block between {BEGIN} and {END}")
    before, _, rest = readme.partition(BEGIN)
    return before + "\n\n".join((BEGIN, *summaries, END)) + rest.partition(END)[2]


def table(heads: Sequence[str], lines: Iterable[Sequence]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def shape(row: dict) -> str:
    """256x64x56x56, 3x3 to 64, and what is not 1 or 0 of the options."""
    given = dict(row["shape"])
    text = "x".join(map(str, given.pop("x")))
    if w := given.pop("w"):
        text += f", {w[2]}x{w[3]} to {w[0]}"
    plain = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}
    return text + "".join(
        f", {name} {_short(value)}" for name, value in given.items() if value != plain.get(name)
    )


def _short(value: int | list[int]) -> str:
    values = value if isinstance(value, list) else [value]
    return "x".join(map(str, dict.fromkeys(values) if len(set(values)) == 1 else values))


def _kind(row: dict) -> tuple[str, str]:
    return row["family"], row["pass"]


def _goal(family: str, direction: str, side: str, ratio: float) -> tuple[str, str]:
    wanted = goal(family, direction, side)
    return (NONE, NONE) if wanted is None else (f"{wanted:g}", "yes" if ratio >= wanted else "no")


LAYER_HEADS = (
    *("layer", "net", "shape", "pass", "dtype", "layout", "ours", "spread"),
    *("cuDNN", "ratio", "goal", "met", "compile", "ratio", "goal", "met"),
    *("floor", "of floor", "peak MB ours", "peak MB cuDNN"),
)


def _layer(row: dict) -> list[str]:
    ours, eager = row["sides"].get("ours", {}), row["sides"].get("eager", {})
    cells = [row["tag"], row["net"], shape(row), row["pass"], row["dtype"], row["layout"]]
    cells += [number(ours.get("us")), number(ours.get("spread"), ".1%")]
    for side in OTHERS:
        ratio = row["ratio"].get(side)
        cells += [number(row["sides"].get(side, {}).get("us")), number(ratio, ".2f")]
        cells += (NONE, NONE) if ratio is None else _goal(*_kind(row), side, ratio)
    cells += [number(row["floor_us"]), number(ours.get("of_floor"), ".0%")]
    return [*cells, number(ours.get("peak_MB")), number(eager.get("peak_MB"))]


def _published(row: dict) -> list[str]:
    return _layer(row) + [number(1e3 * row["published_ms"][side]) for side in OTHERS]


def number(value: float | None, form: str = ".1f") -> str:
    return NONE if value is None else format(value, form)
