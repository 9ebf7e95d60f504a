"""The settings of the docs site, which `make docs` builds with Sphinx, Furo and MyST-NB.

The source folder is the root of the repository: links between pages are the same here and on GitHub.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PATHS = [str(ROOT), str(ROOT / "src")]
sys.path[:0] = PATHS
# Of the processes that execute tutorials. Jupyter's widgets, which tqdm asks for, are not installed.
os.environ |= {"PYTHONPATH": os.pathsep.join(PATHS), "PYTHONWARNINGS": "ignore:IProgress not found"}

project = "lambdanets"
author = "The lambdanets developers"
root_doc = "README"
include_patterns = ["*.md", "docs/**.md", "benchmarks/**.md"]
exclude_patterns = [".*", "build", "dist", "runs", "src", "tests", "**/__pycache__"]
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "docs.site.pages",
]
pygments_dark_style = "monokai"
smartquotes = False
highlight_language = "none"
myst_heading_anchors = 4
myst_enable_extensions = ["html_image"]
templates_path = ["site"]

default_role = "py:obj"
autoclass_content = "both"
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
napoleon_custom_sections = ["Shape"]
napoleon_use_ivar = True
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88

nb_execution_mode = "cache"
nb_execution_cache_path = str(ROOT / "build" / "tutorials")
nb_execution_timeout = 600
nb_execution_raise_on_error = True

html_theme = "furo"
html_title = "lambdanets"
html_copy_source = False
html_show_copyright = False
html_static_path = ["site/static"]
html_css_files = ["site.css"]
