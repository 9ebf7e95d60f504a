"""Steps of language models and layers in a file of each format, run elsewhere with their state fed back."""

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from elsewhere import decode_elsewhere
from lambdanets import LambdaLayer1d
from lambdanets.data import TextDataConfig
from lambdanets.data.text.vocabulary import BYTES
from lambdanets.exporting import ExportError, export_step, torch_format
from lambdanets.models import LambdaLM, create_language_model
from lambdanets.nn.states import SequenceState
from lambdanets.text import LanguageModelConfig, TextConfig, export
from lambdanets.train import Run

SUFFIXES = {"torch": ".pt2", "onnx": ".onnx"}
LETTERS = tuple("\n abcdefgé∀\U0001f98a\"'\\")
SIZES: dict[str, Any] = {"dim": 16, "depth": 2, "num_heads": 4, "mlp_dim": 24}
MODELS: dict[str, dict[str, Any]] = {
    "lambda": {
        "operator": "lambda",
        "options": {"scope": 6, "gate": True, "short_conv": 3, "decay": True, "key_heads": 2},
    },
    "lambda_without_norm": {
        "operator": "lambda",
        "options": {"normalize": "none", "out_norm": True, "dim_u": 2, "scope": 3, "dilation": 2},
    },
    "lambda_l2": {
        "operator": "lambda",
        "options": {"normalize": "l2", "norm": "batch", "position_bias": True, "scope": 1},
    },
    "linear_attention": {"operator": "linear_attention"},
    "gru": {"operator": "gru"},
    "conv": {"operator": "conv"},
}


def untrained(folder: Path, classes: tuple[str, ...] = LETTERS, **options: Any) -> Run[TextConfig]:
    """A run of a language model that has learnt nothing."""
    options = SIZES | options
    network = create_language_model("lambda_lm_mini", vocabulary=len(classes), **options)
    save_file(network.state_dict(), folder / "weights.safetensors")
    model = LanguageModelConfig(name="lambda_lm_mini", options=options)
    data = TextDataConfig(source=f"text:{folder / 'book.txt'}", context=40)
    return Run(TextConfig(recipe="text", model=model, data=data), classes, folder)


def stepped(network: Any, sequence: Tensor) -> tuple[Tensor, SequenceState]:
    """The outputs `[b, n, ...]` of the network's own steps, and its last state."""
    state, outputs = network.initial_state(len(sequence)), []
    with torch.no_grad():
        for x in sequence.unbind(-1):
            y, state = network.step(x, state)
            outputs.append(y)
    return torch.stack(outputs, 1), state


def check_elsewhere(file: Path, network: nn.Module, sequences: dict[str, Tensor]) -> None:
    """Decode sequences with a file and hold outputs and final states against steps and the whole."""
    found = decode_elsewhere(file, **{name: x.numpy() for name, x in sequences.items()})
    for key, sequence in sequences.items():
        by_steps, state = stepped(network, sequence)
        with torch.no_grad():
            whole = network(sequence)
        whole = whole if isinstance(network, LambdaLM) else whole.mT
        for truth in (by_steps, whole):
            np.testing.assert_allclose(
                found[key], truth.numpy(), rtol=0, atol=1e-4 * float(truth.abs().max())
            )
        names = {name.removeprefix(f"{key}/") for name in found if name.startswith(f"{key}/")}
        expected = {name: x for name, x in state.tensors().items() if not name.endswith(".length")}
        assert names == set(expected)
        for name, x in expected.items():
            value = found[f"{key}/{name}"]
            assert value.dtype == x.numpy().dtype
            scale = float(x.abs().max()) if x.numel() else 0.0
            np.testing.assert_allclose(value, x.numpy(), rtol=0, atol=1e-4 * scale, err_msg=name)


