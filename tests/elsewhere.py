"""Exported files run where this package is not: ONNX in a fresh interpreter, PyTorch in a preloaded one."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from preloaded import run_preloaded

ONNX = """
import sys
import numpy as np, onnxruntime
for name in ("torch", "lambdanets", "onnx"):
    assert name not in sys.modules, name
file, given, found = sys.argv[1:]
session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
names = [output.name for output in session.get_outputs()]
values = session.run(names, dict(np.load(given)))
facts = session.get_modelmeta().custom_metadata_map
np.savez(found, **dict(zip(names, values)), **{"facts/" + name: value for name, value in facts.items()})
"""
TORCH = """
import sys
sys.modules["lambdanets"] = sys.modules["timm"] = None  # importing them fails
import zipfile
import numpy as np, torch, torchvision
file, given, found = sys.argv[1:]
with zipfile.ZipFile(file) as archive:
    facts = {name.rpartition("/extra/")[2]: "" for name in archive.namelist() if "/extra/" in name}
program = torch.export.load(file, extra_files=facts)
with torch.no_grad():
    values = program.module()(*(torch.from_numpy(value) for value in np.load(given).values()))
values = values if isinstance(values, dict) else {"logits": values}
np.savez(found, **{name: value.numpy() for name, value in values.items()},
         **{"facts/" + name: value for name, value in facts.items()})
"""
DECODE_ONNX = """
import json, sys
import numpy as np, onnxruntime
for name in ("torch", "lambdanets", "onnx"):
    assert name not in sys.modules, name
file, given, found = sys.argv[1:]
session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
first, *rest = [each.name for each in session.get_inputs()]
output, *following = [each.name for each in session.get_outputs()]
assert following == ["next." + name for name in rest]
facts = session.get_modelmeta().custom_metadata_map
initial = json.loads(facts["state"])
assert list(initial) == rest

def step(x, state):
    y, *after = session.run([output, *following], {first: x, **state})
    return y, dict(zip(rest, after))
"""
DECODE_TORCH = """
import sys
sys.modules["lambdanets"] = sys.modules["timm"] = None  # importing them fails
import json
import numpy as np, torch
file, given, found = sys.argv[1:]
facts = {"state": ""}
program = torch.export.load(file, extra_files=facts).module()
initial = json.loads(facts["state"])

def step(x, state):
    tensors = {name: torch.from_numpy(value) for name, value in state.items()}
    with torch.no_grad():
        y, after = program(torch.from_numpy(x), tensors)
    return y.numpy(), {name: value.numpy() for name, value in after.items()}
"""
DECODE = """
values = {}
for key, sequence in np.load(given).items():
    state = {
        name: np.full((len(sequence), *tensor["shape"][1:]), float(tensor["initial"]), tensor["dtype"])
        for name, tensor in initial.items()
    }
    outputs = []
    for position in range(sequence.shape[-1]):
        y, state = step(np.ascontiguousarray(sequence[..., position]), state)
        outputs.append(y)
    values |= {key: np.stack(outputs, 1)} | {key + "/" + name: value for name, value in state.items()}
np.savez(found, **values)
"""


def decode_elsewhere(file: Path, **sequences: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs `[b, n, ...]` of a file's step on sequences `[b, ..., n]`, and the last states as NAME/..."""
    return _run(file, (DECODE_ONNX if file.suffix == ".onnx" else DECODE_TORCH) + DECODE, sequences)


def run_elsewhere(file: Path, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs of a file by name, and the facts that it holds as facts/NAME."""
    return _run(file, ONNX if file.suffix == ".onnx" else TORCH, inputs)


def _run(file: Path, program: str, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays that a program writes, which is called with three files: FILE, inputs and outputs."""
    given, found = file.with_suffix(".given.npz"), file.with_suffix(".found.npz")
    np.savez(given, **inputs)
    words = ["-c", program, str(file), str(given), str(found)]
    if file.suffix == ".onnx":  # without torch, and soon imported
        command = [sys.executable, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    else:
        done = run_preloaded(*words, env=os.environ)
    assert done.returncode == 0, done.stderr
    with np.load(found) as values:
        return dict(values)
