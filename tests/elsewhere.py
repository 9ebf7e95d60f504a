"""Exported files run where this package is not: each in a fresh interpreter."""

import subprocess
import sys
from pathlib import Path

import numpy as np

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
sys.modules["lambdanets"] = None  # importing it fails
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


def run_elsewhere(file: Path, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs of a file by name, and the facts that it holds as facts/NAME."""
    given, found = file.with_suffix(".given.npz"), file.with_suffix(".found.npz")
    np.savez(given, **inputs)
    program = ONNX if file.suffix == ".onnx" else TORCH
    command = [sys.executable, "-c", program, str(file), str(given), str(found)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(found) as values:
        return dict(values)
