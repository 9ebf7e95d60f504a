"""A Sphinx extension: the pages of the repository as pages of the site."""

import functools
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from jupyter_cache.executors import utils as executors
from sphinx.addnodes import download_reference, pending_xref
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.osutil import relative_uri

from docs.site.contents import NAMES, children, sidebar

LANGUAGES = {
    ".py": "python",
    ".sh": "bash",
    ".toml": "toml",
    ".json": "json",
    ".cff": "yaml",
    ".cpp": "cpp",
    ".h": "cpp",
}
ELSEWHERE = re.compile(r'<(?:script|link|img|iframe)\b[^>]*?(?:src|href)="(?:https?:)?//[^"]*"')
DATA = {".csv", ".png", ".jpg", ".svg"}  # links to these download the file


def read_page(app: Sphinx, docname: str, source: list[str]) -> None:
    """Give a page its part of the table of contents, and images that stand alone."""
    # Sphinx copies the images of `<img>`, if no other element is around them.
    text = re.sub(r'<p align="center">\s*(<img [^>]*>)\s*</p>', r"\1", source[0])
    if docname == app.config.root_doc:
        parts = list(sidebar().items())
    else:
        parts = [("", children(Path(app.srcdir), docname))]
    text = NAMES.sub(lambda found: reference(found["module"], found["names"].splitlines()), text)
    source[0] = text + "".join(_toctree(caption, pages) for caption, pages in parts if pages)


def reference(module: str, entries: list[str]) -> str:
    """Return what autodoc shows of public names: a table, then each in full.

    Args:
        module: The package that exports the names.
        entries: A name each; for a constant `NAME: sentence`.
    """
    names = [entry.partition(": ")[0] for entry in entries]
    lines = [f".. currentmodule:: {module}", "", ".. autosummary::", "   :signatures: none", ""]
    lines += [f"   {name}" for name, entry in zip(names, entries, strict=True) if name == entry]
    for name, entry in zip(names, entries, strict=True):
        value = getattr(importlib.import_module(module), name)
        if name != entry:
            lines += ["", f".. py:data:: {name}", "", f"   {entry.partition(': ')[2]}"]
        elif inspect.isclass(value):
            kind = "autoexception" if issubclass(value, BaseException) else "autoclass"
            lines += ["", f".. {kind}:: {name}", "   :members:"]
        else:
            lines += ["", f".. autofunction:: {name}"]
    return "\n".join(["```{eval-rst}", *lines, "```"])


def mark_fields(app: Sphinx, kind: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Write the parts of a recipe's docstring as a list of fields."""
    if "lambdanets.recipes" in getattr(value, "__module__", ""):
        lines[:] = [re.sub(r"^(Follows|Expect|Measured|Needs|Command): ", r":\1: ", line) for line in lines]
        marked = [number for number, line in enumerate(lines) if line.startswith(":")]
        if marked:
            lines.insert(marked[0], "")


def _toctree(caption: str, pages: list[str]) -> str:
    lines = [
        "```{toctree}",
        ":hidden:",
        f":caption: {caption}" if caption else ":maxdepth: 1",
        "",
        *(f"/{page}" for page in pages),
        "```",
    ]
    return "\n\n" + "\n".join(lines) + "\n"


def link_sources(app: Sphinx, document: nodes.document) -> None:
    """Turn links to files and folders of the repository into links to pages that show them."""
    root = Path(app.srcdir)
    here = root / Path(app.env.doc2path(app.env.docname)).parent
    shown: set[str] = app.env.__dict__.setdefault("shown_sources", set())
    for node in [*document.findall(download_reference), *document.findall(pending_xref)]:
        path = (here / node["reftarget"]).resolve()
        if node.get("reftype") != "myst" or not path.is_relative_to(root):
            continue
        if path.is_dir() and (path / "README.md").exists():
            name = (path / "README").relative_to(root).as_posix()
            node.replace_self(
                pending_xref(
                    "",
                    *node.children,
                    refdomain="doc",
                    refdoc=app.env.docname,
                    reftype="myst",
                    refexplicit=True,
                    reftarget=name,
                    reftargetid=None,
                )
            )
        elif path.is_dir() or (
            path.is_file() and isinstance(node, download_reference) and path.suffix not in DATA
        ):
            name = path.relative_to(root).as_posix()
            shown.add(name)
            uri = relative_uri(f"{app.env.docname}.html", f"source/{name}.html")
            node.replace_self(nodes.reference("", "", *node.children, refuri=uri, internal=True))


def show_sources(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Make a page of each file that a page links to, and of each folder the names in it."""
    for name in sorted(app.env.__dict__.get("shown_sources", ())):
        path = Path(app.srcdir) / name
        if path.is_dir():
            text = "\n".join(sorted(each.name for each in path.iterdir() if each.name != "__pycache__"))
        else:
            text = path.read_text(encoding="utf-8")
        code = app.builder.highlighter.highlight_block(text, LANGUAGES.get(path.suffix, "none"))
        yield f"source/{name}", {"title": name, "body": f"<h1>{name}</h1>{code}"}, "page.html"
    yield "index", {}, "index.html"


def check_offline(app: Sphinx, error: Exception | None) -> None:
    """Raise an error if a page loads anything from elsewhere."""
    for path in sorted(Path(app.outdir).rglob("*.html")) if error is None else ():
        loaded = ELSEWHERE.search(path.read_text(encoding="utf-8"))
        if loaded:
            raise ExtensionError(f"{path} loads a file from elsewhere: {loaded[0]}")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    # The output of a command arrives in pieces of 100 bytes; MyST-NB's own option joins them with line ends.
    executors.executenb = functools.partial(executors.executenb, coalesce_streams=True)
    app.connect("source-read", read_page)
    # Before Sphinx collects the files to download.
    app.connect("doctree-read", link_sources, priority=100)
    app.connect("autodoc-process-docstring", mark_fields, priority=100)
    app.connect("html-collect-pages", show_sources)
    app.connect("build-finished", check_offline)
    return {"env_version": 1, "parallel_read_safe": False}
