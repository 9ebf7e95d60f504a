"""Training of a language model: its Lightning module, its task, and `train` and `load_run`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from lambdanets.data import TextSplits, Vocabulary, open_text, text_eval_loader, text_train_loader
from lambdanets.data.text.text_set import IGNORED
from lambdanets.models import WeightsError
from lambdanets.models.weight_files import find_weights
from lambdanets.text.config import TextConfig
from lambdanets.text.generation import sample_text
from lambdanets.text.measurement import BITS_PER_NAT
from lambdanets.text.samples import add_sample
from lambdanets.text.weights import stored_vocabulary
from lambdanets.train import Run
from lambdanets.train import load_run as load_any_run
from lambdanets.train.checkpoint import RunState
from lambdanets.train.engine import Task, train_task
from lambdanets.train.errors import RunError, raised_on_all_ranks
from lambdanets.train.learner import Learner
from lambdanets.train.reporting import RunResult
from lambdanets.viz.figures import Panel, draw_curves

CURVES = (
    Panel("loss (nats per token)", {"training": "train_loss", "validation": "val_loss"}, lowest="val_loss"),
    Panel("accuracy (%)", {"training": "train_top1", "validation": "val_top1"}, scale=100),
)


class LanguageModule(Learner):
    """Trains a language model on windows of text.

    Args:
        network: Tokens `[b, n]` to logits `[b, n, vocabulary]`.
        config: The run.
        classes: Names of the tokens.
        state: Progress of the run, shared with the callbacks.
    """

    train_metrics = ("loss", "top1")
    columns = ("val_loss", "val_bits_per_byte", "val_top1")
    monitor = "val_loss"

    def __init__(
        self, network: nn.Module, config: TextConfig, *, classes: Sequence[str], state: RunState
    ) -> None:
        super().__init__(network, config, classes=classes, state=state)
        self.vocabulary = Vocabulary(classes)
        self.byte_lengths = torch.from_numpy(self.vocabulary.byte_lengths)
        self.val_sums: Tensor | None = None

    def train_loader(self, splits: TextSplits, *, rank: int, world_size: int) -> DataLoader:
        return text_train_loader(
            splits.train,
            self.config.data,
            seed=self.config.seed,
            position=lambda: self.state.position,
            rank=rank,
            world_size=world_size,
        )

    def val_loader(self, splits: TextSplits, *, rank: int, world_size: int) -> DataLoader:
        return text_eval_loader(splits.val, self.config.data.batch_size, rank=rank, world_size=world_size)

    # Training

    def on_fit_start(self) -> None:
        if isinstance(self.trainer.strategy, FSDPStrategy | ModelParallelStrategy):
            with raised_on_all_ranks():
                raise RunError("a language model trains with engine.strategy=ddp, not with FSDP")
        super().on_fit_start()

    def step(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, list[Tensor], int]:
        tokens, targets = batch
        logits = self.network(tokens)
        loss = cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        right = (logits.detach().argmax(-1) == targets).sum()
        return loss, [loss * targets.numel(), right], targets.numel()

    def batch_items(self, batch: tuple[Tensor, Tensor]) -> int:
        return batch[1].numel()

    def network_inputs(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor]:
        return (batch[0],)

    def named_tensors(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return dict(zip(("tokens", "targets"), batch, strict=True))

    # Validation

    def on_validation_epoch_start(self) -> None:
        # Loss in nats, correct predictions, tokens and their bytes in UTF-8.
        self.val_sums = torch.zeros(4, dtype=torch.float64)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        tokens, targets = batch
        logits = self.eval_network(tokens)
        losses = cross_entropy(
            logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        right = (logits.argmax(-1) == targets).sum()
        known = targets[targets != IGNORED].cpu()
        assert self.val_sums is not None
        self.val_sums += torch.tensor(
            [float(losses), float(right), len(known), int(self.byte_lengths[known].sum())],
            dtype=torch.float64,
        )

    def on_validation_epoch_end(self) -> None:
        assert self.val_sums is not None
        sums = self.val_sums.to(self.device if self.device.type != "mps" else "cpu")
        nats, right, count, size = self.trainer.strategy.reduce(sums, reduce_op="sum").tolist()
        self.val_metrics = {
            "val_loss": nats / count,
            "val_bits_per_byte": nats * BITS_PER_NAT / size,
            "val_top1": right / count,
        }
        if self.config.sample.tokens and self.files is not None and self.trainer.is_global_zero:
            self._write_sample(self.files.samples)

    def _write_sample(self, path: Path) -> None:
        epoch = self.state.position[0]
        text = sample_text(
            self.eval_network,
            self.vocabulary,
            self.config.sample.tokens,
            temperature=self.config.sample.temperature,
            seed=epoch,
        )
        add_sample(path, epoch, f"validation loss {self.val_metrics['val_loss']:.4f}", text)

    def ranking_key(self, row: Mapping[str, float]) -> tuple[float, ...]:
        return (-row["val_loss"],)

    # Progress, summary and figures

    def format_training(self, means: Mapping[str, float]) -> str:
        return f"loss {means['loss']:.3f}"

    def format_epoch(self, row: Mapping[str, float]) -> str:
        line = f"train {row['train_loss']:.3f}"
        if "val_loss" in row:
            line += f"  val {row['val_loss']:.4f}, {row['val_bits_per_byte']:.3f} bits/byte"
        return line

    def format_validation(self, row: Mapping[str, float]) -> str:
        return (
            f"validation loss {row['val_loss']:.4f} nats, {row['val_bits_per_byte']:.4f} bits per byte, "
            f"perplexity {math.exp(min(row['val_loss'], 700)):.2f}"
        )

    def format_data(self, splits: TextSplits) -> str:
        kind = "bytes" if self.vocabulary.of_bytes else "characters"
        return f"{len(splits.train.tokens):,} training and {len(splits.val.tokens):,} validation {kind}"

    def data_advice(self) -> list[str]:
        return ["the text, or the cache in ~/.cache/lambdanets, on a faster disk"]

    def draw_curves(self, path: Path, title: str = "") -> None:
        draw_curves(self.state.history, path, CURVES, title)


def _open(config: TextConfig) -> TextSplits:
    """Open the text with its own vocabulary, or with that of the initial weights."""
    vocabulary = None
    if config.model.weights is not None:
        try:
            vocabulary = stored_vocabulary(find_weights(config.model.weights))
        except WeightsError:
            # A run that is resumed needs these weights no more; a new one reports that they are missing.
            vocabulary = None
    return open_text(config.data, vocabulary=vocabulary)


TEXT = Task(TextConfig, _open, LanguageModule)


def train(
    config: TextConfig | None = None,
    *,
    run_dir: str | Path,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
) -> RunResult:
    """Train a language model on a text and write one folder.

    Arguments, result and errors are those of `lambdanets.train.train`; speeds are in tokens per second. In
    addition to the files of every run, the folder holds `samples.txt`, the text that the model wrote at each
    validation. `classes.json` has the vocabulary.

    Example:
        >>> train(override(get_recipe("text"), "data.source=text:book.txt"), run_dir="runs/book")
    """
    return train_task(TEXT, config, run_dir=run_dir, resume=resume, callbacks=callbacks)


def load_run(path: str | Path) -> Run[TextConfig]:
    """Open the folder of a run that trained a language model.

    Args:
        path: The folder that `train` wrote; it may have been moved since.

    Raises:
        RunError: The folder is no such run, or its configuration or its vocabulary cannot be read.
    """
    return load_any_run(path, TextConfig)
