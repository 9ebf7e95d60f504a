"""Programs that compute one step of a causal layer and of a language model, timed in turns.

A step of a lambda layer by the native library and by PyTorch's operators; a step of `lambda_lm_mini` by its
method `step` and by its exported file in onnxruntime. Each is fed the state that its last step returned.
"""

import json
import os
import statistics
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from lambdanets.exporting import export_step
from lambdanets.models import create_language_model
from lambdanets.ops.kernels.native import library

BATCHES, ROUNDS, STEPS = (1, 32), 15, 100
MODEL, VOCABULARY = "lambda_lm_mini", 65


def step_rows(layer: nn.Module, dim: int, seconds: Callable[..., float]) -> Iterable[dict[str, Any]]:
    """Yield the median time of a step by each program and batch size.

    Args:
        layer: A causal layer on sequences.
        dim: Its channels.
        seconds: Returns the time of a call.
    """
    torch.manual_seed(0)
    layer.eval()
    model = create_language_model(MODEL, vocabulary=VOCABULARY).eval()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        export_step(model, file, format="onnx")
        session = _session(file)
    for batch in BATCHES:
        x, tokens = torch.randn(batch, dim), torch.randint(VOCABULARY, (batch,))
        programs = {
            ("layer", "native"): (_module_steps(layer, x), True),
            ("layer", "PyTorch"): (_module_steps(layer, x), False),
            (MODEL, "PyTorch"): (_module_steps(model, tokens), True),
            (MODEL, "onnxruntime"): (_session_steps(session, tokens), True),
        }
        times: dict[tuple[str, str], list[float]] = {key: [] for key in programs}
        for number in range(ROUNDS + 1):
            for key, (steps, native) in programs.items():
                with patch.dict(os.environ, {library.SWITCH: str(int(native))}):
                    library.refresh()
                    if native and library.unavailable():
                        raise RuntimeError(f"there is no native library: {library.unavailable()}")
                    steps(1)  # the search for the library is not timed
                    sample = seconds(lambda run=steps: run(STEPS)) / STEPS
                if number:
                    times[key].append(sample)
        for (network, program), samples in times.items():
            yield {
                "network": network,
                "program": program,
                "batch": batch,
                "us_per_step": f"{1e6 * statistics.median(samples):.4g}",
                "rounds": ROUNDS,
            }


def _module_steps(module: Any, x: Tensor) -> Callable[[int], None]:
    """Return a function that takes a number of steps of a module with one input."""
    state = module.initial_state(len(x))

    def run(steps: int) -> None:
        nonlocal state
        with torch.inference_mode():
            for _ in range(steps):
                _, state = module.step(x, state)

    return run


def _session(file: Path) -> onnxruntime.InferenceSession:
    """Open an ONNX file with as many threads as PyTorch has."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def _session_steps(session: onnxruntime.InferenceSession, tokens: Tensor) -> Callable[[int], None]:
    """Return a function that takes a number of steps of an exported language model with the same tokens."""
    described = json.loads(session.get_modelmeta().custom_metadata_map["state"])
    state = {
        name: np.full((len(tokens), *tensor["shape"][1:]), float(tensor["initial"]), tensor["dtype"])
        for name, tensor in described.items()
    }
    outputs, given = ["logits", *(f"next.{name}" for name in state)], tokens.numpy()

    def run(steps: int) -> None:
        nonlocal state
        for _ in range(steps):
            _, *after = session.run(outputs, {"tokens": given, **state})
            state = dict(zip(state, after, strict=True))

    return run
