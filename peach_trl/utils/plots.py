"""Pictures of a run: learning curves, paths with their subgoals, the posterior over the context variable, results.

Each draws on a Matplotlib ``Figure`` of its own (no window, no global state), and writes a PNG and a PDF beside it.
Matplotlib is imported by the first of them, as it takes longer than many a run does to start.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from peach_trl.utils.tables import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure
    from matplotlib.patches import Ellipse

#: a value, or one by trajectory number
Reference = float | Sequence[float]

#: of the subgoals for level 0, 1, ..., as in :mod:`peach_trl.envs.renderers`
LEVEL_COLORS = ("#1a4dff", "#ff9900", "#b31acc", "#00b3cc")
#: of lines: those of Okabe and Ito (2008), which differ for every kind of colour vision
LINE_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINE_DASHES = ((0, (6, 2)), (0, (3, 1.5)), (0, (6, 1.5, 1.5, 1.5)), (0, (1.5, 1.5)))
SCALE = "viridis"
GOAL_COLOR = "#009E73"
#: what the numbers of a panel of ``metrics.csv`` are
UNITS = {
    "eval/return": "return / horizon",
    "eval/success": "share of episodes",
    "eval/failures": "share of episodes",
    "train/return": "reward / environment step",
    "train/success": "share of attempts",
    "train/tested": "share of proposals",
    "train/entropy": "nats",
    "train/loss_kl": "nats",
    "train": "share of episodes",  # failures
    "time/seconds": "seconds",
    "time/updates": "gradient steps",
}
_FIRST = "eval/return"
_GREYS = ("0.7", "0.0")  # of paths with coloured subgoals on them, first and last step


def save(figure: Figure, path: Path | str) -> None:
    """Writes a figure to ``path``, a ``.png``, and as a ``.pdf`` beside it; files that exist are replaced.

    Raises:
        ValueError: for another ending.

    Examples:
        >>> import tempfile
        >>> from matplotlib.figure import Figure
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(Figure(), f"{folder}/empty.png")
        ...     print(sorted(path.name for path in Path(folder).iterdir()))
        ['empty.pdf', 'empty.png']
    """
    path = Path(path)
    if path.suffix != ".png":
        raise ValueError(f"{path}: the name of a picture must end in .png; the .pdf is written beside it")
    figure.savefig(path, dpi=150)
    figure.set_layout_engine(None)  # all has its place by now, and finding it takes longer than drawing
    figure.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None})  # so that it depends on the picture only


def plot_curves(
    metrics_csv: Path | str,
    png: Path | str,
    references: Mapping[str, Reference] | None = None,
    final: Mapping[str, float] | None = None,
) -> None:
    r"""Draws every column of a run's ``metrics.csv`` over its ``step``: one panel a group, one line a name.

    Args:
        metrics_csv: as :class:`~peach_trl.utils.run.Run` writes it; ``step`` counts environment steps. The column
            ``eval/return/trajectory_2`` is the line ``trajectory_2`` of the panel ``eval/return``; a column without a
            slash has a panel of its own.
        png: the picture to write.
        references: dashed lines in the panel ``eval/return``, by name: what an oracle gets, say. Of a value by
            trajectory number the last one is drawn.
        final: stars at the last step, by column: what the final agent gets, on held-out tasks, say.

    Raises:
        ValueError: if the file has no metrics.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "metrics.csv").write_text("step,eval/return/1\n100,0.1\n200,0.2\n")
        ...     plot_curves(f"{folder}/metrics.csv", f"{folder}/curves.png", {"oracle": 0.88}, {"eval/return/1": 0.4})
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    lines = read_metrics(metrics_csv)
    final = final or {}
    panels: dict[str, list[str]] = {}
    for name in sorted({**lines, **final}, key=lambda name: not name.startswith(f"{_FIRST}/")):  # returns first
        panels.setdefault(_split(name)[0], []).append(name)
    labels = dict.fromkeys(_split(name)[1] for members in panels.values() for name in members)
    colors = {label: LINE_COLORS[i % len(LINE_COLORS)] for i, label in enumerate(labels)}  # the same in each panel
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.2 * columns, 3.4 * rows), layout="constrained")
    for i, (panel, members) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        _draw_curves(axes, members, lines, colors, final)
        if panel == _FIRST:
            _draw_references(axes, references or {})
        title = panel.replace("_", " ").replace("/", ": ")
        axes.set(title=title, xlabel="environment steps", ylabel=UNITS.get(panel, "no unit"))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(alpha=0.3)
        _draw_legend_below(axes)
    save(figure, png)


