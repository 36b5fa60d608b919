"""Models of other libraries, small, converted and fused, against themselves in float64.

Held by value: the convolutions that run in a call, and those that run fused in training and in
evaluation.  pip install '.[models]' has the libraries.
"""

import copy
import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from reference import Dispatched
from torch import nn
from torch.utils._pytree import tree_leaves
from tritonconv import convert, fuse

LIBRARY = torch.library.Library("torchvision", "FRAGMENT")


@pytest.fixture(autouse=True)
def no_package_named_kernels(monkeypatch):
    """Hugging Face looks for one of its own, and would find this project's folder."""
    path = [p for p in sys.path if not Path(p or ".", "kernels", "__init__.py").is_file()]
    monkeypatch.setattr(sys, "path", path)


def library(name: str):
    """The module of that name; skips the test where its library is not installed."""
    root = name.split(".")[0]
    if importlib.util.find_spec(root) is None:
        pytest.skip(f"{root} is not installed")
    if root in ("timm", "torchvision"):
        _import_torchvision()
    try:
        return importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"{name} cannot be imported: {error}")


def _import_torchvision() -> None:
    """Its Python alone, where its operators were compiled for another build of torch."""
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    for _ in range(9):
        try:
            importlib.import_module("torchvision")
            return
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                pytest.skip(f"torchvision cannot be imported: {error}")
            LIBRARY.define(f"{missing[1]}(Tensor dets, Tensor scores, float iou) -> Tensor")
            for name in [name for name in sys.modules if name.startswith("torchvision")]:
                del sys.modules[name]
    pytest.skip("torchvision cannot be imported without its operators")


def timm(name: str, **options) -> nn.Module:
    return library("timm").create_model(name, **options)


def timm_resnet(**options) -> nn.Module:
    """As resnet26d: a deep stem, shortcuts that pool."""
    resnet = library("timm.models.resnet")
    small = {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16), "num_classes": 3, "stem_width": 4}
    return resnet.ResNet(resnet.Bottleneck, **small | options)


def timm_repvgg() -> nn.Module:
    byobnet = library("timm.models.byobnet")
    blocks = tuple(byobnet.ByoBlockCfg(type="rep", d=2, c=8, s=2, gs=0) for _ in range(2))
    config = byobnet.ByoModelCfg(blocks=blocks, stem_type="rep", stem_chs=8)
    return byobnet.ByobNet(config, num_classes=3)


def timm_densenet() -> nn.Module:
    densenet = library("timm.models.densenet")
    return densenet.DenseNet(4, (2, 2), num_classes=3)


def frozen_resnet() -> nn.Module:
    resnet, ops = library("torchvision.models.resnet"), library("torchvision.ops")
    return resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], norm_layer=ops.FrozenBatchNorm2d)


def mobilenet_v2() -> nn.Module:
    settings = [[1, 8, 1, 1], [4, 8, 2, 2], [4, 16, 1, 2]]
    mobilenet = library("torchvision.models.mobilenetv2")
    return mobilenet.MobileNetV2(3, 0.25, settings, dropout=0.0)


def mobilenet_v3() -> nn.Module:
    mobilenet = library("torchvision.models.mobilenetv3")
    rows = [(8, 3, 8, 8, True, "RE", 2, 1), (8, 3, 24, 8, False, "HS", 1, 1)]
    blocks = [mobilenet.InvertedResidualConfig(*row, width_mult=1.0) for row in rows]
    return mobilenet.MobileNetV3(blocks, 16, 3, dropout=0.0)


def shufflenet() -> nn.Module:
    return library("torchvision.models.shufflenetv2").ShuffleNetV2(
        [2, 1, 1], [8, 8, 16, 16, 16], num_classes=3
    )


def squeezenet() -> nn.Module:
    return library("torchvision.models.squeezenet").SqueezeNet("1_1", 3, dropout=0.0)


def densenet() -> nn.Module:
    return library("torchvision.models.densenet").DenseNet(4, (2, 2), 8, num_classes=3)


def transformer(name: str, **options) -> nn.Module:
    transformers = library("transformers")
    return getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**options))


