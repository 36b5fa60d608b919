"""python -m tritonconv.nets train: what it accepts, prints and writes."""

import argparse
import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn
from tritonconv import as_torch, fuse

from . import _arguments
from ._arguments import non_negative_float, positive_float, positive_int
from .recipes import OPTIMIZERS, SCHEDULES
from .training.data import Dataset
from .training.distributed import Ranks, joined, local_device
from .training.folder import BadImageError
from .training.saved import About
from .training.signals import StoppedError, noted
from .training.weights import freeze, load_weights

AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}
SAVE = (
    1  # what a process wishes after a step, unless it is to stop by a signal, whose number is more
)


def add_to(commands: argparse._SubParsersAction) -> None:
    about = "train a network; writes its weights, a CSV of its metrics and a PNG of their curves"
    command = commands.add_parser(
        "train",
        help=about,
        description=f"{about}, and a checkpoint from which --resume continues to the same bits. "
        "torchrun --nproc-per-node=N -m tritonconv.nets train ... trains on N GPUs",
        epilog="example: python -m tritonconv.nets train lenet --epochs 2 --pool max --compare",
    )
    command.set_defaults(run=run)
    group = _arguments.add_recipe(command)
    group.add_argument("--optimizer", choices=OPTIMIZERS)
    group.add_argument("--batch-size", type=positive_int, help="of each process")
    group.add_argument("--lr", type=positive_float, help="learning rate")
    group.add_argument("--momentum", type=non_negative_float, help="of sgd")
    group.add_argument("--weight-decay", type=non_negative_float)
    group.add_argument("--schedule", choices=SCHEDULES, help="of the learning rate, by epochs")
    group.add_argument(
        "--warmup", type=_arguments.non_negative_int, metavar="EPOCHS",
        help="in which the learning rate rises",
    )  # fmt: skip
    group.add_argument("--label-smoothing", type=_arguments.share)
    group.add_argument(
        "--ema", type=_arguments.share, metavar="DECAY",
        help="a step's, of the averaged weights, which are tested and kept (0: none)",
    )  # fmt: skip
    group.add_argument("--epochs", type=positive_int)
    group.add_argument(
        "--augment", action=argparse.BooleanOptionalAction, help="random flips and crops"
    )
    _arguments.add_data(command)

    group = command.add_argument_group("fine-tuning")
    group.add_argument(
        "--weights", type=Path, metavar="FILE", help="to begin with: torchvision's or a training's"
    )
    group.add_argument(
        "--num-classes", type=positive_int, metavar="N",
        help="replaces the head of --weights (default: the data's)",
    )  # fmt: skip
    group.add_argument("--freeze", metavar="UNTIL", help="what comes before this part stays")

    group = command.add_argument_group("a step")
    group.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    group.add_argument("--amp", choices=AMP, help="automatic mixed precision, over float32")
    group.add_argument(
        "--accumulate", type=positive_int, default=1, metavar="K", help="batches of each step"
    )
    group.add_argument("--clip", type=positive_float, metavar="NORM", help="of all gradients")
    group.add_argument(
        "--sync-bn", action="store_true", help="batch norm over all processes' images, on GPUs"
    )
    group.add_argument("--no-fuse", action="store_true", help="run layer by layer")
    group.add_argument("--no-graph", action="store_true", help="on a GPU, without CUDA graphs")
    _arguments.add_device(command)

    command.add_argument(
        "--seed", type=_arguments.seed, default=0, help="of weights and batches (default: 0)"
    )
    command.add_argument("--out", type=Path, metavar="DIR", help="(default: runs/NETWORK)")
    command.add_argument("--resume", action="store_true", help="go on from DIR's checkpoint")
    command.add_argument(
        "--checkpoint-every",
        type=non_negative_float,
        default=60.0,
        metavar="SECONDS",
        help="and after every epoch; 0: after every step (default: 60)",
    )
    command.add_argument(
        "--keep", type=positive_int, default=2, metavar="K",
        help="checkpoints: the last is checkpoint.pt, that before checkpoint-1.pt (default: 2)",
    )  # fmt: skip
    command.add_argument(
        "--tensorboard", action="store_true", help="write the metrics for TensorBoard, too"
    )
    command.add_argument(
        "--profile", type=positive_int, metavar="N",
        help="write a trace of N steps, and a table of their kernels by time",
    )  # fmt: skip
    command.add_argument(
        "--compare",
        action="store_true",
        help="train the torch.nn twin too, from equal weights on the same batches",
    )


