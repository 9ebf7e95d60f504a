import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lambdanets.evaluate.scoring import Scores, restrict_classes, score, topk_hits
from lambdanets.train import EngineConfig, RunError

CLASSES = 11


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(57, CLASSES)


@pytest.fixture
def targets() -> torch.Tensor:
    return torch.randint(0, CLASSES - 1, (57,))  # the last class has no image


def counted(logits: torch.Tensor, targets: torch.Tensor, kept: list[int]) -> dict[str, list[int]]:
    """Image by image, class by class."""
    counts = {name: [0] * CLASSES for name in ("images", "top1", "top5")}
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        ranked = sorted(kept, key=lambda index: -row[index])
        counts["images"][target] += 1
        counts["top1"][target] += ranked[0] == target
        counts["top5"][target] += target in ranked[:5]
    return counts


def scored(logits: torch.Tensor, targets: torch.Tensor, kept: list[int] | None, **options: object) -> Scores:
    """The network hands on what comes in: images of shape (classes, 1, 1) are the logits."""
    batches = DataLoader(list(zip(logits[..., None, None], targets, strict=True)), batch_size=8)  # type: ignore
    return score(
        nn.Flatten(),
        batches,
        num_classes=CLASSES,
        engine=EngineConfig(accelerator="cpu", **options),  # type: ignore[arg-type]
        name="flat",
        allowed=None if kept is None else np.array(kept),
    )


@pytest.mark.parametrize("few", [None, (0, 2, 3, 5, 7, 8), (1, 4)])
def test_counts_are_those_of_a_loop(
    logits: torch.Tensor, targets: torch.Tensor, few: tuple[int, ...] | None
) -> None:
    if few is not None:
        here = torch.isin(targets, torch.tensor(few))
        logits, targets = logits[here], targets[here]
    scores = scored(logits, targets, None if few is None else list(few))
    expected = counted(logits, targets, list(few or range(CLASSES)))
    assert {name: getattr(scores, name).tolist() for name in expected} == expected
    chosen = logits[:, few] if few is not None else logits
    losses = [
        float(torch.logsumexp(row, 0) - whole[target])
        for row, whole, target in zip(chosen.double(), logits.double(), targets.tolist(), strict=True)
    ]
    figures = scores.figures()
    assert figures["loss"] == pytest.approx(np.mean(losses), rel=1e-6)
    assert figures["top1"] == pytest.approx(sum(expected["top1"]) / len(targets))
    assert figures["top5"] == pytest.approx(sum(expected["top5"]) / len(targets))
    assert figures["images"] == len(targets)
    assert scores.error == pytest.approx(1 - figures["top1"])


def test_restricted_targets_are_indices_of_the_allowed() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]])
    left, places = restrict_classes(logits, torch.tensor([3, 1]), torch.tensor([1, 3]))
    assert left.tolist() == [[1.0, 3.0], [5.0, 7.0]]
    assert places.tolist() == [1, 0]
    assert [each.tolist() for each in topk_hits(left, places)] == [[1, 1], [True, False], [True, True]]


def test_scores_of_the_same_classes_add_up(logits: torch.Tensor, targets: torch.Tensor) -> None:
    whole = scored(logits, targets, None)
    parts = scored(logits[:20], targets[:20], None) + scored(logits[20:], targets[20:], None)
    for name in ("images", "top1", "top5"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name)), name
    assert parts.loss_sum == pytest.approx(whole.loss_sum, rel=1e-6)


@pytest.mark.parametrize("precision", ["64", "bf16-mixed"])
def test_other_precisions(logits: torch.Tensor, targets: torch.Tensor, precision: str) -> None:
    assert scored(logits, targets, None, precision=precision).images.sum() == 57


def test_images_of_a_size_that_the_network_refuses(targets: torch.Tensor) -> None:
    class Picky(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert images.shape[-1] == 3, "width must be 3"
            return images

    loader = DataLoader([(torch.zeros(1, 5, 4), 0)], batch_size=1)  # type: ignore[arg-type]
    with pytest.raises(RunError, match="picky cannot take images of 1x5x4: width must be 3"):
        score(Picky(), loader, num_classes=2, engine=EngineConfig(accelerator="cpu"), name="picky")