class OfTime(nn.Module):
    """A diffusion model called with a fixed time."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x, 3).sample


def unet() -> nn.Module:
    return OfTime(
        library("diffusers").UNet2DModel(
            block_out_channels=(8,), norm_num_groups=4, layers_per_block=1,
            down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
            add_attention=False,
        )
    )  # fmt: skip


def autoencoder() -> nn.Module:
    tiny = library("diffusers").AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 2), num_decoder_blocks=(1, 1),
    )  # fmt: skip
    return tiny.encoder


FORWARD = ("conv2d", "conv2d_stats", "conv2d_fused")

# by name: how it is made, and its convolutions: all, those fused in training (with batch norms of
# given statistics none is counted, though they run as a chain), and those fused in evaluation
MODELS = {
    "timm test_resnet": (lambda: timm("test_resnet"), (15, 15, 15)),
    "timm test_byobnet": (lambda: timm("test_byobnet"), (22, 22, 22)),
    "timm test_efficientnet": (lambda: timm("test_efficientnet"), (17, 15, 17)),
    "timm tf_efficientnet": (lambda: timm("test_efficientnet", pad_type="same"), (17, 15, 17)),
    "timm resnet26d": (lambda: timm_resnet(stem_type="deep", avg_down=True), (19, 19, 19)),
    "timm repvgg": (timm_repvgg, (10, 10, 10)),
    "timm densenet": (timm_densenet, (10, 10, 10)),
    "torchvision resnet, frozen": (frozen_resnet, (12, 0, 12)),
    "torchvision mobilenet_v2": (mobilenet_v2, (13, 13, 13)),
    "torchvision mobilenet_v3": (mobilenet_v3, (9, 9, 9)),
    "torchvision shufflenet_v2": (shufflenet, (20, 20, 20)),
    "torchvision squeezenet": (squeezenet, (26, 26, 26)),
    "torchvision densenet": (densenet, (10, 10, 10)),
    "transformers ResNet": (
        lambda: transformer("ResNet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
        (6, 6, 6),
    ),
    "transformers RegNet": (
        lambda: transformer("RegNet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], groups_width=8),
        (13, 13, 13),
    ),
    "transformers MobileNetV1": (lambda: transformer("MobileNetV1", depth_multiplier=0.1), (27, 27, 27)),
    "transformers MobileNetV2": (lambda: transformer("MobileNetV2", depth_multiplier=0.1), (52, 52, 52)),
    "transformers TextNet": (
        lambda: transformer("TextNet",
            stem_out_channels=8, hidden_sizes=[8] * 5,
            conv_layer_kernel_sizes=[[[3, 3]], [[3, 3]], [[3, 1]], [[1, 3]]],
            conv_layer_strides=[[1], [2], [2], [1]],
        ),
        (11, 11, 11),
    ),
    "diffusers UNet2D": (unet, (14, 10, 10)),
    "diffusers EncoderTiny": (autoencoder, (12, 9, 9)),
}  # fmt: skip


def made(name: str) -> nn.Module:
    """The model in float64, its batch norms not the identity."""
    torch.manual_seed(0)
    model = MODELS[name][0]().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def results(model: nn.Module, x: torch.Tensor, gradients: bool) -> dict[str, torch.Tensor]:
    x = x.clone().requires_grad_(gradients)
    with torch.set_grad_enabled(gradients):
        outputs = [y for y in tree_leaves(model(x)) if isinstance(y, torch.Tensor)]
    found = {f"output {i}": y for i, y in enumerate(outputs)}
    if gradients:
        sum(y.square().mean() for y in outputs).backward()
        leaves = {"x": x} | dict(model.named_parameters())
        found |= {f"gradient of {n}": t.grad for n, t in leaves.items() if t.grad is not None}
    return {n: t.detach().cpu() for n, t in (found | dict(model.named_buffers())).items()}


@pytest.mark.parametrize("name", MODELS)
def test_model_of_another_library_is_fused_and_equal(name, device):
    model = made(name)
    fused, x = fuse(convert(model)).to(device), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    counted = []
    for training in (True, False):
        right = results(model.train(training), x, training)
        with Dispatched() as dispatched:
            found = results(fused.train(training), x.to(device), training)
        assert right.keys() == found.keys()
        for what, r in right.items():
            error, size = (found[what] - r).double().norm(), r.double().norm()
            assert error <= 1e-9 * max(size, 1e-3), f"{what} is off by {error} of {size}"
        ran = [op for op in dispatched.ours if op in FORWARD]
        counted.append(sum(op in ("conv2d_stats", "conv2d_fused") for op in ran))
    assert (len(ran), *counted) == MODELS[name][1]


def test_features_that_hooks_keep(device):
    """timm's extractor by hooks: fused around them, and copied."""
    extractor = timm("test_resnet", features_only=True, feature_cls="hook").double().eval()
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    fused = copy.deepcopy(fuse(convert(extractor))).to(device)
    with Dispatched() as dispatched, torch.no_grad():
        pairs = zip(fused(x.to(device)), extractor(x), strict=True)
        for actual, right in pairs:
            torch.testing.assert_close(actual.cpu(), right)
    assert dispatched.ours.count("conv2d_fused") == 15
