"""Reading of COCO json files, and refusal of files of other kinds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from ..errors import DataError
from ..images import reason

PARTS = ("images", "annotations", "categories")  # the lists that a COCO json must have
BACKGROUND = ("_background_", "__ignore__")  # categories that labelme adds and that are no objects


@dataclass(frozen=True)
class CocoFile:
    """The three lists of a COCO json; entries of the first two are not checked yet.

    Args:
        path: path of the file.
        images: entries, unchanged.
        annotations: entries, unchanged.
        categories: names by id, in the order of the ids. labelme's `_background_` is left out if it has no
            annotations, as is Roboflow's root category, which has the name of an annotated one.
    """

    path: Path
    images: list[Any]
    annotations: list[Any]
    categories: dict[int, str]


def read_json(path: Path, refusal: str, *, ends: tuple[str, ...]) -> Any:
    """Read a json file.

    Args:
        path: the file.
        refusal: why a file with too long numbers or too deep lists is refused, such as "is no COCO json".
        ends: the last characters that an intact file may have; with others it counts as truncated.

    Raises:
        DataError: there is no such file, it is truncated, or it is no json.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        return json.loads(text)
    except OSError as error:
        raise DataError(f"cannot read {path}: {reason(error)}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no json: it holds bytes that are no text.") from error
    except json.JSONDecodeError as error:
        if not text.rstrip().endswith(ends):
            raise DataError(f"{path} is cut short, or no json: it ends at {text[-20:]!r}.") from error
        raise DataError(
            f"{path} is no json: line {error.lineno}, column {error.colno}: {error.msg}."
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} {refusal}: a number is too long, or lists are nested too deeply.") from error


def read_coco(path: Path) -> CocoFile:
    """Read a COCO json.

    Raises:
        DataError: there is no such file, it is cut short, it is no json, or it is another kind of json.
    """
    content = read_json(path, "is no COCO json", ends=("}", "]"))
    if not isinstance(content, dict):
        hint = "; it is a list, as results are" if isinstance(content, list) else ""
        raise DataError(f"{path} is no COCO json: it must be an object with {', '.join(PARTS)}{hint}.")
    for part in PARTS:
        if not isinstance(content.get(part), list):
            raise DataError(f"{path} is no COCO json: it has no list {part!r}.")
    categories = _categories(path, content["categories"], content["annotations"])
    return CocoFile(path, content["images"], content["annotations"], categories)


def is_id(value: object) -> TypeGuard[int]:
    """Return whether a value can be the id of an image, an annotation or a category: an int of 64 bits."""
    return type(value) is int and -(2**63) <= value < 2**63


def _categories(path: Path, entries: list[Any], annotations: list[Any]) -> dict[int, str]:
    """Return the names of the categories by id, without background and root categories.

    Roboflow lists a root category, which has no supercategory, beside the annotated one of the same name.
    """
    if not entries:
        raise DataError(f"{path} lists no categories.")
    found: dict[int, str] = {}
    roots: set[int] = set()
    ids_by_name: dict[str, list[int]] = {}
    for index, entry in enumerate(entries):
        category_id, name = (entry.get("id"), entry.get("name")) if isinstance(entry, dict) else (None, None)
        if not is_id(category_id) or not isinstance(name, str) or not name:
            raise DataError(f"{path}: category {index} lacks a whole number 'id' or a 'name': {entry!r}.")
        if category_id in found:
            raise DataError(
                f"{path} lists the category id {category_id} twice: {found[category_id]!r} and {name!r}."
            )
        found[category_id] = name
        ids_by_name.setdefault(name, []).append(category_id)
        if entry.get("supercategory") in (None, "none"):
            roots.add(category_id)
    used = (entry.get("category_id") for entry in annotations if isinstance(entry, dict))
    annotated = {category_id for category_id in used if is_id(category_id)}
    for name, same in ids_by_name.items():
        kept = same
        if name in BACKGROUND and len(found) > 1:
            kept = [category_id for category_id in same if category_id in annotated]
        elif len(same) > 1:
            kept = [category_id for category_id in same if category_id in annotated] or [
                category_id for category_id in same if category_id not in roots
            ]
            if len(kept) != 1:
                raise DataError(
                    f"{path} lists two categories of the name {name!r}, with the ids {same[0]} and "
                    f"{same[1]}; rename or remove one."
                )
        for category_id in set(same) - set(kept):
            del found[category_id]
    return dict(sorted(found.items()))
