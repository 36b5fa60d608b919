import pytest
import torch
from torch import nn
from tritonconv import AvgPool2d, Conv2d, MaxPool2d
from tritonconv.nets import LeNet, alexnet, resnet18
from tritonconv.nets.receptive_field import receptive_field


def sizes(model: nn.Module, shape: tuple[int, int, int]) -> dict[str, int | tuple[int, int]]:
    fields = {layer.name: layer.field.size for layer in receptive_field(model, shape)}
    return {name: h if h == w else (h, w) for name, (h, w) in fields.items()}


def meta(make, **options) -> nn.Module:
    with torch.device("meta"):
        return make(**options)


def test_lenet_and_alexnet_see_what_is_published():
    assert list(sizes(meta(LeNet), (1, 28, 28)).values()) == [5, 6, 14, 16]
    assert list(sizes(meta(alexnet), (3, 224, 224)).values())[:4] == [11, 19, 51, 67]


def test_resnet_sees_with_the_wider_branch():
    seen = sizes(meta(resnet18), (3, 224, 224))
    assert seen["layer1.1.conv2"] == 43
    assert seen["layer2.0.downsample.0"] == 43
    assert seen["layer2.1.conv1"] == 67 + 2 * 8  # after 67 by the convolutions, 43 by the shortcut
    assert seen["layer4.1.conv2"] == 435


def test_dilation_and_both_axes_count():
    model = meta(
        lambda: nn.Sequential(
            Conv2d(1, 2, (3, 5), dilation=(2, 1), stride=(1, 2)),
            nn.ReLU(),
            MaxPool2d((1, 3), stride=2, dilation=(1, 2)),
            AvgPool2d(2),
        )
    )
    layers = receptive_field(model, (1, 32, 64))
    assert [(layer.kernel_size, layer.stride, layer.dilation) for layer in layers] == [
        ((3, 5), (1, 2), (2, 1)),
        ((1, 3), (2, 2), (1, 2)),
        ((2, 2), (2, 2), (1, 1)),
    ]
    assert [layer.field.size for layer in layers] == [(5, 5), (5, 13), (7, 17)]
    assert layers[-1].field.jump == (4, 8)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow, self.last = Conv2d(1, 1, 7), Conv2d(1, 1, 3), Conv2d(2, 1, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.cat([self.narrow(x[:, :, 2:-2, 2:-2]), self.wide(x)], 1))


def test_branches_join_at_the_widest():
    assert sizes(meta(Branches), (1, 16, 16)) == {"narrow": 3, "wide": 7, "last": 9}


@pytest.mark.parametrize("size", [4, 40])
def test_the_field_is_where_the_gradient_reaches(size):
    """Of the middle output of the layers, in float64 and with positive weights."""
    layers = [nn.Conv2d(1, 1, 3, dilation=2), nn.AvgPool2d(3, 2), nn.Conv2d(1, 1, 2, stride=2)]
    model = nn.Sequential(*layers)
    for p in model.parameters():
        nn.init.constant_(p, 0.5)
    x = torch.zeros(1, 1, 15 + size, 15 + size, requires_grad=True)
    model(x)[0, 0, 0, 0].backward()
    rows = x.grad[0, 0].any(1).nonzero()
    reached = (rows.max() - rows.min() + 1).item()
    model.to("meta")
    assert sizes(model, (1, 15 + size, 15 + size))["2"] == reached == 9
