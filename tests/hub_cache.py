"""A stand-in of the Hugging Face hub: its cache with one repository, without a connection."""

from pathlib import Path

import pytest

NAME = "hf-hub:owner/name"


def place_on_hub(monkeypatch: pytest.MonkeyPatch, root: Path) -> Path:
    """Return the folder that `NAME` opens from now on, to be filled; without a connection nothing else opens.

    Args:
        monkeypatch: Restores the real cache.
        root: Folder of the stand-in.
    """
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    place = root / "models--owner--name"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    return place / "snapshots" / ("0" * 40)
