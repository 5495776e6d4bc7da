"""Where the recipes and their YAML files are: beside the package in a checkout, inside it once it is installed."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parent.parent


def folder_of(name: str) -> Path:
    """The folder ``recipes`` or ``configs`` that goes with this package.

    Raises:
        FileNotFoundError: if there is none, as where the package's folder was copied alone.

    Examples:
        >>> (folder_of("configs") / "peach.yaml").is_file()
        True
    """
    for folder in (PACKAGE / name, PACKAGE.parent / name):
        if (folder / f"peach.{'py' if name == 'recipes' else 'yaml'}").is_file():
            return folder
    raise FileNotFoundError(f"no folder {name} in {PACKAGE} or beside it: install peach-trl by pip")


def recipes() -> dict[str, Path]:
    """The scripts of ``recipes`` by their names on the command line, as ``check-env`` for ``check_env.py``."""
    return {path.stem.replace("_", "-"): path for path in sorted(folder_of("recipes").glob("*.py"))}
