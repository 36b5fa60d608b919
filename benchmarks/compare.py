"""Two results files side by side."""

from .report import number, table


def compare(a: dict, b: dict) -> str:
    """The rows that both files hold, those that became slowest first."""
    old = {_key(row): row for row in a["rows"] if "ours" in row["sides"]}
    both = [
        (old[_key(row)], row) for row in b["rows"] if "ours" in row["sides"] and _key(row) in old
    ]
    both.sort(key=_speedup)
    heads = ("layer", "pass", "dtype", "ours A", "ours B", "A / B", "ratio A", "ratio B")
    lines = [
        (
            *_key(new)[:3],
            *(f"{row['sides']['ours']['us']:.1f}" for row in (was, new)),
            f"{_speedup((was, new)):.2f}",
            *(number(row["ratio"].get("eager"), ".2f") for row in (was, new)),
        )
        for was, new in both
    ]
    files = "\n".join(
        f"- {name}: {', '.join(file['machine'].values())}" for name, file in (("A", a), ("B", b))
    )
    return f"{files}\n\n{table(heads, lines)}\n"


def _key(row: dict) -> tuple[str, str, str, str]:
    return row["tag"], row["pass"], row["dtype"], row["layout"]


def _speedup(pair: tuple[dict, dict]) -> float:
    was, new = pair
    return was["sides"]["ours"]["us"] / new["sides"]["ours"]["us"]
