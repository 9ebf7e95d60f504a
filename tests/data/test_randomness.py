"""Draws are a function of (seed, epoch, index), uniform, independent and the same everywhere."""

import random

import numpy as np
import torch

from lambdanets.data.randomness import FLIP, PAD_TOP, keys, permutation, preserved, reseed, uniform


def mix(x: int) -> int:
    """SplitMix64's finaliser in Python's unbounded integers."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    return x ^ (x >> 31)


def test_keys_against_plain_integers() -> None:
    for seed, epoch, index in [(0, 0, 0), (7, 3, 12345), (2**40, 89, 1281166), (-1, 0, 5)]:
        key = 0
        for part in (seed, epoch, index):
            key = mix((key + 0x9E3779B97F4A7C15 + mix(part % 2**64)) % 2**64)
        assert int(keys(seed, epoch, np.array([index]))[0]) == key


def test_keys_differ_in_every_argument() -> None:
    found = {int(key) for s in range(8) for e in range(8) for key in keys(s, e, np.arange(64))}
    assert len(found) == 8 * 8 * 64


def test_uniform_is_uniform_and_streams_are_independent() -> None:
    sample_keys = keys(3, 1, np.arange(20_000))
    first, second = uniform(sample_keys, FLIP), uniform(sample_keys, PAD_TOP)
    assert (first >= 0).all()
    assert (first < 1).all()
    counts = np.bincount((first * 20).astype(int), minlength=20)
    assert abs(counts - 1000).max() < 150  # five standard deviations
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.03


def test_permutation() -> None:
    orders = [permutation(seed, epoch, 101) for seed in range(3) for epoch in range(3)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(101))
    assert len({tuple(order) for order in orders}) == 9
    np.testing.assert_array_equal(permutation(5, 2, 101), permutation(5, 2, 101))


def test_reseed_fixes_all_three_generators_and_preserved_restores_them() -> None:
    random.seed(1)
    np.random.mtrand._rand.seed(1)
    torch.manual_seed(1)

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.mtrand._rand.rand()), float(torch.rand(()))

    with preserved():
        undisturbed = draw()
    with preserved():
        reseed(np.uint64(2**64 - 1), FLIP)
        first = draw()
        reseed(np.uint64(2**64 - 1), FLIP)
        assert draw() == first
        reseed(np.uint64(2**64 - 1), PAD_TOP)
        assert draw() != first
    assert draw() == undisturbed
