"""The pages of the docs site: the sidebar, and the public names that the pages of docs/api show."""

import re
from pathlib import Path

# The sidebar: pages of docs/, or of the root. The pages below benchmarks/README.md follow from the folders.
CONTENTS = {
    "Tutorials": [
        f"tutorials/{name}" for name in ("photos", "layer", "sequences", "detection", "kernels", "paper")
    ],
    "Guides": [
        *("layer", "models", "training", "sequences", "detection", "imagenet"),
        *("explain", "export", "integrations", "faq"),
    ],
    "Reference": [
        *("api/lambdanets", "api/nn", "api/models", "api/ops", "api/train", "api/data", "api/detection"),
        *("api/text", "api/audio", "api/explaining", "api/exporting", "api/recipes", "api/bench"),
    ],
    "Results": ["results", "roofline", "/benchmarks/README"],
    "Project": ["architecture", "decisions", "features", "/CONTRIBUTING", "/CHANGELOG"],
}
NAMES = re.compile(r"^```\{names\} (?P<module>[\w.]+)\n(?P<names>.*?)^```$", re.MULTILINE | re.DOTALL)


def sidebar() -> dict[str, list[str]]:
    """Return the names of the pages by caption, relative to the root of the repository."""
    return {
        caption: [page.removeprefix("/") if page.startswith("/") else f"docs/{page}" for page in pages]
        for caption, pages in CONTENTS.items()
    }


def children(root: Path, page: str) -> list[str]:
    """Return the pages below a `benchmarks/**/README`, without those that have a nearer one."""
    path = root / f"{page}.md"
    if path.name != "README.md" or not page.startswith("benchmarks/"):
        return []
    found = []
    for below in sorted(path.parent.rglob("*.md")):
        folder = below.parent.parent if below.name == "README.md" else below.parent
        while not (folder / "README.md").exists():
            folder = folder.parent
        if folder == path.parent and below != path:
            found.append(below.relative_to(root).with_suffix("").as_posix())
    return found
