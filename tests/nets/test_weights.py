import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from tritonconv import as_torch
from tritonconv.nets import LeNet, googlenet, resnet18
from tritonconv.nets.__main__ import main
from tritonconv.nets.recipes import RECIPES
from tritonconv.nets.training import checkpoint
from tritonconv.nets.training.data import Dataset, Split
from tritonconv.nets.training.run import Run
from tritonconv.nets.training.saved import About, read_weights
from tritonconv.nets.training.step import Learner
from tritonconv.nets.training.transforms import View
from tritonconv.nets.training.weights import freeze, load_weights


def saved(tmp_path: Path, model: nn.Module) -> Path:
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def filled(make: Callable[..., nn.Module], num_classes: int) -> nn.Module:
    """With random weights, sooner than the constructor has them."""
    with torch.device("meta"):
        model = make(num_classes=num_classes)
    for value in model.to_empty(device="cpu").state_dict().values():
        value.copy_(torch.rand(value.shape))
    return model


@pytest.mark.parametrize(
    ("make", "head"),
    [
        (resnet18, ["fc.weight", "fc.bias"]),
        (LeNet, ["fc3.weight", "fc3.bias"]),
        # three heads, of which two serve in training
        (googlenet, [f"{name}.{part}" for name in ("aux1.fc2", "aux2.fc2", "fc") for part in ("weight", "bias")]),
    ],
)  # fmt: skip
def test_weights_come_with_their_head_or_a_new_one(tmp_path, make, head):
    torch.manual_seed(1)
    path, theirs = saved(tmp_path, model := filled(make, 7)), model.state_dict()
    same, other = filled(make, 7), filled(make, 3)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    assert load_weights(same, path, new_head=False) == []
    assert all(torch.equal(value, theirs[name]) for name, value in same.state_dict().items())
    with pytest.raises(ValueError, match=r"for 3 classes, got 7 in .*; --num-classes 3 replaces"):
        load_weights(other, path, new_head=False)
    assert sorted(load_weights(other, path, new_head=True)) == sorted(head)
    for name, value in other.state_dict().items():
        assert torch.equal(value, (before if name in head else theirs)[name])


def test_weights_of_a_checkpoint_are_the_averaged_ones(tmp_path):
    splits = [Split(torch.rand(n, 1, 28, 28), torch.arange(n)) for n in (4, 2)]
    recipe = RECIPES["lenet"]._replace(batch_size=4, epochs=1, ema=0.9)
    run = Run([as_torch(LeNet())], Dataset(*splits), recipe, 0)
    list(run.epochs())
    about = About(recipe, "digits", tuple("0123456789"), View())
    checkpoint.save(tmp_path / "checkpoint.pt", run, {}, about)
    found = read_weights(tmp_path / "checkpoint.pt")
    (learner,) = run.learners
    for name, value in learner.average.state_dict().items():
        assert torch.equal(found[name], value)
        assert not torch.equal(found[name], learner.model.state_dict()[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {**w, "more": torch.zeros(1)}, "this network, got another's: more and 0 others"),
        (lambda w: {**w, "conv1.weight": torch.zeros(6, 3, 5, 5)}, r"the shape \[6, 1, 5, 5\]"),
        (lambda w: list(w.values()), "expected weights, got another kind of file"),
        (lambda w: {**w, "more": 3}, "save a state_dict by torch.save"),
    ],
)
def test_other_weights_are_refused(tmp_path, change, message):
    path = tmp_path / "weights.pth"
    torch.save(change(dict(LeNet().state_dict())), path)
    with pytest.raises(ValueError, match=message):
        load_weights(LeNet(), path, new_head=True)


def test_freeze_keeps_what_comes_before_its_part_and_its_statistics(device):
    model = resnet18(num_classes=4)
    before = sum(
        p.numel() for n, p in model.named_parameters() if not n.startswith(("layer4", "fc"))
    )
    assert freeze(model, "layer4") == before
    learner = Learner(model, RECIPES["imagenet-resnet50"], torch.device("cpu"))
    learner.train()
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.training == name.startswith("layer4")
    frozen = {id(p) for p in model.parameters() if not p.requires_grad}
    held = [p for group in learner.optimizer.param_groups for p in group["params"]]
    assert frozen.isdisjoint(map(id, held))
    assert len(frozen) + len(held) == len(list(model.parameters()))
    for name in ("layer5", "conv1", "layer"):
        with pytest.raises(ValueError, match=f"--freeze {name}: .* one of bn1, layer1, .* fc$"):
            freeze(resnet18(), name)


