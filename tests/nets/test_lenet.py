import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from tritonconv import AvgPool2d, MaxPool2d, as_torch
from tritonconv.nets import LeNet


class Ops(TorchDispatchMode):
    """The names of all ops that run inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def images(device: str, number: int = 3, channels: int = 1) -> torch.Tensor:
    return torch.rand(number, channels, 28, 28, dtype=torch.float64, device=device)


def test_lenet_has_the_published_shape_after_every_layer(device):
    model = LeNet().to(device, torch.float64)
    shapes = {}
    for name, layer in model.named_children():
        layer.register_forward_hook(
            lambda _, __, y, name=name: shapes.update({name: list(y.shape)})
        )
    model(images(device, 2))
    assert shapes == {
        "conv1": [2, 6, 28, 28],
        "pool1": [2, 6, 14, 14],
        "conv2": [2, 16, 10, 10],
        "pool2": [2, 16, 5, 5],
        "flatten": [2, 400],
        "fc1": [2, 120],
        "activation": [2, 84],  # its last use
        "fc2": [2, 84],
        "fc3": [2, 10],
    }


def test_lenet_has_61706_parameters():
    counts = {name: p.numel() for name, p in LeNet().named_parameters()}
    assert counts == {
        "conv1.weight": 150,
        "conv1.bias": 6,
        "conv2.weight": 2400,
        "conv2.bias": 16,
        "fc1.weight": 48_000,
        "fc1.bias": 120,
        "fc2.weight": 10_080,
        "fc2.bias": 84,
        "fc3.weight": 840,
        "fc3.bias": 10,
    }
    assert sum(counts.values()) == 61_706


@pytest.mark.parametrize("pool", [AvgPool2d, MaxPool2d])
@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.Tanh])
def test_lenet_equals_its_torch_twin(device, activation, pool):
    model = LeNet(num_classes=7, in_channels=3, activation=activation, pool=pool)
    model.to(device, torch.float64)
    twin = as_torch(model)
    x, labels = images(device, channels=3), torch.tensor([0, 6, 2], device=device)
    y, expected = model(x), twin(x)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    F.cross_entropy(y, labels).backward()
    F.cross_entropy(expected, labels).backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-10, atol=1e-13)


def test_lenet_uses_our_layers_alone_and_its_twin_torchs(device):
    model = LeNet(pool=MaxPool2d).to(device, torch.float64)
    twin = as_torch(model)
    assert list(model.state_dict()) == list(twin.state_dict())
    with Ops() as ours:
        model(images(device)).sum().backward()
    with Ops() as theirs:
        twin(images(device)).sum().backward()
    assert {"tritonconv::conv2d", "tritonconv::max_pool2d"} <= ours.names
    assert not [n for n in ours.names if n.startswith("aten::") and ("conv" in n or "pool" in n)]
    assert "aten::convolution_backward" in theirs.names
    assert not [n for n in theirs.names if n.startswith("tritonconv::")]
