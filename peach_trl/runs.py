"""The folders of a training, one a seed, and what is done with them whatever ends it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peach_trl.config import ConfigError
from peach_trl.experiment import Config, of_seeds
from peach_trl.levels.errors import NotFiniteLossError
from peach_trl.resume import locked, manifests, refuse_finished, write_config
from peach_trl.utils.files import SAVEPOINTS
from peach_trl.utils.run import Run
from peach_trl.utils.savepoints import PREFIX
from peach_trl.utils.signals import Stopping


class Runs:
    """The folders of the seeds that are trained at once: the run's own, or with several seeds ``seed_<number>`` in it.

    Each is what the seed's run alone would leave behind, with its own configuration. As a context manager it is like
    :class:`~peach_trl.utils.run.Run`; and whatever ends it early, SIGTERM included, leaves the agents as they were then
    in ``checkpoints/interrupted.pt``. What a resume needs is in ``savepoints/`` as long as the run is not finished.

    Args:
        folder: of the run.
        config: of all seeds; with ``resume`` the run in the folder goes on.

    Attributes:
        resumed: whether it is a run that goes on.
    """

    def __init__(self, folder: Path, config: Config) -> None:
        self.resumed, plain = config.resume is not None, dataclasses.replace(config, resume=None, resume_allow=())
        if not self.resumed and any(path.stat().st_size for path in manifests(folder)):
            raise ConfigError(
                f"hydra.run.dir = {folder}: a run is in it; give another folder, or go on with it, resume={folder}"
            )
        self._lock = locked(folder)
        if self.resumed:
            refuse_finished(folder)
        self.folder, self.configs, self.iterations = folder, of_seeds(plain), 0
        self.rescue: Callable[[], None] | None = None  # what saves the agents, once there are any
        self._stopping = Stopping()
        alone = len(self.configs) == 1
        folders = [folder] if alone else [folder / f"seed_{one.seed}" for one in self.configs]
        self.runs = [Run(at, one, one.logging, self.resumed) for at, one in zip(folders, self.configs, strict=True)]
        for run in self.runs:
            run.manifest["seeds_at_once"] = len(folders)
        write_config(folder, plain)

    def __enter__(self) -> Runs:
        self._stopping.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        cause = self._stopping.cause(error)
        if isinstance(error, NotFiniteLossError):
            error.add_note(f"in iteration {self.iterations}, counted from 0")
            if error.batch is not None:
                path = self.runs[0].checkpoint("post_mortem", {"batch": error.batch.to_dict(), "losses": error.losses})
                error.add_note(f"the batch: {path}")
        if error is not None and self.rescue is not None:
            try:
                self.rescue()
            except Exception as problem:
                (cause or error).add_note(f"the agents could not be saved: {problem}")
        if error is not None and any((self.folder / SAVEPOINTS).glob(f"{PREFIX}-*")):
            (cause or error).add_note(f"to go on with it: resume={self.folder}")
        for run in self.runs:
            run.__exit__(kind, cause, trace)
        self._lock.close()
        self._stopping.__exit__(kind, error, trace)
