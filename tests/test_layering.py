"""Import arrows run one way, and triton stays in the kernels."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# what each layer may import of the project: the layers before it
LAYERS = {
    "kernels/_interpreter.py": set(),
    "kernels/_launch.py": {"_interpreter"},
    "kernels/_later.py": set(),
    "kernels/_common.py": {"_later", "_launch", "_plan", "_signature"},
    "kernels/_signature.py": {"_launch", "_remembered"},
    "kernels/_remembered.py": set(),
    "kernels/_steps.py": {"_launch"},
    "kernels/_sharing.py": {"_steps"},
    "kernels/_record.py": {"_launch", "_steps"},
    "kernels/_straight.py": {"_launch", "_remembered", "_steps"},
    "kernels/_plan.py": {"_launch", "_record", "_remembered", "_sharing", "_steps", "_straight"},
    "kernels/_recall.py": {"_common", "_launch", "_plan", "_remembered", "_signature"},
    "kernels/_pool.py": {"_common", "_recall"},
    "kernels/_split.py": {"_common", "_later", "_launch"},
    "kernels/_conv.py": {"_common", "_recall", "conv"},
    "kernels/_ahead.py": {"_launch", "conv"},
    "kernels/_workers.py": set(),
    "kernels/conv/geometry.py": set(),
    "kernels/conv/precision.py": set(),
    "kernels/conv/problem.py": {"_common", "_launch", "geometry", "precision"},
    "kernels/conv/family.py": {"problem"},
    "kernels/conv/classes.py": {"problem"},
    "kernels/conv/tuned.py": {"problem"},
    "kernels/conv/measured/__init__.py": {"problem", "tuned"},
    "kernels/conv/box.py": set(),
    "kernels/conv/tma.py": {"_common", "general", "problem"},
    "kernels/conv/epilogue.py": {"_common", "norm"},
    "kernels/conv/flops.py": {"dgrad", "forward", "wgrad"},
}
OPERATOR = {"_common", "_launch", "_pool", "_recall", "_split"}
NORM = {"_common", "_launch", "_split", "activation", "normalise", "stats"}
# folders of kernels/conv
FAMILIES = {"boxes", "depthwise", "gemm", "general", "grouped", "stem", "stream", "toeplitz"}
# what a kernel of a family may import beside its own folder
FAMILY = {"_common", "_launch", "_split", "norm", "conv"} | {
    "box",
    "classes",
    "epilogue",
    "family",
    "geometry",
    "precision",
    "problem",
}
OPS = FAMILY | {"dispatch"}
# what runs modules as a chain of fused operators
FUSED = {
    "_block",
    "_chain",
    "_common",
    "_composed",
    "_conv",
    "_plan",
    "_split",
    "batch_norm",
    "conv_bn_relu",
} | {
    "conv_transpose2d",
    "modules",
    "norm",
}


def allowed(path: str) -> set[str]:
    if path in LAYERS:
        return LAYERS[path]
    if path.startswith("kernels/norm/"):
        return NORM | ({"backward"} if path.endswith("pair.py") else set())
    folder = Path(path).parent
    if folder.name in FAMILIES:
        # whose tiles, sizes, checks and copies serve other families
        shared = {"general", "gemm", "grouped", "tma"}
        return FAMILY | shared | {p.stem for p in (ROOT / folder).glob("*.py")}
    if path == "kernels/conv/dispatch.py":
        return FAMILY | FAMILIES | {"_plan", "measured", "tuned"}
    if path.startswith("kernels/conv/"):
        return OPS
    return {
        "kernels/__init__.py": {p.stem for p in ROOT.glob("kernels/[a-z]*.py")} | {"conv"},
        "kernels/explain.py": {"_launch", "conv", "twins"},
        "kernels/tune.py": {"_ahead", "_common", "_launch", "_workers", "conv", "explain"},
        "kernels/batch_norm.py": OPERATOR | {"_plan", "_signature", "norm"},
        "kernels/conv2d.py": OPERATOR | {"_conv", "conv"},
        "kernels/conv_transpose2d.py": OPERATOR | {"_conv", "conv", "conv2d"},
        "kernels/conv1d.py": {"_common", "conv2d", "conv_transpose2d"},
        "kernels/modules.py": {p.stem for p in ROOT.glob("kernels/[a-z]*.py")} | {"_common"},
        "kernels/_block.py": {"_common", "batch_norm", "conv", "norm"},
        "kernels/_block_backward.py": {"_block", "conv", "norm"},
        "kernels/_composed.py": {"_block", "batch_norm", "conv", "conv2d", "norm"},
        "kernels/_chain.py": {
            "_block",
            "_block_backward",
            "_common",
            "_composed",
            "_plan",
            "_remembered",
            "_signature",
            "_split",
            "conv",
            "norm",
        },
        "kernels/conv_bn_relu.py": {
            "_block",
            "_common",
            "_conv",
            "_chain",
            "_plan",
            "batch_norm",
            "conv2d",
            "norm",
        },
        "kernels/fused.py": FUSED,
        "kernels/_others.py": {"batch_norm", "modules"},
        "kernels/_source.py": {"fused"},
        "kernels/_reading.py": {"_others", "_source", "fused", "modules"},
        "kernels/_effects.py": {"_others", "_reading", "norm"},
        "kernels/_groups.py": {"_effects", "_others", "_reading", "fused", "modules", "norm"},
        "kernels/_stand_in.py": {"_effects", "_groups", "_others", "_reading", "fused"},
        "kernels/_check.py": {"_stand_in"},
        "kernels/fuse.py": {"_check", "_groups", "_reading", "_stand_in"},
        "kernels/fold.py": {
            "_groups",
            "_others",
            "_reading",
            "_source",
            "_stand_in",
            "fuse",
            "fused",
        },
        "kernels/twins.py": {"_others", "_stand_in", "modules"},
    }.get(path, OPERATOR)


def imports(path: Path) -> list[tuple[int, str]]:
    """(level, module) of every import; `from . import a` counts as module a."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found += [(node.level, name) for name in names]
    return found