def plot_by_trajectory(
    png: Path | str,
    methods: Mapping[str, Any],
    references: Mapping[str, Reference] | None = None,
    label: str = "return / horizon",
) -> None:
    """Draws results by trajectory number, a line a method, with intervals where there are any.

    Args:
        png: the picture to write.
        methods: by name, [K] values for K trajectories, or [3, K]: values, lower and upper ends of their intervals.
        references: dashed lines, by name: one number, or K of them.
        label: of the y axis, with the unit.

    Raises:
        ValueError: if there are no methods, or the shapes do not fit.

    Examples:
        >>> import tempfile
        >>> curves = {"PEACH": [[0.2, 0.4, 0.5], [0.1, 0.3, 0.4], [0.3, 0.5, 0.6]], "one seed": [0.2, 0.2, 0.2]}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plot_by_trajectory(f"{folder}/results.png", curves, {"oracle": 0.88, "search": [0.66, 0.89, 0.89]})
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    arrays = {name: np.asarray(values, dtype=float) for name, values in methods.items()}
    count = next((array.shape[-1] for array in arrays.values() if array.ndim), 0)
    wrong = {name: array.shape for name, array in arrays.items() if array.shape not in ((count,), (3, count))}
    if not count or wrong:
        raise ValueError(f"methods {wrong or 'without values'}: give each [K] or [3, K], with the same K >= 1")
    numbers = np.arange(1, count + 1)
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for i, (name, array) in enumerate(arrays.items()):
        x = numbers + 0.06 * (i - (len(arrays) - 1) / 2)  # side by side, lest the intervals hide each other
        values, color = np.atleast_2d(array)[0], LINE_COLORS[i % len(LINE_COLORS)]
        axes.plot(x, values, marker=MARKERS[i % len(MARKERS)], color=color, label=name)
        if array.ndim == 2:
            axes.vlines(x, array[1], array[2], color=color, lw=2)
    _draw_references(axes, references or {}, count)
    axes.set(xlabel="trajectory number", ylabel=label, xlim=(0.75, count + 0.25))
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize=9, frameon=False, handlelength=3)
    save(figure, png)


def plot_trajectories(
    png: Path | str,
    positions: Any,
    goals: Any,
    tolerance: float,
    *,
    subgoals: Any | None = None,
    found: Any | None = None,
    candidates: Any | None = None,
    walls: Any | None = None,
    names: Sequence[str] | None = None,
) -> None:
    """Draws the paths of meta-tests in the plane: a row of panels a task, a column a trajectory.

    Paths are coloured by time; with subgoals on them they go from light to dark instead. All lengths are in metres. Of
    the G entries of places, goals and subgoals, the first two are x and y.

    Args:
        png: the picture to write.
        positions: [R, K, T, G], K trajectories of T steps in each of R tasks; NaN after the end of an episode.
        goals: [R, G], each drawn as a circle.
        tolerance: radius of that circle: how close counts.
        subgoals: [R, K, T, h, G], those that hold at each step, for each of the h levels below the top, bottom first;
            a marker in the colour of its level, ``LEVEL_COLORS``, wherever one changes.
        found: [R, K], whether the trajectory found the goal.
        candidates: [n, G], where goals could be, as faint dots.
        walls: [W, 4], rectangles (x_low, y_low, x_high, y_high); see
            :func:`peach_trl.envs.families.maze_layouts.maze_walls`.
        names: R names of the tasks; by default their numbers from 1.

    Raises:
        ValueError: if the shapes do not fit.

    Examples:
        >>> import tempfile
        >>> paths = np.cumsum(np.random.default_rng(0).normal(size=(1, 2, 50, 2)), axis=2)  # 1 task, 2 trajectories
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plot_trajectories(f"{folder}/paths.png", paths, goals=[[3.0, 4.0]], tolerance=1.0, found=[[0, 1]])
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    positions = _array("positions", positions, (None, None, None, 2))
    tasks, count, steps, _ = positions.shape
    goals = _array("goals", goals, (tasks, 2))
    subgoals = _array("subgoals", subgoals, (tasks, count, steps, None, 2))
    found = _array("found", found, (tasks, count), places=False)
    candidates, walls = _array("candidates", candidates, (None, 2)), _array("walls", walls, (None, 4), places=False)
    titles = [f"task {i + 1}" for i in range(tasks)] if names is None else names
    low, high = _limits(positions, goals - tolerance, goals + tolerance, subgoals, candidates, walls)
    colors = SCALE if subgoals is None else LinearSegmentedColormap.from_list("greys", _GREYS)
    scale = ScalarMappable(Normalize(0, steps), colors)
    figure, panels = _make_panels(tasks, count, low, high)
    for i, k in np.ndindex(tasks, count):
        axes = panels[i, k]
        _draw_place(axes, goals[i], tolerance, candidates, walls)
        _draw_path(axes, positions[i, k], scale)
        if subgoals is not None:
            _draw_subgoals(axes, subgoals[i, k])
        _draw_title(axes, f"{titles[i]}, trajectory {k + 1}", None if found is None else bool(found[i, k]))
    figure.colorbar(scale, ax=panels, label="environment steps", aspect=12 * tasks, fraction=0.05, pad=0.01)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2 * count, fontsize=8, frameon=False)
    save(figure, png)