def run(args: argparse.Namespace, refuse: Callable[[str], NoReturn]) -> None:
    """Trains as args say; calls refuse with what is wrong with them, the data or the machine."""
    args.device = local_device(args.device)
    try:
        with joined(args.device) as ranks:
            try:
                training = Training(args, ranks)
            except (OSError, ValueError, RuntimeError, ModuleNotFoundError) as error:
                refuse(str(error))
            try:
                training.train()
            except (OSError, BadImageError) as error:
                refuse(f"{error}; the last checkpoint is whole, go on with --resume")
    except StoppedError as stopped:
        if not ranks.rank:
            print(f"interrupted; go on with --resume from {training.saved_in}")
        raise SystemExit(stopped.status) from None


class Training:
    """A run of the program, made as args say: what it learns, prints and writes.

    Raises OSError, ValueError, RuntimeError or ModuleNotFoundError for what args, the data or the
    machine do not allow.
    """

    def __init__(self, args: argparse.Namespace, ranks: Ranks) -> None:
        # here, since this command alone needs the packages of tritonconv[demo]
        from .training import checkpoint
        from .training.report import Scalars
        from .training.run import Run

        self.args, self.ranks = args, ranks
        args.data = args.data or "digits"
        recipe = _arguments.recipe(args)
        if args.amp and args.dtype != "float32":
            raise ValueError(f"--amp goes with --dtype float32, got {args.dtype}")
        if args.sync_bn and args.device.type != "cuda":
            raise ValueError(f"--sync-bn needs a GPU, for torch's has no other; got {args.device}")
        dtype = getattr(torch, args.dtype)
        data = _arguments.dataset(args).to(args.device, dtype).resized(recipe.size)
        self.out = args.out or Path("runs", recipe.network)
        _make_writable(self.out)
        self.saved_in = self.out / "checkpoint.pt"
        self.about = About(recipe, args.data, _classes(args, data), data.view)
        self.notes: list[str] = []

        models = self._models(dtype, data)
        self.run = Run(
            models, data, recipe, args.seed, AMP.get(args.amp), ranks, args.accumulate,
            clip=args.clip, graph=args.device.type == "cuda" and not args.no_graph,
        )  # fmt: skip
        self.settings = self._settings(data)
        if args.resume:
            checkpoint.load(self.saved_in, self.run, self.settings)
        self.past = len(self.run.history)
        self.scalars = None
        if args.tensorboard and not ranks.rank:
            self.scalars = Scalars(self.out / "tensorboard", self.past)

    def _models(self, dtype: torch.dtype, data: Dataset) -> list[nn.Module]:
        """The network with its first weights, and its twin to --compare."""
        from .training.run import initialise

        args, about = self.args, self.about
        torch.manual_seed(args.seed)
        model = about.make()
        if about.recipe.xavier:
            initialise(model)
        if args.weights and not args.resume:
            head = load_weights(model, args.weights, args.num_classes is not None)
            self.notes.append(
                f"weights of {args.weights}" + f", but for {', '.join(head)}" * bool(head)
            )
        if args.freeze:
            self.notes.append(f"{freeze(model, args.freeze)} parameters before {args.freeze} stay")
        model.to(args.device, dtype)
        if args.device.type == "cuda":
            model.to(memory_format=torch.channels_last)
        _try(about, model, len(data.train.labels), self.ranks)
        twin = as_torch(model) if args.compare else None
        if args.sync_bn:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
            self.notes.append("batch norm is torch's SyncBatchNorm, and its blocks run unfused")
        if not args.no_fuse:
            model = fuse(model)
        return [model] if twin is None else [model, twin]

    def _settings(self, data: Dataset) -> dict[str, Any]:
        """What may not change in a resumed run; without a schedule, the number of epochs may."""
        args, recipe = self.args, self.about.recipe
        return recipe._asdict() | {
            "epochs": recipe.epochs if recipe.schedule != "none" else None,
            "data": args.data,
            "classes": ", ".join(self.about.classes),
            "training images": len(data.train.labels),
            "processes": self.ranks.size,
            **{
                name.replace("_", "-"): getattr(args, name)
                for name in ("seed", "dtype", "amp", "accumulate", "clip", "sync_bn", "no_fuse")
            },
            "freeze": args.freeze,
            "compare": args.compare,
        }

    @property
    def title(self) -> str:
        args, recipe = self.args, self.about.recipe
        title = f"{recipe.network} on {args.data}: {recipe}"
        title += f", in each of {self.ranks.size} processes" * (self.ranks.size > 1)
        return title + f", {args.accumulate} batches a step" * (args.accumulate > 1)

    def train(self) -> None:
        """To the recipe's end.  Raises StoppedError where a signal ends it, with a checkpoint."""
        from .training.profile import Profile

        args, run, first = self.args, self.run, not self.ranks.rank
        train, test = run.data.train.labels, run.data.test.labels
        if first:
            print(f"{self.title}; {len(train)} training images, {len(test)} test images")
            for note in self.notes:
                print(note)
            if args.resume:
                print(f"resumed after {self.past} epochs and {run.step} batches")
        with noted() as self.signals, contextlib.ExitStack() as stack:
            self.profile = None
            if args.profile and first:
                self.profile = stack.enter_context(Profile(args.profile, self.out, args.device))
            try:
                self._save()
                for reached in run.epochs(self._after_step, self._after_test):
                    if first:
                        self._print(*reached)
                        self._report()
                        if self.scalars:
                            self.scalars.write(reached[0])
                    # last: a run that is killed before this repeats what it had not reported
                    self._save()
            except StoppedError:
                self._save()
                raise
        if first:
            if len(run.history) == self.past:  # had been killed while it reported
                self._report()
            for name, path in self._written().items():
                print(f"{name:7}  {path}" if path.exists() else f"{name:7}  too few steps for it")

    def _after_step(self) -> None:
        if self.profile:
            self.profile.step()
        due = time.monotonic() - self.last_saved >= self.args.checkpoint_every
        wish = self.ranks.agreed(self.signals.number or SAVE * (due and not self.ranks.rank))
        if wish > SAVE:
            raise StoppedError(wish)
        if wish:
            self._save()

    def _after_test(self) -> None:
        if self.signals.number and self.ranks.size == 1:  # else at the next step, where all agree
            raise StoppedError(self.signals.number)

    def _save(self) -> None:
        from .training import checkpoint

        checkpoint.save(self.saved_in, self.run, self.settings, self.about, self.args.keep)
        self.last_saved = time.monotonic()

    def _print(self, reached: Any, *twin: Any) -> None:
        epoch = f"epoch {reached.epoch}/{self.about.recipe.epochs}"
        print(f"{epoch}  {reached}", flush=True)
        if twin:
            from .training.run import largest_difference

            gap = largest_difference(*(learner.model for learner in self.run.learners))
            print(f"{'torch.nn':{len(epoch)}}  {twin[0]}  weights within {gap:.1e}", flush=True)

    def _written(self) -> dict[str, Path]:
        names = {"weights": "weights.pt", "metrics": "metrics.csv", "curves": "curves.png"}
        if self.args.profile:
            names |= {"trace": "trace.json", "kernels": "kernels.txt"}
        return {name: self.out / file for name, file in names.items()}

    def _report(self) -> None:
        from .training.report import write_curves, write_metrics, write_weights

        files = self._written()
        history = [reached for reached, *_ in self.run.history]
        write_weights(files["weights"], self.run.learners[0].evaluated)
        write_metrics(files["metrics"], history)
        write_curves(files["curves"], history, self.title)


def _classes(args: argparse.Namespace, data: Dataset) -> tuple[str, ...]:
    """The names of the network's classes: the data's, and --num-classes numbers beyond."""
    number, known = args.num_classes or len(data.classes), data.classes
    if number < len(known):
        raise ValueError(f"--num-classes must be at least {len(known)}, the data's; got {number}")
    return (*known, *map(str, range(len(known), number)))


def _try(about: About, model: nn.Module, number: int, ranks: Ranks) -> None:
    """Raises RuntimeError or ValueError where the smallest batch or the device would.

    Draws no random numbers and changes no value of model.
    """
    recipe, channels = about.recipe, len(about.view.mean)
    smallest = -(-number // ranks.size) % recipe.batch_size or recipe.batch_size
    shape = smallest, channels, recipe.size, recipe.size
    try:
        with torch.device("meta"):
            about.make()(torch.empty(shape))
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"{recipe.network}: cannot train on a batch of {shape}: {error}; "
            "choose another --size or --batch-size"
        ) from error
    with torch.no_grad():
        model.eval()(next(model.parameters()).new_zeros(1, *shape[1:]))


def _make_writable(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder}: cannot be written to; name another folder with --out")
