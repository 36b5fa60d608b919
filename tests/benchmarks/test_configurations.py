"""What results files know of kernels' configurations decides, and how much that is worth."""

import copy
import json

import pytest
import torch
from tritonconv.conv import dispatch, measured, tuned
from tritonconv.conv.geometry import from_flat
from tritonconv.conv.problem import problem_on
from tritonconv.conv.tuned import Tuned

from benchmarks import choose, device, regret
from benchmarks.__main__ import main
from benchmarks.cases import rows
from benchmarks.configurations import STATISTICS, Named, as_text, from_text, problem_of, times
from benchmarks.results import FOLDER, VERSION, read

H200 = FOLDER / "H200-2026-11-26.json"
ROWS = {str(row): row for row in rows()}


@pytest.fixture(autouse=True)
def nothing_remembered():
    yield
    measured.tables.cache_clear()


@pytest.fixture(scope="module")
def recorded() -> dict:
    return read(H200)


def of(results: dict, configurations: dict[str, dict[str, float]]) -> dict:
    return copy.deepcopy(results) | {"configurations": configurations}


NEWER = {"columns", "cells", "rows", "toeplitz"}  # families that the record does not know


def unmeasured(found: regret.Regret) -> list:
    return [p for p, factor in found.guess.items() if factor is None]


def test_first_guesses_lose_little(recorded):
    """Over the layers that were measured; the worst to a tile that the tables do not have."""
    found = regret.regret(recorded)
    assert len(found.guess) == 84
    assert {dispatch.guessed(p)[0].name for p in unmeasured(found)} == NEWER
    mean, worst = regret.mean_and_worst(found.guess.values())
    assert mean < 1.01
    assert worst < 1.107
    tables = {}
    for p, found in times(recorded).items():
        if dispatch.guessed(p)[0].name in NEWER:
            continue
        us = found[regret.as_tuned(dispatch.guessed(p))]
        tables[p] = us / min(us for c, us in found.items() if dispatch.found(p, c))
    assert max(tables.values()) < 1.1


def test_the_shipped_choices_lose_less(recorded):
    """What is left is of configurations that the tables do not have."""
    found = regret.regret(recorded)
    mean, worst = regret.mean_and_worst(found.shipped.values())
    assert mean < 1.005
    assert worst < 1.107
    assert all(
        found.shipped[p] <= factor * choose.NOISE
        for p, factor in found.guess.items()
        if factor is not None
    )


def test_regret_counts_what_was_measured(recorded):
    row = "r50_l3_c2-forward-bf16"
    p = problem_of(Named(ROWS[row]), (9, 0), "NVIDIA H200")
    guess = as_text(regret.as_tuned(dispatch.guessed(p)))
    found = regret.regret(of(recorded, {row: {guess: 150.0, "general 128 16 64 4 4": 100.0}}))
    assert found.guess == {p: 1.5}
    unknown = of(recorded, {row: {"general 128 16 64 4 4": 100.0}})
    assert regret.regret(unknown).guess == {p: None}
    assert f"first guess, not measured: {p}" in regret.report(unknown)


def test_the_package_ships_what_its_record_says(recorded, tmp_path):
    path = choose.write_table(recorded, tmp_path)
    assert path.name == "NVIDIA-H200.json"
    assert path.read_text() == (measured.FOLDER / path.name).read_text()


CONTENTS = [json.loads(path.read_text()) for path in measured.FOLDER.glob("*.json")]


@pytest.mark.parametrize(
    ("content", "key"), [(content, key) for content in CONTENTS for key in content["choices"]]
)
def test_every_shipped_choice_serves_its_problem(content, key):
    choice = content["choices"][key]
    work, bits, precision = key.split()[:3]
    g, x, w = from_flat(choice["geometry"]), choice["x"], choice["w"]
    dtype = {"16-bit": torch.float16, "32-bit": torch.float32}[bits]
    on = tuple(content["capability"]), content["gpu"]
    statistics = key.endswith(" with statistics")
    p = problem_on(*on, work, x, w, g.y_shape(x, w), g, dtype, precision, statistics)
    assert tuned.key(p) == key
    assert dispatch.choose(p).tuned == Tuned(choice["family"], tuple(choice["config"]))


FORWARD = "r50_l3_c2-forward-bf16"
TABLE = "boxes 128 128 64 8 3", "boxes 128 64 64 4 4", "general 128 128 64 8 3"


@pytest.fixture
def shipped(recorded, tmp_path, monkeypatch):
    """Writes a table of what was measured for FORWARD; returns its problem on another H200."""
    monkeypatch.setattr(measured, "FOLDER", tmp_path)

    def write(found: dict[str, float]):
        choose.write_table(of(recorded, {FORWARD: found}), tmp_path)
        return problem_of(Named(ROWS[FORWARD]), (9, 0), "NVIDIA H200")

    return write


