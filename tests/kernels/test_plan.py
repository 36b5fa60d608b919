"""Passes of chains that are replayed from plans: the same bits, and only where nothing changed."""

import contextlib
import copy
import gc
import itertools
import random
import sys
import weakref

import pytest
import torch
import tritonconv
from beside import beside
from launched import by_triton, launched, on_stub, repeats, stub, torchs
from torch import nn
from torch.nn.utils import parametrizations
from torch.profiler import ProfilerActivity, profile
from tritonconv import ConvBNReLU, _chain, _launch, _plan, as_torch, conv_bn_relu, fuse
from tritonconv._remembered import Remembered
from tritonconv._sharing import sharing_memory
from tritonconv._signature import signature
from tritonconv._steps import Allocate, Place, Start
from tritonconv.conv import dispatch
from tritonconv.nets.mobilenet_v2 import InvertedResidual
from tritonconv.nets.resnet import BasicBlock, Bottleneck


def stem(act):
    conv = tritonconv.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
    return nn.Sequential(conv, tritonconv.BatchNorm2d(8), act())


def without_norm(c_in, *acts):
    convs = (tritonconv.Conv2d(c_in if i == 0 else 8, 8, 3, padding=1) for i in range(len(acts)))
    return nn.Sequential(*itertools.chain.from_iterable(zip(convs, acts, strict=True)))


