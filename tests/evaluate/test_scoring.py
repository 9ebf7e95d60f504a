import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics.functional.classification import multiclass_calibration_error

from lambdanets.evaluate.scoring import (
    SampleResults,
    Scores,
    concatenate,
    restrict_classes,
    score,
    topk_hits,
)
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


def scored(
    logits: torch.Tensor,
    targets: torch.Tensor,
    kept: list[int] | None,
    samples: list[SampleResults] | None = None,
    **options: object,
) -> Scores:
    """The network hands on what comes in: images of shape (classes, 1, 1) are the logits."""
    batches = DataLoader(list(zip(logits[..., None, None], targets, strict=True)), batch_size=8)  # type: ignore
    return score(
        nn.Flatten(),
        batches,
        num_classes=CLASSES,
        engine=EngineConfig(accelerator="cpu", **options),  # type: ignore[arg-type]
        name="flat",
        allowed=None if kept is None else np.array(kept),
        on_samples=None if samples is None else samples.append,
    )


def softmax(logits: torch.Tensor, kept: list[int]) -> np.ndarray:
    """Probabilities `[n, classes]`, 0 for classes that are not kept."""
    chosen = np.exp(logits.double().numpy()[:, kept])
    full = np.zeros(tuple(logits.shape))
    full[:, kept] = chosen / chosen.sum(1, keepdims=True)
    return full


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


@pytest.mark.parametrize("few", [None, (0, 2, 3, 5, 7, 8)])
def test_figures_of_classes_and_calibration_are_those_of_numpy(
    logits: torch.Tensor, targets: torch.Tensor, few: tuple[int, ...] | None
) -> None:
    if few is not None:
        here = torch.isin(targets, torch.tensor(few))
        logits, targets = logits[here], targets[here]
    kept, truths = list(few or range(CLASSES)), targets.numpy()
    logits[::3] *= 4  # some confident predictions
    logits[0, kept[0]] = 200.0  # a probability of 1
    probabilities = softmax(logits, kept)
    guesses, confidences = probabilities.argmax(1), probabilities.max(1)
    precisions, recalls, harmonic = [], [], []
    for name in np.unique(truths):
        hit = np.sum((truths == name) & (guesses == name))
        precisions.append(hit / np.sum(guesses == name) if np.any(guesses == name) else 0.0)
        recalls.append(hit / np.sum(truths == name))
        both = precisions[-1] + recalls[-1]
        harmonic.append(2 * precisions[-1] * recalls[-1] / both if both else 0.0)
    error = 0.0
    for low in range(15):
        inside = (confidences > low / 15) & (confidences <= (low + 1) / 15)
        if inside.any():
            error += inside.mean() * abs((guesses == truths)[inside].mean() - confidences[inside].mean())
    scores = scored(logits, targets, None if few is None else list(few))
    figures = scores.figures()
    assert figures["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert figures["macro_precision"] == pytest.approx(np.mean(precisions))
    assert figures["macro_f1"] == pytest.approx(np.mean(harmonic))
    assert figures["calibration_error"] == pytest.approx(error, rel=1e-5)
    assert scores.calibration[0].sum() == len(truths)
    assert scores.f1()[np.unique(truths)] == pytest.approx(harmonic)
    assert not scores.precision()[[name for name in range(CLASSES) if name not in kept]].any()


def test_the_calibration_error_is_that_of_torchmetrics(logits: torch.Tensor, targets: torch.Tensor) -> None:
    theirs = multiclass_calibration_error(logits, targets, CLASSES, n_bins=15)
    assert scored(logits, targets, None).calibration_error == pytest.approx(float(theirs), rel=1e-5)


@pytest.mark.parametrize("few", [None, (0, 2, 3, 5, 7, 8)])
def test_results_of_single_samples(
    logits: torch.Tensor, targets: torch.Tensor, few: tuple[int, ...] | None
) -> None:
    if few is not None:
        here = torch.isin(targets, torch.tensor(few))
        logits, targets = logits[here], targets[here]
    kept, truths, parts = list(few or range(CLASSES)), targets.numpy(), []
    scored(logits, targets, None if few is None else list(few), samples=parts)
    probabilities, found = softmax(logits, kept), concatenate(parts)
    own = probabilities[np.arange(len(truths)), truths]
    assert len(parts) == -(-len(truths) // 8)
    assert found.truths.tolist() == truths.tolist()
    assert found.guesses.tolist() == probabilities.argmax(1).tolist()
    assert found.confidences == pytest.approx(probabilities.max(1), rel=1e-5)
    assert found.truth_probabilities == pytest.approx(own, rel=1e-5)
    assert found.losses == pytest.approx(-np.log(own), rel=1e-4, abs=1e-6)
    assert found.probabilities == pytest.approx(probabilities[:, kept], abs=1e-6)


def test_probabilities_of_many_classes_are_not_recorded() -> None:
    parts: list[SampleResults] = []
    batches = DataLoader([(torch.randn(21, 1, 1), 3)] * 3, batch_size=2)  # type: ignore[arg-type]
    engine = EngineConfig(accelerator="cpu")
    score(nn.Flatten(), batches, num_classes=21, engine=engine, name="flat", on_samples=parts.append)
    assert concatenate(parts).probabilities is None


def test_a_device_in_place_of_the_engines(logits: torch.Tensor, targets: torch.Tensor) -> None:
    batches = DataLoader(list(zip(logits[..., None, None], targets, strict=True)), batch_size=8)  # type: ignore
    common = {"num_classes": CLASSES, "name": "flat"}
    engine = EngineConfig(accelerator="gpu")
    scores = score(nn.Flatten(), batches, engine=engine, device=torch.device("cpu"), **common)  # type: ignore
    assert scores.images.sum() == 57
    if not torch.cuda.is_available():
        with pytest.raises(RunError, match="the engine settings cannot be used here"):
            score(nn.Flatten(), batches, engine=engine, device=torch.device("cuda:1"), **common)  # type: ignore


def test_restricted_targets_are_indices_of_the_allowed() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]])
    left, places = restrict_classes(logits, torch.tensor([3, 1]), torch.tensor([1, 3]))
    assert left.tolist() == [[1.0, 3.0], [5.0, 7.0]]
    assert places.tolist() == [1, 0]
    assert [each.tolist() for each in topk_hits(left, places)] == [[1, 1], [True, False], [True, True]]


def test_scores_of_the_same_classes_add_up(logits: torch.Tensor, targets: torch.Tensor) -> None:
    whole = scored(logits, targets, None)
    parts = scored(logits[:20], targets[:20], None) + scored(logits[20:], targets[20:], None)
    for name in ("images", "top1", "top5", "guessed"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name)), name
    assert parts.calibration == pytest.approx(whole.calibration)
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
