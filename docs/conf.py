"""The documentation: pages in Markdown, the reference from docstrings, the notebook carried out while it is built."""

from __future__ import annotations

import os
import pkgutil
import sys
from pathlib import Path

import peach_trl

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

project = "peach_trl"
author = "peach_trl authors"
version = release = peach_trl.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinxcontrib.mermaid"]
exclude_patterns = ["_build", "jupyter_execute"]
html_theme = "furo"
html_title = "peach_trl"

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
myst_fence_as_directive = ["mermaid"]
suppress_warnings = ["myst.xref_missing"]  # pages name files of the repository, which a reader finds there

nb_execution_mode = "off" if os.environ.get("PEACH_DOCS_FAST") else "force"
nb_execution_timeout = 900
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_output_stderr = "remove"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_mock_imports = ["metaworld", "gymnasium_robotics", "ogbench", "mlflow", "trackio"]
napoleon_use_ivar = True

PAGES = {  # of the reference: packages and modules, each with all of its modules
    "agent": (
        "Agent, recipes' parts",
        [
            "agent",
            "experiment",
            "estimates",
            "collecting",
            "schedule",
            "report",
            "runs",
            "meta_tests",
            "best_agents",
            "resume",
            "evaluation",
            "probe",
        ]
        + ["schemas", "defaults", "config", "rules", "seeding"],
    ),
    "hierarchy": ("Hierarchy: who decides when", ["hierarchy"]),
    "context": ("Context: what is the task", ["context"]),
    "levels": ("Levels: how they learn", ["levels"]),
    "objectives": ("Objectives", ["objectives"]),
    "modules": ("Modules", ["modules", "distributions"]),
    "data": ("Data", ["data"]),
    "collectors": ("Collectors", ["collectors"]),
    "envs": ("Environments", ["envs", "declared"]),
    "references": ("References: what can be had without learning", ["references"]),
    "utils": ("Utilities", ["utils"]),
}


def modules_of(name: str) -> list[str]:
    """A module of the package, or all modules of one of its packages, by full name."""
    path = ROOT / "peach_trl" / name
    if not path.is_dir():
        return [f"peach_trl.{name}"]
    found = pkgutil.walk_packages([str(path)], f"peach_trl.{name}.")
    return [module.name for module in found if not module.ispkg]


def write_reference(app: object) -> None:
    """Writes ``docs/api/``: a page of each entry of :data:`PAGES`."""
    folder = ROOT / "docs" / "api"
    folder.mkdir(exist_ok=True)
    for page, (title, names) in PAGES.items():
        modules = [module for name in names for module in modules_of(name)]
        parts = [f"## `{module}`\n\n```{{eval-rst}}\n.. automodule:: {module}\n```\n" for module in modules]
        text = "\n".join([f"# {title}\n", *parts])
        if not (folder / f"{page}.md").is_file() or (folder / f"{page}.md").read_text() != text:
            (folder / f"{page}.md").write_text(text)
    index = "# Reference\n\nMade from the docstrings; their examples are tested.\n\n```{toctree}\n:maxdepth: 1\n\n"
    (folder / "index.md").write_text(index + "\n".join(PAGES) + "\n```\n")


def setup(app: object) -> None:
    """Called by Sphinx."""
    app.connect("builder-inited", write_reference)  # type: ignore[attr-defined]
