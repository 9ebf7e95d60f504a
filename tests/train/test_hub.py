"""The folder of a run for the Hugging Face hub, its model card, and the upload."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from huggingface_hub import HfApi

from lambdanets.train import RunError, RunResult, load_run


def test_the_card_describes_the_run(finished: RunResult, tmp_path: Path) -> None:
    run = load_run(finished.directory)
    for which in ("best", "last"):
        folder = run.save_for_hub(tmp_path / which, which)
        assert {file.name for file in folder.iterdir()} == {"README.md", "config.json", "model.safetensors"}
        _, head, text = (folder / "README.md").read_text().split("---\n", 2)
        assert yaml.safe_load(head)["pipeline_tag"] == "image-classification"
        rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
        facts = dict(row for row in rows if len(row) == 2)
        row = finished.best if which == "best" else finished.history[-1]
        assert facts["top1"] == f"{row['val_top1']:.4f}"
        assert float(facts["loss"]) == pytest.approx(row["val_loss"], abs=1e-4)
        assert facts["input"] == "`1x8x8`"
        assert f"epoch {int(row['epoch'])} on the validation" in text
        assert f"{finished.parameters:,} parameters and 10 classes" in text
        assert "validation images, 10 classes. The figures" in text
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(model(x), run.model("last")(x))


def test_an_upload_creates_the_repository(finished: RunResult, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any]] = []

    def upload(self: HfApi, *, repo_id: str, folder_path: Path, commit_message: str) -> str:
        assert json.loads((folder_path / "config.json").read_text())["architecture"] == "lambda_resnet_digits"
        assert f'"hf-hub:{repo_id}"' in (folder_path / "README.md").read_text()
        calls.append(("upload", repo_id))
        return f"https://example.org/{repo_id}/commit/1"

    monkeypatch.setattr(
        HfApi, "create_repo", lambda self, name, **options: calls.append(("create", (name, options)))
    )
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    address = load_run(finished.directory).push_to_hub("me/digits", private=True)
    assert address == "https://example.org/me/digits/commit/1"
    created = ("me/digits", {"private": True, "exist_ok": True})
    assert calls == [("create", created), ("upload", "me/digits")]


def test_a_failed_upload_is_one_sentence(finished: RunResult, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(HfApi, "create_repo", fail)
    with pytest.raises(RunError, match=r"^me/digits cannot be uploaded: no route to host$"):
        load_run(finished.directory).push_to_hub("me/digits")


def test_a_run_without_results_is_refused(finished: RunResult, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((finished.directory / "config.json").read_text())
    (tmp_path / "classes.json").write_text((finished.directory / "classes.json").read_text())
    with pytest.raises(RunError, match="no epoch has ended"):
        load_run(tmp_path).save_for_hub(tmp_path / "hub")
    assert not (tmp_path / "hub").exists()


def test_the_folder_of_the_run_is_not_overwritten(finished: RunResult) -> None:
    before = (finished.directory / "config.json").read_text()
    with pytest.raises(RunError, match="is the folder of the run"):
        load_run(finished.directory).save_for_hub(finished.directory)
    assert (finished.directory / "config.json").read_text() == before
