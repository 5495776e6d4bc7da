"""Pictures of a run: learning curves, paths with their subgoals, and the posterior over the context variable.

Everything is drawn on its own Matplotlib ``Figure``; no window, no global state.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Ellipse

COLORS = "viridis"


def plot_curves(metrics_csv: Path | str, png: Path | str) -> None:
    """Draws every column of a run's ``metrics.csv`` over its ``step``: one panel a group, one line a name.

    Args:
        metrics_csv: as :class:`~peach_trl.utils.run.Run` writes it. The column ``return/2`` is the line ``2`` of the
            panel ``return``; a column without a slash has a panel of its own.
        png: the picture to write.

    Raises:
        ValueError: if the file has no metrics.
    """
    with open(metrics_csv, newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name != "step"] if rows else []
    if not names:
        raise ValueError(f"{metrics_csv}: no metrics to plot; log some first")
    panels: dict[str, list[str]] = {}
    for name in names:
        panels.setdefault(name.partition("/")[0], []).append(name)
    columns = min(3, len(panels))
    figure = Figure(figsize=(4.5 * columns, 3.0 * math.ceil(len(panels) / columns)), layout="constrained")
    for i, (panel, members) in enumerate(panels.items()):
        axes = figure.add_subplot(math.ceil(len(panels) / columns), columns, i + 1)
        for name in members:
            points = [(float(row["step"]), float(row[name])) for row in rows if row[name]]
            steps, values = zip(*points, strict=True) if points else ((), ())
            marker = "." if len(points) < 30 else None
            axes.plot(steps, values, marker=marker, linewidth=1.2, label=name.partition("/")[2] or name)
        axes.set(title=panel, xlabel="step")
        axes.grid(alpha=0.3)
        if members != [panel]:
            axes.legend(fontsize=7)
    figure.savefig(png, dpi=110)


def plot_trajectories(
    png: Path | str,
    positions: Any,
    goals: Any,
    goal_radius: float,
    subgoals: Any | None = None,
    arena: float | None = None,
    titles: Sequence[str] | None = None,
    columns: int = 1,
) -> None:
    """Draws paths in the plane, coloured from start to end; a row of panels a task, a column a trajectory.

    Args:
        png: the picture to write.
        positions: [R, T, 2], R = tasks * columns with the trajectories of a task in sequence; NaN where a path ended.
        goals: [R, 2], drawn as a circle.
        goal_radius: in the units of ``positions``.
        subgoals: [R, T, 2], the subgoal that holds at each step, drawn as a cross in the colour of its first step.
        arena: half the width of the square to show; by default what the paths take.
        titles: R lines, one over each panel.
        columns: number of trajectories a task.

    Raises:
        ValueError: if the shapes do not fit.
    """
    positions, goals = np.asarray(positions, dtype=float), np.asarray(goals, dtype=float)
    count = len(positions)
    if positions.shape[2:] != (2,) or goals.shape != (count, 2):
        raise ValueError(f"positions {positions.shape} and goals {goals.shape} must be [R, T, 2] and [R, 2]")
    if subgoals is not None:
        subgoals = np.asarray(subgoals, dtype=float)
        if subgoals.shape != positions.shape:
            raise ValueError(f"subgoals {subgoals.shape} must have the shape of positions {positions.shape}")
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(3.0 * columns, 3.0 * rows), layout="constrained")
    for i in range(count):
        axes = figure.add_subplot(rows, columns, i + 1, aspect="equal")
        axes.add_patch(Circle((goals[i, 0], goals[i, 1]), goal_radius, color="tab:green", alpha=0.3))
        _draw_path(axes, positions[i], None if subgoals is None else subgoals[i])
        axes.autoscale_view()
        if arena is not None:
            axes.set(xlim=(-arena, arena), ylim=(-arena, arena))
        if titles is not None:
            axes.set_title(titles[i], fontsize=8)
        axes.tick_params(labelsize=6)
    figure.savefig(png, dpi=110)


def plot_posterior(png: Path | str, loc: Any, scale: Any, task_values: Any, task_label: str) -> bool:
    """Draws the Gaussian posteriors over z of K tasks as one-sigma ellipses, coloured by what the tasks differ in.

    Args:
        png: the picture to write.
        loc: [K, z], the means.
        scale: [K, z], the standard deviations.
        task_values: [K], one number a task, such as the direction of its goal.
        task_label: the name and unit of that number.

    With z > 2 it shows the first two principal components of the means, and with z = 1 the mean and its deviation
    against the task's number.

    Returns:
        Whether there was anything to draw: False for z = 0.

    Raises:
        ValueError: if the shapes do not fit.
    """
    loc, scale, values = (np.asarray(x, dtype=float) for x in (loc, scale, task_values))
    if loc.ndim != 2 or scale.shape != loc.shape or values.shape != loc.shape[:1]:
        raise ValueError(f"loc {loc.shape}, scale {scale.shape}, task_values {values.shape}: must be [K, z] twice, [K]")
    size = loc.shape[1]
    if size == 0:
        return False
    figure = Figure(figsize=(5.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    if size == 1:
        axes.errorbar(loc[:, 0], values, xerr=scale[:, 0], fmt="none", ecolor="0.7", zorder=1)
        points = axes.scatter(loc[:, 0], values, c=values, cmap=COLORS)
        axes.set(xlabel="z", ylabel=task_label)
    else:
        centre, covariance = _project(loc, scale)
        points = axes.scatter(centre[:, 0], centre[:, 1], c=values, cmap=COLORS, s=12)
        for k in range(len(loc)):
            axes.add_patch(_ellipse(centre[k], covariance[k], points.to_rgba(values[k])))
        axes.autoscale_view()
        axis = "z" if size == 2 else "principal component"
        axes.set(xlabel=f"{axis} 1", ylabel=f"{axis} 2")
    figure.colorbar(points, ax=axes, label=task_label)
    figure.savefig(png, dpi=110)
    return True


def _draw_path(axes: Any, path: np.ndarray, subgoals: np.ndarray | None) -> None:
    """Adds one path [T, 2], and the subgoals [T, 2] where they change."""
    time = Normalize(0, max(len(path) - 1, 1))
    segments = np.stack([path[:-1], path[1:]], axis=1)
    axes.add_collection(LineCollection(list(segments), array=np.arange(len(segments)), cmap=COLORS, norm=time))
    axes.plot(*path[0], "o", color="black", markersize=3)
    axes.update_datalim(path[np.isfinite(path).all(axis=1)])
    if subgoals is not None:
        new = np.flatnonzero(np.r_[True, (subgoals[1:] != subgoals[:-1]).any(axis=1)])
        axes.scatter(*subgoals[new].T, c=new, cmap=COLORS, norm=time, marker="x", s=18, linewidths=0.9)


def _project(loc: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means [K, 2] and covariances [K, 2, 2] in the plane: z itself, or the principal components of the means."""
    if loc.shape[1] == 2:
        return loc, np.stack([np.diag(row**2) for row in scale])
    centred = loc - loc.mean(axis=0)
    axes = np.linalg.svd(centred)[2][:2]
    return centred @ axes.T, np.einsum("ai,ki,bi->kab", axes, scale**2, axes)


def _ellipse(centre: np.ndarray, covariance: np.ndarray, color: Any) -> Ellipse:
    """The one-sigma ellipse of a Gaussian in the plane."""
    variances, axes = np.linalg.eigh(covariance)
    width, height = 2 * np.sqrt(np.maximum(variances, 0))
    angle = math.degrees(math.atan2(axes[1, 0], axes[0, 0]))
    return Ellipse((centre[0], centre[1]), width, height, angle=angle, facecolor="none", edgecolor=color, alpha=0.7)
