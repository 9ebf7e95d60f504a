"""Gradient clipping: by the norm of all, or adaptively as in timm, without the head."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lambdanets.train import RunConfig, override
from lambdanets.train.classifier import Classifier
from lambdanets.train.config import EngineConfig
from lambdanets.train.engine import train
from lambdanets.train.launch import sharding_error

CLIP = 0.01


def test_adaptive_clipping_is_by_the_row_and_spares_the_head(
    tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Classifier.configure_gradient_clipping
    largest, head = [], []

    def checked(self: Classifier, *args: Any, **options: Any) -> None:
        named = [
            (name, p, p.grad.clone()) for name, p in self.network.named_parameters() if p.grad is not None
        ]
        original(self, *args, **options)
        for name, parameter, before in named:
            after = parameter.grad
            assert after is not None
            if name.startswith("fc."):
                assert torch.equal(after, before)
                head.append(before.norm())
                continue
            # The bound, row by row, by its definition: Brock et al. 2021, equation 3.
            rows = [(each.flatten(1) if each.ndim > 1 else each[None]) for each in (parameter, before, after)]
            for weight, old, new in zip(*rows, strict=True):
                limit = CLIP * max(weight.norm().item(), 1e-3)
                expected = old * min(1.0, limit / max(old.norm().item(), 1e-6))
                torch.testing.assert_close(new, expected, rtol=1e-4, atol=1e-7)
                largest.append(old.norm().item() / limit)

    monkeypatch.setattr(Classifier, "configure_gradient_clipping", checked)
    config = override(
        tiny, "engine.clip_mode=agc", f"engine.clip_grad={CLIP}", "engine.epochs=1", "engine.max_batches=1"
    )
    train(config, run_dir=tmp_path / "run")
    assert len(head) == 2
    assert min(largest) < 1 < max(largest)


def test_clip_modes_are_checked() -> None:
    with pytest.raises(ValueError, match="needs its threshold"):
        EngineConfig(clip_mode="agc")
    with pytest.raises(ValueError, match="norm or agc"):
        EngineConfig(clip_mode="value", clip_grad=1.0)  # pyright: ignore[reportArgumentType]
    assert "clip_mode=norm" in sharding_error(EngineConfig(clip_mode="agc", clip_grad=0.1), "cuda")
