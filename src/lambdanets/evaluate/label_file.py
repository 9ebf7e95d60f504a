"""A file of labels that grows while images are labelled, and continues after an interruption."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from lambdanets.data.labels import COLUMNS, csv_text, numbered_rows, open_text
from lambdanets.train.checkpoint import write_text
from lambdanets.train.errors import RunError
from lambdanets.utils.files import move_into_place, naming, parse_json
from lambdanets.utils.text import json_text


class LabelFile:
    """Labels of images in a given order, one line each, with a JSON file of the settings they depend on.

    Args:
        path: The file once it is complete; until then its name ends in `.part`.
        settings: The settings that the labels depend on, in plain values; stored in a JSON file of the same
            name.
        images: Names of all images, in order.
        classes: Class names.
    """

    def __init__(self, path: Path, settings: dict[str, Any], images: Sequence[str], classes: Sequence[str]):
        self.path, self.settings, self.images, self.classes = path, settings, images, classes
        self.partial_file = path.with_name(f"{path.name}.part")
        self.metadata_file = path.with_name(f"{path.name}.json")
        self.lock = path.with_name(f".{path.name}.lock")

    def start(self, batch_size: int) -> int:
        """Return the number of images that are labelled already: a multiple of `batch_size`, unless all are.

        An incomplete batch at the end of the file is removed from it.

        Raises:
            RunError: The present file was made with other settings.
        """
        found = [each for each in (self.path, self.partial_file) if each.exists()]
        if not found:
            write_text(self.metadata_file, json_text(self.settings, indent=1) + "\n")
            return 0
        try:
            stored = parse_json(self.metadata_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            stored = {}
        stored = stored if isinstance(stored, dict) else {}
        if other := [name for name, value in self.settings.items() if stored.get(name) != value]:
            raise RunError(
                f"{found[0]} holds labels made with other {' and '.join(other)}; choose another --out, or "
                "remove it"
            )
        return len(self.images) if self.path.exists() else self._drop_incomplete_batch(batch_size)

    def _drop_incomplete_batch(self, batch_size: int) -> int:
        """Return the number of images of whole batches; the rest of an interrupted batch is cut off.

        The images of a batch stay together: the last bits of an output depend on the other images of its
        batch.
        """
        text = self.partial_file.read_bytes()
        whole = text[: text.rfind(b"\n") + 1].decode("utf-8", "surrogateescape")
        rows = [row for _, row in numbered_rows(io.StringIO(whole, newline=""), self.partial_file)]
        done = max(0, len(rows) - 1)
        if done < len(self.images):
            done -= done % batch_size
        kept = csv_text(rows[: 1 + done]).encode("utf-8", "surrogateescape")
        if len(kept) < len(text):
            self.partial_file.write_bytes(kept)
        return done

    @contextmanager
    def appending(self) -> Iterator[IO[str]]:
        """Open the file for appending; it gets its final name when the block succeeds."""
        with naming(self.partial_file), open_text(self.partial_file, "a") as file:
            if not file.tell():
                file.write(csv_text([COLUMNS]))
            yield file
        move_into_place(self.partial_file, self.path)

    def append(
        self,
        file: IO[str],
        images: Sequence[str],
        targets: Sequence[int | None],
        probabilities: Sequence[float],
    ) -> None:
        """Write the labels of a batch; the target None marks an image that could not be read."""
        rows = zip(images, targets, probabilities, strict=True)
        file.write(
            csv_text(
                (image, "", "") if target is None else (image, self.classes[target], f"{number:.9g}")
                for image, target, number in rows
            )
        )
        file.flush()


def read_label_files(paths: Sequence[Path]) -> tuple[list[str], list[str]]:
    """Read complete files of labels.

    Returns:
        The lines of all labelled images under one heading, and the names of images that could not be read.
    """
    lines, unreadable = [csv_text([COLUMNS])], []
    for path in paths:
        with open_text(path) as file:
            rows = numbered_rows(file, path)
            next(rows, None)
            for line, row in rows:
                if len(row) != len(COLUMNS):
                    raise RunError(
                        f"{path} is damaged: line {line} has {len(row)} values, not {len(COLUMNS)}; remove "
                        "the file to label its images anew"
                    )
                image, label, number = row
                if label:
                    lines.append(csv_text([(image, label, number)]))
                else:
                    unreadable.append(image)
    return lines, unreadable
