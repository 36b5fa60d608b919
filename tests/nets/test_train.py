import pytest
import torch
from torch import nn
from tritonconv import as_torch
from tritonconv.nets import LeNet
from tritonconv.nets.recipes import RECIPES, Recipe
from tritonconv.nets.training.data import Dataset, Split, digits
from tritonconv.nets.training.metrics import evaluate
from tritonconv.nets.training.run import Run, initialise, largest_difference


def some_digits(train: int, test: int, device: str, dtype: torch.dtype) -> Dataset:
    splits = zip(digits()[:2], (train, test), strict=True)
    return Dataset(*(Split(s.images[:n], s.labels[:n]) for s, n in splits)).to(device, dtype)


def tanh_lenet(device: str, dtype: torch.dtype) -> LeNet:
    model = LeNet(activation=nn.Tanh)
    initialise(model)
    return model.to(device, dtype)


def test_lenet_in_float64_keeps_within_1e9_of_its_twin_over_50_steps(device):
    model = tanh_lenet(device, torch.float64)
    start, twin = as_torch(model), as_torch(model)
    recipe = RECIPES["lenet"]._replace(batch_size=4, epochs=5)
    run = Run([model, twin], some_digits(40, 4, device, torch.float64), recipe, seed=0)
    for ours, theirs in run.epochs():
        assert largest_difference(model, twin) <= 1e-9
        assert ours.train_loss == pytest.approx(theirs.train_loss, abs=1e-9)
        assert ours.test_loss == pytest.approx(theirs.test_loss, abs=1e-9)
    assert largest_difference(model, start) > 0.01


def test_the_default_recipe_reaches_95_percent():
    """On torch's layers, which the test above equates with ours: a hundred times as fast."""
    twin = as_torch(tanh_lenet("cpu", torch.float32))
    *_, (last,) = Run([twin], digits(), RECIPES["lenet"], seed=0).epochs()
    assert last.test_accuracy >= 0.95


def test_train_takes_the_steps_of_a_plain_loop():
    twin = as_torch(tanh_lenet("cpu", torch.float64))
    plain = as_torch(twin)
    data = some_digits(20, 4, "cpu", torch.float64)
    recipe = Recipe("lenet", "sgd", lr=0.5, batch_size=8, epochs=2)
    list(Run([twin], data, recipe, seed=3).epochs())

    optimizer = torch.optim.SGD(plain.parameters(), 0.5)
    for epoch in range(2):
        order = torch.Generator().manual_seed(3 + epoch)  # as DistributedSampler's
        for batch in torch.randperm(20, generator=order).split(8):
            optimizer.zero_grad()
            logits = plain(data.train.images[batch])
            nn.CrossEntropyLoss()(logits, data.train.labels[batch]).backward()
            optimizer.step()
    assert largest_difference(twin, plain) < 1e-12


class Probe(nn.Linear):
    """Notes the mode it runs in."""

    def __init__(self) -> None:
        super().__init__(28, 10)
        self.modes: list[bool] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.modes.append(self.training)
        return super().forward(x.mean((1, 2)))


def test_train_learns_in_training_mode_and_scores_in_evaluation_mode():
    model, recipe = Probe(), RECIPES["lenet"]._replace(epochs=2)
    list(Run([model], some_digits(10, 10, "cpu", torch.float32), recipe, seed=0).epochs())
    assert model.modes == [True, False, True, False]


def test_train_scores_every_image_once():
    twin = as_torch(tanh_lenet("cpu", torch.float64))
    data = some_digits(50, 21, "cpu", torch.float64)  # neither a multiple of 16
    unmoved = Recipe("lenet", "sgd", lr=1e-30, batch_size=16, epochs=1)
    ((metrics,),) = Run([twin], data, unmoved, seed=0).epochs()
    train_loss, train_accuracy = evaluate(twin, data.train, 50)
    assert metrics.train_loss == pytest.approx(train_loss, abs=1e-12)
    assert metrics.train_accuracy == train_accuracy
    assert (metrics.test_loss, metrics.test_accuracy) == evaluate(twin, data.test, 16)


def test_train_takes_its_order_from_the_seed():
    data = some_digits(32, 4, "cpu", torch.float32)
    recipe = RECIPES["lenet"]._replace(batch_size=8, epochs=2)
    model = as_torch(tanh_lenet("cpu", torch.float32))
    twins = [as_torch(model) for _ in range(3)]
    for twin, seed in zip(twins, (5, 5, 6), strict=True):
        list(Run([twin], data, recipe, seed).epochs())
    assert largest_difference(twins[0], twins[1]) == 0
    assert largest_difference(twins[0], twins[2]) > 1e-4


def test_evaluate_is_the_mean_over_ragged_batches():
    twin = as_torch(tanh_lenet("cpu", torch.float64))
    split = some_digits(1, 11, "cpu", torch.float64).test
    logits = twin(split.images)
    loss, accuracy = evaluate(twin, split, 4)
    assert loss == pytest.approx(nn.CrossEntropyLoss()(logits, split.labels).item(), abs=1e-12)
    assert accuracy == (logits.argmax(1) == split.labels).sum().item() / 11


def test_initialise_spreads_weights_as_xavier_says():
    model = LeNet()
    before = model.fc1.bias.clone()
    initialise(model)
    bound = (6 / (400 + 120)) ** 0.5
    assert 0.98 * bound < model.fc1.weight.abs().max() <= bound
    assert torch.equal(model.fc1.bias, before)
