"""CUDA graphs, on a GPU; without one the same code with what records and replays put in its place."""

import contextlib
import copy

import pytest
import torch
from tritonconv import as_torch
from tritonconv.nets import LeNet
from tritonconv.nets.recipes import RECIPES
from tritonconv.nets.training import graph
from tritonconv.nets.training.data import Dataset, Split
from tritonconv.nets.training.graph import graph_step
from tritonconv.nets.training.run import Run


class Stream:
    """Stands for a CUDA stream."""

    def wait_stream(self, _) -> None:
        pass


@pytest.fixture(autouse=True)
def stand_ins(device, monkeypatch) -> None:
    if device == "cuda":
        return

    def captured(step, inputs, stream):
        return lambda: step(*inputs), None

    monkeypatch.setattr(graph, "captured", captured)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())


def test_graph_step_replays_what_came_often_enough(device, monkeypatch):
    total, ran, recorded = torch.zeros((), device=device), [], []
    capture = graph.captured

    def noting(step, inputs, stream):
        recorded.append(inputs[0].shape)
        return capture(step, inputs, stream)

    monkeypatch.setattr(graph, "captured", noting)

    def add(x):
        ran.append(len(x))
        total.add_(x.sum())

    step = graph_step(add, warmup=2)
    expected = 0.0
    for size in (1, 4, 1, 4, 4, 4, 1, 4):  # 1: the odd last batch, of which there are fewer
        x = torch.rand(size, device=device)
        expected += x.sum().item()
        step(x)
        x.zero_()  # what was given is the caller's again
    assert total.item() == pytest.approx(expected, rel=1e-5)
    assert recorded == [(4,)]
    assert ran[:4] == [1, 4, 1, 4]
    if device == "cuda":
        assert ran[4:] == [4, 1]  # recorded once, and the odd one


def test_graph_step_names_what_cannot_be_recorded(device, monkeypatch):
    def refusing(*_):
        raise RuntimeError("operation not permitted")

    monkeypatch.setattr(graph, "captured", refusing)
    step = graph_step(lambda x: x, warmup=0)
    with pytest.raises(RuntimeError, match="cannot be recorded: operation not permitted; run it w"):
        step(torch.zeros(1, device=device))


@pytest.mark.parametrize(
    ("options", "amp", "optimizer"),
    [({}, None, "adam"), ({"clip": 0.5, "accumulate": 2}, torch.float16, "sgd")],
)
def test_steps_by_graph_have_the_same_bits(device, options, amp, optimizer):
    """11 images in batches of 2: the last is odd, and so is the last step of two batches."""
    recipe = RECIPES["lenet"]._replace(
        optimizer=optimizer, lr=0.01, batch_size=2, epochs=2, warmup=1, ema=0.5
    )
    splits = [Split(torch.rand(n, 1, 28, 28), torch.arange(n) % 10) for n in (11, 3)]
    data = Dataset(*splits).to(torch.device(device), torch.float32)
    model = LeNet().to(device) if device == "cuda" else as_torch(LeNet())
    runs = []
    for by_graph in (False, True):
        torch.manual_seed(9)
        run = Run([copy.deepcopy(model)], data, recipe, 0, amp, graph=by_graph, **options)
        list(run.epochs())
        runs.append(run)
    plain, replayed = (run.learners[0] for run in runs)
    assert replayed.step.recorded is not None
    for a, b in zip(plain.model.parameters(), replayed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(plain.average.parameters(), replayed.average.parameters(), strict=True):
        assert torch.equal(a, b)
    assert runs[0].history[1][0][:5] == runs[1].history[1][0][:5]


@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("amp", [None, torch.float16])
def test_a_step_waits_for_nothing(device, optimizer, amp):
    """From its augmented batch to the optimizer: torch raises where the host would wait.

    On a GPU that does nothing (tests/stub), too, for no value is looked at.
    """
    if device == "cpu":
        pytest.skip("torch tells on a GPU alone what waits")
    recipe = RECIPES["lenet"]._replace(optimizer=optimizer, momentum=0.9, ema=0.5, batch_size=4)
    splits = [Split(torch.rand(n, 1, 28, 28), torch.arange(n) % 10) for n in (32, 4)]
    data = Dataset(*splits).to(torch.device(device), torch.float32)
    options = {"accumulate": 2, "clip": 1.0, "graph": True}
    learner = Run([LeNet().to(device)], data, recipe, 0, amp, **options).learners[0]
    learner.train()

    def learn(steps: int) -> None:
        for _ in range(steps):
            torch.manual_seed(1)
            learner.learn(list(data.train.batches(torch.arange(8).split(4), augment=True)), 0.01)

    torch.cuda.set_sync_debug_mode("error")
    try:
        learn(3)
        torch.cuda.set_sync_debug_mode("default")  # to record waits, once
        learn(1)
        torch.cuda.set_sync_debug_mode("error")
        learn(2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert learner.step.recorded is not None
