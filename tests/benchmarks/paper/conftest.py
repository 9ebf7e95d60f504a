"""Rows of a small race."""

import pytest

from bench_rows import PROVENANCE, race_rows
from lambdanets.bench import Measured, Provenance


@pytest.fixture
def where() -> Provenance:
    return PROVENANCE


@pytest.fixture
def race() -> list[Measured]:
    return race_rows()
