"""The output folder of a run: configuration, manifest, metrics and checkpoints, and never over another run.

A run's folder holds ``config.yaml``, ``manifest.json``, ``metrics.csv``, ``checkpoints/`` and what loggers write.
Whatever was logged is on disk at once, so a run that was killed leaves its rows.
"""

from __future__ import annotations

import csv
import dataclasses
import importlib.metadata
import json
import os
import pickle
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from tqdm import tqdm

from peach_trl.utils.checkpoints import save_tensors
from peach_trl.utils.files import read_manifest, write_whole
from peach_trl.utils.loggers import LoggingConfig, close_logger, flat, forget_after, make_logger

PACKAGES = ("torch", "torchrl", "tensordict", "mujoco", "gymnasium", "hydra-core", "numpy", "peach-trl")


class Run:
    """Claims a folder for one run and writes everything that the run leaves behind.

    Args:
        folder: made if missing; it may hold files, but not those of another run.
        config: the resolved configuration, a nested mapping or a dataclass.
        logging: loggers of TorchRL's that get the same as the CSV file, from the first row on; ``None`` for none.
        resume: go on with the run in the folder; :meth:`rewind` says from which row on.

    Attributes:
        rows: of metrics, so far.

    Raises:
        FileExistsError: if the folder already holds a run.
        FileNotFoundError: with ``resume``, if it holds none.
        ValueError: with ``resume``, if its ``metrics.csv`` has no columns that a run has.

    As a context manager it calls :meth:`finish` at the end, or notes the error that ended the run in the manifest.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with Run(Path(folder), {"seed": 0}) as run:
        ...         run.log(1, {"loss/critic": 0.5})
        ...         run.log(2, {"loss/critic": 0.25, "return/1": 3})
        ...     print(Path(folder, "metrics.csv").read_text())
        step,loss/critic,return/1
        1,0.5,
        2,0.25,3
        <BLANKLINE>
    """

    def __init__(
        self, folder: Path | str, config: Any, logging: LoggingConfig | None = None, resume: bool = False
    ) -> None:
        self.folder, self.resumed = Path(folder), resume
        self.folder.mkdir(parents=True, exist_ok=True)
        values: dict[str, Any] = dict(config) if isinstance(config, Mapping) else dataclasses.asdict(config)
        text = OmegaConf.to_yaml(OmegaConf.create(values))
        self._start = (time.perf_counter(), _cpu_seconds())
        self.manifest = _manifest(values)
        self._text, self._waits = text, resume  # until rewind() nothing of a run that is to go on is touched
        if resume:
            self._take_over()
        else:
            self._claim()
            write_whole(self.folder / "config.yaml", text)
        self.rows, self._columns, path = 0, ["step"], self.folder / "metrics.csv"
        if resume and path.is_file():
            head, *lines = _lines(path)
            if head.rstrip().partition(",")[0] != "step":
                raise ValueError(f"{path}: begins with {head.rstrip()[:40]!r}, not with step; put back the true one")
            self._columns, self.rows = next(csv.reader([head])), len(lines)
        else:
            write_whole(path, "step\n")
        self._csv = open(path, "a", newline="")  # noqa: SIM115
        self._values, self._logging, self._loggers = values, logging, None

    def _claim(self) -> None:
        """Makes the manifest, unless there is one; also of two runs that start at the same time, one gets it."""
        path = self.folder / "manifest.json"
        part = path.with_suffix(f".{os.getpid()}.tmp")
        if path.exists() and not path.stat().st_size:
            path.unlink()  # of a run that was killed before it wrote anything
        try:
            part.write_text(json.dumps(self.manifest, indent=2) + "\n")
            os.link(part, path)
        except FileExistsError:
            raise FileExistsError(
                f"{self.folder} already holds a run (manifest.json): runs are never overwritten; give another folder, "
                "move that one away, or go on with it by resume=..."
            ) from None
        finally:
            part.unlink(missing_ok=True)

    def _take_over(self) -> None:
        """Takes the manifest of a run that goes on; of one that was killed before it wrote any, its own."""
        path, now = self.folder / "manifest.json", self.manifest
        before = read_manifest(self.folder) if path.is_file() and path.stat().st_size else now
        known = {name: now[name] for name in ("command", "started", "versions", "git_commit", "git_dirty")}
        self.manifest = {**before, "finished": False, "resumed": [*before.get("resumed", []), known]}
        self.manifest.pop("error", None)

    def rewind(self, rows: int, step: int, wall: float, cpu: float) -> None:
        """Goes back to where a run was: later rows are dropped from ``metrics.csv``, and from TensorBoard's curves.

        What was written when it ended is removed, and what a kill left behind.

        Args:
            rows: how many there were.
            step: the counter of the last of them.
            wall: seconds that it had taken.
            cpu: likewise of CPU time.
        """
        kept = self.rows_until(rows)
        for path in (*self.folder.glob("*.tmp"), *(self.folder / "checkpoints").glob("*.tmp")):
            path.unlink()
        for name in ("interrupted", "post_mortem", "final", "levels"):
            (self.folder / "checkpoints" / f"{name}.pt").unlink(missing_ok=True)
        path = self.folder / "metrics.csv"
        self._csv.close()
        write_whole(path, "".join(kept))
        self._csv = open(path, "a", newline="")  # noqa: SIM115
        self.rows = rows
        self._start = self._start[0] - wall, self._start[1] - cpu
        self._write_manifest()
        write_whole(self.folder / "config.yaml", self._text)
        self._waits = False
        for logger in self.loggers:
            forget_after(logger, step)

    def rows_until(self, rows: int) -> list[str]:
        """The first lines of ``metrics.csv``, so many rows below its head; what stands behind them does not matter.

        Raises:
            ValueError: if there are less, or one is no row of numbers.
        """
        path = self.folder / "metrics.csv"
        kept = _lines(path)[: rows + 1]
        if len(kept) <= rows:
            raise ValueError(f"{path}: has {len(kept) - 1} rows of the {rows} there were; it cannot be gone on with")
        for number, cells in enumerate(csv.reader(kept)):
            if number and not (len(cells) == len(self._columns) and all(map(_is_cell, cells)) and cells[0]):
                raise ValueError(f"{path}: row {number} is not what the run wrote; put back the true one")
        return kept

    def sync(self) -> None:
        """Waits until the rows so far are on the disk."""
        self._csv.flush()
        os.fsync(self._csv.fileno())

    @property
    def spent(self) -> tuple[float, float]:
        """Wall and CPU seconds since the run began, without those between an interruption and its resume."""
        return time.perf_counter() - self._start[0], _cpu_seconds() - self._start[1]

    def log(self, step: int, metrics: Mapping[str, Any] | None = None, **more: Any) -> None:
        """Writes one row of metrics to ``metrics.csv`` and the loggers.

        Args:
            step: the counter on the x axis of all curves, such as environment steps.
            metrics: one number each: int, float, or a tensor of one element. ``"group/name"`` puts a curve into the
                panel of its group. Names may appear late; earlier rows then have an empty cell.
            **more: further metrics.

        Raises:
            ValueError: for a metric that is not one number, or is called ``step``.
        """
        row = {name: _number(name, value) for name, value in {**(metrics or {}), **more}.items()}
        if "step" in row:
            raise ValueError("metric step: the name is taken by the counter; rename the metric")
        late = [name for name in row if name not in self._columns]
        if late:
            self._add_columns(late)
        row["step"] = int(step)
        self.rows += 1
        self._append([row.get(name, "") for name in self._columns])
        del row["step"]
        for logger in self.loggers:
            logger.log_metrics(row, step=int(step))
            if hasattr(logger.experiment, "flush"):
                logger.experiment.flush()

    @property
    def loggers(self) -> list[Any]:
        """TorchRL's loggers, which are made when they are first asked for; the configuration is logged at once."""
        if self._loggers is None:
            given = self._logging
            self._loggers = []
            if given is not None:
                self._loggers = [make_logger(name, self.folder, given) for name in given.loggers if name != "csv"]
            for logger in self._loggers if not self.resumed else ():
                logger.log_hparams(flat(self._values))
        return self._loggers

    def checkpoint(self, name: str, state: Mapping[str, Any], replace: bool = False) -> Path:
        """Saves ``state`` to ``checkpoints/<name>.pt``, all of it or nothing.

        Args:
            name: a plain file name without its suffix.
            state: tensors and plain containers, such as state dicts, as :func:`load_checkpoint` runs no code.
            replace: whether it may take the place of one of the same name.

        Raises:
            FileExistsError: if the run already has a checkpoint of this name.
            TypeError: if the state holds objects that :func:`load_checkpoint` could not read back.
        """
        path = self.folder / "checkpoints" / f"{name}.pt"
        if path.exists() and not replace:
            raise FileExistsError(f"{path} exists: checkpoints are never overwritten; use another name")
        path.parent.mkdir(exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            save_tensors(dict(state), part)
            # The meta device skips the tensors' data: this reads the structure only.
            torch.load(part, weights_only=True, map_location="meta")
            os.replace(part, path)
        except pickle.UnpicklingError as error:
            raise TypeError(f"checkpoint {name}: only tensors and plain containers can be kept; {error}") from None
        finally:
            part.unlink(missing_ok=True)
        return path

    def finish(self, **facts: Any) -> None:
        """Marks the run as finished in the manifest and closes its files.

        Args:
            **facts: more entries for the manifest, such as ``env_steps=10_000``; JSON values.

        Adds ``wall_seconds`` and ``cpu_seconds`` since the run began; CPU time is that of all threads and of the child
        processes that have ended.
        """
        self._close(finished=True, **facts)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if self._waits:  # it could not be gone on with, and is what it was
            self._csv.close()
        elif error is not None:
            notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
            self._close(error=f"{type(error).__name__}: {error}{notes}")
        elif not self.manifest["finished"]:
            self.finish()

    def _close(self, **facts: Any) -> None:
        spent = zip(("wall_seconds", "cpu_seconds"), self.spent, strict=True)
        self.manifest.update({name: round(seconds, 3) for name, seconds in spent}, **facts)
        self._write_manifest()
        self._csv.close()
        for logger in self._loggers or ():
            close_logger(logger)

    def _append(self, cells: list[Any]) -> None:
        csv.writer(self._csv, lineterminator="\n").writerow(cells)
        self._csv.flush()

    def _add_columns(self, names: list[str]) -> None:
        """Writes the CSV file again with more columns; the old one stays whole until the new one is."""
        path = self.folder / "metrics.csv"
        part = path.with_suffix(".tmp")
        with open(path, newline="") as old, open(part, "w", newline="") as new:
            rows = csv.reader(old)
            writer = csv.writer(new, lineterminator="\n")
            writer.writerow(next(rows) + names)
            writer.writerows(row + [""] * len(names) for row in rows)
            new.flush()
            os.fsync(new.fileno())
        self._csv.close()
        os.replace(part, path)
        self._csv = open(path, "a", newline="")  # noqa: SIM115
        self._columns += names

    def _write_manifest(self) -> None:
        write_whole(self.folder / "manifest.json", json.dumps(self.manifest, indent=2) + "\n")


def progress(total: int, description: str) -> tqdm:
    """A progress bar on stderr; where that is no terminal, a line every half minute at most.

    Args:
        total: number of units of work; call ``update(n)`` on the bar.
        description: what stands before the bar.

    Examples:
        >>> with progress(3, "training") as bar:
        ...     _ = bar.update(3)
        ...     bar.n
        3
    """
    interval = 0.2 if sys.stderr.isatty() else 30.0
    return tqdm(
        total=total, desc=description, mininterval=interval, maxinterval=max(interval, 10.0), dynamic_ncols=True
    )


def _manifest(config: Any) -> dict[str, Any]:
    """What is needed to tell, later, how a run was made."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    commit, dirty = _git_state()
    return {
        "command": sys.argv,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "seeds": _seeds(config),
        "versions": versions,
        "git_commit": commit,
        "git_dirty": dirty,
        "torch_threads": torch.get_num_threads(),
        "finished": False,
    }


def _git_state() -> tuple[str | None, bool | None]:
    """Commit of this package's repository, and whether files differ from it; None where it stands in none."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        # Installed into an environment that lies in some other repository, the package is not one of its files.
        git("ls-files", "--error-unmatch", here.name)
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))
    except (OSError, subprocess.SubprocessError):
        return None, None


def _seeds(config: Any, path: str = "") -> dict[str, Any]:
    """All values called seed or seeds, by dotted key."""
    found = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found.update(_seeds(value, f"{path}{key}."))
        elif key in ("seed", "seeds"):
            found[path + key] = value
    return found


def _number(name: str, value: Any) -> int | float:
    """One plain number, from whatever holds one."""
    try:
        plain = value.item() if hasattr(value, "item") else value
    except (RuntimeError, ValueError):
        plain = None
    if not isinstance(plain, (int, float)):
        raise ValueError(f"metric {name} = {value!r}: must be one number; log its mean, say")
    return int(plain) if isinstance(plain, bool) else plain


def _lines(path: Path) -> list[str]:
    """The lines of a table, the head at least; what is no text stands in them as such."""
    with open(path, newline="", errors="replace") as file:
        return list(file) or ["step\n"]


def _is_cell(text: str) -> bool:
    """Whether it is a number, or empty."""
    try:
        float(text or 0)
    except ValueError:
        return False
    return True


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
