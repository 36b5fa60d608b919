"""Sums of what a reduction was split into."""

import pytest
import torch
import tritonconv
from launched import of_numbers, repeats
from tritonconv import _split
from tritonconv._launch import recording
from tritonconv.conv.dispatch import force_family


def parts(splits, numel, device, dtype=torch.float32):
    return torch.randn(splits, numel).to(device, dtype)


@of_numbers
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("numel", [1, 48, 1300])
@pytest.mark.parametrize("splits", [1, 5, 16, 17, 300])
def test_a_sum_of_splits_equals_torchs(splits, numel, dtype, device):
    partial = parts(splits, numel, device, _split.sum_dtype(dtype))
    ours = [
        _split.add_splits(partial, torch.empty(numel, dtype=dtype, device=device)) for _ in range(2)
    ]
    expected = partial.cpu().double().sum(0).to(dtype)
    atol = 1e-12 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(ours[0].cpu(), expected, rtol=torch.finfo(dtype).eps, atol=atol)
    assert repeats(*ours)


@of_numbers
@pytest.mark.parametrize("count", [1, 3, 8, 11])
def test_sums_taken_together_are_those_taken_alone(count, device):
    """Of any sizes, in as few launches as their dtypes and number allow."""
    sizes = [(17, 70), (2, 1300), (300, 8), (16, 33), (1, 5), (40, 2100)]
    sizes = [*sizes, *((3, 64 * i) for i in range(1, 6))][:count]
    given = [parts(*size, device) for size in sizes]
    dtypes = [torch.float16 if i == 2 else torch.float32 for i in range(count)]

    def empty():
        return [
            torch.empty(p.shape[1], dtype=d, device=device)
            for p, d in zip(given, dtypes, strict=True)
        ]

    alone = [_split.add_splits(p, out) for p, out in zip(given, empty(), strict=True)]
    outs, launches = empty(), []
    with _split.together():
        for p, out in zip(given, outs, strict=True):
            assert _split.add_splits_later(p, out) is out
    assert all(map(torch.equal, outs, alone))
    with recording(lambda kernel, *_: launches.append(kernel)), _split.together():
        for p, out in zip(given, outs, strict=True):
            _split.add_splits_later(p, out)
    kinds = [dtypes.count(dtype) for dtype in set(dtypes)]
    assert len(launches) == sum(-(-n // _split.AT_ONCE) for n in kinds)


def test_a_sum_is_taken_at_once_outside_and_after_a_failure(device):
    partial, out = parts(3, 8, device), torch.empty(8, device=device)

    def fail():
        with _split.together():
            _split.add_splits_later(partial, out)
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    launches = []
    with recording(lambda kernel, *_: launches.append(kernel)):
        _split.add_splits_later(partial, out)
    assert len(launches) == 1


def test_a_chain_adds_its_weights_gradients_in_one_launch(device, monkeypatch):
    monkeypatch.setattr(_split, "splits", lambda programs, steps, wanted: min(steps, 3))
    layers = []
    for c, co in ((8, 16), (16, 8), (8, 8)):
        conv = tritonconv.Conv2d(c, co, 1, bias=False)
        layers += [conv, tritonconv.BatchNorm2d(co), torch.nn.ReLU()]
    net = tritonconv.fuse(torch.nn.Sequential(*layers)).to(device)
    x = torch.randn(40, 8, 32, 32, device=device)
    launches = []
    with (
        force_family("general"),
        recording(lambda kernel, programs, *_: launches.append((kernel.__name__, programs))),
    ):
        net(x).sum().backward()
    names = [name for name, _ in launches]
    wgrads = [i for i, name in enumerate(names) if "wgrad" in name]
    assert len(wgrads) == 3
    assert names[wgrads[-1] + 1 :] == ["_add_several_splits_kernel"]