@pytest.mark.parametrize(
    ("model", "format"),
    [
        *((model, "onnx") for model in ("lambda", "lambda_without_norm", "lambda_l2", "gru")),
        *((model, "torch") for model in ("lambda", "linear_attention", "conv")),
    ],
)
def test_fifty_steps_elsewhere_are_those_of_the_model(model: str, format: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    run, file = untrained(tmp_path, **MODELS[model]), tmp_path / f"book{SUFFIXES[format]}"
    exported = export(run, file, format=format)
    assert exported.difference <= 1e-4 * exported.largest
    assert exported.inputs["tokens"] == exported.inputs["length"] == ("batch",)
    tokens = {f"of{b}": torch.randint(len(LETTERS), (b, 50)) for b in (1, 3)}
    check_elsewhere(file, run.model(), tokens)


def test_the_metadata_are_all_that_a_caller_needs(tmp_path: Path) -> None:
    run = untrained(tmp_path, depth=1, **MODELS["lambda"])
    export(run, tmp_path / "book.onnx", format="onnx")
    session = onnxruntime.InferenceSession(tmp_path / "book.onnx")
    stored = session.get_modelmeta().custom_metadata_map
    facts = {name: json.loads(text) for name, text in stored.items()}
    assert list(facts["state"]) == [each.name for each in session.get_inputs()][1:]
    zeros = {"dtype": "float32", "initial": 0.0}
    assert facts == {
        "model": "lambda_lm_mini",
        "unit": "character",
        "vocabulary": list(LETTERS),
        "context": 40,
        "state": {
            "length": {"shape": ["batch"], "dtype": "int64", "initial": 0},
            "layers.0.log_norm": {"shape": ["batch", 2, 16, 1], "dtype": "float64", "initial": "-Infinity"},
            "layers.0.summary": {"shape": ["batch", 2, 16, 4, 1], **zeros},
            "layers.0.values": {"shape": ["batch", 5, 4, 1], **zeros},
            "layers.0.inputs": {"shape": ["batch", 2, 100], **zeros},
        },
    }
    shapes = {each.name: each.shape for each in session.get_inputs()}
    assert shapes == {"tokens": ["batch"]} | {name: x["shape"] for name, x in facts["state"].items()}


def test_a_fixed_batch_and_bytes(tmp_path: Path) -> None:
    run, file = untrained(tmp_path, BYTES, operator="gru"), tmp_path / "new" / "book.onnx"
    exported = export(run, file, format="onnx", batch_size=2)
    assert exported.inputs["layers.1.hidden"] == (2, 16)
    assert [shapes[0] for shapes in exported.compared] == [(2,), (2,)]
    session = onnxruntime.InferenceSession(file)
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["unit"]) == "byte"
    assert json.loads(facts["vocabulary"]) == list(BYTES)
    assert json.loads(facts["state"])["layers.0.hidden"]["shape"] == [2, 16]
    assert session.get_inputs()[0].shape == [2]


@pytest.mark.parametrize("format", SUFFIXES)
def test_the_step_of_a_layer(format: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = LambdaLayer1d(12, 8, scope=5, causal=True, norm="rms", dim_k=5, num_heads=2).eval()
    file = tmp_path / f"layer{SUFFIXES[format]}"
    exported = export_step(layer, file, format=format, metadata={"rate": 8000})
    assert list(exported.inputs) == ["x_t", "length", "log_norm", "summary", "values"]
    check_elsewhere(file, layer, {"of2": torch.randn(2, 12, 50)})


@pytest.mark.parametrize("window", [None, 8])
def test_a_state_that_grows_is_refused(window: int | None, tmp_path: Path) -> None:
    run = untrained(tmp_path, operator="attention", options={"window": window})
    with pytest.raises(ExportError, match="the state of this network grows with the sequence") as caught:
        export(run, tmp_path / "book.onnx", format="onnx")
    assert "\n" not in str(caught.value)
    with pytest.raises(ExportError, match="batch_size must be at least 1, got 0"):
        export(run, tmp_path / "book.onnx", format="onnx", batch_size=0)
    assert list(tmp_path.glob("book*")) == []


@pytest.mark.parametrize("changed", ["length", "layers.1.hidden"])
def test_a_file_with_another_state_is_not_written(
    changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = torch_format.load

    def load_wrong(*args: Any) -> Any:
        program = load(*args)

        def run(*inputs: Any) -> object:
            logits, state = cast(Any, program(*inputs))
            return logits, state | {changed: state[changed] + 1}

        return run

    run = untrained(tmp_path, operator="gru")
    monkeypatch.setattr(torch_format, "load", load_wrong)
    with pytest.raises(ExportError, match=rf"gives other next\.{changed} than the network"):
        export(run, tmp_path / "book.pt2", format="torch")
    assert list(tmp_path.glob("*book*")) == []