def plot_posterior(png: Path | str, loc: Any, scale: Any, task_values: Any, task_label: str) -> bool:
    """Draws the Gaussian posteriors over z of K tasks as one-sigma ellipses, coloured by what the tasks differ in.

    With z > 2 it shows the first two principal components of the means, and with z = 1 the mean and its deviation
    against the task's number.

    Args:
        png: the picture to write.
        loc: [K, z], the means.
        scale: [K, z], the standard deviations.
        task_values: [K], one number a task, such as the direction of its goal.
        task_label: the name and unit of that number.

    Returns:
        Whether there was anything to draw: False for z = 0.

    Raises:
        ValueError: if the shapes do not fit.

    Examples:
        >>> plot_posterior("posterior.png", np.zeros((2, 0)), np.zeros((2, 0)), [10, 20], "direction, degrees")
        False
    """
    from matplotlib.figure import Figure

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
        points = axes.scatter(loc[:, 0], values, c=values, cmap=SCALE)
        axes.set(xlabel="z (no unit)", ylabel=task_label)
    else:
        centre, covariance = _project(loc, scale)
        points = axes.scatter(centre[:, 0], centre[:, 1], c=values, cmap=SCALE, s=12)
        for k in range(len(loc)):
            axes.add_patch(_ellipse(centre[k], covariance[k], points.to_rgba(values[k])))
        axes.autoscale_view()
        axis = "entry {} of z (no unit)" if size == 2 else "principal component {} of z (no unit)"
        axes.set(xlabel=axis.format(1), ylabel=axis.format(2))
    axes.set_title("posteriors: mean and one standard deviation", fontsize=9)
    figure.colorbar(points, ax=axes, label=task_label)
    save(figure, png)
    return True


def _split(name: str) -> tuple[str, str]:
    """The panel and the line of a column."""
    panel, _, line = name.rpartition("/")
    return (panel, line) if panel else (name, "")


def _draw_curves(
    axes: Axes, members: Sequence[str], lines: Mapping[str, Any], colors: Mapping[str, str], final: Mapping[str, float]
) -> None:
    """A line for each of the members of a panel, and stars at the last step for what the final agent gets."""
    last = max((steps[-1] for steps, _ in lines.values() if steps), default=0.0)
    for name in members:
        steps, values = lines.get(name, ([], []))
        label, marker = _split(name)[1], "." if len(steps) < 30 else None
        axes.plot(steps, values, marker=marker, color=colors[label], lw=1.2, label=label.replace("_", " "))
        if name in final:
            star: dict[str, Any] = {"markersize": 11, "markeredgecolor": "black", "clip_on": False, "zorder": 3}
            axes.plot(last, final[name], "*", color=colors[label], **star)
    if any(name in final for name in members):
        axes.plot([], [], "*", color="white", markersize=11, markeredgecolor="black", label="final agent")


def _draw_references(axes: Axes, references: Mapping[str, Reference], count: int | None = None) -> None:
    """Dashed lines: over ``count`` trajectories, or, if that is None, where each has its last value."""
    for i, (name, value) in enumerate(references.items()):
        values = np.atleast_1d(np.asarray(value, dtype=float))
        style: dict[str, Any] = {"linestyle": LINE_DASHES[i % len(LINE_DASHES)], "color": "0.35", "lw": 1.3}
        if count is None or len(values) == 1:
            which = f", trajectory {len(values)}" if len(values) > 1 else ""
            axes.axhline(values[-1], label=f"{name}{which}: {values[-1]:.2f}", **style)
        elif len(values) == count:
            axes.plot(np.arange(1, count + 1), values, label=name, **style)
        else:
            raise ValueError(f"reference {name} = {value}: give one number, or one for each of {count} trajectories")


def _draw_legend_below(axes: Axes) -> None:
    """Under the panel, where it covers no line; none for a single line without a name of its own."""
    handles, labels = axes.get_legend_handles_labels()
    if any(labels):
        place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.18)}
        axes.legend(handles, labels, fontsize=7, ncols=2, frameon=False, handlelength=2.8, **place)


