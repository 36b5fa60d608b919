"""The table that the package ships for a GPU: the best of a results file's configurations."""

import json
import math
from collections import defaultdict
from pathlib import Path

from tritonconv.conv import dispatch, measured, tuned
from tritonconv.conv.problem import Problem
from tritonconv.conv.tuned import Tuned

from .configurations import Times, as_tuned, capability, times

NOISE = 1.03  # a gain that is less may be chance: the first guess keeps its place


def best_by_key(results: dict) -> dict[str, tuple[Problem, Tuned, float]]:
    """Of problems that share a key, the largest, the configuration in the tables that loses least
    over all of them, and its time there."""
    by_key = defaultdict(dict)
    for p, found in times(results).items():
        by_key[tuned.key(p)][p] = found
    return {key: best for key, group in by_key.items() if (best := _best(group))}


def _best(group: dict[Problem, Times]) -> tuple[Problem, Tuned, float] | None:
    largest = max(group, key=lambda p: math.prod(p.y))

    def serves(candidate: Tuned) -> bool:
        return all(candidate in t and dispatch.found(p, candidate) for p, t in group.items())

    def loss(candidate: Tuned) -> float:
        return math.prod(t[candidate] / min(t.values()) for t in group.values())

    losses = {c: loss(c) for c in group[largest] if serves(c)}
    if not losses:
        return None
    best, guess = min(losses, key=losses.get), as_tuned(dispatch.guessed(largest))
    if guess in losses and losses[guess] <= losses[best] * NOISE ** len(group):
        best = guess
    return largest, best, group[largest][best]


def write_table(results: dict, folder: Path = measured.FOLDER) -> Path:
    """What the package ships for the GPU of results."""
    machine = results["machine"]
    choices = {
        key: {**best._asdict(), "us": us, "x": p.x, "w": p.w, "geometry": p.geometry.flat}
        for key, (p, best, us) in sorted(best_by_key(results).items())
    }
    content = {
        "gpu": machine["device"],
        "capability": capability(machine),
        **{name: machine[name] for name in ("triton", "date", "commit")},
        "choices": choices,
    }
    path = folder / f"{machine['device'].replace(' ', '-')}.json"
    lines = json.dumps(content | {"choices": {}}, indent=1).removesuffix("{}\n}") + "{\n"
    lines += ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in choices.items())
    path.write_text(lines + "\n }\n}\n")
    measured.tables.cache_clear()
    return path
