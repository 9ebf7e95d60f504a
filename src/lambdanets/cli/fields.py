"""The fields of a configuration, with the sentences of its docstrings: for `train --help` and the pages."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from shlex import quote
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from docstring_parser import parse
from rich.console import Console
from rich.text import Text

from lambdanets.cli.console import stdout
from lambdanets.train.config import BaseConfig
from lambdanets.train.serialization import flatten

MIN_WIDTH = 20  # columns of the sentences in a narrow terminal


@dataclass(frozen=True)
class Field:
    """A field that `--set` changes.

    Attributes:
        group: The groups that it is in, such as "data.augment"; "" for `seed`.
        name: Its name inside the group.
        kind: Its type in words, such as 'float or None' or '"best" or "last"'.
        default: The default of its class, `dataclasses.MISSING` if it has none.
        help: The sentences on it.
    """

    group: str
    name: str
    kind: str
    default: Any
    help: str

    @property
    def path(self) -> str:
        """The path that `--set` takes."""
        return f"{self.group}.{self.name}" if self.group else self.name


@dataclass(frozen=True)
class Group:
    """Fields of one class.

    Attributes:
        path: Path of the group, "" for the fields outside of all groups.
        title: First line of the docstring of its class.
        notes: The paragraphs between that line and the arguments, "" if there are none.
        fields: Its fields without those of groups inside of it.
    """

    path: str
    title: str
    notes: str
    fields: tuple[Field, ...]


def field_groups(kind: type[BaseConfig]) -> list[Group]:
    """Return the fields of a configuration class by their groups, those without a group last.

    Raises:
        ValueError: The docstring of a class has no sentence on one of its fields.
    """
    return [group for group in _groups(kind, "") if group.fields]


def print_fields(config: BaseConfig) -> None:
    """Print every field of a configuration as `--set` takes it, with its type and meaning."""
    console, values = stdout(wraps=True), flatten(config)
    console.print(f"\nfields of --set, with the values of the recipe {config.recipe}", style="bold")
    for group in field_groups(type(config)):
        console.print()
        if group.path:
            _print_wrapped(console, [], Text.assemble((group.path, "bold"), f"  {group.title}"), indent=0)
        shown = [
            [f"  {quote(each)}" for each in _assignments(field.path, values[field.path])]
            for field in group.fields
        ]
        indent = min(max(len(each) for lines in shown for each in lines) + 2, console.width // 2)
        for lines, field in zip(shown, group.fields, strict=True):
            text = Text.assemble((f"({field.kind}) ", "dim"), field.help)
            _print_wrapped(console, lines, text, indent=indent)


def _print_wrapped(console: Console, labels: Sequence[str], text: Text, *, indent: int) -> None:
    """Print a wrapped text, the last of its labels before its first line if it fits into the indentation."""
    lines = [*map(Text, labels)]
    label = lines.pop().plain if labels and len(labels[-1]) < indent else ""
    for line in text.wrap(console, max(console.width - indent, MIN_WIDTH)):
        line.rstrip()
        lines.append(Text.assemble(label.ljust(indent), line))
        label = ""
    console.print(Text("\n").join(lines), soft_wrap=True)


def _assignments(path: str, value: Any) -> list[str]:
    """Return a field and its value as `--set` takes them; a dict has one for each of its keys."""
    if isinstance(value, dict):
        return [f"{path}.{key}={item}" for key, item in value.items()] or [f"{path}.NAME=VALUE"]
    return [f"{path}={value}"]


def _groups(kind: type, path: str) -> list[Group]:
    hints, sentences, own, inner = get_type_hints(kind), _sentences(kind), [], []
    for field in dataclasses.fields(kind):
        where = f"{path}.{field.name}" if path else field.name
        if dataclasses.is_dataclass(hints[field.name]):
            inner += _groups(hints[field.name], where)
        elif where != "recipe":  # not a setting
            if not sentences.get(field.name):
                raise ValueError(f"the docstring of {kind.__name__} has no sentence on {field.name!r}")
            words, default = type_words(hints[field.name]), _default(field)
            own.append(Field(path, field.name, words, default, sentences[field.name]))
    about = parse(kind.__doc__ or "")
    group = Group(path, about.short_description or "", about.long_description or "", tuple(own))
    return [group, *inner] if path else [*inner, group]


def _sentences(kind: type) -> dict[str, str]:
    """Return the sentences of the section Args by field, those of a subclass before those of its bases."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if dataclasses.is_dataclass(each):
            for entry in parse(each.__doc__ or "").params:
                text = " ".join((entry.description or "").split())
                found |= {name.strip(): text[:1].upper() + text[1:] for name in entry.arg_name.split(",")}
    return found


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def type_words(kind: Any) -> str:
    """Return a type in words, such as 'float or None'."""
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(map(type_words, get_args(kind)))
    if get_origin(kind) is Literal:
        return " or ".join(f'"{value}"' for value in get_args(kind))
    if kind is NoneType:
        return "None"
    if get_origin(kind) is dict:
        return "dict"
    return str(kind) if get_args(kind) else kind.__name__
