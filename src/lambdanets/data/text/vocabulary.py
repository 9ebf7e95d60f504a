"""The tokens of a text: characters, or bytes."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np

from lambdanets.utils.text import join_some

from ..errors import DataError

BYTES = tuple(f"{value:02x}" for value in range(256))  # names of the tokens of bytes
CODE_POINTS = 0x110000  # of Unicode


class Vocabulary:
    """The tokens of a language model, in the order of its logits.

    Args:
        names: One character each; or `BYTES`, two hexadecimal digits each.

    Raises:
        DataError: The names are neither.
    """

    def __init__(self, names: Sequence[str]):
        self.names = tuple(names)
        self.of_bytes = self.names == BYTES
        if not self.of_bytes and (set(map(len, self.names)) != {1} or len(set(names)) != len(names)):
            raise DataError("a vocabulary has one character for each token, or the 256 bytes.")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def dtype(self) -> type[np.unsignedinteger]:
        """The smallest dtype that holds all tokens."""
        sizes = (np.uint8, np.uint16, np.uint32)
        return next(kind for kind in sizes if len(self) <= np.iinfo(kind).max + 1)

    @cached_property
    def byte_lengths(self) -> np.ndarray:
        """Length of each token in UTF-8, `[tokens]`."""
        return np.array([1 if self.of_bytes else len(name.encode()) for name in self.names])

    @cached_property
    def _by_code_point(self) -> np.ndarray:
        """Token of each code point, -1 for those that have none, `[CODE_POINTS]`."""
        table = np.full(CODE_POINTS, -1, np.int32)
        table[[ord(name) for name in self.names]] = np.arange(len(self))
        return table

    def encode(self, text: str) -> np.ndarray:
        """Return the tokens of a text, `[n]`.

        Raises:
            DataError: Characters of the text are not in the vocabulary; the message names them.
        """
        if self.of_bytes:
            # Bytes of the command line that are not UTF-8 are surrogates in Python's strings.
            return np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8)
        # A lone surrogate, as from a broken terminal, is no character of any text.
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        tokens = self._by_code_point[points]
        if (tokens < 0).any():
            unknown = list(dict.fromkeys(chr(point) for point in points[tokens < 0].tolist()))
            be, them = ("is", "it") if len(unknown) == 1 else ("are", "them")
            raise DataError(
                f"{join_some(unknown)} {be} not among the {len(self)} characters of the model's vocabulary; "
                f"leave {them} out, or train a model on text with {them}."
            )
        return tokens.astype(self.dtype)

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of tokens; bytes that are no UTF-8 become U+FFFD."""
        decoder = Decoder(self)
        return "".join(map(decoder.feed, tokens)) + decoder.end()


class Decoder:
    """Decodes one token at a time.

    Args:
        vocabulary: The tokens.
    """

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary = vocabulary
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """Return the text that a token completes: "" for a byte inside a character."""
        if self.vocabulary.of_bytes:
            return self._bytes.decode(bytes([token]))
        return self.vocabulary.names[token]

    def end(self) -> str:
        """Return the text of bytes that no character followed."""
        return self._bytes.decode(b"", final=True)