class PreActivated(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.bn1, self.conv1 = tritonconv.BatchNorm2d(8), tritonconv.Conv2d(8, inner, 1, bias=False)
        self.bn2, self.conv2 = tritonconv.BatchNorm2d(inner), tritonconv.Conv2d(inner, 8, 3, 1, 1)
        self.act = nn.SiLU()

    def forward(self, x):
        return self.conv2(self.act(self.bn2(self.conv1(self.act(self.bn1(x)))))) + x


TRUNKS = {
    "ResNet": lambda: nn.Sequential(
        stem(nn.ReLU), BasicBlock(8, 8), BasicBlock(8, 6, 2), BasicBlock(6, 6)
    ),
    "ResNet of bottlenecks": lambda: nn.Sequential(
        stem(nn.ReLU), Bottleneck(8, 2), Bottleneck(8, 2, 2), Bottleneck(8, 2)
    ),
    "MobileNetV2": lambda: nn.Sequential(
        stem(nn.ReLU6), InvertedResidual(8, 8, 1, 1), InvertedResidual(8, 6, 2, 2),
        InvertedResidual(6, 6, 1, 2),
    ),
    "without batch norm": lambda: nn.Sequential(
        without_norm(3, nn.ReLU(), nn.LeakyReLU()), nn.Tanh(),
        without_norm(8, nn.SiLU(), nn.Sigmoid()), nn.Tanh(),
        without_norm(8, nn.GELU()), nn.Tanh(), without_norm(8, nn.ReLU6(), nn.Identity()),
    ),
    "pre-activation": lambda: nn.Sequential(
        stem(nn.Hardswish), PreActivated(4), PreActivated(5), PreActivated(6)
    ),
}  # fmt: skip


def made(model: nn.Module, device: str) -> nn.Module:
    """model in float64, its batch norms not the identity."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return model.double().to(device)


def images(device, *shape):
    return torch.randn(shape or (2, 3, 8, 8), dtype=torch.float64, device=device)


@pytest.fixture
def replays(monkeypatch) -> list:
    """The plans of chains that are replayed from here on; operators' own are not counted."""
    seen, call = [], _plan.Plan.__call__

    def counted(plan, tensors):
        chains = [chain for chain in _chain.CHAINS.values() if chain is not None]
        if any(plan is other for chain in chains for other in chain.plans.values()):
            seen.append(plan)
        return call(plan, tensors)

    monkeypatch.setattr(_plan.Plan, "__call__", counted)
    return seen


@pytest.fixture(autouse=True)
def no_chains():
    _chain.CHAINS.clear()


def step(model, x, residual=None, autocast=False) -> list[torch.Tensor]:
    """Output, gradients and buffers."""
    model.zero_grad()
    x = x.detach().clone().requires_grad_()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
        y = model(x) if residual is None else model(x, residual)
    y.float().square().sum().backward() if autocast else y.square().sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [t.detach().clone() for t in (y, x.grad, *gradients, *model.buffers())]


def assert_repeats(a: list[torch.Tensor], b: list[torch.Tensor]) -> None:
    for actual, expected in zip(a, b, strict=True):
        assert repeats(actual, expected)
        assert (actual.stride(), actual.dtype) == (expected.stride(), expected.dtype)


def assert_steps_as_torch(model, twin, x) -> None:
    """Only to the same shapes on the stub, whose numbers are nobody's and which has no cuDNN."""
    actual = step(model, x)
    if stub() is None:
        torch.testing.assert_close(actual, step(twin, x), rtol=1e-9, atol=1e-9)
    else:
        trained = [p for p in model.parameters() if p.requires_grad]
        shapes = [t.shape for t in (x, *trained, *model.buffers())]
        assert [t.shape for t in actual[1:]] == shapes


def assert_right(model, x) -> None:
    """In a first call, a recorded one, and a replayed one."""
    for _ in range(3):
        assert_steps_as_torch(copy.deepcopy(model), as_torch(copy.deepcopy(model)), x)


@pytest.mark.parametrize("recompute", [False, True], ids=["", "recompute"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", TRUNKS)
def test_replayed_network_gives_the_same_bits(name, layout, recompute, device, replays):
    model = fuse(made(TRUNKS[name](), device).to(memory_format=layout), recompute)
    x = images(device).contiguous(memory_format=layout)
    first, recorded = (step(copy.deepcopy(model), x) for _ in range(2))
    assert not replays
    replayed = step(copy.deepcopy(model), x)
    assert len(replays) >= 4  # the forward and the backward of two chains at least
    assert_repeats(recorded, first)
    assert_repeats(replayed, first)
    assert_right(model, x)


@pytest.mark.parametrize("name", TRUNKS)
def test_replayed_network_under_autocast(name, device, replays):
    """Weights are cast inside, and gradients leave in the parameters' dtype."""
    model = fuse(made(TRUNKS[name](), device).float()).to(memory_format=torch.channels_last)
    x = images(device).float().contiguous(memory_format=torch.channels_last)
    first, recorded, replayed = (step(copy.deepcopy(model), x, autocast=True) for _ in range(3))
    # forward and backward of the stem and of each block; ResNet's blocks in a row are one
    assert len(replays) == (4 if name.startswith("ResNet") else 8)
    assert_repeats(recorded, first)
    assert_repeats(replayed, first)
    assert all(g.dtype == torch.float32 for g in replayed[1 : 2 + len(list(model.parameters()))])


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("activation", ["relu", "relu6", None])
def test_replayed_module_with_a_residual(activation, residual, training, device, replays):
    model = made(nn.Sequential(ConvBNReLU(3, 4, 3, bias=True, activation=activation)), device)
    model = model[0].train(training)
    x = images(device)
    added = images(device, 2, 4, 6, 6) if residual else None
    first, recorded, replayed = (step(copy.deepcopy(model), x, added) for _ in range(3))
    assert len(replays) == 2
    assert_repeats(recorded, first)
    assert_repeats(replayed, first)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_replayed_function(training, device, replays):
    w, scale, shift = images(device, 4, 3, 3, 3), images(device, 4), images(device, 4)
    x, results = images(device), []
    for _ in range(3):
        mean, var = torch.zeros_like(scale), torch.ones_like(scale)
        y = conv_bn_relu(x, w, None, mean, var, scale, shift, training=training, momentum=0.3)
        results.append([y, mean, var])
    assert len(replays) == 1
    assert_repeats(results[1], results[0])
    assert_repeats(results[2], results[0])


def test_residual_that_is_the_input_is_right(device, replays):
    """One tensor in two roles names two slots: no plan stands for it."""
    x, w = images(device, 2, 3, 8, 8), images(device, 3, 3, 3, 3)
    ys = [conv_bn_relu(x, w, padding=1, training=True, residual=x) for _ in range(4)]
    assert not replays
    other = conv_bn_relu(x, w, padding=1, training=True, residual=x.clone())
    assert all(repeats(y, other) for y in ys)


@pytest.mark.parametrize("frozen", ["conv1.weight", "bn2.weight", "conv", "all but the last"])
def test_some_gradients(frozen, device):
    model = fuse(made(nn.Sequential(Bottleneck(3, 2)), device))
    for name, p in model.named_parameters():
        p.requires_grad_(
            name[-12:] == "bn3.bias" if frozen == "all but the last" else frozen not in name
        )
    assert_right(model, images(device))


def test_gradients_that_are_asked_for_one_by_one(device):
    """A backward of its own for each set, from one forward."""
    model = fuse(made(nn.Sequential(BasicBlock(3, 3)), device))
    x = images(device).requires_grad_()
    names = dict(model.named_parameters())
    for _ in range(3):
        y = model(x).square().sum()
        whole = torch.autograd.grad(y, [x, *names.values()], retain_graph=True)
        for i, p in enumerate([x, *names.values()]):
            (alone,) = torch.autograd.grad(y, p, retain_graph=True)
            assert repeats(alone, whole[i])


def test_second_gradients_after_plans(device, replays):
    model = fuse(made(nn.Sequential(BasicBlock(3, 3)), device))
    twin = as_torch(copy.deepcopy(model))
    x = images(device)
    for _ in range(3):
        assert_steps_as_torch(model, twin, x)

    def second(net):
        given = x.clone().requires_grad_()
        (dx,) = torch.autograd.grad(net(given).square().sum(), given, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), [given, *net.parameters()])

    assert replays
    if stub() is None:
        torch.testing.assert_close(second(model), second(twin), rtol=1e-7, atol=1e-7)
    else:
        assert len(second(model)) == 1 + len(list(model.parameters()))


def transpose(model):
    """At the same address, of the same shape, in another order."""
    w = model[0].conv2.weight
    w.data = w.data.transpose(0, 1)


def move(model):
    model[0].conv1.weight.data = model[0].conv1.weight.data.clone()


def misalign(model):
    w = model[0].bn1.weight
    w.data = torch.cat((w.data, w.data))[1 : 1 + len(w)].clone()[:]
    w.data = torch.cat((w.data[:1], w.data))[1:]


def reformat(model):
    model.to(memory_format=torch.channels_last)


def freeze(model):
    model[0].conv2.weight.requires_grad_(False)


def hook(model):
    model[0].conv1.register_forward_hook(lambda module, given, y: 2 * y)


def parametrize(model):
    parametrizations.weight_norm(model[0].conv2)


def remember_more(model):
    model[0].bn1.momentum = 0.7


def average(model):
    model[0].bn2.momentum = None


def change_eps(model):
    model[0].bn2.eps = 0.1


def stop_tracking(model):
    model[0].bn1.track_running_stats = False


def evaluate(model):
    model.eval()


def evaluate_one(model):
    model[0].bn1.eval()


CHANGES = (
    transpose, move, misalign, reformat, freeze, hook, parametrize, remember_more, average,
    change_eps, stop_tracking, evaluate, evaluate_one,
)  # fmt: skip


@pytest.mark.filterwarnings("ignore:.* runs unfused")
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_changes_between_calls_is_seen(change, device, replays):
    model = fuse(made(nn.Sequential(BasicBlock(3, 3)), device))
    twin = as_torch(copy.deepcopy(model))
    x = images(device)
    for _ in range(3):
        assert_steps_as_torch(model, twin, x)
    assert len(replays) == 2
    change(model), change(twin)
    for _ in range(4):
        assert_steps_as_torch(model, twin, x)


def test_autocast_is_switched_between_calls(device):
    model = fuse(made(nn.Sequential(BasicBlock(3, 3)), device).float())
    x = images(device).float()
    expected = [step(copy.deepcopy(model), x, autocast=on) for on in (False, True)]
    for _ in range(3):
        for on in (True, False):
            assert_repeats(step(copy.deepcopy(model), x, autocast=on), expected[on])


def test_dtype_is_changed_between_calls(device):
    model = fuse(made(nn.Sequential(BasicBlock(3, 3)), device))
    for dtype in (torch.float64, torch.float32, torch.float16) * 3:
        model.to(dtype)
        results = step(model, images(device).to(dtype))
        assert {t.dtype for t in results if t.is_floating_point()} == {dtype}


def test_forced_families_are_in_no_other_plan(device, replays):
    """Nor is a choice that was made before choices were forgotten."""
    model = fuse(made(nn.Sequential(BasicBlock(3, 3)), device))
    for context in (contextlib.nullcontext(), dispatch.force_family("general")):
        replays.clear()
        with context:
            for _ in range(3):
                step(model, images(device))
        assert len(replays) == 2
    dispatch.forget()
    step(model, images(device))
    assert len(replays) == 2


@pytest.mark.filterwarnings("ignore:.*Profiler")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("who", ["profiler", "explain", "compile"])
def test_who_looks_on_sees_no_plan(who, device, replays):
    model = fuse(made(nn.Sequential(BasicBlock(3, 3)), device))
    x = images(device)
    step(model, x), step(model, x)
    for _ in range(3):
        if who == "profiler":
            if stub() is not None:
                pytest.skip("the stub has no profiler")
            with profile(activities=[ProfilerActivity.CPU]) as seen:
                step(model, x)
            assert any("tritonconv::conv2d_stats" in event.key for event in seen.key_averages())
        elif who == "explain":
            assert sum(launch.choice is not None for launch in tritonconv.explain(model, x)) > 2
        else:
            torch.compile(model, backend="aot_eager")(x)
    assert not replays


def test_saved_tensors_may_come_back_laid_out_otherwise(device):
    """As torch.autograd.graph.save_on_cpu gives them."""
    model = fuse(
        made(nn.Sequential(BasicBlock(3, 3)), device).to(memory_format=torch.channels_last)
    )
    x = images(device).contiguous(memory_format=torch.channels_last)
    expected = [step(copy.deepcopy(model), x) for _ in range(3)][-1]
    for _ in range(4):
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: t.contiguous().clone(), lambda t: t
        ):
            actual = step(copy.deepcopy(model), x)
        assert all(repeats(a, e) for a, e in zip(actual, expected, strict=True))


@pytest.mark.parametrize("momentum", [0.1, 0.25, None])
def test_running_statistics_are_moved_and_counted(momentum, device, replays):
    module = made(nn.Sequential(ConvBNReLU(3, 4, 3, momentum=momentum)), device)[0]
    twin = as_torch(copy.deepcopy(module))
    before = module.bn.running_mean._version
    for i in range(1, 6):
        x = images(device)
        module(x)
        assert module.bn.num_batches_tracked == i or stub() is not None
        if stub() is None:
            twin.bn(twin.conv(x))
            for ours, theirs in zip(module.buffers(), twin.buffers(), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert len(replays) == 3
    assert module.bn.running_mean._version >= before + 5  # what else uses it is told


def test_inference_mode(device):
    """Its tensors have no versions to tell anybody."""
    with torch.inference_mode():
        module, x = ConvBNReLU(3, 4, 3).to(device), images(device).float()
        layer = tritonconv.BatchNorm2d(3).to(device)
        for _ in range(4):
            assert module(x).is_inference()
            assert layer(x).is_inference()
    assert module.bn.num_batches_tracked == 4 or stub() is not None


def test_chains_and_plans_are_bounded(device, monkeypatch):
    monkeypatch.setattr(_chain.CHAINS, "most", 3)
    module = ConvBNReLU(3, 4, 3).to(device)
    for size in (5, 6, 7, 8, 9, 5, 6):
        for _ in range(3):
            assert module(torch.randn(2, 3, size, size, device=device)).shape[2] == size - 2
        assert len(_chain.CHAINS) <= 3


def test_models_go_and_leave_nothing(device):
    """Plans hold neither modules nor tensors, and models alike share them."""
    models = 1000 if not _launch.INTERPRETED else 40
    x = torch.randn(2, 1, 2, 2, device=device)

    def make():
        model = fuse(nn.Sequential(tritonconv.Conv2d(1, 1, 1), tritonconv.BatchNorm2d(1))).to(
            device
        )
        model(x).sum().backward()
        return [weakref.ref(t) for t in (model, *model.parameters(), *model.buffers())]

    make(), make()
    gc.collect()
    held = sum(type(o) in (torch.Tensor, nn.Parameter) for o in gc.get_objects())
    gone = [ref for _ in range(models) for ref in make()]
    gc.collect()
    assert not any(ref() is not None for ref in gone)
    assert sum(type(o) in (torch.Tensor, nn.Parameter) for o in gc.get_objects()) <= held
    assert len(_chain.CHAINS) == 1


def test_threads_replay_beside_each_other(device):
    model = fuse(made(nn.Sequential(BasicBlock(3, 3)), device))
    x = images(device)
    expected = step(copy.deepcopy(model), x)
    copies = [copy.deepcopy(model) for _ in range(3)]

    def work(own):
        fresh = copy.deepcopy(own)
        assert_repeats(step(fresh, x), expected)

    beside(*(lambda own=own: work(own) for own in copies), seconds=1.0)


@on_stub
@pytest.mark.parametrize("name", TRUNKS)
@pytest.mark.parametrize("channels", [64, 6])
def test_straight_steps_launch_what_steps_one_by_one_do(
    name, channels, device, monkeypatch, replays
):
    """Byte for byte: every parameter, grid and stream, from memory at the same addresses."""
    blocks = {
        "ResNet": lambda: BasicBlock(channels, channels),
        "ResNet of bottlenecks": lambda: Bottleneck(channels, channels, 2),
        "MobileNetV2": lambda: TRUNKS["MobileNetV2"]()[1],
        "without batch norm": lambda: without_norm(channels, nn.ReLU(), nn.SiLU(), nn.Sigmoid()),
        "pre-activation": lambda: PreActivated(channels),
    }
    channels = 8 if name in ("MobileNetV2", "pre-activation") else channels
    model = fuse(nn.Sequential(blocks[name]()).to(device)).to(memory_format=torch.channels_last)
    x = torch.zeros(4, channels, 16, 16, device=device).contiguous(
        memory_format=torch.channels_last
    )

    def call():
        step(model, x, autocast=True)

    call(), call(), call()
    assert all(plan.straight for plan in replays)
    straight = launched(call)
    by_triton(monkeypatch)
    assert straight == launched(call)
    assert len(straight) > 8
    assert all(launch.parameters for launch in straight)


@on_stub
def test_plans_are_replayed_while_a_graph_is_captured(device, replays):
    model = fuse(nn.Sequential(BasicBlock(8, 8)).to(device))
    x = torch.zeros(2, 8, 8, 8, device=device)
    for _ in range(3):
        step(model, x)
    replays.clear()
    expected = launched(lambda: step(model, x))
    graph, captured = torch.cuda.CUDAGraph(), []
    with torch.cuda.graph(graph):
        captured += launched(lambda: step(model, x))
    assert len(replays) == 4
    assert [launch.function for launch in captured] == [launch.function for launch in expected]
    assert len({launch.stream for launch in captured}) == 1


ELSEWHERE = torch.ones(())


def plan_of(function, *tensors) -> tuple[list, _plan.Plan | None]:
    plans = Remembered(4)
    with torch.no_grad():
        results = [_plan.planned(plans, "key", function, tensors) for _ in range(4)]
    return results, plans["key"]


def test_plan_of_torchs_steps(device):
    """Copies, views, what is written in place, lists; and what nothing reads any more goes."""

    def function(x, y):
        z = x.t().contiguous()
        first, second = z.unbind()
        z[0].add_(second)
        return torch.stack([first, y]), z[1:], None

    x, y = torch.randn(3, 2, device=device), torch.randn(3, device=device)
    results, plan = plan_of(function, x, y)
    for stacked, rest, nothing in results:
        assert nothing is None
        assert repeats(stacked, results[0][0])
        assert repeats(rest, results[0][1])
        assert rest.stride() == results[0][1].stride()
    assert plan.steps
    replayed = plan((x + 1, y))
    assert repeats(replayed[0], function(x + 1, y)[0])


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x * x.sum().item(),),
        lambda x: (x.view(torch.int32).clone(),),
        lambda x: (x + ELSEWHERE,),
    ],
    ids=["a number that is read", "another dtype", "a tensor from elsewhere"],
)
def test_what_steps_cannot_say_has_no_plan(function, device):
    results, plan = plan_of(function, torch.randn(3, device=device))
    assert plan is _plan.NO_PLAN
    assert all(repeats(y, results[0][0]) for (y,) in results)


