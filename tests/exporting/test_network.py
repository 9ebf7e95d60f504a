"""Every operator in a file of each format, run elsewhere and held against the definition in float64."""

import copy
import re
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.layers.lambda_layer import LambdaLayer as TimmLambdaLayer
from torch import Tensor, nn

from elsewhere import run_elsewhere
from lambdanets import LambdaLayer1d, LambdaLayer2d, LambdaLayer3d, accelerate
from lambdanets.exporting import ExportError, export_network, onnx_format, torch_format
from lambdanets.nn import AxialAttention2d, GlobalAttention2d, LinearAttention2d, LocalAttention2d
from lambdanets.nn.lambda_layer import LambdaLayer

DIM = 12
SMALL: dict[str, Any] = {"dim_k": 5, "num_heads": 3}
# Layers that serve any grid.
FREE = {
    "local": LambdaLayer2d(DIM, 6, scope=(4, 9), normalize="softmax_both", **SMALL),
    "intra_depth": LambdaLayer2d(DIM, scope=5, dilation=2, dim_u=2, position_bias=True, **SMALL),
    "everywhere": LambdaLayer2d(DIM, grid=6, normalize="l2", norm="rms", **SMALL),
    "content": LambdaLayer2d(DIM, position=False, **SMALL),
    "position": LambdaLayer2d(DIM, scope=7, content=False, norm=None, **SMALL),
    "attention": GlobalAttention2d(DIM, num_heads=3, grid=5),
    "axial": AxialAttention2d(DIM, num_heads=3, grid=5),
    "linear_attention": LinearAttention2d(DIM, num_heads=3),
    "accelerated": accelerate(TimmLambdaLayer(DIM, num_heads=3, dim_head=5, r=3)),
}
# Layers whose graph is that of one grid.
BOUND = {
    "sequence": LambdaLayer1d(DIM, scope=5, **SMALL),
    "volume": LambdaLayer3d(DIM, scope=3, **SMALL),
    "local_attention": LocalAttention2d(DIM, num_heads=3, window=3),
    "timm_global": TimmLambdaLayer(DIM, num_heads=3, dim_head=5, r=None, feat_size=(8, 7)),
}
CAUSAL = {"causal": LambdaLayer1d(DIM, grid=9, causal=True, **SMALL)}  # ONNX has no running maximum
GRIDS = {"sequence": (11,), "causal": (11,), "volume": (3, 5, 4)}


