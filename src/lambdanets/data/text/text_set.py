"""Tokens of a text in memory or in a mapped file, their split by position, and windows of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lambdanets.utils.files import replacing, user_cache
from lambdanets.utils.processes import locked
from lambdanets.utils.progress import progress_bar

from ..errors import DataError
from .config import TextDataConfig
from .files import BlockDecoder, byte_blocks, find_sides, plain_bytes
from .vocabulary import BYTES, Vocabulary

IGNORED = -100  # target of positions behind the end of a text, which cross entropy leaves out
MAX_CHARACTERS = 256  # of a vocabulary that is chosen by itself; a text with more becomes bytes
IN_MEMORY = 64 * 2**20  # bytes of files up to which the tokens are held in memory
WORTH_A_BAR = 256 * 2**20  # bytes of files from which on a progress bar is shown
PATIENCE = 24 * 3600.0  # seconds to wait for another process that writes the same tokens


class TextSet:
    """A text as tokens, from which windows are copied.

    Args:
        tokens: The tokens, `[n]`.
        vocabulary: Their vocabulary.
        context: Tokens of a window.
    """

    def __init__(self, tokens: np.ndarray, vocabulary: Vocabulary, context: int):
        self.tokens, self.vocabulary, self.context = tokens, vocabulary, context

    def __len__(self) -> int:
        """Return the number of windows that predict each token but the first once, the last one shorter."""
        return -(-(len(self.tokens) - 1) // self.context)

    def batch(self, indices: np.ndarray, epoch: int | np.ndarray, seed: int) -> tuple[Tensor, Tensor]:
        """Return the windows that start at the given positions.

        Args:
            indices: Positions of their first tokens, `[b]`.
            epoch: Without effect.
            seed: Without effect.

        Returns:
            Tokens and the tokens that follow each of them, both int64 `[b, context]`; behind the end of the
            text 0 and `IGNORED`.
        """
        windows = np.zeros((len(indices), self.context + 1), np.int64)
        lengths = np.empty((len(indices), 1), np.int64)
        for row, start in enumerate(indices.tolist()):
            found = self.tokens[start : start + self.context + 1]
            windows[row, : len(found)] = found
            lengths[row] = len(found)
        targets = windows[:, 1:].copy()
        targets[np.arange(1, self.context + 1) >= lengths] = IGNORED
        return torch.from_numpy(windows[:, :-1].copy()), torch.from_numpy(targets)


@dataclass(frozen=True)
class TextSplits:
    """The training and validation side of a text.

    Attributes:
        train: The text to train on.
        val: The text to validate on.
        classes: Names of the tokens, as in `Vocabulary`.
        fingerprint: Hash of the files' content.
        skipped: Sentences about files that were left out: none.
    """

    train: TextSet
    val: TextSet
    classes: tuple[str, ...]
    fingerprint: str
    skipped: tuple[str, ...] = ()


def open_text(config: TextDataConfig, *, vocabulary: Vocabulary | None = None) -> TextSplits:
    """Open a text for training.

    Args:
        config: The text and its form.
        vocabulary: The tokens; None takes those of the text.

    Raises:
        DataError: The text cannot be used; the message says why.
    """
    text = _Text(config, vocabulary)
    train, val = text.sides()
    divided = not text.files[1]
    if len(train) <= config.context:
        fraction = ", a smaller data.val_fraction" if divided else ""
        raise DataError(
            f"{config.root} has {text.count(train)} to train on, and windows of "
            f"data.context={config.context} need at least {config.context + 1:,}: use more text{fraction} or "
            "a smaller data.context."
        )
    if len(val) < 2:
        fraction = " or a larger data.val_fraction" if divided else ""
        raise DataError(
            f"{config.root} has {text.count(val)} to validate on, and at least 2 are needed: use more "
            f"text{fraction}."
        )
    sets = (TextSet(tokens, text.vocabulary, config.context) for tokens in (train, val))
    return TextSplits(*sets, classes=text.vocabulary.names, fingerprint=text.digest)


def open_text_split(config: TextDataConfig, vocabulary: Vocabulary) -> TextSet:
    """Open the validation side of a text, for a model with a vocabulary.

    Raises:
        DataError: The text cannot be used, or has characters outside the vocabulary.
    """
    text = _Text(config, vocabulary)
    _, val = text.sides()
    if len(val) < 2:
        raise DataError(
            f"{config.root} has {text.count(val)} to measure, and at least 2 are needed: use more text."
        )
    return TextSet(val, vocabulary, config.context)


class _Text:
    """The files of a text, after a first reading that finds their characters and hashes their content."""

    def __init__(self, config: TextDataConfig, vocabulary: Vocabulary | None) -> None:
        self.config = config
        self.files = find_sides(config.root)
        self.size = sum(path.stat().st_size for side in self.files for path in side)
        if not self.size:
            raise DataError(f"{config.root} is empty: name a file or folder with text.")
        self.digest, characters = self._scan(decodes=vocabulary is None and config.tokens != "bytes")
        if vocabulary is None:
            few = config.tokens == "characters" or len(characters) <= MAX_CHARACTERS
            vocabulary = Vocabulary(sorted(characters) if characters and few else BYTES)
        self.vocabulary = vocabulary

    def count(self, tokens: np.ndarray) -> str:
        """Return the number of tokens with their unit."""
        unit = "byte" if self.vocabulary.of_bytes else "character"
        return f"{len(tokens):,} {unit}{'' if len(tokens) == 1 else 's'}"

    def sides(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens to train on and those to validate on."""
        train, val = self.files
        if val:
            return self._tokens(train, "train"), self._tokens(val, "val")
        tokens = self._tokens(train, "all")
        kept = int(len(tokens) * (1 - self.config.val_fraction))
        return tokens[:kept], tokens[kept:]

    def _scan(self, *, decodes: bool) -> tuple[str, set[str]]:
        """Return the hash of both sides, and the characters of the text if it is decoded."""
        digest, characters, decoder = hashlib.blake2b(digest_size=16), set[str](), BlockDecoder()
        with progress_bar("reading text", self.size, least=WORTH_A_BAR) as progress:
            done = 0
            for side in self.files:
                for path, position, block in byte_blocks(side):
                    digest.update(block)
                    if decodes:
                        characters |= set(decoder.feed(path, position, block))
                    progress(done := done + len(block), self.size)
                # The split is a part of the hash.
                digest.update(b"/")
            if decodes:
                decoder.end()
        return digest.hexdigest(), characters

    def _tokens(self, files: Sequence[Path], side: str) -> np.ndarray:
        """Return the tokens of one side, in memory, or in a file of the user's cache if the text is large."""
        cache = user_cache()
        if self.size <= IN_MEMORY or cache is None:
            return np.concatenate([np.empty(0, self.vocabulary.dtype), *self._encode(files)])
        names = hashlib.blake2b("".join(self.vocabulary.names).encode(), digest_size=8).hexdigest()
        path = cache / "text" / f"{self.digest}-{names}-{side}.tokens"
        with locked(path.with_suffix(".lock"), str(path), patience=PATIENCE):
            if not path.exists():
                with replacing(path) as unfinished, unfinished.open("wb") as file:
                    for tokens in self._encode(files):
                        tokens.tofile(file)
        return np.memmap(path, self.vocabulary.dtype, mode="r")

    def _encode(self, files: Sequence[Path]) -> Iterator[np.ndarray]:
        decoder = BlockDecoder()
        for path, position, block in byte_blocks(files):
            if self.vocabulary.of_bytes:
                yield np.frombuffer(plain_bytes(position, block), np.uint8)
                continue
            text = decoder.feed(path, position, block)
            try:
                yield self.vocabulary.encode(text)
            except DataError as error:
                raise DataError(f"{path} cannot be used: {error}") from None
        if not self.vocabulary.of_bytes:
            decoder.end()
