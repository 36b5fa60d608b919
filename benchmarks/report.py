"""A results file as Markdown: a summary by family, which the README shows, goals, every row."""

import functools
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from . import plots
from .cases import HALF, OF_FLOOR, OF_GRAPH, PER_SECOND, device_key, goal, goals, rows
from .networks import network_rows

BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
OTHERS = {"eager": "cuDNN", "compile": "torch.compile"}
UNFUSED = {"unfused": "ours unfused"}
NONE, UNMEASURED = "-", "not measured"


def write(results: dict, folder: Path, stem: str) -> list[Path]:
    """The report and its plots; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{stem}{end}" for end in (".md", "-ratios.png", "-roofline.png")]
    paths[0].write_text(report(results))
    plots.ratios(headline(results["rows"]), paths[1])
    plots.roofline(results, paths[2])
    return paths


def report(results: dict) -> str:
    layers, networks = [], []
    for row in results["rows"]:
        if not row["published_ms"]:
            (networks if row["operator"] == "network" else layers).append(row)
    kernelbench = [row for row in results["rows"] if row["published_ms"]]
    sections = [
        f"# Benchmarks on {results['machine']['device']}",
        "\n".join(f"- {name}: {value}" for name, value in results["machine"].items()),
        "A time is the median of the device's, in microseconds, from a cold L2 cache.  A ratio is "
        "the other's time / ours.  The floor is the least time possible, 'of floor' the floor / "
        "our time.  Peak memory is what a call holds besides its inputs.  Ours unfused is our "
        "operators one by one.",
        "## Summary",
        summary(results),
        "## Goals",
        "Layers are how many of those that a goal is set for are measured here, reached is the "
        "worst of them; so far: where others are left to measure.",
        goal_table([results]),
        "## Networks",
        "Times are in milliseconds.  A training step is the forward, the loss, the backward and "
        "SGD with momentum, under autocast.  In inference ours has its batch norms folded.  A "
        "graph is the replay of a CUDA graph, on every side; without one, waiting for the host "
        "counts.",
        table(NETWORK_HEADS, map(_network, networks)),
        *_kernels(networks),
        "## Layers",
        table(LAYER_HEADS, map(_layer, layers)),
        "## KernelBench",
        "In its shapes, dtype and layout (NCHW, which flatters us); published with torch 2.5 on an "
        "H100.",
        table((*LAYER_HEADS, "published cuDNN", "published compile"), map(_published, kernelbench)),
        "## Host",
        table(("what", "value"), [(k, f"{v:.4g}") for k, v in sorted(results["host"].items())]),
    ]
    for title, name in {"Failed": "failed", "Left out for want of time": "left_out"}.items():
        if lines := results.get(name):
            sections += [f"## {title}", "\n".join(f"- {line}" for line in lines)]
    return "\n\n".join(sections) + "\n"


def summary(results: dict) -> str:
    """By family and pass: worst and median ratio, and whether the worst reaches the goal."""
    machine = results["machine"]
    caption = (
        f"{machine['device']}, driver {machine['driver']}, torch {machine['torch']}, triton "
        f"{machine['triton']}, {machine['date']}, commit {machine['commit']}.  channels_last, the "
        "better of fp16 and bf16; ratio = the other's time / ours."
        + (f"  {machine['taken']}" if "taken" in machine else "")
    )
    lines = []
    networks_first = sorted(
        headline(results["rows"]), key=lambda row: (row["operator"] != "network", *_kind(row))
    )
    for (family, direction), group in groupby(networks_first, _kind):
        members = list(group)
        for side, name in (OTHERS | UNFUSED).items():
            ratios = [row["ratio"][side] for row in members if side in row["ratio"]]
            if ratios:
                worst, median = min(ratios), statistics.median(ratios)
                figures = f"{worst:.2f}", f"{median:.2f}", *_goal(family, direction, side, worst)
                lines.append((family, direction, name, len(ratios), *figures))
    heads = ("family", "pass", "against", "layers", "worst", "median", "goal", "met")
    return f"{caption}\n\n{table(heads, lines) if lines else 'No device time was measured there.'}"


def headline(rows: Iterable[dict]) -> list[dict]:
    """The rows in channels_last, of a layer's dtypes the one in which it does best."""
    best = {}
    for row in rows:
        if _decides(row) and row["ratio"]:
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


def _decides(row: dict) -> bool:
    """Whether goals are set for such rows."""
    return row["layout"] == "channels_last" and row["dtype"] in HALF


@functools.cache
def _layers() -> Counter[tuple[str, str]]:
    """How many layers, or networks, there are of each kind."""
    entries = [row.entry(None) for row in (*rows(), *network_rows())]
    return Counter(
        kind for _, kind in {(entry["tag"], _kind(entry)) for entry in entries if _decides(entry)}
    )


def goal_table(files: Sequence[dict]) -> str:
    """Every goal beside what the files' rows reach of it; they are of one device."""
    rows = [row for results in files for row in results["rows"]]
    return table(GOAL_HEADS, _goal_lines({"machine": files[0]["machine"], "rows": rows}))


