"""Reads run folders, refuses what cannot be compared, and makes a table of results by trajectory number."""

from __future__ import annotations

import csv
import glob
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from peach_trl.utils.statistics import Interval, Over, interval

VALUES = ("return", "success", "found")


@dataclass(frozen=True)
class Result:
    """What one run scored in its meta-test.

    Attributes:
        folder: of the run.
        seed: of the run.
        split: the split of the tasks that were tested.
        tasks: their ids.
        fingerprint: of the list of tasks.
        scores: by name ``"return"`` (sum of rewards / horizon), ``"success"`` and ``"found"``, each float [tasks, K]
            for K trajectories: means over rollouts.
        minutes: wall-clock time of the training; where several seeds were trained at once, a seed's share of it.
        manifest: what the run wrote about itself.
    """

    folder: Path
    seed: int
    split: str
    tasks: tuple[str, ...]
    fingerprint: str
    scores: dict[str, np.ndarray]
    minutes: float
    manifest: Mapping[str, Any] = field(default_factory=dict)


def find_runs(patterns: str) -> list[Path]:
    """The folders that match any of the patterns, such as ``"runs/a/0*,runs/b"``, in order.

    Args:
        patterns: glob patterns with commas between them. Names of folders with commas in them work in a pattern alone.

    Raises:
        FileNotFoundError: if a pattern matches no folder.
    """
    folders = []
    for pattern in [patterns] if glob.glob(patterns) else patterns.split(","):
        found = [Path(name) for name in sorted(glob.glob(pattern)) if Path(name).is_dir()]
        if not found:
            raise FileNotFoundError(f"{pattern}: no such folder; give folders of runs, with * and commas between them")
        folders += found
    return folders


def named(texts: Sequence[str]) -> dict[str, str]:
    """Names and values of several ``NAME=VALUE``."""
    pairs = {name: value for name, _, value in (text.partition("=") for text in texts)}
    if len(pairs) < len(texts) or not all(pairs) or not all(pairs.values()):
        raise ValueError(f"{' '.join(texts)}: must be NAME=VALUE with a name of its own each; quote names with spaces")
    return pairs


