"""Random numbers as a function of (seed, epoch, index), independent of workers and of resuming."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

# Random streams: the draws of one key from different streams are independent of one another.
ORDER, PAD_TOP, PAD_LEFT, FLIP, RANDOM_CROP, COLOR, ERASE, SHARD, START = range(1, 10)
SPEED, SHIFT, PITCH, CUT, TIME_MASK, BAND_MASK = range(10, 16)  # of recordings
MIX = 16  # of batches: mixup and cutmix
WINDOW = 16  # shards whose samples are shuffled together
NUMPY_GENERATOR = np.random.mtrand._rand  # the generator behind np.random's functions, which timm draws from
FEISTEL_ROUNDS = 6
GOLDEN = 0x9E3779B97F4A7C15  # SplitMix64's step


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: every bit of the input reaches every bit of the output."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def keys(seed: int, epoch: int | np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Return one 64-bit key for each sample.

    A hash instead of a generator gives the key of any sample without drawing those before it, whole batches
    at once, and the same key on every machine and in every version of NumPy.

    Args:
        seed: seed of the run.
        epoch: counted from 0; one for all samples, or an array of shape [b].
        indices: indices of shape [b].

    Returns:
        Unsigned 64-bit keys of shape [b].
    """
    key = np.zeros(1, np.uint64)
    for part in (np.array([seed]), np.atleast_1d(epoch), np.asarray(indices)):
        key = _mix(key + np.uint64(GOLDEN) + _mix(part.astype(np.int64).astype(np.uint64)))
    return key


def _draw(sample_keys: np.ndarray, stream: int) -> np.ndarray:
    return _mix(sample_keys + np.uint64(stream * GOLDEN % 2**64))


def uniform(sample_keys: np.ndarray, stream: int) -> np.ndarray:
    """Return one float64 in [0, 1) for each key.

    Args:
        sample_keys: the result of `keys`, of shape [b].
        stream: one of the constants above; streams are independent of one another.
    """
    return (_draw(sample_keys, stream) >> np.uint64(11)) * 2.0**-53


def derived_seed(seed: int, use: str) -> int:
    """Return a 63-bit seed that is a hash of the run's seed and the name of its use."""
    digest = hashlib.blake2b(f"{seed}/{use}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """Return the indices of `size` samples in the order in which an epoch visits them, of shape [size]."""
    return np.argsort(_draw(keys(seed, epoch, np.arange(size)), ORDER), kind="stable")


def permuted(seed: int, epoch: int, positions: np.ndarray, size: int) -> np.ndarray:
    """Return the samples at some positions of a random order of all, without computing the whole order.

    The order is a Feistel network over the smallest power of four that is not less than `size`, applied again
    to each result that is no sample.

    Args:
        seed: seed of the run.
        epoch: counted from 0; each has its own order.
        positions: positions in the order, 0 to `size` - 1, of shape [b].
        size: number of samples.

    Returns:
        Indices of samples, of shape [b].
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    rounds = _draw(keys(seed, epoch, np.arange(FEISTEL_ROUNDS)), ORDER)

    def shuffled(index: np.ndarray) -> np.ndarray:
        left, right = index >> half, index & mask
        for key in rounds:
            left, right = right, left ^ (_mix(right + key) & mask)
        return (left << half) | right

    index = shuffled(positions.astype(np.uint64))
    while (outside := index >= size).any():
        index[outside] = shuffled(index[outside])
    return index.astype(np.int64)


def shard_permutation(seed: int, epoch: int, shards: np.ndarray) -> np.ndarray:
    """Return an order that visits the shards at random, and shuffles the samples of 16 shards at a time.

    Args:
        seed: seed of the run.
        epoch: counted from 0.
        shards: index of the shard of each sample, of shape [n].

    Returns:
        Indices of the samples, of shape [n].
    """
    present, own = np.unique(shards, return_inverse=True)
    window = np.argsort(shard_order(seed, epoch, present))[own] // WINDOW
    return np.lexsort((_draw(keys(seed, epoch, np.arange(len(shards))), ORDER), window))


def shard_order(seed: int, epoch: int, shards: np.ndarray) -> np.ndarray:
    """Return indices into `shards`, an array of shard numbers, in the order in which an epoch visits them."""
    return np.argsort(_draw(keys(seed, epoch, shards), SHARD), kind="stable")


def beginning(seed: int, epoch: int, size: int) -> int:
    """Return the position, from 0 to `size` - 1, at which an epoch starts in its circular sequence."""
    return int(uniform(keys(seed, epoch, np.zeros(1)), START)[0] * size)


def jittered(seed: int, epoch: int, positions: np.ndarray, reach: int) -> np.ndarray:
    """Return positions in a locally shuffled order: each moves by less than `reach` indices.

    A reader that reads in sequence and returns samples in this order holds fewer than `reach` of them in
    memory, as with a shuffle buffer. Unlike the order of a shuffle buffer, any part of this order can be
    computed without the part before it.

    Args:
        seed: seed of the run.
        epoch: counted from 0.
        positions: consecutive numbers, ascending, of shape [n].
        reach: limit of the shift, in positions.

    Returns:
        The same positions in the new order, of shape [n].
    """
    late = positions + reach * uniform(keys(seed, epoch, positions), ORDER)
    return positions[np.argsort(late, kind="stable")]


def reseed(key: np.uint64, stream: int) -> None:
    """Seed the generators that timm's and torchvision's transforms draw from; call it inside `preserved`.

    These are the global generators of `random`, of NumPy and of torch on the CPU.

    Args:
        key: key of the sample, from `keys`.
        stream: one of the constants above.
    """
    number = int(_draw(np.array([key]), stream)[0])
    random.seed(number)
    NUMPY_GENERATOR.seed(number % 2**32)
    torch.default_generator.manual_seed(number % 2**63)  # `torch.manual_seed` would seed all devices


def generator(key: np.uint64, stream: int) -> np.random.RandomState:
    """Return a generator of its own for a key, with the draws that `numpy.random` has after its seed."""
    return np.random.RandomState(int(_draw(np.array([key]), stream)[0]) % 2**32)


@contextmanager
def preserved() -> Iterator[None]:
    """Restore the generators that `reseed` seeds after the block: the model may draw from them, too."""
    states = random.getstate(), NUMPY_GENERATOR.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        NUMPY_GENERATOR.set_state(states[1])
        torch.set_rng_state(states[2])
