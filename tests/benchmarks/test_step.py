"""What calls cost the host is held in numbers that no busy machine moves: calls, launches, copies."""

import json
from pathlib import Path

import pytest
import torch
from launched import on_stub, stub
from tritonconv import _launch
from tritonconv._ahead import stubbed_launches

from benchmarks import networks, step
from benchmarks.results import FOLDER

RECORDED = max(FOLDER.glob("*-stub-*.json"))
GOALS = {  # they only go down
    "resnet50 ours, M instructions": 31,
    "resnet50 ours, launches": 390,
    "resnet50 ours, torch kernels": 30,
    "resnet50 ours, copies": 0,
    "resnet50 unfused, M instructions": 54,
    "resnet50 unfused, copies": 0,
    "resnet18 ours, M instructions": 14,
    "mobilenet_v2 ours, M instructions": 35,
    "conv2d forward, bare Functions": 1.8,
    "max_pool2d forward, bare Functions": 1.8,
    "batch_norm forward, bare Functions": 2.0,  # with its three launches
    "a fused bottleneck forward, instructions": 900_000,
    "a fused bottleneck backward, instructions": 950_000,
}


def recorded() -> dict[str, float]:
    return json.loads(Path(RECORDED).read_text())["host"]


@pytest.mark.parametrize("name", GOALS)
def test_what_is_recorded_meets_its_goal(name):
    assert recorded()[name] <= GOALS[name]


BUDGETS = {"ours": (145, 27_000), "unfused": (183, 31_000)}  # launches and Python calls


@pytest.mark.skipif(not _launch.INTERPRETED, reason="budgets are of steps one by one")
@pytest.mark.parametrize("side", BUDGETS)
def test_step_on_the_interpreter_keeps_within_its_budget(side):
    row = networks.NetworkRow("resnet18", "resnet18", step.BATCH, "training", "bf16")
    launches = []
    with stubbed_launches(lambda *launch: launches.append(launch[0]), (9, 0), "NVIDIA H200"):
        call = networks.MAKE[side](row, networks.inputs(row, "cpu", filled=False))
        for _ in range(3):  # as they are, recorded, replayed
            launches.clear()
            calls = step.python_calls(call)
    assert len(launches) <= BUDGETS[side][0]
    assert calls <= BUDGETS[side][1]


def as_torch_comes() -> None:
    """Not as tests set it: memory is not filled, float32 products take TF32."""
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.allow_tf32 = True


@on_stub
@pytest.mark.parametrize("name", [*step.calls()] if stub() is not None else [])
def test_call_costs_what_is_recorded(name):
    as_torch_comes()
    call, leaves = step.calls()[name]
    if name in (step.NOTHING, step.BARE):
        pytest.skip("what others are held against")
    with torch.autocast("cuda", torch.bfloat16, enabled="bottleneck" in name):
        dy = torch.zeros_like(call())

        def both():
            torch.autograd.grad(call(), leaves, dy)

        for _ in range(4):
            call(), both()
        forward, whole = step.counts(call), step.counts(both)
    for column in step.COUNTED[:3]:
        passes = forward[column], whole[column] - forward[column]
        for which, count in zip(("forward", "backward"), passes, strict=True):
            assert count == recorded()[f"{name} {which}, {column}"], (which, column)
    assert whole["Python calls"] <= 1.1 * sum(
        recorded()[f"{name} {which}, Python calls"] for which in ("forward", "backward")
    )


@on_stub
@pytest.mark.parametrize("side", step.SIDES)
def test_step_costs_what_is_recorded(side):
    as_torch_comes()
    row = networks.NetworkRow("resnet18", "resnet18", step.BATCH, "training", "bf16")
    call = networks.MAKE[side](row, networks.inputs(row, "cuda"))
    for _ in range(4):
        call()
    counted, expected = step.counts(call), recorded()
    for column in step.COUNTED[:3]:
        assert counted[column] == expected[f"resnet18 {side}, {column}"], column
    assert counted["Python calls"] <= 1.1 * expected[f"resnet18 {side}, Python calls"]