def _array(name: str, value: Any, shape: Sequence[int | None], places: bool = True) -> Any:
    """``value`` as an array of that shape, where None is any length, places cut to x and y; for None None."""
    if value is None:
        return None
    array = np.asarray(value, dtype=float)[..., : 2 if places else None]
    if array.ndim != len(shape) or any(want not in (None, size) for size, want in zip(array.shape, shape, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} {tuple(np.shape(value))}: must be [{wanted}]{' or more in the last axis' * places}")
    return array


def _limits(*places: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Lower left and upper right corner, [2] each, of all places [..., 2] and walls [W, 4], with a margin."""
    points = np.concatenate([array.reshape(-1, 2) for array in places if array is not None])
    low, high = np.nanmin(points, axis=0), np.nanmax(points, axis=0)
    centre, half = (low + high) / 2, (high - low) / 2
    half = np.maximum(half + 0.05 * half.max(), half.max() / 2)  # no panel is flatter than 1 : 2
    return centre - half, centre + half


def _make_panels(tasks: int, count: int, low: np.ndarray, high: np.ndarray) -> tuple[Figure, Any]:
    """A figure and its panels [tasks, count], all of which show the same part of the plane."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    height = 2.5 * (high[1] - low[1]) / (high[0] - low[0])
    figure = Figure(figsize=(2.5 * count + 1.4, (height + 0.3) * tasks + 0.8), layout="compressed")
    panels = figure.subplots(tasks, count, sharex=True, sharey=True, squeeze=False)
    for axes in panels.flat:
        axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal", xlabel="x, metres", ylabel="y, metres")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.tick_params(labelsize=7)
        axes.label_outer()
    return figure, panels


def _draw_place(
    axes: Axes, goal: np.ndarray, tolerance: float, candidates: np.ndarray | None, walls: np.ndarray | None
) -> None:
    """Adds what does not move: the walls, where goals could be, and the goal."""
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Circle, Rectangle

    axes.plot(*goal, "*", color=GOAL_COLOR, markersize=7, markeredgewidth=0, label="goal, and how close counts")
    axes.add_patch(Circle((goal[0], goal[1]), tolerance, facecolor=to_rgba(GOAL_COLOR, 0.2), edgecolor=GOAL_COLOR))
    if candidates is not None:
        axes.scatter(candidates[:, 0], candidates[:, 1], s=4, color="0.8", zorder=0.5, label="possible goals")
    for i, (x, y, x_high, y_high) in enumerate(() if walls is None else walls):
        axes.add_patch(Rectangle((x, y), x_high - x, y_high - y, color="0.7", lw=0, label=None if i else "wall"))


def _draw_path(axes: Axes, path: np.ndarray, scale: ScalarMappable) -> None:
    """Adds one path [T, 2]; step t is the t-th from 1."""
    from matplotlib.collections import LineCollection

    segments = np.stack([path[:-1], path[1:]], axis=1)
    steps = np.flatnonzero(np.isfinite(segments).all(axis=(1, 2)))
    axes.add_collection(LineCollection(list(segments[steps]), colors=list(scale.to_rgba(steps + 2)), lw=1.6))
    axes.plot(*path[0], "o", color="white", markeredgecolor="black", markersize=5, zorder=4, label="start")


def _draw_subgoals(axes: Axes, subgoals: np.ndarray) -> None:
    """Adds subgoals [T, h, 2] where they change, the lowest level on top and smallest."""
    for level in range(subgoals.shape[1]):
        path, i = subgoals[:, level], level % len(LEVEL_COLORS)
        new = path[np.r_[True, (path[1:] != path[:-1]).any(axis=1)]]
        style: dict[str, Any] = {"marker": MARKERS[i], "color": LEVEL_COLORS[i], "edgecolor": "white"}
        style |= {"s": 18 + 20 * level, "linewidths": 0.6, "zorder": 3 - 0.1 * level}
        axes.scatter(*new[np.isfinite(new).all(axis=1)].T, label=f"subgoals, level {level}", **style)


def _draw_title(axes: Axes, title: str, found: bool | None) -> None:
    """Adds the title and what came of it: a green frame and "found", or a grey one and "not found"."""
    if found is not None:
        title += ": found" if found else ": not found"
        axes.spines[:].set(color=GOAL_COLOR if found else "0.6", linewidth=2)
    axes.set_title(title, fontsize=8)


def _project(loc: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means [K, 2] and covariances [K, 2, 2] in the plane: z itself, or the principal components of the means."""
    if loc.shape[1] == 2:
        return loc, np.stack([np.diag(row**2) for row in scale])
    centred = loc - loc.mean(axis=0)
    axes = np.linalg.svd(centred)[2][:2]
    return centred @ axes.T, np.einsum("ai,ki,bi->kab", axes, scale**2, axes)


def _ellipse(centre: np.ndarray, covariance: np.ndarray, color: Any) -> Ellipse:
    """The one-sigma ellipse of a Gaussian in the plane."""
    from matplotlib.patches import Ellipse

    variances, axes = np.linalg.eigh(covariance)
    width, height = 2 * np.sqrt(np.maximum(variances, 0))
    angle = math.degrees(math.atan2(axes[1, 0], axes[0, 0]))
    return Ellipse((centre[0], centre[1]), width, height, angle=angle, facecolor="none", edgecolor=color, alpha=0.7)
