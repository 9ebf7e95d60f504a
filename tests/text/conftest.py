"""A language model in miniature, and a run of it that tests share."""

from pathlib import Path

import pytest

from lambdanets.recipes import miniature, text
from lambdanets.text import TextConfig, train
from lambdanets.train import RunResult, override

LINES = "".join(f"The {number}th fox jumps over the lazy dog.\n" for number in range(40))


@pytest.fixture(scope="session")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text(LINES)
    return path


@pytest.fixture(scope="session")
def tiny(book: Path) -> TextConfig:
    """The recipe in miniature, four steps in each of two epochs, with dropout and an average."""
    return override(
        miniature(text()),
        f"data.source=text:{book}",
        "data.windows=16",
        "engine.max_batches=None",
        "engine.max_val_batches=None",
        "engine.save_steps=1",
        "engine.ema=0.5",
        "model.options.dropout=0.1",
    )


@pytest.fixture(scope="session")
def finished(tiny: TextConfig, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return train(tiny, run_dir=tmp_path_factory.mktemp("runs") / "finished")
