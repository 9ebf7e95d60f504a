"""Names stand for cases, and a case is what it says."""

import pytest

from lambdanets.bench import CASES, GROUPS, Case, select


def test_a_group_is_its_members_and_nobody_comes_twice() -> None:
    names = [case.name for case in select(["g14", "layers"])]
    assert names == ["g14", "g7", "g28", "g64", "r7@14", "r23@28", "r23@56", "r23@64"]


@pytest.mark.parametrize("group", GROUPS)
def test_the_largest_point_of_a_series_is_asked_for(group: str) -> None:
    usual, large = select([group]), select([group], large=True)
    sides = [case.grid[0] for case in large]
    assert [case.name for case in large] == list(GROUPS[group])
    if group.startswith("series"):
        assert sides == [8, 16, 32, 64, 128, 256]
        assert usual == large[:-1]
    else:
        assert usual == large


def test_an_unknown_name_is_told_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no case 'g15'.*series-local.*g14"):
        select(["g15"])


def test_sizes_in_words() -> None:
    assert str(CASES["g7"]) == "32x512, 7x7 global"
    assert str(CASES["r23@64"]) == "1x256, 64x64 scope 23"
    assert str(Case(name="x", grid=(5, 7), scope=(3, 9))) == "1x64, 5x7 scope 3x9"
    assert str(Case(name="x", grid=(65536,))) == "1x64, 65,536 global"


def test_a_crop_keeps_the_geometry_and_little_else() -> None:
    crop = Case(name="x", grid=(64, 5), scope=(23, 4), batch=32, dim=256, dim_u=2).crop()
    assert (crop.batch, crop.dim_v, crop.scope, crop.dim_u, crop.dim_k) == (2, 3, (23, 4), 2, 16)
    assert crop.grid == (11, 5)


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ({"grid": (4, 4), "dim": 30}, "dim must be a multiple of num_heads=4, got 30"),
        ({"grid": (4, 4), "batch": 0}, "batch must be at least 1, got 0"),
        ({"grid": (2, 2, 2, 2)}, "one to three axes"),
        ({"grid": (4, 4), "scope": (3,)}, "scope must have 2 axes"),
        ({"grid": (4, 4), "dim_k": 0}, "dim_k must be at least 1"),
    ],
)
def test_sizes_that_do_not_fit(sizes: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Case(name="x", **sizes)
