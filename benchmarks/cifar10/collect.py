"""Copy what a run measured into this folder: `python collect.py NAME RUN_FOLDER`.

Takes the run's metrics and configuration, and writes down the machine and the versions they come from.
"""

import json
import platform
import shutil
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def main(name: str, run: Path) -> None:
    shutil.copy(run / "metrics.csv", HERE / f"{name}.csv")
    config = json.loads((run / "config.json").read_text())
    config["data"]["source"] = "folder:cifar10-jpeg"  # the folder's place on this machine says nothing
    head = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(head, capture_output=True, text=True, check=True)
    provenance = {
        "date": date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "processor": processor(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "timm", "lightning", "lambdanets")},
        "config": config,
    }
    (HERE / f"{name}.json").write_text(json.dumps(provenance, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
