"""AlexNet: Krizhevsky et al., ImageNet classification with deep convolutional networks, 2012.

In the paper's widths, both towers as one, and in torchvision's narrower ones (Krizhevsky, One weird
trick for parallelizing convolutional neural networks, 2014).
"""

from torch import Tensor, nn
from tritonconv import AdaptiveAvgPool2d, Conv2d, MaxPool2d


def _features(in_channels: int, widths: tuple[int, ...], padding: int) -> nn.Sequential:
    c1, c2, c3, c4, c5 = widths
    return nn.Sequential(
        Conv2d(in_channels, c1, 11, stride=4, padding=padding),
        nn.ReLU(),
        MaxPool2d(3, 2),
        Conv2d(c1, c2, 5, padding=2),
        nn.ReLU(),
        MaxPool2d(3, 2),
        Conv2d(c2, c3, 3, padding=1),
        nn.ReLU(),
        Conv2d(c3, c4, 3, padding=1),
        nn.ReLU(),
        Conv2d(c4, c5, 3, padding=1),
        nn.ReLU(),
        MaxPool2d(3, 2),
    )


class AlexNet(nn.Module):
    """torchvision's: [N, in_channels, 224, 224] -> logits [N, num_classes]."""

    def __init__(self, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5) -> None:
        super().__init__()
        self.features = _features(in_channels, (64, 192, 384, 256, 256), padding=2)
        self.avgpool = AdaptiveAvgPool2d(6)
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Linear(4096, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:  # [N, in_channels, 224, 224]
        x = self.features(x)  # [N, 256, 6, 6]
        x = self.flatten(self.avgpool(x))  # [N, 9216]
        return self.classifier(x)  # [N, num_classes]


def alexnet(num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5) -> AlexNet:
    """torchvision's alexnet, whose weights it loads."""
    return AlexNet(num_classes, in_channels, dropout)


def alexnet_two_tower(
    num_classes: int = 10, in_channels: int = 1, dropout: float = 0.5
) -> nn.Sequential:
    """d2l's: [N, in_channels, 224, 224] -> logits [N, num_classes]."""
    return nn.Sequential(
        *_features(in_channels, (96, 256, 384, 384, 256), padding=1),  # [N, 256, 5, 5]
        nn.Flatten(),
        nn.Linear(256 * 5 * 5, 4096),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(4096, 4096),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(4096, num_classes),
    )
