"""The commands beside train: what each accepts and prints."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

from . import _arguments
from ._arguments import positive_int
from ._extras import demo_extra
from .compare import compare, error_table
from .evaluate import confusion, confusion_table
from .predict import best
from .receptive_field import receptive_field
from .recipes import RECIPES, recipe_of
from .registry import NETWORKS
from .training.data import CLASSES
from .training.saved import About, network

MOST_CLASSES = 20  # whose confusions are printed
REFUSED = (OSError, ValueError, RuntimeError, ModuleNotFoundError)


def add_to(commands: argparse._SubParsersAction) -> None:
    _add(commands, "list", "print the networks and the recipes", _list, "list")

    summary = _add(
        commands, "summary", "print a network's shapes, parameters and multiply-adds", _summary,
        "summary resnet18 --classes 10",
    )  # fmt: skip
    _add_shape(summary)

    about = "print how many pixels of the input each layer sees"
    _add_shape(_add(commands, "receptive-field", about, _field, "receptive-field alexnet"))

    command = _add(
        commands, "evaluate", "print a trained network's accuracy and confusion table", _evaluate,
        "evaluate lenet --weights runs/lenet/weights.pt",
    )  # fmt: skip
    _arguments.add_recipe(command).add_argument("--batch-size", type=positive_int)
    _arguments.add_trained(command)
    _arguments.add_data(command)
    _arguments.add_device(command)

    command = _add(
        commands, "predict", "print what a trained network takes image files for", _predict,
        "predict runs/resnet50/checkpoint.pt cat.jpg dog.jpg",
    )  # fmt: skip
    command.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    command.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    command.add_argument(
        "--top", type=positive_int, default=5, metavar="N", help="classes (default: 5)"
    )
    _arguments.add_device(command)

    command = _add(
        commands, "compare", "print a network's errors beside those of its torch.nn twin", _compare,
        "compare lenet --batch-size 4",
    )  # fmt: skip
    _add_shape(command)
    command.add_argument("--batch-size", type=positive_int, default=2)
    command.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    command.add_argument("--seed", type=_arguments.seed, default=0, help="(default: 0)")
    _arguments.add_device(command)

    command = _add(
        commands, "show", "draw a trained network's first filters, or its feature maps", _show,
        "show filters lenet --out filters.png",
    )  # fmt: skip
    command.add_argument("what", choices=("filters", "features"))
    _arguments.add_recipe(command)
    _arguments.add_trained(command)
    command.add_argument("--layer", metavar="NAME", help="of the maps (default: the first one)")
    command.add_argument(
        "--image",
        default="0",
        metavar="FILE",
        help="or a number among the test images (default: 0)",
    )
    command.add_argument("--out", type=Path, metavar="PNG", help="(default: WHAT.png)")
    _arguments.add_data(command)
    _arguments.add_device(command)


def _add(
    commands: argparse._SubParsersAction,
    name: str,
    about: str,
    run: Callable[[argparse.Namespace], None],
    example: str,
) -> argparse.ArgumentParser:
    example = f"example: python -m tritonconv.nets {example}"
    command = commands.add_parser(name, help=about, description=about, epilog=example)

    def checked(args: argparse.Namespace, refuse: Callable[[str], NoReturn]) -> None:
        try:
            run(args)
        except REFUSED as error:
            refuse(str(error))

    command.set_defaults(run=checked)
    return command


def _add_shape(command: argparse.ArgumentParser) -> None:
    _arguments.add_network(command)
    command.add_argument("--size", type=positive_int, help="of the input (default: the network's)")
    command.add_argument("--channels", type=positive_int, help="(default: the network's)")
    command.add_argument("--classes", type=positive_int, default=CLASSES, help="(default: 10)")


def _made(args: argparse.Namespace) -> tuple[Any, tuple[int, int, int]]:
    network = NETWORKS[args.network]
    channels, size = args.channels or network.channels, args.size or network.size
    model = recipe_of(args.network).make(args.classes, channels)
    return model, (channels, size, size)


def _list(args: argparse.Namespace) -> None:
    print("network            input")
    for name, (_, size, channels) in NETWORKS.items():
        print(f"{name:18} {channels}x{size}x{size}")
    print("\nrecipe             network, training")
    for name, recipe in RECIPES.items():
        print(f"{name:18} {recipe.network}, {recipe}, {recipe.epochs} epochs")


def _summary(args: argparse.Namespace) -> None:
    with demo_extra():
        import torchinfo
    with torch.device("meta"):
        model, shape = _made(args)
    columns = ("output_size", "num_params", "mult_adds")
    x = torch.empty(1, *shape, device="meta")
    print(torchinfo.summary(
        model, input_data=x, device="meta", col_names=columns, depth=5, verbose=0
    ))  # fmt: skip


def _field(args: argparse.Namespace) -> None:
    with torch.device("meta"):
        model, shape = _made(args)
    layers = receptive_field(model, shape)
    width = max(len(layer.name) for layer in layers)
    print(f"{'layer':{width}}  kernel  stride  dilation  sees")
    for name, k, s, d, field in layers:
        print(f"{name:{width}}  {_by(k):>6}  {_by(s):>6}  {_by(d):>8}  {_by(field.size)}")


def _by(pair: tuple[int, int]) -> str:
    return f"{pair[0]}x{pair[1]}"


def _evaluate(args: argparse.Namespace) -> None:
    model, about = _arguments.trained(args)
    data = _arguments.dataset(args, about)
    if len(data.classes) > len(about.classes):
        raise ValueError(
            f"expected weights for {len(data.classes)} classes, got {len(about.classes)}; "
            "--data names what they were trained on"
        )
    test = data.to(args.device, torch.float32).resized(about.view.size).test
    batch_size = args.batch_size or about.recipe.batch_size
    table = confusion(model, test, batch_size, len(about.classes))
    right, images = table.trace().item(), table.sum().item()
    name = args.data or about.data
    print(f"accuracy {right / images:.4f}: {right} of {images} test images of {name}")
    if len(table) <= MOST_CLASSES:
        print(confusion_table(table))


def _predict(args: argparse.Namespace) -> None:
    model, about = network(args.checkpoint, args.device)
    for path in args.images:
        print(path)
        image = _image(path, about, args.device)
        for name, probability in best(model, image, about.classes, args.top):
            print(f"  {probability:.4f}  {name}")


def _image(path: Path, about: About, device: torch.device) -> torch.Tensor:
    """[1, C, size, size]"""
    pixels = about.view.read(path).unsqueeze(0).to(device)
    return about.view.normalised(pixels, torch.float32)


def _compare(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    model, shape = _made(args)
    x = torch.randn(args.batch_size, *shape)
    dtype = getattr(torch, args.dtype)
    errors = compare(model.to(args.device, dtype), x.to(args.device, dtype))
    print(f"{args.network} in {args.dtype} on {args.batch_size} inputs of {shape}, against float64")
    print(error_table(errors))


def _show(args: argparse.Namespace) -> None:
    from .show import write_features, write_filters

    model, about = _arguments.trained(args)
    out = args.out or Path(f"{args.what}.png")
    if args.what == "filters":
        write_filters(out, model)
    else:
        if args.image.isdecimal():
            data = _arguments.dataset(args, about).to(args.device, torch.float32)
            test, number = data.resized(about.view.size).test, int(args.image)
            if number >= len(test.labels):
                raise ValueError(f"--image must be below {len(test.labels)}, got {number}")
            images, _ = test.batch(torch.tensor([number]))
        else:
            images = _image(Path(args.image), about, args.device)
        write_features(out, model, images[0], args.layer)
    print(f"{args.what}  {out}")
