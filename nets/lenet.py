"""LeNet-5: LeCun et al., Gradient-based learning applied to document recognition, 1998.

In d2l's form: sigmoid, average pooling and a plain linear output.  Tanh, as in the paper, learns
sooner.
"""

from torch import Tensor, nn
from tritonconv import AvgPool2d, Conv2d, MaxPool2d


class LeNet(nn.Module):
    """[N, in_channels, 28, 28] -> logits [N, num_classes]."""

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        activation: type[nn.Module] = nn.Sigmoid,
        pool: type[AvgPool2d] | type[MaxPool2d] = AvgPool2d,
    ) -> None:
        super().__init__()
        self.conv1 = Conv2d(in_channels, 6, 5, padding=2)
        self.pool1 = pool(2)
        self.conv2 = Conv2d(6, 16, 5)
        self.pool2 = pool(2)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:  # [N, in_channels, 28, 28]
        x = self.activation(self.conv1(x))  # [N, 6, 28, 28]
        x = self.pool1(x)  # [N, 6, 14, 14]
        x = self.activation(self.conv2(x))  # [N, 16, 10, 10]
        x = self.pool2(x)  # [N, 16, 5, 5]
        x = self.flatten(x)  # [N, 400]
        x = self.activation(self.fc1(x))  # [N, 120]
        x = self.activation(self.fc2(x))  # [N, 84]
        return self.fc3(x)  # [N, num_classes]
