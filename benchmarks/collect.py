"""Copy the rows of a run into an experiment: `python collect.py EXPERIMENT/NAME RUN_FOLDER COMMIT`.

Writes the metrics of the run, and its configuration with the machine and the versions.
"""

import json
import platform
import shutil
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent


def processor() -> str:
    """Return the name of the CPU."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def main(name: str, run: Path, commit: str) -> None:
    shutil.copy(run / "metrics.csv", HERE / f"{name}.csv")
    config = json.loads((run / "config.json").read_text())
    # Paths of this machine are left out.
    kind, _, place = config["data"]["source"].partition(":")
    config["data"]["source"] = f"{kind}:{Path(place).name}" if place else kind
    overlay = config["model"]["options"].get("pretrained_cfg_overlay", {})
    if "file" in overlay:
        overlay["file"] = "/".join(Path(overlay["file"]).parts[-2:])
    provenance = {
        "date": date.today().isoformat(),
        "commit": commit,
        "processor": processor(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "timm", "lightning", "lambdanets")},
        "config": config,
    }
    (HERE / f"{name}.json").write_text(json.dumps(provenance, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
