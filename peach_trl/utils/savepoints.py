"""The whole state of a run on disk, so that it can be gone on with as if it had never stopped.

TorchRL's :class:`~torchrl.checkpoint.Checkpoint` writes each component's ``state_dict()`` into a folder, and its
:class:`~torchrl.checkpoint.CheckpointRotation` keeps the latest ones. Added here: digests of all files, which are
checked before anything is loaded; files are on the disk before the folder gets its name; and where the latest one is
damaged, the one before it is taken.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torchrl.checkpoint import Checkpoint, CheckpointRotation, StateDictCheckpointAdapter

from peach_trl.utils.checkpoints import save_tensors

DIGESTS, PREFIX = "sha256.json", "savepoint"
FORMAT = 2  # of savepoints; those of format 1 did not say so


class DamagedError(RuntimeError):
    """A savepoint's files are not what was written; the message names the file."""


class Component:
    """What a :class:`Savepoints` saves, by two functions; for objects whose own methods have other names.

    Args:
        save: returns the state, of tensors and plain containers.
        load: takes it back.
    """

    def __init__(self, save: Callable[[], Mapping[str, Any]], load: Callable[[Any], Any]) -> None:
        self.state_dict, self.load_state_dict = save, load


class _Torch(StateDictCheckpointAdapter):
    """One file of torch's a component."""

    def save(self, component: Any, path: Path, *, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        path.mkdir(parents=True)
        save_tensors(component.state_dict(*args, **kwargs), path / self.state_torch)


class _Sealed(Checkpoint):
    """A Checkpoint with digests; it gets its name when all of it is on the disk."""

    def save(self, path: str | Path, **kwargs: Any) -> Path:
        path = Path(path)
        part = path.with_name(f".{path.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        try:
            super().save(part, **kwargs)
            seal(part)
            if path.exists():
                shutil.rmtree(path)
            os.replace(part, path)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        _sync(path.parent)
        return path


def seal(folder: Path) -> None:
    """Writes the digests of all files of a folder into it, and waits until they are on the disk."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {path.relative_to(folder).as_posix(): _digest(path) for path in files}
    (folder / DIGESTS).write_text(json.dumps(digests, indent=2) + "\n")
    for path in (*files, folder / DIGESTS, *(path for path in folder.rglob("*") if path.is_dir()), folder):
        _sync(path)


def verify(folder: Path) -> None:
    """Compares the files of a sealed folder with their digests.

    Raises:
        DamagedError: if one is missing, or is not what was written.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     folder = Path(name)
        ...     _ = (folder / "state").write_text("one")
        ...     seal(folder)
        ...     verify(folder)
        ...     _ = (folder / "state").write_text("two")
        ...     verify(folder)
        Traceback (most recent call last):
        ...
        peach_trl.utils.savepoints.DamagedError: state: wrong checksum
    """
    try:
        digests = json.loads((folder / DIGESTS).read_text())
        for name, digest in digests.items():
            if _digest(folder / name) != digest:
                raise DamagedError(f"{name}: wrong checksum")
    except FileNotFoundError as error:
        raise DamagedError(f"{Path(str(error.filename)).name}: missing") from None
    except (OSError, ValueError, AttributeError) as error:
        raise DamagedError(f"{DIGESTS}: cannot be read ({error})") from None


class Savepoints:
    """The latest savepoints of a run.

    Args:
        folder: made when the first is written.
        keep: how many of the latest are kept.
        facts: what a savepoint says of itself beside its format, JSON values. One of other ``tasks`` is not loaded.
        components: by name, objects with ``state_dict()`` and ``load_state_dict()`` of tensors and plain containers.

    Examples:
        >>> import tempfile
        >>> weights = torch.nn.Linear(2, 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     savepoints = Savepoints(Path(folder), keep=2, weights=weights)
        ...     for number in (5, 10, 15):
        ...         savepoints.save(number)
        ...     savepoints.load(), [path.name for path in savepoints.folders]
        (15, ['savepoint-000000000010', 'savepoint-000000000015'])
    """

    def __init__(self, folder: Path, keep: int, facts: Mapping[str, Any] | None = None, **components: Any) -> None:
        self._checkpoint, adapter = _Sealed(), _Torch("torch")
        self.facts = {"savepoint": FORMAT, **(facts or {})}
        for name, component in components.items():
            self._checkpoint.register(name, component, adapter=adapter)
        self._rotation = CheckpointRotation(folder, keep_last=keep, prefix=PREFIX)

    @property
    def folders(self) -> tuple[Path, ...]:
        """Those that are there, the latest last."""
        return tuple(sorted(self._rotation.directory.glob(f"{PREFIX}-*")))  # also those that TorchRL cannot read

    def save(self, number: int) -> None:
        """Writes one, all of it or nothing, and removes those that are too many."""
        self._rotation.save(self._checkpoint, step=number, metadata=self.facts)

    def load(self) -> int | None:
        """Loads the latest one that is whole, and returns its number; ``None`` where there is none.

        What is damaged is told. Its files are read before anything is changed; no code in them is run.

        Raises:
            DamagedError: if there are some, and none is whole.
            ValueError: if the latest is of another format, other tasks, or another recipe.
            Exception: of a component whose state is of another kind.
        """
        folders = self.folders
        for folder in reversed(folders):
            try:
                verify(folder)
                states = self._read(folder)
            except DamagedError as damage:
                print(f"savepoint {folder}: damaged, {damage}", flush=True)
                continue
            for name, state in states.items():
                self._checkpoint.components[name].load_state_dict(state)
            return int(folder.name.rpartition("-")[2])
        if folders:
            raise DamagedError(f"none of its {len(folders)} savepoints is whole; start the run anew in another folder")
        return None

    def _read(self, folder: Path) -> dict[str, Any]:
        """The states of all components, in the order in which they were given."""
        manifest = Checkpoint.manifest(folder)
        records = manifest["components"]
        self._compare(folder.name, manifest.get("metadata", {}))
        missing = sorted(set(self._checkpoint.components) ^ set(records))
        if missing:
            raise ValueError(
                f"{folder.name} is of another recipe or version: {', '.join(missing)} is in one of them only"
            )
        files = {name: folder / records[name]["path"] / "state.pt" for name in self._checkpoint.components}
        try:
            return {name: torch.load(path, weights_only=True, map_location="cpu") for name, path in files.items()}
        except Exception as error:  # whatever a pickle of another kind brings about
            raise DamagedError(f"cannot be read ({str(error).splitlines()[0]})") from None

    def _compare(self, name: str, found: Mapping[str, Any]) -> None:
        if (number := found.get("savepoint", 1)) != FORMAT:
            raise ValueError(
                f"{name} is of format {number}, this version reads {FORMAT}; go on with the version of peach_trl "
                "that the run's manifest.json names, or start anew in another folder"
            )
        if found.get("tasks") != self.facts.get("tasks"):
            raise ValueError(
                f"{name} is of other tasks, fingerprint {found.get('tasks')}; those of this configuration have "
                f"{self.facts.get('tasks')}. Put back what makes the list of tasks, or start anew in another folder"
            )

    def clean(self) -> None:
        """Removes what a kill within a save left behind."""
        for path in self._rotation.directory.glob(".*"):
            shutil.rmtree(path, ignore_errors=True)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
