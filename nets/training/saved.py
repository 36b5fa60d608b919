"""What a training leaves for others to read, without running code: a network, and all about it."""

import io
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._files import earlier
from ..recipes import Recipe
from .transforms import View

PARTS = {"settings", "about", "run"}  # of a checkpoint


class About(NamedTuple):
    """What a network is, was trained on, and is shown."""

    recipe: Recipe
    data: str  # as --data names it
    classes: tuple[str, ...]
    view: View

    def make(self) -> nn.Module:
        return self.recipe.make(len(self.classes), len(self.view.mean))

    def state_dict(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe._asdict(),
            "data": self.data,
            "classes": list(self.classes),
            "view": self.view._asdict(),
        }

    @staticmethod
    def of(state: dict[str, Any]) -> "About":
        recipe, view = Recipe(**state["recipe"]), View(**state["view"])
        return About(recipe, state["data"], tuple(state["classes"]), view)


def network(path: Path, device: torch.device) -> tuple[nn.Module, About]:
    """The network of a checkpoint, in evaluation mode, and what it is.

    Raises OSError or ValueError, as read.
    """
    saved = parts(path)
    try:
        about = About.of(saved["about"])
        model = about.make()
        model.load_state_dict(weights(saved))
    except Exception as error:
        raise not_a_checkpoint(path) from error
    return model.to(device).eval(), about


def packed(value: Any) -> memoryview:
    """What torch.save writes, for a plain file: a full disk is then a plain error."""
    content = io.BytesIO()
    torch.save(value, content)
    return content.getbuffer()


def read(path: Path, what: str = "a checkpoint") -> Any:
    """What torch.save wrote, as far as it is tensors, numbers and names.

    Raises OSError for a file that cannot be read, ValueError for one of another kind.
    """
    try:
        if zipfile.is_zipfile(path):  # torch does not look at the checksums that it writes
            with zipfile.ZipFile(path) as file:
                if file.testzip():
                    raise zipfile.BadZipFile
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: expected {what}, got no file; name another, or train first"
        ) from None
    except (IsADirectoryError, PermissionError):
        raise
    except Exception:  # what may be wrong with a stranger's file has no end
        raise ValueError(
            f"{path}: expected {what}, got another kind of file or a damaged one"
        ) from None


def weights(saved: dict[str, Any]) -> dict[str, Any]:
    """The weights that a checkpoint's run has reached: the averaged ones, if it has them."""
    (learner, *_) = saved["run"]["learners"]
    return learner["average"] or learner["model"]


def is_checkpoint(saved: Any) -> bool:
    return isinstance(saved, dict) and saved.keys() == PARTS


def parts(path: Path) -> dict[str, Any]:
    try:
        saved = read(path)
    except ValueError:
        raise not_a_checkpoint(path) from None
    if not is_checkpoint(saved) or not isinstance(saved["settings"], dict):
        raise not_a_checkpoint(path)
    return saved


def not_a_checkpoint(path: Path) -> ValueError:
    before = earlier(path, 1)
    remedy = f"; {before.name} is the one before, move it there" if before.exists() else ""
    return ValueError(
        f"{path}: expected a checkpoint, got another kind of file or a damaged one{remedy}"
    )


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state_dict: torchvision's, ours, or that of a checkpoint.

    Raises OSError for a file that cannot be read, ValueError for one of another kind.
    """
    saved = read(path, "weights")
    if is_checkpoint(saved):
        saved = weights(saved)
    if not isinstance(saved, dict) or not all(isinstance(v, Tensor) for v in saved.values()):
        raise ValueError(
            f"{path}: expected weights, got another kind of file; "
            "save a state_dict by torch.save, or name a checkpoint"
        )
    return saved
