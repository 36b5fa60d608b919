import pytest
import torch
from reference import assert_close, forward_backward, in_float64
from torch.nn import functional as F
from tritonconv import conv2d, corr2d


def matrix(rows, columns, **options):
    return torch.arange(float(rows * columns), **options).view(rows, columns)


def torch_corr2d(x, k):
    return F.conv2d(x[None, None], k[None, None])[0, 0]


def test_corr2d_of_the_textbook(device):
    y = corr2d(matrix(3, 3, device=device), matrix(2, 2, device=device))
    assert y.tolist() == [[19, 25], [37, 43]]


def test_corr2d_sums_over_channels_as_conv2d_does(device):
    x = torch.stack([matrix(3, 3, device=device), matrix(3, 3, device=device) + 1])
    k = torch.stack([matrix(2, 2, device=device), matrix(2, 2, device=device) + 1])
    y = sum(corr2d(*pair) for pair in zip(x, k, strict=True))
    assert y.tolist() == [[56, 72], [104, 120]]
    assert torch.equal(conv2d(x, k[None])[0], y)


def test_conv2d_stacks_kernels_into_outputs(device):
    x, k = matrix(3, 3, device=device), matrix(2, 2, device=device)
    y = conv2d(x[None], torch.stack([k, k + 1, k + 2])[:, None])
    assert torch.equal(y, torch.stack([corr2d(x, k + i) for i in range(3)]))


def test_corr2d_with_a_flipped_kernel_is_convolution(device):
    x, k = matrix(3, 3, device=device), matrix(2, 2, device=device)
    assert corr2d(x, k.flip(0, 1)).tolist() == [[5, 11], [23, 29]]


@pytest.mark.covers("forward", "gradients", operator="corr2d")
@pytest.mark.parametrize("shapes", [((7, 5), (3, 2)), ((4, 4), (4, 4)), ((1, 9), (1, 3))], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_corr2d_equals_torch(shapes, dtype, device):
    given = [torch.randn(shape).to(device, dtype) for shape in shapes]
    dy = torch.randn(corr2d(*given).shape).to(device, dtype)
    ours = forward_backward(corr2d, *given, dy=dy)
    expected = forward_backward(torch_corr2d, *in_float64(given), dy=dy.cpu().double())
    assert_close(ours, expected, 35)


@pytest.mark.covers("second gradients", operator="corr2d")
def test_corr2d_second_gradients(device):
    x, k = (
        torch.randn(*shape, dtype=torch.float64, device=device, requires_grad=True)
        for shape in ((4, 5), (2, 3))
    )
    assert torch.autograd.gradcheck(corr2d, (x, k), fast_mode=True)
    assert torch.autograd.gradgradcheck(corr2d, (x, k), fast_mode=True)


@pytest.mark.parametrize(
    ("x", "k", "error", "message"),
    [
        (
            torch.ones(2, 2),
            torch.ones(3, 1),
            RuntimeError,
            r"k must be .* got k \(3, 1\) for x \(2, 2\)",
        ),
        (torch.ones(2, 2), torch.ones(0, 1), RuntimeError, "k must be non-empty"),
        (torch.ones(1, 2, 2), torch.ones(1, 1), RuntimeError, "x must be 2-D"),
        (torch.ones(2, 2), torch.ones(1, 1).half(), RuntimeError, "same dtype and device"),
        (torch.ones(2, 2).int(), torch.ones(1, 1).int(), NotImplementedError, "got torch.int32"),
    ],
)
def test_corr2d_errors(x, k, error, message, device):
    with pytest.raises(error, match=f"corr2d: .*{message}"):
        corr2d(x.to(device), k.to(device))
