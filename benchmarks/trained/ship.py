"""Write a trained network into the package: `python ship.py RUN NAME SOURCE`.

The folder src/lambdanets/trained/NAME gets the run's configuration, in which SOURCE names the data, its
classes, and the weights of its last epoch as int8: no validation image has chosen them. README.md, the model
card, is written by hand. NAME.csv, beside this program, has the run's metrics.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from lambdanets.cli.tasks import task_of
from lambdanets.models.int8 import quantise
from lambdanets.models.shipped import FOLDER, WEIGHTS
from lambdanets.models.tensor_files import write_safetensors
from lambdanets.train import load_run


def ship(run: Path, name: str, source: str) -> Path:
    """Write the folder of a trained network from that of a run, with its last weights, and return it."""
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = json.loads((run / "config.json").read_text())
    config["data"] |= {"source": source} | ({"images": None} if "images" in config["data"] else {})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for file in ("classes.json", "image_sizes.json"):
        if (run / file).exists():
            (folder / file).write_text((run / file).read_text())
    (Path(__file__).parent / f"{name}.csv").write_text((run / "metrics.csv").read_text())
    opened = load_run(run, task_of(run).config_class())
    write_safetensors(folder / WEIGHTS, quantise(opened.model("last").state_dict()))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("source")
    words = parser.parse_args()
    folder = ship(words.run, words.name, words.source)
    sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    print(folder.name, *(f"{name} {size:,} bytes" for name, size in sizes.items()), sep="\n")


if __name__ == "__main__":
    main()
