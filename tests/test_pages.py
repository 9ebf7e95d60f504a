"""The Python blocks of README.md and docs/layer.md run, in their order on the page."""

import functools
import re
import warnings
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["README.md", "docs/layer.md", "docs/models.md"])
def test_the_python_blocks_run(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Inductor needs a C++ compiler and half a minute; the graph is the same without it.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    blocks = BLOCK.findall((ROOT / page).read_text())
    assert blocks
    torch.manual_seed(0)
    names: dict[str, object] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for number, block in enumerate(blocks, 1):
            exec(compile(block, f"{page}, block {number}", "exec"), names)