def test_the_best_that_the_tables_have_is_shipped(shipped):
    p = shipped({"boxes 1 2 3 4 5": 1.0, TABLE[1]: 50.0, TABLE[2]: 60.0})
    assert as_text(dispatch.choose(p).tuned) == TABLE[1]


def test_the_first_guess_keeps_its_place_against_noise(shipped):
    p = shipped({})
    guess = as_text(regret.as_tuned(dispatch.guessed(p)))
    assert guess not in TABLE
    p = shipped({guess: 51.0, TABLE[1]: 50.0})
    assert as_text(dispatch.choose(p).tuned) == guess
    p = shipped({guess: 52.0, TABLE[1]: 50.0})
    assert as_text(dispatch.choose(p).tuned) == TABLE[1]


def test_problems_that_share_a_key_share_the_choice_that_loses_least(recorded):
    """128 and 112 channels count as 64 to 127 and more."""
    a, b = "incep_4c_3x3-forward-bf16", "incep_4c_3x3-forward-fp16"
    p, q = (problem_of(Named(ROWS[row]), (9, 0), "NVIDIA H200") for row in (a, b))
    assert tuned.key(p) == tuned.key(q)
    each = {a: {TABLE[0]: 10.0, TABLE[2]: 20.0}, b: {TABLE[0]: 50.0, TABLE[2]: 20.0}}
    ((_, best, us),) = choose.best_by_key(of(recorded, each)).values()
    assert as_text(best) == TABLE[2]
    assert us == 20.0


def test_what_is_tuned_or_forced_comes_before_what_is_shipped(shipped, tmp_path, monkeypatch):
    p = shipped({TABLE[1]: 50.0})
    monkeypatch.setenv("TRITONCONV_CACHE", str(tmp_path / "cache"))
    tuned.table.cache_clear()
    tuned.add(p.gpu, {tuned.key(p): from_text(TABLE[2])})
    assert as_text(dispatch.choose(p).tuned) == TABLE[2]
    with dispatch.force_family("boxes"):
        assert dispatch.choose(p).family.name == "boxes"
    tuned.table.cache_clear()


def test_a_gpu_without_a_table_takes_that_of_its_architecture(shipped, recorded, tmp_path):
    p = shipped({TABLE[1]: 50.0})
    machine = recorded["machine"] | {"device": "NVIDIA H100 80GB HBM3"}
    other = of(recorded, {FORWARD: {TABLE[2]: 50.0}}) | {"machine": machine}
    choose.write_table(other, tmp_path)
    names = "NVIDIA H200", "NVIDIA H200 NVL", "NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe"
    found = [as_text(dispatch.choose(p._replace(gpu=name)).tuned) for name in names]
    assert found == [TABLE[1], TABLE[1], TABLE[2], TABLE[2]]
    older = p._replace(gpu="NVIDIA A100", capability=(8, 0))
    assert dispatch.choose(older).tuned == regret.as_tuned(dispatch.guessed(older))


def test_what_takes_statistics_has_a_choice_of_its_own_or_that_without(shipped, recorded, tmp_path):
    p = shipped({TABLE[1]: 50.0})
    training = p._replace(statistics=True)
    assert as_text(dispatch.choose(training).tuned) == TABLE[1]
    both = {FORWARD: {TABLE[1]: 50.0}, FORWARD + STATISTICS: {TABLE[2]: 60.0}}
    choose.write_table(of(recorded, both), tmp_path)
    assert as_text(dispatch.choose(training).tuned) == TABLE[2]
    assert as_text(dispatch.choose(p).tuned) == TABLE[1]


def test_rows_of_other_versions_are_passed_over(recorded):
    assert times(of(recorded, {"gone-forward-bf16": {TABLE[0]: 1.0}})) == {}


@pytest.mark.parametrize("command", ["choose", "regret"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 1}, f"version 1, not {VERSION}"),
        ({"commit": "0123"}, "commit 0123, not 4567"),
        ({"device": "NVIDIA H100"}, "device NVIDIA H100, not NVIDIA H200"),
    ],
)
def test_results_of_elsewhere_are_used_by_force_alone(
    command, change, said, recorded, tmp_path, monkeypatch, capsys
):
    here = recorded["machine"] | {"commit": "4567"}
    monkeypatch.setattr(device, "machine", lambda: here)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("benchmarks.choose.measured.FOLDER", tmp_path)
    monkeypatch.setattr(choose.write_table, "__defaults__", (tmp_path,))
    file = tmp_path / "of elsewhere.results"
    content = of(recorded, {FORWARD: {TABLE[0]: 5.0}}) | {"machine": here}
    file.write_text(json.dumps(content))
    assert main([command, str(file)]) == 0
    content["machine"] = here | change
    file.write_text(json.dumps(content | change))
    with pytest.raises(SystemExit, match="2"):
        main([command, str(file)])
    assert said in capsys.readouterr().err
    assert main([command, str(file), "--force"]) == 0
    assert said in capsys.readouterr().err
