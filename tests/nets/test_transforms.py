import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from tritonconv.nets.training import transforms
from tritonconv.nets.training.folder import image_folder
from tritonconv.nets.training.transforms import View, evaluation, training

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
# width, height: square, wide, high, narrower than any part may be, smaller than what is wanted
SIZES = [(64, 64), (90, 41), (37, 80), (200, 12), (9, 150), (11, 10)]


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Noise over a slope, so that every pixel matters and none is like its neighbours."""
    random = np.random.default_rng(width * 1000 + height)
    slope = np.linspace(0, 155, width)[None, :, None] + random.integers(0, 100, (height, width, 3))
    return Image.fromarray(slope.astype(np.uint8)).convert(mode)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_plain_transforms_are_torchvisions_to_the_pixel(size, mode):
    if transforms._torchvision() is None:
        pytest.skip("torchvision is not installed, or is one for another torch")
    image = picture(*size, mode)
    for draw in range(20):
        torch.manual_seed(draw)
        ours = training(24, plain=True)(image)
        torch.manual_seed(draw)
        assert ours.tobytes() == training(24)(image).tobytes(), draw
    view = View(24, 0.875)
    ours, theirs = (evaluation(view, plain=plain)(image) for plain in (True, False))
    assert (ours.size, ours.tobytes()) == (theirs.size, theirs.tobytes())


@pytest.mark.parametrize("size", SIZES[:4])
def test_the_middle_is_resized_with_every_pixel_of_the_image(size):
    """Against torch's own antialiased bilinear, which computes in float32: within a grey or two."""
    image = picture(*size)
    width, height = size
    shorter, view = 27, View(24, 24 / 27)
    scaled = (
        (shorter, shorter * height // width)
        if width <= height
        else (shorter * width // height, shorter)
    )
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0).float()
    whole = F.interpolate(pixels, scaled[::-1], mode="bilinear", antialias=True)
    left, top = (round((length - 24) / 2) for length in scaled)
    expected = whole[0, :, top : top + 24, left : left + 24].permute(1, 2, 0)
    taken = torch.from_numpy(np.array(evaluation(view, plain=True)(image)))
    assert taken.shape == (24, 24, 3)
    assert (taken - expected).abs().max() <= 2


def test_a_random_part_is_one_of_the_image_mirrored_or_not():
    ramp = np.zeros((40, 60, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(60)[None] * 4, np.arange(40)[:, None] * 6
    image, mirrored, widths = Image.fromarray(ramp), 0, set()
    for draw in range(40):
        torch.manual_seed(draw)
        part = torch.from_numpy(np.array(training(16, plain=True)(image))).int()
        slopes = part.diff(dim=1)[..., 0]  # of columns: all of one sign
        assert (slopes >= 0).all() or (slopes <= 0).all()
        assert (part.diff(dim=0)[..., 1] >= 0).all()
        mirrored += bool((slopes < 0).any())
        widths.add(int(part[0, :, 0].max() - part[0, :, 0].min()))
    assert 8 < mirrored < 32
    assert len(widths) > 10


def test_a_file_is_read_as_its_draw_says_and_leaves_the_generator_alone(tmp_path):
    picture(50, 40).save(tmp_path / "a.png")
    view = View(16, 0.875, (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    torch.manual_seed(5)
    first, same, other = (view.read(tmp_path / "a.png", draw) for draw in (1, 1, 2))
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    middle = view.read(tmp_path / "a.png")
    assert (middle.dtype, middle.shape) == (torch.uint8, (16, 16, 3))
    values = view.normalised(torch.stack([middle, first]), torch.float64)
    assert values.shape == (2, 3, 16, 16)
    assert values.is_contiguous(memory_format=torch.channels_last)
    for c in range(3):
        expected = (middle[..., c].double() / 255 - view.mean[c]) / view.std[c]
        torch.testing.assert_close(values[0, c], expected)
    grey = View(8).read(tmp_path / "a.png")
    assert grey.shape == (8, 8, 1)


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff\xe0 no picture", "cut"])
def test_what_is_no_image_is_named(tmp_path, content):
    path = tmp_path / "bad.jpg"
    if content == "cut":
        picture(50, 40).save(path)
        content = path.read_bytes()[:-200]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.jpg: cannot be read as an image"):
        View().read(path)


def test_without_pillow_the_remedy_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    for read in (lambda: View().read(tmp_path / "a.png"), lambda: image_folder(tmp_path, 0, False)):
        with pytest.raises(ModuleNotFoundError, match=r'pip install "tritonconv\[images\]"'):
            read()
