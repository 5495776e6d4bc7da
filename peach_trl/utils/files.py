"""Where things are in a run's folder, and small files that are there whole or not at all; needs no torch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from peach_trl.utils.installed import PACKAGE

PRETRAINED = PACKAGE / "pretrained" / "point.pt"
SAVEPOINTS = "savepoints"  # the folder in a run's of what a resume needs


def write_whole(path: Path, text: str) -> None:
    """Writes a small file, all of it or nothing."""
    part = path.with_suffix(".tmp")
    with open(part, "w", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: holds no run (manifest.json); give the folder of a run")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None


def checkpoint_file(path: Path | str) -> Path:
    """The checkpoint of the final agent, where a run's folder is named instead of a file.

    ``"pretrained"`` is the one that goes with the package: PEACH on the default task, as ``python recipes/peach.py``
    leaves it.
    """
    if str(path) == "pretrained":
        return PRETRAINED
    return Path(path) / "checkpoints" / "final.pt" if Path(path).is_dir() else Path(path)
