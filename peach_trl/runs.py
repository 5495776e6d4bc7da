"""The folders of a training, one a seed, and what is done with them whatever ends it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peach_trl.config import ConfigError
from peach_trl.experiment import Config, of_seeds
from peach_trl.levels.errors import NotFiniteLossError
from peach_trl.resume import digest_of, locked, manifests, refuse_finished, write_config
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
        digest: of the configuration of all seeds.

    Raises:
        ConfigError: if a run is in the folder, and is not to go on, or cannot; or if nothing can be written there.
    """

    def __init__(self, folder: Path, config: Config) -> None:
        self.resumed, plain = config.resume is not None, dataclasses.replace(config, resume=None, resume_allow=())
        if not self.resumed and any(path.stat().st_size for path in manifests(folder)):
            raise ConfigError(
                f"hydra.run.dir = {folder}: a run is in it; give another folder, or go on with it, resume={folder}"
            )
        self.folder, self.configs, self.iterations, self._config = folder, of_seeds(plain), 0, plain
        self.rescue: Callable[[], None] | None = None  # what saves the agents, once there are any
        self.digest = digest_of(plain)
        try:
            self._lock = locked(folder)
            try:
                self.runs = self._open()
            except BaseException:
                self._lock.close()
                raise
        except (ConfigError, FileExistsError):
            raise
        except (OSError, ValueError) as error:
            key = "resume" if self.resumed else "hydra.run.dir"
            remedy = "; make it writable, or give another folder" if isinstance(error, OSError) else ""
            raise ConfigError(f"{key} = {folder}: {str(error).splitlines()[0]}{remedy}") from error
        self._stopping = Stopping()

    def _open(self) -> list[Run]:
        """The run of each seed, in the folder that is locked now."""
        if self.resumed:
            refuse_finished(self.folder)
        else:
            write_config(self.folder, self._config)  # before all else, so that also what is killed at once can go on
        alone = len(self.configs) == 1
        folders = [self.folder] if alone else [self.folder / f"seed_{one.seed}" for one in self.configs]
        runs = [Run(at, one, one.logging, self.resumed) for at, one in zip(folders, self.configs, strict=True)]
        for run in runs:
            run.manifest["seeds_at_once"] = len(folders)
        return runs

    def goes_on(self) -> None:
        """Says that a resumed run has become what it was: from now on its configuration is the one given."""
        write_config(self.folder, self._config)

    def __enter__(self) -> Runs:
        self._stopping.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        cause = self._stopping.cause(error)
        if error is not None:
            self._keep_what_there_is(error, cause or error)
        try:
            for run in self.runs:
                try:
                    run.__exit__(kind, cause, trace)
                except OSError as problem:  # of a full disk, say: the other seeds have theirs to write
                    if cause is None:
                        raise
                    cause.add_note(f"{run.folder}: the manifest could not be written: {problem}")
        finally:
            self._lock.close()
            self._stopping.__exit__(kind, error, trace)

    def _keep_what_there_is(self, error: BaseException, cause: BaseException) -> None:
        """Saves the batch of a loss that is not finite, and the agents; what cannot be saved is a note of the cause."""
        parts: dict[str, Callable[[], None] | None] = {"agents": self.rescue}
        if isinstance(error, NotFiniteLossError):
            error.add_note(f"in iteration {self.iterations}, counted from 0")
            parts = {"batch": lambda: self._keep_batch(error), **parts}
        for name, save in parts.items():
            try:
                if save is not None:
                    save()
            except Exception as problem:
                cause.add_note(f"the {name} could not be saved: {problem}")
        if any((self.folder / SAVEPOINTS).glob(f"{PREFIX}-*")):
            cause.add_note(f"to go on with it: resume={self.folder}")

    def _keep_batch(self, error: NotFiniteLossError) -> None:
        if error.batch is not None:
            path = self.runs[0].checkpoint("post_mortem", {"batch": error.batch.to_dict(), "losses": error.losses})
            error.add_note(f"the batch: {path}")
