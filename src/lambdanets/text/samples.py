"""The file of sample texts of a run, with a section for each validation."""

import re
from pathlib import Path

from lambdanets.train.checkpoint import write_text

HEADING = re.compile(r"^=== epoch (\d+): .* ===$", re.MULTILINE)


def add_sample(path: Path, epoch: int, note: str, text: str) -> None:
    """Append a section; sections of this and of later epochs, which a resumed run repeats, are replaced.

    Args:
        path: The file; created if missing.
        epoch: Number of epochs of training before.
        note: The result of the validation, for the heading.
        text: The sample.
    """
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    for heading in HEADING.finditer(before):
        if int(heading[1]) >= epoch:
            before = before[: heading.start()]
            break
    write_text(path, f"{before}=== epoch {epoch}: {note} ===\n{text.rstrip()}\n\n")