AGAINST = OTHERS | {
    PER_SECOND: "examples/s on one H100",
    OF_FLOOR: "the floor, its share of our time",
    OF_GRAPH: "ours under a CUDA graph",
}
GOAL_HEADS = ("family", "pass", "against", "goal", "reached", "layers", "met")


def _goal_lines(results: dict) -> list[tuple]:
    """Every goal, reached or not."""
    lines, best = [], headline(results["rows"])
    on_h100 = device_key(results["machine"]["device"]) == "H100"
    graphs = {row["tag"]: row for row in best if row["pass"] == "training_graph"}
    for (*kind, column), wanted in goals().items():
        form = ".0f" if column == PER_SECOND else ".2f"
        reached = []
        for row in best:
            if _kind(row) != tuple(kind):
                continue
            ours, graph = row["sides"]["ours"], graphs.get(row["tag"])
            if column == PER_SECOND:
                reached += [ours["examples_per_s"]] if on_h100 else []
            elif column == OF_FLOOR:
                reached += [ours[OF_FLOOR]] if OF_FLOOR in ours else []
            elif column == OF_GRAPH:
                reached += [] if graph is None else [graph["sides"]["ours"]["us"] / ours["us"]]
            elif column in row["ratio"]:
                reached.append(row["ratio"][column])
        all_of_kind = _layers()[tuple(kind)]
        figure = met = UNMEASURED
        if reached:
            figure, met = format(min(reached), form), "no"
            if min(reached) >= wanted:
                met = "yes" if len(reached) == all_of_kind else "so far"
        measured = f"{len(reached)} of {all_of_kind}"
        lines.append((*kind, AGAINST[column], f"{wanted:g}", figure, measured, met))
    return lines


def _goal(family: str, direction: str, side: str, ratio: float) -> tuple[str, str]:
    wanted = goal(family, direction, side)
    return (NONE, NONE) if wanted is None else (f"{wanted:g}", "yes" if ratio >= wanted else "no")


LAYER_HEADS = (
    *("layer", "net", "shape", "pass", "dtype", "layout", "ours", "spread", "ours unfused"),
    *("cuDNN", "ratio", "goal", "met", "compile", "ratio", "goal", "met"),
    *("floor", "of floor", "peak MB ours", "peak MB cuDNN"),
)


def _layer(row: dict) -> list[str]:
    ours, eager = row["sides"].get("ours", {}), row["sides"].get("eager", {})
    cells = [row["tag"], row["net"], shape(row), row["pass"], row["dtype"], row["layout"]]
    cells += [number(ours.get("us")), number(ours.get("spread"), ".1%")]
    cells.append(number(row["sides"].get("unfused", {}).get("us")))
    for side in OTHERS:
        cells += [number(row["sides"].get(side, {}).get("us")), *_ratio(row, side)]
    cells += [number(row["floor_us"]), number(ours.get("of_floor"), ".0%")]
    return [*cells, number(ours.get("peak_MB")), number(eager.get("peak_MB"))]


MOST_KERNELS = 15


def _kernels(networks: list[dict]) -> Iterator[str]:
    """A table for each network whose kernels were timed: ours, those that take longest."""
    for row in networks:
        if kernels := row["sides"].get("ours", {}).get("kernels"):
            total = sum(us for _, us in kernels.values())
            longest = list(kernels.items())[:MOST_KERNELS]
            lines = [(name, n, f"{us:.0f}", f"{us / total:.0%}") for name, (n, us) in longest]
            yield f"### Kernels of {row['net']}, {row['pass']}, {row['dtype']}"
            yield table(("kernel", "times", "us", "of all"), lines)


NETWORK_HEADS = (
    *("network", "input", "pass", "dtype", "ours", "spread", "host ms", "examples/s", "peak MB"),
    *("ours unfused", "examples/s", "peak MB", "ratio", "goal", "met"),
    *("cuDNN", "examples/s", "peak MB", "ratio", "goal", "met"),
    *("compile", "examples/s", "peak MB", "ratio", "goal", "met"),
)


def _network(row: dict) -> list[str]:
    cells = [row["net"], shape(row), row["pass"], row["dtype"]]
    for side in ("ours", *UNFUSED, *OTHERS):
        figures = row["sides"].get(side, {})
        us = figures.get("us")
        cells.append(number(None if us is None else us / 1e3, ".3f"))
        if side == "ours":
            cells += [number(figures.get("spread"), ".1%"), number(figures.get("host_ms"))]
        cells += [number(figures.get("examples_per_s"), ".0f"), number(figures.get("peak_MB"))]
        if side != "ours":
            cells += _ratio(row, side)
    return cells


def _ratio(row: dict, side: str) -> tuple[str, str, str]:
    """To the side, its goal, and whether that is met."""
    ratio = row["ratio"].get(side)
    met = (NONE, NONE) if ratio is None else _goal(*_kind(row), side, ratio)
    return number(ratio, ".2f"), *met


def _published(row: dict) -> list[str]:
    return _layer(row) + [number(1e3 * row["published_ms"][side]) for side in OTHERS]


def number(value: float | None, form: str = ".1f") -> str:
    return NONE if value is None else format(value, form)