class Bank(nn.Module):
    """Layers side by side: one input for each rank, one output for each layer."""

    def __init__(self, layers: dict[str, nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(copy.deepcopy(layers))
        for part in self.modules():
            if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
                nn.init.normal_(part.running_mean, std=0.3)
                nn.init.uniform_(part.running_var, 0.5, 1.5)
            if isinstance(part, LambdaLayer) and part.position_bias is not None:
                nn.init.normal_(part.position_bias)
        self.eval()

    def forward(self, x: Tensor, y: Tensor | None = None, z: Tensor | None = None) -> dict[str, Tensor]:
        by_rank = {images.ndim: images for images in (x, y, z) if images is not None}
        return {name: layer(by_rank[len(GRIDS.get(name, (0, 0))) + 2]) for name, layer in self.layers.items()}

    def defined(self, *images: Tensor) -> dict[str, np.ndarray]:
        """By the definition, in float64."""
        exact = copy.deepcopy(self).double()
        for part in exact.modules():
            if isinstance(part, LambdaLayer):
                part.kernel = "reference"
        with torch.no_grad():
            return {name: y.numpy() for name, y in exact(*(x.double() for x in images)).items()}


def write(bank: Bank, file: Path, examples: list[tuple[Tensor, ...]], axes: dict[int, str]) -> None:
    inputs = {f"x{x.ndim}": axes for x in examples[0]}
    format = "onnx" if file.suffix == ".onnx" else "torch"
    made = export_network(bank, file, examples, format=format, inputs=inputs, outputs=list(bank.layers))
    assert 0 <= made.difference < 1e-4 * made.largest
    assert [shape[0] for shape in made.inputs.values()] == ["batch"] * len(inputs)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def check(bank: Bank, file: Path, *images: Tensor) -> None:
    found = run_elsewhere(file, **{f"x{x.ndim}": x.numpy() for x in images})
    for name, truth in bank.defined(*images).items():
        assert found[name].shape == truth.shape, name
        scale = np.sqrt(np.mean(truth**2))
        assert np.sqrt(np.mean((found[name] - truth) ** 2)) < 1e-5 * scale, name


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_any_number_of_images_of_any_size(suffix: str, tmp_path: Path) -> None:
    # Both formats hold one graph: the slower one gets those that differ most.
    some = (
        FREE if suffix == ".onnx" else {name: FREE[name] for name in ("intra_depth", "everywhere", "axial")}
    )
    bank = Bank(some)
    examples = [(torch.randn(2, DIM, 6, 5),), (torch.randn(3, DIM, 4, 9),)]
    write(bank, tmp_path / f"bank{suffix}", examples, {0: "batch", 2: "height", 3: "width"})
    check(bank, tmp_path / f"bank{suffix}", torch.randn(1, DIM, 7, 10))


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_several_inputs_of_one_size(suffix: str, tmp_path: Path) -> None:
    bank = Bank(BOUND | (CAUSAL if suffix == ".pt2" else {}))
    grids = ((11,), (8, 7), (3, 5, 4))
    examples = [tuple(torch.randn(batch, DIM, *grid) for grid in grids) for batch in (2, 1)]
    write(bank, tmp_path / f"bank{suffix}", examples, {0: "batch"})
    check(bank, tmp_path / f"bank{suffix}", *(torch.randn(5, DIM, *grid) for grid in grids))


def export(file: Path, network: nn.Module | None = None, **options: Any) -> None:
    settings = {"format": "torch", "inputs": {"x": {0: "batch"}}, "outputs": ["y"], **options}
    network = nn.Linear(3, 2).eval() if network is None else network
    export_network(network, file, [(torch.randn(2, 3),), (torch.randn(1, 3),)], **settings)


def test_what_differs_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = torch_format.load
    off = {"by": 0.0, "rows": 0}
    monkeypatch.setattr(
        torch_format, "load", lambda *known: lambda x: load(*known)(x)[off["rows"] :] * (1 + off["by"])
    )
    export(tmp_path / "right.pt2")
    for name, by in (("scaled", 1e-3), ("nan", float("nan"))):
        off["by"] = by
        with pytest.raises(ExportError, match="gives other y than the network"):
            export(tmp_path / f"{name}.pt2")
    off["rows"] = 1
    with pytest.raises(ExportError, match=re.escape("shapes [(1, 2)], the network [(2, 2)]")):
        export(tmp_path / "short.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["right.pt2"]


@pytest.mark.parametrize("name", ["a.pt2", "a.onnx"])
def test_a_write_that_fails_is_no_fault_of_the_network(tmp_path: Path, name: str) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
    try:
        with pytest.raises(OSError, match=f"File too large: '.*/{name}'$"):
            export(tmp_path / name, format="onnx" if name == "a.onnx" else "torch")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


class Odd(nn.Module):
    """Takes another way for a batch of one."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if int((x > 0).sum()) > 3 else x


def test_refusals_are_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ExportError, match=r"^format must be 'torch' or 'onnx', got 'tf'$"):
        export(tmp_path / "a.pb", format="tf")
    with pytest.raises(ExportError, match=r"^a file of format 'torch' ends in \.pt2; got"):
        export(tmp_path / "a.onnx")
    with pytest.raises(ExportError, match=r"^opset=18 belongs to format 'onnx'"):
        export(tmp_path / "a.pt2", opset=18)
    with pytest.raises(ExportError, match=r"^opset must be at least 18"):
        export(tmp_path / "a.onnx", format="onnx", opset=12)
    (tmp_path / "b.pt2").write_text("precious")
    with pytest.raises(ExportError, match=r"exists already; remove it or name another file$"):
        export(tmp_path / "b.pt2")
    assert (tmp_path / "b.pt2").read_text() == "precious"
    with pytest.raises(ExportError, match=r"^the network cannot take inputs of shape \(2, 3\): "):
        export(tmp_path / "c.pt2", nn.Linear(4, 2))
    with pytest.raises(ExportError, match=r"^the network cannot be traced with any batch: "):
        export(tmp_path / "c.pt2", Odd())
    monkeypatch.setattr(onnx_format, "find_spec", lambda name: None if name != "onnx" else object())
    missing = r"^format 'onnx' needs onnxscript and onnxruntime: pip install 'lambdanets\[export\]'$"
    with pytest.raises(ExportError, match=missing):
        export(tmp_path / "c.onnx", format="onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["b.pt2"]