def test_a_training_begins_with_weights_and_keeps_what_is_frozen(
    write_idx_set, tmp_path, capsys, device
):
    torch.manual_seed(3)
    path, theirs = saved(tmp_path, model := LeNet(num_classes=4)), model.state_dict()
    argv = ["train", "lenet", "--activation", "sigmoid", "--epochs", "1", "--batch-size", "4",
            "--data", "fashion-mnist", "--data-dir", str(write_idx_set(train=4)),
            "--out", str(tmp_path / "out"), "--weights", str(path), "--freeze", "fc2"]  # fmt: skip
    with pytest.raises(SystemExit):
        main(argv)
    assert "--num-classes 10 replaces the head" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*argv, "--num-classes", "9"])
    assert "--num-classes must be at least 10, the data's; got 9" in capsys.readouterr().err
    main([*argv, "--num-classes", "12"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == [
        f"weights of {path}, but for fc3.weight, fc3.bias",
        f"{156 + 2416 + 48120} parameters before fc2 stay",
    ]
    learnt = torch.load(tmp_path / "out" / "weights.pt")
    assert learnt["fc3.weight"].shape == (12, 84)
    for name, value in theirs.items():
        if name.startswith(("conv", "fc1")):
            assert torch.equal(learnt[name], value)
        elif name.startswith("fc2"):
            assert not torch.equal(learnt[name], value)
            assert (learnt[name] - value).abs().max() < 0.01  # one step of Adam

    # the numbers from 10 on are classes without images
    names = (*(f for f in ("T-shirt/top", "Trouser")), "10", "11")
    assert set(names) < set(
        checkpoint.parts(tmp_path / "out" / "checkpoint.pt")["about"]["classes"]
    )
    main([*argv, "--num-classes", "12", "--resume"])
    assert "resumed after 1 epochs" in capsys.readouterr().out


def test_predict_prints_the_likeliest_classes(tmp_path, capsys, monkeypatch):
    Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    splits = [Split(torch.rand(n, 1, 28, 28), torch.arange(n)) for n in (4, 2)]
    run = Run([LeNet()], Dataset(*splits), RECIPES["lenet"], 0)
    about = About(RECIPES["lenet"], "digits", tuple("abcdefghij"), View())
    checkpoint.save(tmp_path / "checkpoint.pt", run, {}, about)
    model = about.make()
    model.load_state_dict(run.learners[0].model.state_dict())
    pixels = torch.randint(256, (2, 28, 28), dtype=torch.uint8)
    for i in range(2):
        Image.fromarray(pixels[i].numpy()).save(tmp_path / f"{i}.png")
    paths = [str(tmp_path / f"{i}.png") for i in (1, 0)]
    main(["predict", str(tmp_path / "checkpoint.pt"), *paths, "--device", "cpu"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[::6] == paths
    probabilities, places = model(pixels[1].view(1, 1, 28, 28) / 255).softmax(1)[0].topk(5)
    said = [line.split() for line in lines[1:6]]
    assert [name for _, name in said] == ["abcdefghij"[i] for i in places]
    assert [float(p) for p, _ in said] == pytest.approx(probabilities.tolist(), abs=1e-4)
    for bad, message in (("none.png", "none.png: cannot be read"), (__file__, "cannot be read")):
        with pytest.raises(SystemExit) as stopped:
            main(["predict", str(tmp_path / "checkpoint.pt"), bad])
        assert stopped.value.code == 2
        assert re.fullmatch(rf"tritonconv\.nets: error: .*{message}.*\n", capsys.readouterr().err)


def test_profile_writes_a_trace_and_a_table(write_idx_set, tmp_path, capsys):
    argv = ["train", "lenet", "--epochs", "1", "--batch-size", "2", "--profile", "1", "--data",
            "fashion-mnist", "--data-dir", str(write_idx_set()), "--out", str(tmp_path)]  # fmt: skip
    main(argv)
    assert f"trace    {tmp_path / 'trace.json'}" in capsys.readouterr().out
    assert "tritonconv::conv2d" in (tmp_path / "kernels.txt").read_text()
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    steps = {e["name"] for e in events if str(e.get("name", "")).startswith("ProfilerStep")}
    assert steps == {"ProfilerStep#2"}  # of the four
