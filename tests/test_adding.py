"""The steps of CONTRIBUTING.md for a kernel, an operator and a model variant suffice: done on a copy.

Recipes, verbs and data sources have such tests of their own, in `recipes`, `cli` and `data`.
"""

import os
import shutil
from pathlib import Path

from preloaded import run_preloaded

PACKAGE = Path(__file__).parents[1] / "src/lambdanets"

KERNEL = '''
"""The definition under another name."""
from ..problem import Cost
from ..reference import gradients, output

NAME = "mine"

def unsupported(problem):
    return ["it serves one axis alone"] if len(problem.grid) > 1 else []

def cost(problem, *, backward=False):
    return Cost(flops=0, bytes=0, peak_bytes=0, seconds=0.0)
'''

OPERATOR = '''
"""A blur."""
from torch import nn

class Blur2d(nn.AvgPool2d):
    def __init__(self, dim, device=None, dtype=None):
        super().__init__(3, stride=1, padding=1)
'''

USE = """
import sys
import timm, torch, lambdanets
from lambdanets.cli import main

layers = [lambdanets.LambdaLayer1d(8, grid=5, kernel=kernel).eval() for kernel in ("mine", "reference")]
layers[0].load_state_dict(layers[1].state_dict())
x = torch.randn(2, 8, 5)
torch.testing.assert_close(layers[0](x), layers[1](x))
problem = lambdanets.Problem(grid=(5,), num_heads=2, dim_k=4, dim_v=4)
assert lambdanets.plan(problem).kernel == "mine"  # the cheapest
assert "it serves one axis alone" in str(lambdanets.plan(lambdanets.Problem(grid=(5, 5))))

for name in ("resnet_mine", "resnet_blur"):
    model = timm.create_model(name, num_classes=3).eval()
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 3)
assert any(type(module).__name__ == "Blur2d" for module in model.modules())
sys.exit(main(["list", "resnet_*"]))
"""


def insert(file: Path, before: str, text: str) -> None:
    """Insert text before the only place of a line's beginning."""
    source = file.read_text()
    assert source.count(before) == 1, f"{file.name} has {source.count(before)} of {before!r}"
    file.write_text(source.replace(before, text + before))


def test_a_kernel_an_operator_and_a_variant_are_added_as_documented(tmp_path: Path) -> None:
    copy = tmp_path / "lambdanets"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    # A kernel: two files.
    (copy / "ops/kernels/mine.py").write_text(KERNEL)
    insert(copy / "ops/kernels/__init__.py", "from . import attention", "from . import mine\n")
    insert(copy / "ops/kernels/__init__.py", "    **FUSED_KERNELS,", "    mine.NAME: mine,\n")
    # An operator for the blocks: three files.
    (copy / "nn/blur.py").write_text(OPERATOR)
    insert(copy / "nn/__init__.py", "from .axial_attention", "from .blur import Blur2d as Blur2d\n")
    entry = '    "blur": Operator(build=lambda d, position, config, **f: Blur2d(d, **f), layer=Blur2d),\n'
    insert(copy / "models/operators.py", '    "axial": Operator', entry)
    insert(copy / "models/operators.py", "from .config import", "from lambdanets.nn import Blur2d\n")
    # A model variant: one file. The second one has the new operator.
    for name, operator in (("resnet_mine", "lambda"), ("resnet_blur", "blur")):
        options = f'depths=(1, 1, 1, 1), operator="{operator}", operator_blocks=("all",) * 4, image_size=32'
        config = f'    "{name}": ResNetConfig({options}),\n'
        insert(copy / "models/zoo.py", "    # Table 18, with the image sizes of", config)

    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = run_preloaded("-c", USE, env=environment)
    assert done.returncode == 0, done.stderr
    assert "resnet_mine" in done.stdout
    assert "resnet_blur" in done.stdout
