"""Write the tables of training.md from the docstrings of the configurations: python docs/field_tables.py."""

import dataclasses
import re
from pathlib import Path

from lambdanets.audio import AudioConfig
from lambdanets.cli.fields import Field, Group, field_groups
from lambdanets.detection import DetectionConfig
from lambdanets.text import TextConfig
from lambdanets.train import RunConfig

PAGE = Path(__file__).with_name("training.md")
TASKS = {
    "Classification": RunConfig,
    "Detection": DetectionConfig,
    "Recordings": AudioConfig,
    "Language models": TextConfig,
}
COMMON = ("optimizer", "schedule", "engine", "")
START = "### Of every run: "  # all that follows is generated


def tables() -> str:
    """Return the generated part of the page."""
    common = [group for group in field_groups(RunConfig) if group.path in COMMON]
    parts = [_section("Of every run", common)]
    for title, config in TASKS.items():
        groups = [group for group in field_groups(config) if group.path not in COMMON]
        parts.append(_section(title, groups))
    return "\n\n".join(parts) + "\n"


def page() -> str:
    """Return the page with its tables as the docstrings have them."""
    before, _, _ = PAGE.read_text(encoding="utf-8").partition(START)
    return before + tables()


def _section(title: str, groups: list[Group]) -> str:
    names = [f"`{group.path or group.fields[0].name}`" for group in groups]
    return "\n\n".join([f"### {title}: {', '.join(names)}", *map(_table, groups)])


def _table(group: Group) -> str:
    notes = " ".join(f"{group.title} {group.notes}".split())
    head = [f"`{group.path}`: {_markdown(notes)}", ""] if group.path else []
    return "\n".join([*head, "| field | type | default | |", "|---|---|---|---|", *map(_row, group.fields)])


def _row(field: Field) -> str:
    default = "required" if field.default is dataclasses.MISSING else f"`{field.default!r}`"
    return f"| `{field.path}` | {_markdown(field.kind)} | {default} | {_markdown(field.help)} |"


def _markdown(text: str) -> str:
    """Return a text of a docstring with its quoted words as code."""
    return re.sub(r'"([^"]+)"', r"`\1`", text).replace("|", r"\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
