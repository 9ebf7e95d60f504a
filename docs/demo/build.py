"""Write the demo page: the trained networks of the package as ONNX files, with the page that runs them.

`make demo-page` calls it with the folder of the package onnxruntime-web from npm, and the folder to write.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lambdanets import audio, text, train
from lambdanets.data.audio.features import FLOOR_DB, QUIET, Features
from lambdanets.explaining.layer_maps import LayerMaps
from lambdanets.exporting import export_language_model, export_network
from lambdanets.nn import LambdaLayer
from lambdanets.nn.operands import layer_operands
from lambdanets.ops.position_table import trim_table

PICTURE, SOUND, TEXT = "lambda_resnet_digits", "lambda_audio", "lambda_lm_mini"
SOURCES = Path(__file__).parent
TEMPLATE = files("lambdanets.explaining") / "template"
RUNTIME = ("ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


class WithOperands(nn.Module):
    """A classifier of images that also returns the queries and keys of its lambda layers.

    Args:
        network: The classifier.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval()
        self.maps: dict[str, LayerMaps] = {}
        for name, layer in network.named_modules():
            if isinstance(layer, LambdaLayer):
                layer.register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Any:
        def record(layer: LambdaLayer, args: tuple[Any, ...], output: Tensor) -> None:
            self.maps[name] = LayerMaps(name, layer_operands(layer, *args), 0)

        return record

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return logits `[1, classes]`, then `q` `[h, n, k]` and `keys` `[g, m, k, u]` of each layer."""
        found = [self.network(images)]
        for maps in self.maps.values():
            assert maps.keys is not None
            found += [maps.q, maps.keys]
        return found

    def layers(self) -> list[dict[str, Any]]:
        """Return what the page needs of each layer besides its queries and keys."""
        found = []
        for name, maps in self.maps.items():
            assert maps.table is not None
            assert maps.keys is not None
            table, centre = trim_table(maps.table, maps.context)
            found.append(
                {
                    "name": name,
                    "grid": maps.grid,
                    "context": maps.context_grid,
                    "causal": False,
                    "q": {"shape": list(maps.q.shape)},
                    "keys": {"shape": list(maps.keys.shape)},
                    "lengths": {"shape": [len(maps.v), maps.dim_u]},
                    "table": {"shape": list(table.shape), "values": table.flatten().tolist()},
                    "centre": centre,
                    "step": maps.context.step,
                }
            )
        return found


class FromSamples(nn.Module):
    """A classifier of one recording with the computation of its log-mel features.

    The spectrum is a convolution with the windowed sines and cosines, since browsers have no fast operator
    for it. The features are those of `lambdanets.data.audio.features.Features`.

    Args:
        network: Classifier of features.
        features: The features.
    """

    kernel: Tensor
    bands: Tensor

    def __init__(self, network: nn.Module, features: Features) -> None:
        super().__init__()
        self.network, self.hop, self.window = network.eval(), features.hop, features.window
        mel = features._mel
        time = torch.arange(self.window, dtype=torch.float64)
        bins = torch.arange(features.n_fft // 2 + 1, dtype=torch.float64)
        angle = 2 * torch.pi * bins[:, None] * time / features.n_fft
        waves = torch.cat([angle.cos(), angle.sin()]) * mel.spectrogram.window.double()
        self.register_buffer("kernel", waves.float()[:, None])
        self.register_buffer("bands", mel.mel_scale.fb)

    def forward(self, samples: Tensor) -> Tensor:
        """Return logits `[1, classes]` of samples `[1, n]`."""
        padding = self.window // 2
        waves = nn.functional.conv1d(samples[:, None], self.kernel, stride=self.hop, padding=padding)
        cosines, sines = waves.chunk(2, 1)
        power = (cosines.square() + sines.square()).mT @ self.bands  # [1, n', bands]
        decibels = 10 * power.mT.clamp(min=QUIET).log10()
        exact = decibels.maximum(decibels.max() - FLOOR_DB).double()
        centred = exact - exact.mean()
        deviation = centred.square().mean().sqrt()
        silent = deviation < 1e-6 * (1 + exact.abs().max())
        found = torch.where(silent, torch.zeros_like(centred), centred / deviation.clamp(min=1e-30))
        return self.network(found.float())


def build(runtime: Path, out: Path) -> None:
    """Write the page.

    Args:
        runtime: Folder of onnxruntime-web, with its `dist`.
        out: Folder to write, which is replaced.
    """
    shutil.rmtree(out, ignore_errors=True)
    (out / "runtime").mkdir(parents=True)
    facts = {"picture": _picture(out), "sound": _sound(out), "text": _text(out)}
    for name in RUNTIME:
        shutil.copyfile(runtime / "dist" / name, out / "runtime" / name)
    for source in SOURCES.iterdir():
        if source.suffix in (".html", ".css", ".js"):
            shutil.copyfile(source, out / source.name)
    for name in ("maps.js", "drawing.js", "page.css"):
        (out / name).write_bytes((TEMPLATE / name).read_bytes())
    for each in facts.values():
        content = (out / each["file"]).read_bytes()
        each |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (out / "facts.json").write_text(json.dumps(facts, separators=(",", ":")), encoding="utf-8")


def _picture(out: Path) -> dict[str, Any]:
    run = train.load_run(PICTURE)
    data = run.config.data
    assert data.mean is not None
    assert data.std is not None
    wrapper = WithOperands(run.model())
    example = torch.randn(1, data.in_chans, data.image_size, data.image_size)
    with torch.no_grad():
        wrapper(example)
    layers = wrapper.layers()
    names = [f"{layer['name']}/{part}" for layer in layers for part in ("q", "keys")]
    file = out / f"{PICTURE}.onnx"
    export_network(
        wrapper, file, [(example,), (torch.randn_like(example),)],
        format="onnx", inputs={"images": {}}, outputs=["logits", *names],
    )  # fmt: skip
    return {
        "file": file.name, "classes": run.classes, "size": data.image_size,
        "mean": data.mean[0], "std": data.std[0], "layers": layers,
    }  # fmt: skip


def _sound(out: Path) -> dict[str, Any]:
    run = audio.load_run(SOUND)
    features = Features(run.config.data)
    file = out / f"{SOUND}.onnx"
    export_network(
        FromSamples(run.model(), features), file, [(torch.randn(1, n),) for n in (4000, 6400, 2345)],
        format="onnx", inputs={"samples": {1: "length"}}, outputs=["logits"],
    )  # fmt: skip
    return {"file": file.name, "classes": run.classes, "rate": features.rate}


def _text(out: Path) -> dict[str, Any]:
    import onnx

    file = out / f"{TEXT}.onnx"
    export_language_model(text.load_run(TEXT), file, format="onnx")
    metadata = {each.key: each.value for each in onnx.load(file).metadata_props}
    return {
        "file": file.name,
        "vocabulary": json.loads(metadata["vocabulary"]),
        "state": json.loads(metadata["state"]),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runtime", type=Path, help="folder of onnxruntime-web")
    parser.add_argument("out", type=Path, help="folder to write")
    arguments = parser.parse_args()
    build(arguments.runtime, arguments.out)