@pytest.mark.parametrize(
    "odd",
    [
        lambda x: torch._neg_view(x),
        lambda x: nn.UninitializedParameter(),
        lambda x: x.to("meta"),
        lambda x: x[:0],
        lambda x: torch._efficientzerotensor((3,)),
    ],
    ids=["negated", "uninitialised", "meta", "empty", "zero"],
)
def test_tensors_that_are_not_what_their_memory_holds_have_no_signature(odd, device):
    x = torch.randn(3, device=device)
    for _ in range(2):
        assert signature(0, (x, x.clone())) == signature(0, (x.clone(), x))
        assert signature(0, (x, odd(x))) is None


def test_what_is_used_at_once_lies_apart():
    """Allocations of random sizes and lives, of which some are not the plan's alone."""
    generator = random.Random(0)
    for _ in range(50):
        steps, ends = [], {}
        for i in range(40):
            ends[i] = generator.randint(2 * i, 90)
            size = (generator.choice((1, 300, 5000, 2**23)),)
            steps.append(Allocate(i, size, (1,), torch.float32, torch.device("cpu")))
            used = tuple(Place(slot) for slot, end in ends.items() if end >= 2 * i)
            steps.append(Start(None, 1, used, (), {}, None, None))
        results = (Place(3), Place(20, 8, ((1,), (1,), 2)))
        first, *shared = sharing_memory(steps, 40, results, True)
        assert first.size[0] < sum(4 * step.size[0] for step in steps[::2])
        moved = set()
        for step in shared:
            if isinstance(step, Start):
                places = [p for p in step.args if p.slot == 40]
                spans = sorted((p.offset, p.offset + 4 * p.view[0][0]) for p in places)
                assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))
                assert all(end <= first.size[0] for _, end in spans)
                moved |= {p.offset for p in places}
        assert moved
        left = {step.slot for step in shared if isinstance(step, Allocate)}
        assert {3, 20} <= left
        assert all(steps[2 * slot].size[0] == 2**23 for slot in left - {3, 20})


