"""Going on with a run that was interrupted: whether the configuration is the one that it had."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from omegaconf import OmegaConf

from peach_trl.config import ConfigError, build
from peach_trl.schemas import completed
from peach_trl.utils.files import SAVEPOINTS, read_manifest, write_whole
from peach_trl.utils.loggers import flat

AUTO = "auto"
#: what decides the shape of all that is saved
STUCK = (
    *("seed", "seeds", "collector.workers", "collector.engine", "train.envs_per_task", "env.train_tasks"),
    *("hierarchy.depth", "context.latent_dim", "context.belief", "lower.algorithm", "top.objective"),
)
_OWN = ("resume", "resume_allow")
_HEAD = "# sha256 of what follows: "
Schema = TypeVar("Schema")


class FinishedError(ConfigError):
    """There is nothing to go on with, as the run is finished."""


def locked(folder: Path) -> IO[str]:
    """Takes a run's folder for this process, until the file that is returned is closed.

    Raises:
        ConfigError: if another process has it.
    """
    (folder / SAVEPOINTS).mkdir(parents=True, exist_ok=True)
    file = open(folder / SAVEPOINTS / "lock", "w")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ConfigError(f"resume = {folder}: another process runs it now; wait until that one has ended") from None
    except OSError:  # a file system without locks
        pass
    return file


def write_config(folder: Path, config: Any) -> None:
    """Keeps the configuration of all seeds beside a run's savepoints, behind its digest."""
    (folder / SAVEPOINTS).mkdir(parents=True, exist_ok=True)
    write_whole(folder / SAVEPOINTS / "config.yaml", f"{_HEAD}{digest_of(config)}\n{_text(config)}")


def digest_of(config: Any) -> str:
    """The SHA-256 of a configuration, as hexadecimal digits."""
    return hashlib.sha256(_text(config).encode()).hexdigest()


def _text(config: Any) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(config)))


def _read_config(path: Path) -> dict[str, Any]:
    """What :func:`write_config` wrote; a ValueError where it is not that any more."""
    head, _, text = path.read_text().partition("\n")
    if head != f"{_HEAD}{hashlib.sha256(text.encode()).hexdigest()}":
        raise ValueError("it is not what the run wrote: wrong checksum; changes are given on the command line")
    return completed(cast(Any, OmegaConf.to_container(OmegaConf.create(text))))


def resumed_config(config: Schema, folder: Path, given: Iterable[str]) -> Schema:
    """The configuration of the run in a folder, which is to go on, with what the command line changes and may change.

    Args:
        config: of the command line; its ``resume`` is not null.
        folder: of the run.
        given: keys that the command line names, also those of groups; only they are compared.

    Returns:
        ``config`` without ``resume``, where it is ``auto`` and no run is in the folder.

    Raises:
        FinishedError: if it is finished.
        ConfigError: if there is no run, and for keys that differ and are not in ``resume_allow``;
            the table of all that differ is printed.
    """
    values: Any = dataclasses.asdict(config)  # type: ignore[call-overload]
    resume, allow = values["resume"], values["resume_allow"]
    path = folder / SAVEPOINTS / "config.yaml"
    if resume == AUTO and not path.is_file() and not manifests(folder):
        return dataclasses.replace(config, resume=None)  # type: ignore[type-var]
    before = _stored(resume, folder, path)
    after = _plain(before)
    for key in given:
        if key.split(".")[0] not in _OWN:
            at = _place(values, key)
            _set(after, at, _get(values, at))
    own = {"resume": resume, "resume_allow": allow}
    old, new = (build(type(config), {**part, **own}, check=part is after) for part in (before, after))
    flats = [flat(dataclasses.asdict(part)) for part in (old, new)]  # type: ignore[call-overload]
    differ = [key for key in sorted(flats[0].keys() | flats[1].keys()) if flats[0].get(key) != flats[1].get(key)]
    for key in differ:
        print(f"  {key}: {flats[0].get(key)} -> {flats[1].get(key)}", file=sys.stderr, flush=True)
    if stuck := [key for key in differ if key in STUCK]:
        raise ConfigError(f"resume = {resume}: {stuck[0]} cannot change, all that is saved follows it; leave it")
    refused = [key for key in differ if not any(f"{key}.".startswith(f"{name}.") for name in allow)]
    if refused:
        raise ConfigError(
            f"resume = {resume}: {len(refused)} of its keys would change, {', '.join(refused)}; leave them as they "
            f"were, or allow it by resume_allow=[{','.join(refused)}]"
        )
    return new


def _stored(resume: str, folder: Path, path: Path) -> Any:
    """The configuration of the unfinished run in a folder."""
    refuse_finished(folder)
    try:
        return _read_config(path)
    except FileNotFoundError:
        raise ConfigError(
            f"resume = {resume}: {folder} holds no run that could go on ({SAVEPOINTS}/config.yaml); give the folder of "
            "one, of all its seeds"
        ) from None
    except Exception as error:  # whatever a file of another kind brings about
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"resume = {resume}: {path} cannot be read ({what}); put back the true one") from None


def manifests(folder: Path) -> list[Path]:
    """Those of a run: one, or of several seeds one each."""
    return [path for path in (folder / "manifest.json", *folder.glob("seed_*/manifest.json")) if path.is_file()]


def _plain(values: Any) -> Any:
    """A deep copy of nested containers."""
    return {key: _plain(value) for key, value in values.items()} if isinstance(values, Mapping) else values


def _place(values: Mapping[str, Any], key: str, path: str = "") -> str:
    """Where a key stands: a group may be part of another one, as ``body`` is of ``env``."""
    if path == "" and key.split(".")[0] in values:
        return key
    for name, value in values.items():
        if name == key:
            return f"{path}{name}"
        if isinstance(value, Mapping) and (found := _place(value, key, f"{path}{name}.")):
            return found
    return "" if path else key


def refuse_finished(folder: Path) -> None:
    """Raises a FinishedError if the run in a folder is finished, also since it was last looked at."""
    try:
        finished = [path.stat().st_size and read_manifest(path.parent)["finished"] for path in manifests(folder)]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ConfigError(
            f"resume = {folder}: a manifest.json in it is no run's ({error}); put back the true one"
        ) from None
    if finished and all(finished):
        raise FinishedError(f"resume = {folder}: the run is finished; there is nothing to go on with")


def _get(values: Any, key: str) -> Any:
    for name in key.split("."):
        values = values[name]
    return values


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *groups, last = key.split(".")
    for name in groups:
        values = values.setdefault(name, {})
    values[last] = value
