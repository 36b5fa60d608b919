"""Tuning picks what is fastest, remembers it in the user's folder, and the dispatcher obeys."""

import json
import subprocess
import sys

import pytest
import torch
import tritonconv
from beside import beside
from tritonconv import tune
from tritonconv.conv import dispatch, tuned
from tritonconv.conv.geometry import Geometry
from tritonconv.conv.problem import Problem
from tritonconv.conv.tuned import Tuned

GPU = "NVIDIA H100"
ONE = (1, 1)


def problem(work="forward", pixels=56, co=64) -> Problem:
    g = Geometry(ONE, ONE, ONE, ONE, 1)
    shapes = (8, 64, pixels, pixels), (co, 64, 3, 3), (8, co, pixels, pixels)
    return Problem(
        work, *shapes, g, torch.float16, "ieee", tritonconv._common.tl.int32, (9, 0), GPU
    )


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITONCONV_CACHE", str(tmp_path))
    tuned.table.cache_clear()
    yield tmp_path
    tuned.table.cache_clear()


def candidates(p: Problem) -> list[Tuned]:
    return [choice.tuned for choice in tune.candidates(p)]


def test_fastest_times_every_candidate():
    seen = []

    def time(choice):
        seen.append(choice.tuned)
        return 1.0 if choice.config.n == 32 else 2.0

    winner, times = tune.fastest(tune.candidates(problem()), time)
    assert seen == [*times] == candidates(problem())
    assert len(seen) > 2
    assert winner.config.n == 32
    assert times[winner] == 1.0


def test_fastest_keeps_the_first_of_equals():
    choices = tune.candidates(problem())
    assert tune.fastest(choices, lambda choice: 1.0)[0] == choices[0].tuned


def test_fastest_leaves_out_what_does_not_fit():
    first, second, *_ = choices = tune.candidates(problem())

    def time(choice):
        if choice is first:
            raise tune.OutOfResources(200_000, 100_000, "shared memory")
        return 1.0

    winner, times = tune.fastest(choices, time)
    assert first.tuned not in times
    assert winner == second.tuned


@pytest.mark.parametrize("work", ["forward", "dgrad", "wgrad"])
def test_a_candidate_runs_its_own_kernel(work, device):
    x, w = torch.randn(2, 8, 6, 6, device=device), torch.randn(8, 8, 3, 3, device=device)
    launch = next(
        launch
        for launch in tritonconv.explain(
            tritonconv.conv2d, x.requires_grad_(), w.requires_grad_(), padding=1
        )
        if launch.choice and launch.choice.problem.work == work
    )
    p = launch.choice.problem
    x, w, dy = (t.normal_() for t in tune.operands(p, device))
    x, w, dy = (t.detach().requires_grad_() for t in (x, w, dy))
    y = torch.nn.functional.conv2d(x.double(), w.double(), padding=1)
    dx, dw = torch.autograd.grad(y, (x, w), dy.double())
    expected = {"forward": y.detach(), "dgrad": dx, "wgrad": dw}[work]
    for choice in tune.candidates(p):
        actual, _ = tune.run(choice, x.detach(), w.detach(), dy.detach())
        torch.testing.assert_close(actual.double(), expected.double(), rtol=1e-5, atol=1e-4)


COMPILES = """
import torch
from tritonconv import tune
from tritonconv._ahead import ENVIRONMENT
from tritonconv._workers import Workers
from tritonconv.conv.geometry import Geometry
from tritonconv.conv.problem import problem_on

if __name__ == "__main__":
    one = 1, 1
    g = Geometry(one, one, one, one, 1)
    shapes = (8, 64, 28, 28), (64, 64, 3, 3), (8, 64, 28, 28)
    p = problem_on((9, 0), "a GPU", "wgrad", *shapes, g, torch.float16, "ieee")
    with Workers(2, **ENVIRONMENT) as workers:
        for choice in tune.candidates(p)[:2]:
            workers.submit(tune.compile_choice, p, choice.tuned).result(100)
"""


