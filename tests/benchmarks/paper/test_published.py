"""The published numbers, where a second place has them."""

import timm
import torch

from benchmarks.paper.published import EFFICIENT, LAMBDA, RS, TABLES, race_networks
from lambdanets.models import create_model


def test_the_race_has_every_point_and_its_source() -> None:
    points = race_networks()
    assert {name: sum(e.family == name for e in points) for name in (LAMBDA, EFFICIENT, RS)} == {
        LAMBDA: 12,
        EFFICIENT: 8,
        RS: 11,
    }
    tops = [entry.published.top1 for entry in points if entry.published]
    assert tops == sorted(tops)  # type: ignore[type-var]
    assert all(entry.published and entry.published.source and entry.published.seconds for entry in points)


def test_efficientnets_are_timm_s_at_the_sizes_they_were_published_at() -> None:
    for entry in race_networks():
        if entry.family == EFFICIENT:
            assert timm.is_model(entry.model)
    sizes = [
        entry.size[0] for entry in sorted(race_networks(), key=lambda e: e.model) if entry.family == EFFICIENT
    ]
    assert sizes == [224, 240, 260, 300, 380, 456, 528, 600]


def test_parameters_of_table_13_are_the_paper_s_but_for_one() -> None:
    """C-C-L-L has 15.56 M by any count, the paper prints 15.4."""
    for entry in TABLES["table13"]:
        said = entry.published.parameters_m  # type: ignore[union-attr]
        with torch.device("meta"):
            network = create_model(entry.model)
        found = sum(weight.numel() for weight in network.parameters()) / 1e6
        assert abs(found - said) < (0.2 if entry.label == "C-C-L-L" else 0.051), entry.label  # type: ignore[operator]
