"""Conversion of frozen dataclasses to JSON and back, and `name.name=value` overrides, with checked types."""

import ast
import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin

from lambdanets.utils.files import parse_json
from lambdanets.utils.text import did_you_mean

C = TypeVar("C")
LARGEST = 2**63  # integers of PyTorch and NumPy have 64 bits


def encode(value: Any) -> Any:
    """Return a config as plain dicts, lists, strings, numbers, bools and None, ready for JSON."""
    if dataclasses.is_dataclass(value):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    return value


def decode(kind: type[C], plain: Any, where: str = "config") -> C:
    """Build a config of type `kind` from plain values; `decode(type(c), encode(c)) == c`.

    Raises:
        ValueError: A field is unknown (the nearest known one is named) or missing, or a value has another
            type.
    """
    return _decode(kind, plain, where)


def to_json(config: Any) -> str:
    """Return a config as indented JSON text."""
    return json.dumps(encode(config), indent=2) + "\n"


def from_json(kind: type[C], text: str) -> C:
    """Build a config from the text of `to_json`.

    Raises:
        ValueError: The text is not JSON, or not this config.
    """
    return decode(kind, parse_json(text))


def override(config: C, *assignments: str) -> C:
    """Return a copy of a config with fields replaced: `override(config, "optimizer.lr=0.8", "seed=3")`.

    Args:
        config: A dataclass, possibly nested.
        *assignments: `path=value`, in any order. The value is parsed by the type of the field: `1e-3`,
            `true`, `None`, `0.1,1.0` and `folder:/photos` need no quotes. Inside a dict any key may be set.

    Raises:
        ValueError: There is no such field (the nearest is suggested), or the value is not of the field's
            type.
    """
    pending = list(assignments)
    while pending:
        errors: dict[str, ValueError] = {}
        for assignment in pending:
            path, equals, text = (part.strip() for part in assignment.partition("="))
            if not equals or not path:
                raise ValueError(
                    f"an override is written path=value, as in optimizer.lr=0.8; got {assignment!r}"
                )
            try:
                config = _assign(config, path.split("."), text, path)
            except ValueError as error:
                errors[assignment] = error
        # A field may be valid only with another one that follows it.
        if len(errors) == len(pending):
            raise errors[pending[0]]
        pending = list(errors)
    return config


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return every leaf of a config by its dotted path, in order."""
    leaves: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            leaves.update(flatten(value, f"{prefix}{field.name}."))
        else:
            leaves[prefix + field.name] = value
    return leaves


def check_finite(config: Any) -> None:
    """Raise ValueError if a number of a config, inside tuples and dicts too, is NaN or infinite."""

    def check(where: str, value: Any) -> None:
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{where} is a finite number; got {value}")
        if isinstance(value, Mapping):
            for key, item in value.items():
                check(f"{where}.{key}", item)
        if isinstance(value, tuple | list):
            for item in value:
                check(where, item)

    for where, value in flatten(config).items():
        check(where, value)


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest known name, or the list of all names if none is near."""
    known = list(known)
    return did_you_mean(name, known) or f"; known: {', '.join(known)}"


def _assign(node: Any, keys: list[str], text: str, path: str) -> Any:
    """Return a copy of a dataclass or dict in which the value at nested keys is parsed from text."""
    key, rest = keys[0], keys[1:]
    if isinstance(node, Mapping):
        value = _literal(text) if not rest else _assign(node.get(key, {}), rest, text, path)
        return {**node, key: value}
    if not dataclasses.is_dataclass(node) or isinstance(node, type):
        raise ValueError(f"{path} goes too deep: {'.'.join(path.split('.')[: -len(keys)])} has no fields")
    names = [f.name for f in dataclasses.fields(node)]
    if key not in names:
        done = path.split(".")[: -len(keys)]
        raise ValueError(f"there is no setting {path!r}{_nearest_path(node, key, rest, done)}")
    if rest:
        return dataclasses.replace(node, **{key: _assign(getattr(node, key), rest, text, path)})
    kind = typing.get_type_hints(type(node))[key]
    if dataclasses.is_dataclass(kind):
        inner = ", ".join(f.name for f in dataclasses.fields(kind))
        raise ValueError(f"{path} is a group of settings ({inner}); set one of them, as in {path}.NAME=VALUE")
    return dataclasses.replace(node, **{key: _parse(kind, text, path)})


