import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from lambdanets.recipes import get_recipe, list_recipes
from lambdanets.train import RunConfig, from_json, override, to_json
from lambdanets.train.serialization import decode, encode, flatten


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int = 3
    rate: float = 0.5
    pair: tuple[float, float] = (0.1, 1.0)
    many: tuple[int, ...] = ()
    mode: Literal["a", "b"] = "a"
    precision: Literal["32", "16"] | None = "32"


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str = "x"
    inner: Inner = field(default_factory=Inner)
    flag: bool = False
    limit: float | None = None
    devices: int | str = "auto"
    cache: bool | Literal["auto"] = "auto"
    options: dict[str, Any] = field(default_factory=dict)


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_survives_json(name: str) -> None:
    config = get_recipe(name)
    assert from_json(type(config), to_json(config)) == config


def test_tuples_in_options_survive_json() -> None:
    config = override(
        get_recipe("digits"), "model.options.widths=(8, 16)", "optimizer.options.betas=[0.9, 0.99]"
    )
    assert config.model.options == {"widths": (8, 16)}
    assert from_json(RunConfig, to_json(config)) == config


def test_numbers_keep_every_bit() -> None:
    config = Outer(inner=Inner(rate=0.1 + 0.2))
    assert decode(Outer, json.loads(json.dumps(encode(config)))).inner.rate == 0.1 + 0.2


@pytest.mark.parametrize(
    ("assignment", "path", "value"),
    [
        ("name=folder:/my photos/a=b", ("name",), "folder:/my photos/a=b"),
        ("name=3", ("name",), "3"),
        ("inner.size=7", ("inner", "size"), 7),
        ("inner.precision=16", ("inner", "precision"), "16"),
        ("inner.precision=none", ("inner", "precision"), None),
        ("inner.rate=1e-3", ("inner", "rate"), 1e-3),
        ("inner.rate=2", ("inner", "rate"), 2.0),
        ("inner.pair=0.2,0.9", ("inner", "pair"), (0.2, 0.9)),
        ("inner.pair=(0.2, 1)", ("inner", "pair"), (0.2, 1.0)),
        ("inner.many=[1,2,3]", ("inner", "many"), (1, 2, 3)),
        ("inner.many=()", ("inner", "many"), ()),
        ("inner.mode=b", ("inner", "mode"), "b"),
        ("flag=true", ("flag",), True),
        ("flag=False", ("flag",), False),
        ("limit=none", ("limit",), None),
        ("limit=0.25", ("limit",), 0.25),
        ("devices=4", ("devices",), 4),
        ("devices=auto", ("devices",), "auto"),
        ("cache=false", ("cache",), False),
        ("cache=auto", ("cache",), "auto"),
        ("options.drop_path_rate=0.1", ("options",), {"drop_path_rate": 0.1}),
        ("options.operator=conv", ("options",), {"operator": "conv"}),
    ],
)
def test_override_reads_values_by_the_type_of_the_field(
    assignment: str, path: tuple[str, ...], value: object
) -> None:
    found: Any = override(Outer(limit=1.0), assignment)
    for name in path:
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value)


def test_override_changes_nothing_else() -> None:
    before = Outer()
    after = override(before, "inner.size=7", "flag=true")
    assert before == Outer()
    changed = {name for name, value in flatten(after).items() if flatten(before)[name] != value}
    assert changed == {"inner.size", "flag"}


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("optimizer.lrr=0.8", "did you mean optimizer.lr"),
        ("lr=0.8", "did you mean optimizer.lr"),
        ("optimiser.lr=0.8", "did you mean optimizer.lr"),
        ("data.augment.flipp=1", "did you mean data.augment.flip"),
        ("optimizer=adam", "group of settings"),
        ("optimizer.lr.x=1", "has no fields"),
        ("optimizer.lr", "path=value"),
        ("=3", "path=value"),
        ("optimizer.lr=fast", "optimizer.lr is of type float; got 'fast'"),
        ("engine.epochs=2.5", "engine.epochs is of type int"),
        ("engine.compile=1", "engine.compile is of type bool"),
        ("schedule.name=exponential", "'cosine', 'linear', 'steps', 'constant'"),
        ("data.augment.scale=0.1", "data.augment.scale"),
        ("data.augment.scale=0.1,0.2,0.3", "2 values; got 3"),
        ("optimizer.lr=-1", "greater than 0"),
    ],
)
def test_override_teaches(assignment: str, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        override(get_recipe("digits"), assignment)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_and_missing_fields_in_json_are_named() -> None:
    plain = encode(get_recipe("digits"))
    plain["optimizer"]["learning_rate"] = 1.0
    with pytest.raises(ValueError, match=r"config\.optimizer has an unknown field 'learning_rate'"):
        decode(RunConfig, plain)
    with pytest.raises(ValueError, match="lacks the field 'model'"):
        decode(RunConfig, {"recipe": "digits"})
    with pytest.raises(ValueError, match="not valid JSON"):
        from_json(RunConfig, "{")
    with pytest.raises(ValueError, match="nested too deeply"):
        from_json(RunConfig, "[" * 100_000)
