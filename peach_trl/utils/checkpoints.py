"""Tensors on disk: written to the end, read without carrying out code."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from peach_trl.utils.files import checkpoint_file


def load_checkpoint(path: Path | str, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Reads what :meth:`Run.checkpoint` wrote; runs no code from the file.

    Args:
        path: the ``.pt`` file, or a run's folder for its ``checkpoints/final.pt``.
        device: where its tensors go.

    Raises:
        FileNotFoundError: if there is no such file; the message lists the checkpoints beside it.
        ValueError: if the file is cut short, damaged, or no checkpoint.
    """
    path = checkpoint_file(path)
    if not path.is_file() and (seeds := sorted(path.parent.parent.glob("seed_*/checkpoints/final.pt"))):
        each = ", ".join(str(seed.parent.parent) for seed in seeds)
        raise FileNotFoundError(f"{path.parent.parent}: a run of {len(seeds)} seeds; give the folder of one, of {each}")
    if not path.is_file():
        found = ", ".join(sorted(p.name for p in path.parent.glob("*.pt"))) or "none"
        raise FileNotFoundError(f"{path}: no such checkpoint; checkpoints in that folder: {found}")
    try:
        # torch does not verify the checksums that it writes.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        return torch.load(path, weights_only=True, map_location=device)
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        first_line = str(error).splitlines()[0]
        raise ValueError(f"{path}: not a whole checkpoint ({first_line}); use another one") from error


def save_tensors(state: Any, path: Path) -> None:
    """``torch.save``, and waits until it is on the disk.

    Raises:
        OSError: if it cannot be written, as on a full disk, of which torch tells a ``RuntimeError`` without a cause.
    """
    try:
        with open(path, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (RuntimeError, OSError) as error:
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from None