def _nearest_path(node: Any, key: str, rest: list[str], done: list[str]) -> str:
    # Whole paths are compared too: "lr" may lack its group, and "optimizer.lrr" is misspelt.
    leaves = list(flatten(node))
    wanted = ".".join([key, *rest])
    close = difflib.get_close_matches(wanted, leaves, n=1, cutoff=0.6)
    close = close or [leaf for leaf in leaves if leaf.rsplit(".", 1)[-1] == wanted.rsplit(".", 1)[-1]]
    if close:
        return f"; did you mean {'.'.join([*done, close[0]])}?"
    return nearest(key, (f.name for f in dataclasses.fields(node)))


def _literal(text: str) -> Any:
    """Return the Python value that a text spells, or the text itself."""
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return _tuples(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return text


def _tuples(value: Any) -> Any:
    """Turn lists into tuples at all levels: a config is frozen, and JSON returns lists."""
    if isinstance(value, list | tuple):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return value


def _parse(kind: Any, text: str, where: str) -> Any:
    """Parse a value from its command-line text, by the type of the field."""
    if kind is str:
        return text.strip("'\"") if text[:1] in "'\"" and text[:1] == text[-1:] else text
    members = _members(kind)
    # A literal is compared as text: the precision "32" is no number.
    if any(get_origin(member) is Literal and text in get_args(member) for member in members):
        return text
    if str in members and len(members) > 1:
        literal = _literal(text)
        others = [m for m in members if m is not str]
        for member in others:
            try:
                return _decode(member, literal, where)
            except ValueError:
                continue
        return _parse(str, text, where)
    return _decode(kind, _literal(text), where)


def _members(kind: Any) -> tuple[Any, ...]:
    """Return the types of a union, or the type itself."""
    return get_args(kind) if get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


def _decode(kind: Any, value: Any, where: str) -> Any:
    """Convert a plain value to a type: a dataclass, union, Literal, tuple, list, dict or scalar."""
    if kind is Any:
        return _tuples(value)
    origin, args = get_origin(kind), get_args(kind)
    if origin in (typing.Union, types.UnionType):
        for member in args:
            try:
                return _decode(member, value, where)
            except ValueError:
                continue
        raise _mismatch(kind, value, where)
    if origin is Literal:
        if value in args:
            return value
        raise ValueError(f"{where} is one of {', '.join(map(repr, args))}; got {value!r}")
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, value, where)
    if origin is tuple:
        return _decode_tuple(args, value, where, kind)
    if origin is dict or kind is dict:
        if not isinstance(value, Mapping):
            raise _mismatch(kind, value, where)
        inner = args[1] if args else Any
        return {str(key): _decode(inner, item, f"{where}.{key}") for key, item in value.items()}
    if origin is list:
        if not isinstance(value, list):
            raise _mismatch(kind, value, where)
        return [_decode(args[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if kind in (None, types.NoneType):
        if value is None:
            return None
    elif kind is bool:
        if isinstance(value, bool):
            return value
    elif kind is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif isinstance(value, kind) and not isinstance(value, bool):
        if kind is int and abs(value) >= LARGEST:
            raise ValueError(f"{where} is a number below 2**63; got {value}")
        return value
    raise _mismatch(kind, value, where)


def _decode_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise _mismatch(kind, value, where)
    hints, known = typing.get_type_hints(kind), [field.name for field in dataclasses.fields(kind)]
    for name in value:
        if name not in known:
            raise ValueError(f"{where} has an unknown field {name!r}{nearest(name, known)}")
    inner = {name: _decode(hints[name], item, f"{where}.{name}") for name, item in value.items()}
    required = dataclasses.MISSING
    for field in dataclasses.fields(kind):
        if field.name not in inner and field.default is required and field.default_factory is required:
            raise ValueError(f"{where} lacks the field {field.name!r}")
    return kind(**inner)


def _decode_tuple(args: tuple[Any, ...], value: Any, where: str, kind: Any) -> tuple[Any, ...]:
    """Convert a list to a tuple with the types `args`, of any length if these end in an ellipsis."""
    if not isinstance(value, list | tuple):
        raise _mismatch(kind, value, where)
    kinds = [args[0]] * len(value) if args[-1:] == (Ellipsis,) else list(args)
    if len(kinds) != len(value):
        raise ValueError(f"{where} has {len(kinds)} values; got {len(value)}: {value!r}")
    return tuple(
        _decode(k, item, f"{where}[{i}]") for i, (k, item) in enumerate(zip(kinds, value, strict=True))
    )


def _mismatch(kind: Any, value: Any, where: str) -> ValueError:
    name = kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
    return ValueError(f"{where} is of type {name}; got {value!r}")