@on_stub
def test_step_of_a_bottleneck_costs_the_host_little(device):
    """Kernels, torch's kernels, copies, and calls of Python functions: a budget, not a timing."""
    model = fuse(nn.Sequential(Bottleneck(256, 64)).to(device)).to(
        memory_format=torch.channels_last
    )
    x = torch.zeros(16, 256, 28, 28, device=device, dtype=torch.bfloat16)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    dy = torch.zeros_like(x)
    torch.use_deterministic_algorithms(False)  # which fill memory
    calls = 0

    def seen(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    def call():
        with torch.autocast(device, torch.bfloat16):
            y = model(x)
        y.backward(dy)

    for _ in range(4):
        call()
    before = torchs()
    with torch.autograd.set_multithreading_enabled(False):
        launches = launched(lambda: (sys.setprofile(seen), call(), sys.setprofile(None)))
    kernels, copies = (now - then for now, then in zip(torchs(), before, strict=True))
    assert len(launches) == 23
    assert kernels <= 11  # one casts the weights, the others add gradients to those of before
    assert copies == 0
    assert calls <= (800 if _plan.c_form() else 1600)  # more through launchers in Python


@pytest.mark.parametrize("way", ["straight", "one by one"])
def test_a_replay_keeps_nothing_alive(way, device, monkeypatch):
    """Nor does it need the garbage collector to let go."""
    x = torch.randn(2, 3, 8, 8, device=device)
    for _ in range(3):
        tritonconv.avg_pool2d(x, 2)
    if way == "one by one":
        by_triton(monkeypatch)
    gc.collect()
    gc.disable()
    try:
        given = x.clone()
        gone = weakref.ref(given), weakref.ref(tritonconv.avg_pool2d(given, 2))
        del given
        assert gone[0]() is None
        assert gone[1]() is None
    finally:
        gc.enable()
