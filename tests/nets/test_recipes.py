import math

import pytest
import torch
from tritonconv.nets.recipes import RECIPES, Recipe, recipe_of
from tritonconv.nets.registry import NETWORKS

# network, optimizer, learning rate, batch, epochs, image size; as the seeds and d2l publish them
PUBLISHED = {
    "d2l-lenet": ("lenet", "sgd", 0.9, 256, 10, 28),
    "d2l-alexnet": ("alexnet_two_tower", "sgd", 0.01, 128, 10, 224),
    "d2l-vgg11": ("vgg11", "sgd", 0.05, 128, 10, 224),
    "d2l-nin": ("nin", "sgd", 0.1, 128, 10, 224),
    "d2l-googlenet": ("googlenet_plain", "sgd", 0.1, 128, 10, 96),
    "d2l-resnet18": ("resnet18", "sgd", 0.05, 256, 10, 96),
    "seed-resnet18": ("resnet18", "adam", 0.001, 128, 5, 96),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipe_is_the_published_one(name):
    recipe = RECIPES[name]
    assert recipe[:6] == PUBLISHED[name]
    plain = (recipe.momentum, recipe.weight_decay, recipe.schedule, recipe.augment)
    assert plain == (0, 0, "none", False)


def test_the_imagenet_recipe_is_written_out():
    """Goyal et al., 2017: Accurate, large minibatch SGD; He et al., 2019: Bag of tricks."""
    recipe = RECIPES["imagenet-resnet50"]
    assert recipe[:6] == ("resnet50", "sgd", 0.1, 256, 90, 224)
    assert (recipe.momentum, recipe.weight_decay, recipe.label_smoothing) == (0.9, 1e-4, 0.1)
    assert (recipe.augment, recipe.schedule, recipe.warmup, recipe.ema) == (True, "cosine", 5, 0)
    # step by step from a fifth of a fifth up, then down by a cosine over the 85 epochs that are left
    rates = [recipe.lr_in(epoch, part) for epoch, part in ((1, 0.2), (1, 1), (3, 0.5), (5, 1))]
    assert rates == pytest.approx([0.004, 0.02, 0.05, 0.1])
    assert recipe.lr_in(6) == pytest.approx(0.1)
    assert recipe.lr_in(90) == pytest.approx(0.05 * (1 + math.cos(math.pi * 84 / 85)))
    assert recipe._replace(schedule="step").lr_in(36) == pytest.approx(0.01)
    with torch.device("meta"):
        model = recipe.make(1000, 3)
    vectors = {id(p) for p in model.parameters() if p.ndim == 1}
    plain, without = recipe.make_optimizer(model.parameters()).param_groups
    assert {id(p) for p in without["params"]} == vectors
    assert len(plain["params"]) == 54  # 53 convolutions and the head
    assert (plain["weight_decay"], without["weight_decay"]) == (1e-4, 0)
    torch.manual_seed(0)
    block = recipe._replace(network="resnet18").make(2, 3).layer1[0]  # sooner made
    assert block.bn1.weight.all()
    assert not block.bn2.weight.any()


def test_recipes_options_are_the_published_ones():
    assert {"lenet", "imagenet-resnet50", *PUBLISHED} == set(RECIPES)
    assert (RECIPES["d2l-lenet"].activation, RECIPES["d2l-lenet"].pool) == ("sigmoid", "avg")
    assert RECIPES["d2l-vgg11"].width_divisor == 4
    assert RECIPES["lenet"] == Recipe("lenet", "adam", 0.002, 64, 5, 28, "tanh", "avg")


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_makes_its_network_for_ten_classes_of_grey_images(name):
    recipe = RECIPES[name]
    with torch.device("meta"):
        model = recipe.make(10, 1)
        y = model.eval()(torch.empty(2, 1, recipe.size, recipe.size))
    assert y.shape == (2, 10)


def test_the_vgg_recipe_makes_d2ls_small_network():
    with torch.device("meta"):
        widths = [p.shape[0] for p in RECIPES["d2l-vgg11"].make(10, 1).parameters() if p.ndim == 4]
    assert widths == [16, 32, 64, 64, 128, 128, 128, 128]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_takes_the_input_it_is_listed_with(name):
    _, size, channels = NETWORKS[name]
    recipe = recipe_of(name)
    with torch.device("meta"):
        model = recipe.make(7, channels)
        y = model.eval()(torch.empty(1, channels, size, size))
    assert y.shape == (1, 7)
    assert recipe.size == size


def test_schedules_by_value():
    rate = {
        name: [
            Recipe("lenet", "sgd", 2.0, 1, 6, schedule=name).lr_in(epoch) for epoch in range(1, 7)
        ]
        for name in ("none", "step", "cosine")
    }
    assert rate["none"] == [2.0] * 6
    assert rate["step"] == pytest.approx([2, 2, 0.2, 0.2, 0.02, 0.02])
    root = math.sqrt(3) / 2
    assert rate["cosine"] == pytest.approx([2, 1 + root, 1.5, 1, 0.5, 1 - root])


def test_optimizers_have_the_recipes_options():
    weight = [torch.nn.Parameter(torch.zeros(1))]
    recipe = Recipe("lenet", "sgd", 0.1, 1, 1, momentum=0.9, weight_decay=0.01)
    sgd = recipe.make_optimizer(weight)
    assert type(sgd) is torch.optim.SGD
    assert [sgd.defaults[k] for k in ("lr", "momentum", "weight_decay")] == [0.1, 0.9, 0.01]
    adam = recipe._replace(optimizer="adam", momentum=0.0).make_optimizer(weight)
    assert type(adam) is torch.optim.Adam
    assert [adam.defaults[k] for k in ("lr", "weight_decay")] == [0.1, 0.01]


def test_a_recipe_reads_as_a_line():
    assert str(RECIPES["lenet"]) == "tanh, avg pool, Adam 0.002, batch 64"
    assert str(recipe_of("resnet50")._replace(augment=True)) == (
        "224x224, SGD 0.01, momentum 0.9, weight decay 0.0005, cosine schedule, batch 128, "
        "flips and crops"
    )
