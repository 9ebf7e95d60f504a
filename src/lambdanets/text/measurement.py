"""Measurement of a language model: loss, bits, perplexity and speed on a text."""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lambdanets.data import DataError, TextDataConfig, TextSet, Vocabulary, open_text_split, text_eval_loader
from lambdanets.data.text.text_set import IGNORED
from lambdanets.text.config import TextConfig
from lambdanets.text.weights import open_network
from lambdanets.train import Run
from lambdanets.utils.progress import progress_bar

BITS_PER_NAT = 1 / math.log(2)
MIN_BATCHES_FOR_BAR = 200


@dataclass(frozen=True, kw_only=True)
class TextScores:
    """How well a model predicts a text; each token but the first is predicted from those before it.

    Attributes:
        loss: Mean negative log-likelihood of a token, in nats.
        perplexity: exp(loss).
        bits_per_token: Loss in bits; of a model of characters, bits per character.
        bits_per_byte: Bits per byte of the text in UTF-8.
        accuracy: Fraction of tokens that were the most probable ones.
        tokens: Predicted tokens.
        tokens_per_second: Speed.
    """

    loss: float
    perplexity: float
    bits_per_token: float
    bits_per_byte: float
    accuracy: float
    tokens: int
    tokens_per_second: float

    def to_plain(self) -> dict[str, float]:
        """Return the fields by name."""
        return asdict(self)


@torch.inference_mode()
def measure(network: nn.Module, text: TextSet, *, batch_size: int) -> TextScores:
    """Measure a network on a text, in windows of `text.context` tokens.

    Args:
        network: The language model, in evaluation mode.
        text: The text.
        batch_size: Windows in a batch.
    """
    device = next(network.parameters()).device
    lengths = torch.from_numpy(text.vocabulary.byte_lengths)
    nats, right, count, size = 0.0, 0, 0, 0
    started = time.perf_counter()
    loader = text_eval_loader(text, batch_size)
    with progress_bar("measuring", len(loader), least=MIN_BATCHES_FOR_BAR) as progress:
        for done, (tokens, targets) in enumerate(loader, 1):
            logits = network(tokens.to(device)).float().cpu()
            nats += float(
                cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")
            )
            right += int((logits.argmax(-1) == targets).sum())
            known = targets[targets != IGNORED]
            count += len(known)
            size += int(lengths[known].sum())
            progress(done, len(loader))
    loss = nats / count
    return TextScores(
        loss=loss,
        perplexity=math.exp(min(loss, 700)),
        bits_per_token=loss * BITS_PER_NAT,
        bits_per_byte=nats * BITS_PER_NAT / size,
        accuracy=right / count,
        tokens=count,
        tokens_per_second=count / max(time.perf_counter() - started, 1e-9),
    )


def evaluate(
    run: Run[TextConfig],
    *,
    data: TextDataConfig | None = None,
    weights: Literal["best", "last"] = "best",
) -> TextScores:
    """Measure a run on its validation text or on another one.

    Args:
        run: The run.
        data: The text, of which the validation side is measured; None takes the run's own.
        weights: Weights of the run's best epoch by validation, or of its last epoch.

    Raises:
        DataError: The text cannot be read, or has characters outside the run's vocabulary.
        RunError: The run has no such weights yet.
    """
    data = data or run.config.data
    text = open_text_split(data, Vocabulary(run.classes))
    return measure(open_network(run, weights), text, batch_size=data.batch_size)


def measure_files(
    run: Run[TextConfig], files: Iterable[Path], *, weights: Literal["best", "last"] = "best"
) -> Iterator[tuple[Path, TextScores | DataError]]:
    """Measure a run on each of several files, or yield the error of a file that cannot be used."""
    network: nn.Module | None = None
    for path in files:
        data = replace(run.config.data, source=f"text:{path}", val_fraction=1.0)
        try:
            text = open_text_split(data, Vocabulary(run.classes))
        except (DataError, OSError) as error:
            yield path, error if isinstance(error, DataError) else DataError(f"{path}: {error.strerror}")
            continue
        network = network or open_network(run, weights)
        yield path, measure(network, text, batch_size=data.batch_size)
