"""Pictures of a results file; they need no display."""

from pathlib import Path

from matplotlib.figure import Figure

from .cases import ARITHMETIC, BANDWIDTH, device_key

INTENSITIES, TFLOPS = (1, 1e4), (0.01, 1e3)


def ratios(rows: list[dict], path: Path) -> None:
    """The other's time / ours of every layer, a mark for each pass."""
    tags = list(dict.fromkeys(row["tag"] for row in rows))[::-1]
    figure = Figure(figsize=(9, 2 + 0.22 * len(tags)), layout="constrained")
    axes = figure.subplots()
    for direction in dict.fromkeys(row["pass"] for row in rows):
        shown = [row for row in rows if row["pass"] == direction and "eager" in row["ratio"]]
        places = [tags.index(row["tag"]) for row in shown]
        axes.plot([row["ratio"]["eager"] for row in shown], places, "o", label=direction)
    axes.axvline(1, color="black", linewidth=1)
    axes.set(xlabel="time of cuDNN / ours: right of the line we are faster")
    axes.set_yticks(range(len(tags)), tags)
    axes.grid(alpha=0.3)
    if rows:
        axes.set_xscale("log")
        axes.legend()
    figure.savefig(path, dpi=120)


def roofline(results: dict, path: Path) -> None:
    """Forward convolutions: TFLOP/s over FLOP per byte, under what the device could do."""
    rows = [r for r in results["rows"] if r["pass"] == "forward" and r["operator"] == "conv2d"]
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for side, label, mark in (("ours", "ours", "o"), ("eager", "cuDNN", "x")):
        shown = [row for row in rows if side in row["sides"]]
        rates = [row["flop"] / row["sides"][side]["us"] / 1e6 for row in shown]
        axes.plot([_intensity(row) for row in shown], rates, mark, label=label)
    if key := device_key(results["machine"]["device"]):
        reach = [INTENSITIES[0], ARITHMETIC / BANDWIDTH[key], INTENSITIES[1]]
        roof = [min(ARITHMETIC, x * BANDWIDTH[key]) / 1e12 for x in reach]
        axes.plot(reach, roof, color="black", linewidth=1, label=key)
    axes.set(xlim=INTENSITIES, xscale="log", xlabel="FLOP per byte moved at least")
    axes.set(ylim=TFLOPS, yscale="log", ylabel="TFLOP/s")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def _intensity(row: dict) -> float:
    return row["flop"] / (row["moved"] * (4 if row["dtype"] in ("tf32", "fp32") else 2))
