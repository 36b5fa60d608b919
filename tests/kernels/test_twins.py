import pytest
import torch
import tritonconv
from reference import Dispatched
from torch import nn
from torch.nn.utils import parametrizations, prune
from tritonconv import as_torch, convert


class Conv2dSame(nn.Conv2d):
    """As timm's: a subclass that computes something else."""

    def forward(self, x):
        return super().forward(nn.functional.pad(x, (1, 1, 1, 1)))


def torch_model():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Sequential(Conv2dSame(4, 4, 3), nn.AvgPool2d(2)),
        nn.AdaptiveAvgPool2d(1),
    )


def test_convert_replaces_exact_types_and_reports(device):
    model, lines = torch_model(), []
    ours = convert(model, report=lines.append)
    assert [type(m) for m in ours.modules() if not list(m.children())] == [
        tritonconv.Conv2d,
        nn.ReLU,
        tritonconv.MaxPool2d,
        Conv2dSame,
        tritonconv.AvgPool2d,
        tritonconv.AdaptiveAvgPool2d,
    ]
    assert lines[0] == "0: torch.nn.modules.conv.Conv2d -> tritonconv.modules.Conv2d"
    assert next(line for line in lines if "Conv2dSame" in line).startswith("3.0: ")
    assert [line.endswith("kept") for line in lines] == [False, True, False, True, False, False]


def test_twins_are_copies_with_equal_values(device):
    model = torch_model()
    ours = convert(model).to(device)
    back = as_torch(ours)
    x = torch.randn(2, 2, 12, 12)
    torch.testing.assert_close(ours(x.to(device)).cpu(), model(x))
    assert type(model[0]) is nn.Conv2d
    assert [type(m) for m in back.modules()] == [type(m) for m in model.modules()]
    for name, value in back.state_dict().items():
        assert torch.equal(value.cpu(), model.state_dict()[name])
        assert value.data_ptr() != ours.state_dict()[name].data_ptr()


def test_torch_twin_dispatches_none_of_our_ops(device):
    twin = as_torch(convert(torch_model())).to(device)
    with Dispatched() as dispatched:
        twin(torch.randn(2, 2, 12, 12, device=device)).sum().backward()
    assert dispatched.ours == []


def test_our_operators_dispatch_none_of_torchs(device):
    """The product never falls back: no convolution or pooling of aten's runs."""

    class Aten(torch.utils._python_dispatch.TorchDispatchMode):
        seen: set[str] = set()  # noqa: RUF012

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen.add(func._schema.name)
            return func(*args, **(kwargs or {}))

    model = torch_model()
    del model[3][0]
    with Aten() as mode:
        convert(model).to(device)(torch.randn(2, 2, 12, 12, device=device)).sum().backward()
    assert "tritonconv::conv2d_wgrad" in mode.seen
    assert not [
        name
        for name in mode.seen
        if name.startswith("aten::") and ("conv" in name or "pool" in name)
    ]


ALTERED = {
    "weight norm": lambda layer: nn.utils.weight_norm(layer),
    "spectral norm": lambda layer: nn.utils.spectral_norm(layer).eval(),
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "pruned twice": lambda layer: prune.random_unstructured(
        prune.l1_unstructured(layer, "weight", 0.5), "bias", 0.5
    ),
    "weight norm's parametrization": lambda layer: parametrizations.weight_norm(layer),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ALTERED)
@pytest.mark.parametrize("called", [False, True], ids=["", "called before"])
def test_altered_layers_are_converted(name, called, device):
    """With the hooks that make their weights, whose gradients are right; or kept, and said so."""
    model, lines = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU()).double(), []
    ALTERED[name](model[0])
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64)
    if called:
        model(x)
    ours = convert(model, report=lines.append).to(device)
    kept = "parametrization" in name
    assert lines[0].endswith("kept") == kept
    assert isinstance(ours[0], tritonconv.Conv2d) != kept
    for m, on in ((ours, device), (model, "cpu")):
        m(x.to(on)).square().sum().backward()
    for a, b in zip(ours.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a.grad.cpu(), b.grad)
    back = as_torch(ours).cpu()
    torch.testing.assert_close(back(x), model(x))