def read_run(folder: Path | str) -> Result:
    """Reads ``manifest.json`` and ``meta_test.csv`` of a finished run.

    The columns of the latter are ``split,task,rollout,trajectory,return,success,found``, one row a task, rollout and
    trajectory (from 1). A run of recipes/evaluate.py counts with the seed and the duration of the training.

    Raises:
        FileNotFoundError: if one of the two files is missing.
        ValueError: for a run that did not finish, and for a table with several splits or with rows missing or doubled.
    """
    folder = Path(folder)
    if not (folder / "manifest.json").is_file():
        raise FileNotFoundError(f"{folder}: no manifest.json, so no run; give the folder of a run, not one around it")
    manifest = json.loads((folder / "manifest.json").read_text())
    if not manifest["finished"]:
        raise ValueError(f"{folder}: the run did not finish ({manifest.get('error', 'killed?')}); leave it out")
    if not (folder / "meta_test.csv").is_file():
        raise FileNotFoundError(f"{folder}: no meta_test.csv; test its checkpoint: recipes/evaluate.py checkpoint=...")
    with open(folder / "meta_test.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    splits = sorted({row["split"] for row in rows})
    if len(splits) != 1:
        raise ValueError(f"{folder}: meta_test.csv has the splits {splits}; keep one split in a file")
    tasks, scores = _scores(folder, rows)
    trained = manifest.get("trained", {"seed": manifest["seeds"]["seed"], **manifest})
    seed = trained["seed"]
    seconds = trained.get("wall_seconds", math.nan)  # not known of the package's own agent
    minutes = seconds / 60 / trained.get("seeds_at_once", 1)
    return Result(folder, seed, splits[0], tasks, manifest["tasks"]["fingerprint"], scores, minutes, manifest)


def read_metrics(path: Path | str) -> dict[str, tuple[list[float], list[float]]]:
    """Steps and values of each column of a ``metrics.csv``, without the rows where it is empty.

    Raises:
        ValueError: if the file has no metrics.
    """
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    lines = {}
    for name in rows[0] if rows else ():
        filled = [row for row in rows if row[name]]
        if name != "step":
            lines[name] = [float(row["step"]) for row in filled], [float(row[name]) for row in filled]
    if not lines:
        raise ValueError(f"{path}: no metrics to plot; log some first")
    return lines


def read_methods(folders: Mapping[str, Sequence[Path | str]]) -> dict[str, list[Result]]:
    """The runs of several methods, by seed, if they can be compared.

    Args:
        folders: those of the runs, by name of the method.

    Raises:
        FileNotFoundError: see :func:`read_run`.
        ValueError: see :func:`read_run`; also if a method has a seed twice, or if two runs differ in their list of
            tasks, in the tasks tested or in the number of trajectories.
    """
    methods = {name: sorted(map(read_run, paths), key=lambda run: run.seed) for name, paths in folders.items()}
    first, *others = [run for runs in methods.values() for run in runs]
    for run in others:
        for what, mine, its in (
            ("fingerprint of tasks", run.fingerprint, first.fingerprint),
            ("split", run.split, first.split),
            ("tasks", run.tasks, first.tasks),
            ("number of trajectories", _trajectories(run), _trajectories(first)),
        ):
            if mine != its:
                raise ValueError(
                    f"{run.folder}: {what} {mine}, but {first.folder} has {its}; give runs tested on the same tasks, or"
                    " test the checkpoints again with recipes/evaluate.py"
                )
    for name, runs in methods.items():
        for a, b in pairwise(runs):
            if a.seed == b.seed:
                raise ValueError(f"{name}: {a.folder} and {b.folder} both have seed {a.seed}; leave one of them out")
    return methods


def intervals(runs: Sequence[Result], value: str = "return", over: Over = "seeds and tasks") -> list[Interval]:
    """Interquartile mean and 95 % interval of each trajectory; see :func:`peach_trl.utils.statistics.interval`.

    Args:
        runs: those of one method.
        value: ``"return"``, ``"success"`` or ``"found"``.
        over: what the bootstrap draws anew.
    """
    scores = np.stack([run.scores[value] for run in runs])
    return [interval(scores[..., k], over=over) for k in range(scores.shape[-1])]


def markdown(methods: Mapping[str, Sequence[Result]], value: str = "return", over: Over = "seeds and tasks") -> str:
    """A table with a line a method: interquartile means with intervals, extremes of the seeds, and time.

    Args:
        methods: as :func:`read_methods` gives them.
        value: see :func:`intervals`.
        over: see :func:`intervals`.

    Examples:
        >>> scores = {"return": np.array([[0.2, 0.5], [0.4, 0.9]])}  # 2 tasks, 2 trajectories
        >>> run = Result(Path("runs/a"), 0, "test", ("3", "4"), "a1b2", scores, minutes=2.5)
        >>> print(markdown({"PEACH": [run]}, over="seeds"))  # 1 seed: no interval to speak of
        | method | trajectory 1 | trajectory 2 | seed means, trajectory 2 | seeds | minutes |
        | --- | --- | --- | --- | --- | --- |
        | PEACH | 0.30 [0.30, 0.30] | 0.70 [0.70, 0.70] | 0.70 to 0.70 | 1 | 2.5 |
    """
    last = _trajectories(next(iter(methods.values()))[0])
    numbers = [f"trajectory {k + 1}" for k in range(last)]
    lines = [["method", *numbers, f"seed means, trajectory {last}", "seeds", "minutes"]]
    for name, runs in methods.items():
        cells = [f"{iqm:.2f} [{low:.2f}, {high:.2f}]" for iqm, low, high in intervals(runs, value, over)]
        means = [run.scores[value][:, -1].mean() for run in runs]
        minutes = statistics.median(run.minutes for run in runs)
        lines.append([name, *cells, f"{min(means):.2f} to {max(means):.2f}", str(len(runs)), f"{minutes:.1f}"])
    return table(lines)


def table(lines: Sequence[Sequence[str]]) -> str:
    """Markdown of the cells of each line; the first one is the head."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], ["---"] * len(lines[0]), *lines[1:]])


def write_csv(methods: Mapping[str, Sequence[Result]], path: Path | str) -> None:
    """Writes the means over tasks: one row a method, seed and trajectory, with ``return``, ``success``, ``found``."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["method", "seed", "trajectory", *VALUES])
        for name, runs in methods.items():
            for run in runs:
                means = np.stack([run.scores[value].mean(0) for value in VALUES], axis=1)
                for k, row in enumerate(means):
                    writer.writerow([name, run.seed, k + 1, *(f"{mean:.6g}" for mean in row)])


def _trajectories(run: Result) -> int:
    return run.scores["return"].shape[1]


def _scores(folder: Path, rows: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """The ids of the tasks, in order, and [tasks, K] of each value, the means over rollouts; rows in any order."""
    keys = ("task", "rollout", "trajectory")
    axes = [sorted({row[key] for row in rows}, key=lambda name: (len(name), name)) for key in keys]  # 2 before 10
    if axes[2] != [str(k + 1) for k in range(len(axes[2]))]:
        raise ValueError(f"{folder}: meta_test.csv has the trajectories {axes[2]}, not 1, 2, ...; write it again")
    grid = np.full((*map(len, axes), len(VALUES)), np.nan)
    for row in rows:
        place = tuple(axis.index(row[key]) for axis, key in zip(axes, keys, strict=True))
        grid[place] = [_number(row[name]) for name in VALUES]
    if len(rows) != grid[..., 0].size or np.isnan(grid).any():
        raise ValueError(
            f"{folder}: meta_test.csv has {len(rows)} rows, not one for each of {len(axes[0])} tasks, {len(axes[1])}"
            f" rollouts and {len(axes[2])} trajectories, or not all values are numbers; test the checkpoint again"
        )
    means = grid.mean(axis=1)
    return tuple(axes[0]), {name: means[..., i] for i, name in enumerate(VALUES)}


def _number(text: str) -> float:
    """The number, 0 or 1 for False and True, NaN for anything else."""
    try:
        return float({"False": "0", "True": "1"}.get(text, text))
    except ValueError:
        return np.nan