def test_candidates_compile_in_other_processes(tmp_path, monkeypatch):
    """Into the folder where Triton keeps what it compiled, with no GPU at hand."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    done = subprocess.run([sys.executable, "-c", COMPILES], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    compiled = {path.stem for path in (tmp_path / "cache").rglob("*.cubin")}
    assert compiled == {"_conv2d_boxes_wgrad_kernel", "_add_splits_kernel"}


def served(p: Problem) -> Tuned:
    choice = dispatch.choose(p)
    return Tuned(choice.family.name, choice.config)


def test_what_was_found_serves_problems_alike_and_no_others():
    p = problem()
    guess, *_, last = candidates(p)
    others = [problem(pixels=14), problem("dgrad"), p._replace(gpu="NVIDIA H200")]
    before = [served(other) for other in others]
    tuned.add(GPU, {tuned.key(p): last})
    assert served(p) == served(problem(pixels=60)) == last != guess
    assert [served(other) for other in others] == before
    with tritonconv.force_family(guess.family):
        assert served(p) == guess


def test_findings_of_threads_add_up(cache):
    """None is lost to another that wrote meanwhile."""
    added = []

    def adding(name):
        key = f"{name} {len(added)}"
        added.append(key)
        tuned.add("a GPU", {key: Tuned("general", (1,))})

    beside(lambda: adding("a"), lambda: adding("b"), seconds=1.0)
    assert tuned.table()["a GPU"].keys() == set(added)


def test_findings_add_up_in_one_file(cache):
    first, second = problem(), problem("wgrad")
    for p in (first, second):
        tuned.add(GPU, {tuned.key(p): candidates(p)[1]})
    tuned.add("another", {tuned.key(first): candidates(first)[0]})
    content = json.loads((cache / "tuned.json").read_text())
    assert {gpu: len(found) for gpu, found in content["gpus"].items()} == {GPU: 2, "another": 1}
    assert [file.name for file in cache.iterdir()] == ["tuned.json"]


@pytest.mark.parametrize("found", [Tuned("gone", (1, 2)), Tuned("general", (1, 2))])
def test_what_no_longer_exists_is_passed_over(found):
    p = problem()
    guess = served(p)
    tuned.add(GPU, {tuned.key(p): found})
    assert served(p) == guess


@pytest.mark.parametrize("text", ["", "[]", '{"version": 2, "gpus": {"a": {"b": 3}}}'])
def test_a_broken_file_is_told_and_passed_over(text, cache):
    (cache / "tuned.json").write_text(text)
    with pytest.warns(UserWarning, match=r"tuned\.json is not a table of tuned kernels"):
        assert tuned.lookup(problem()) is None


def test_a_file_of_another_version_is_passed_over(cache):
    (cache / "tuned.json").write_text('{"version": 0}')
    assert tuned.lookup(problem()) is None


def test_tune_finds_a_models_convolutions_and_writes_the_winners(device, capsys):
    model = torch.nn.Sequential(
        tritonconv.Conv2d(3, 8, 3), tritonconv.Conv2d(8, 8, 3, groups=8), tritonconv.Conv2d(8, 8, 3)
    ).to(device)
    x = torch.randn(2, 3, 16, 16, device=device)
    found = tune.tune(model, x, time=lambda choice: 1.0)
    works = [key.split()[0] for key in found]
    assert sorted(works) == sorted(["forward", "wgrad"] * 3 + ["dgrad"] * 2)
    assert {winner.family for key, winner in found.items() if "groups" in key} == {"columns"}
    assert "1.00x" in capsys.readouterr().out
    (of_gpu,) = tuned.table().values()
    assert of_gpu == found


def test_the_command_says_that_there_is_no_gpu(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune.main([]) == 1
    assert "no CUDA device" in capsys.readouterr().err