KERNELS = sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("kernels/**/*.py"))
NETS = sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("nets/**/*.py"))


@pytest.mark.parametrize("path", KERNELS)
def test_kernels_import_only_earlier_layers(path):
    ours = {name.split(".")[0] for level, name in imports(ROOT / path) if level > 0}
    assert ours <= allowed(path)
    assert not [n for level, n in imports(ROOT / path) if level == 0 and n.startswith("tritonconv")]


@pytest.mark.parametrize("path", NETS)
def test_nets_import_only_public_names_and_no_triton(path):
    for level, name in imports(ROOT / path):
        if level == 0:
            assert name.split(".")[0] != "triton"
            assert not name.startswith("tritonconv.") or name.startswith("tritonconv.nets")


@pytest.mark.parametrize("path", KERNELS + NETS)
def test_product_does_not_import_what_measures_or_tests_it(path):
    roots = {name.split(".")[0] for level, name in imports(ROOT / path) if level == 0}
    assert not roots & {"benchmarks", "tests", "reference", "pytest"}


def calls(path: Path) -> set[str]:
    """Dotted names of everything called in a file."""
    return {
        ast.unparse(node.func)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    }


@pytest.mark.parametrize("path", KERNELS + NETS)
def test_product_calls_no_torch_convolution_pooling_or_batch_norm(path):
    forbidden = ("conv", "pool", "batch_norm", "unfold", "BatchNorm", "Conv", "Pool")
    for name in calls(ROOT / path):
        owner, _, last = name.rpartition(".")
        if owner in (
            "F",
            "nn",
            "torch",
            "torch.nn",
            "nn.functional",
            "torch.nn.functional",
            "torch.ops.aten",
        ):
            assert not any(word in last for word in forbidden), name
