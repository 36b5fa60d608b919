"""explain() tells what would run, runs nothing, and changes nothing."""

import copy
import threading

import pytest
import torch
import tritonconv
from beside import beside
from tritonconv import explain, force_family
from tritonconv.nets.resnet import BasicBlock


def test_explain_names_each_pass_and_its_family(device):
    x = torch.randn(2, 4, 8, 8, device=device, requires_grad=True)
    w = torch.randn(4, 1, 3, 3, device=device, requires_grad=True)
    found = explain(tritonconv.conv2d, x, w, padding=1, groups=4)
    choices = [launch.choice for launch in found if launch.choice]
    assert [c.problem.work for c in choices] == ["forward", "dgrad", "wgrad"]
    assert {c.family.name for c in choices} == {"columns"}
    assert "forward of x [2, 4, 8, 8], w [4, 1, 3, 3]" in str(found)
    assert "columns Walk(rows=" in str(found)
    assert x.grad is None


def test_explain_says_why_not(device):
    x, w = torch.randn(1, 5, 8, 8, device=device), torch.randn(5, 5, 3, 3, device=device)
    (launch,) = explain(tritonconv.conv2d, x, w)
    assert launch.choice.family.name == "general"
    assert "not depthwise: it takes one channel a group, in and out" in str(launch)


def test_explain_shows_what_is_forced(device):
    x, w = torch.randn(1, 4, 8, 8, device=device), torch.randn(4, 1, 3, 3, device=device)
    with force_family("general"):
        (launch,) = explain(tritonconv.conv2d, x, w, groups=4)
    assert launch.choice.family.name == "general"


def test_explain_a_module_changes_nothing(device):
    block = tritonconv.fuse(BasicBlock(4, 4)).to(device)
    before = copy.deepcopy(block.state_dict())
    x = torch.randn(2, 4, 8, 8, device=device)
    found = explain(block, x)
    works = [launch.choice.problem.work for launch in found if launch.choice]
    assert sorted(works) == ["dgrad", "forward", "forward", "wgrad", "wgrad"]
    assert "_batch_norm_bwd_kernel" in [launch.kernel for launch in found]
    after = block.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None for p in block.parameters())
    assert torch.isfinite(block(x)).all()  # kernels run again


def test_explain_tells_what_is_torchs(device):
    x = torch.randn(1, 4, 8, 8, device=device)
    model = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3), tritonconv.Conv2d(4, 4, 3)).to(device)
    of_torch = "a torch.nn.modules.conv.Conv2d, which torch computes; convert() makes it ours"
    assert str(explain(model, x)).endswith(f"\n0 is {of_torch}")
    assert str(explain(model[0], x)) == f"it is {of_torch}"
    assert explain(model[1], x).of_torch == []


def test_explain_beside_other_threads(device):
    """Theirs run; only its own are recorded, in the backward too."""
    layer = tritonconv.Conv2d(4, 4, 3).to(device)
    x, w = torch.randn(1, 4, 6, 6, device=device), torch.randn(2, 4, 3, 3, device=device)
    right = tritonconv.conv2d(x, w)

    def work():
        found = explain(layer, x.requires_grad_())
        works = [launch.choice.problem.work for launch in found if launch.choice]
        assert works == ["forward", "dgrad", "wgrad"]

    def convolve():
        assert torch.equal(tritonconv.conv2d(x.detach(), w), right)

    beside(work, convolve, convolve)


def test_force_family_is_of_one_context(device):
    """Others are served as always, and remember their own choice."""
    x = torch.randn(1, 4, 8, 8, device=device, requires_grad=True)
    w = torch.randn(4, 1, 3, 3, device=device, requires_grad=True)

    def served(family):
        found = explain(tritonconv.conv2d, x, w, groups=4)
        names = {launch.choice.family.name for launch in found if launch.choice}
        assert names == {family}

    def forced():
        with force_family("general"):
            served("general")
        served("columns")

    beside(forced, lambda: served("columns"), lambda: served("columns"))


def test_backward_of_a_context_runs_in_it(device):
    """Whichever thread autograd would have taken: those of a GPU's have no part in contexts."""
    threads = []
    x = torch.randn(1, 4, 6, 6, device=device, requires_grad=True)
    with force_family("general"):
        y = tritonconv.max_pool2d(x * 1, 2)
        y.register_hook(lambda dy: threads.append(threading.get_ident()))
        y.sum().backward()
        assert not torch._C._is_multithreading_enabled()
    assert threads == [threading.get_ident()]
    assert torch._C._is_multithreading_enabled()


def test_explain_refuses_other_functions():
    with pytest.raises(TypeError, match=r"operator of tritonconv or a module, got .*lambda"):
        explain(lambda x: x, torch.ones(1))
