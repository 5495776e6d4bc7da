"""Compares runs: which belong together, what they scored, and one page that shows it.

Runs that differ in nothing but their seed are one method, named by what it differs in from the others.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from peach_trl.utils.files import SAVEPOINTS, read_manifest
from peach_trl.utils.plots import LINE_COLORS, MARKERS, plot_by_trajectory, save
from peach_trl.utils.statistics import Over, interval, performance_profile, probability_of_improvement
from peach_trl.utils.tables import Result, intervals, markdown, read_methods, read_metrics, table, write_csv

IGNORED = ("seed", "seeds", "resume", "resume_allow")  # in which runs of the same method differ


def runs_below(folder: Path) -> list[Path]:
    """All folders of runs in a folder: itself, those of a sweep, or of several seeds."""
    found = folder.rglob("manifest.json")
    return sorted(path.parent for path in found if SAVEPOINTS not in path.relative_to(folder).parts)


def group(folders: Sequence[Path]) -> dict[str, list[Path]]:
    """The folders of each method, by name. A test of a checkpoint belongs to the method that was trained.

    Raises:
        FileNotFoundError: if a folder has no ``manifest.json`` or ``config.yaml``.
    """
    trained = {folder: _trained(folder) for folder in folders}
    configs = {
        folder: _flat(config or yaml.safe_load((folder / "config.yaml").read_text()))
        for folder, config in trained.items()
    }
    keys = sorted({key for config in configs.values() for key in config} - set(IGNORED))
    values = {folder: {key: config.get(key) for key in keys} for folder, config in configs.items()}
    differing = [key for key in keys if len({repr(config[key]) for config in values.values()}) > 1]
    methods: dict[str, list[Path]] = {}
    for folder, config in values.items():
        name = ", ".join(f"{key}={config[key]}" for key in differing) or "all runs"
        methods.setdefault(name, []).append(folder)
    return methods


def _trained(folder: Path) -> Mapping[str, Any] | None:
    """The configuration that an agent was trained with, where a folder is of a test of its checkpoint."""
    return read_manifest(folder).get("trained", {}).get("config")


def _flat(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{path}{key}.") if isinstance(value, Mapping) else {f"{path}{key}": value}
    return flat


def compare(
    methods: Mapping[str, Sequence[Path]], out: Path, value: str = "return", over: Over = "whole seeds and tasks"
) -> str:
    """Writes a comparison of several methods into a folder: table, CSV, figures, and a page with all of it.

    ``table.md``; ``results.csv`` with a row for each method, seed and trajectory; as PNG and PDF ``by_trajectory``,
    ``curves`` (returns while training), ``profile`` (performance profiles of the sum over trajectories) and
    ``improvement`` (probability that one is better than another); ``index.html``, which holds all of them.

    Args:
        methods: the folders of their runs.
        out: the folder; what is there is written over.
        value: ``"return"``, ``"success"`` or ``"found"``.
        over: what intervals draw anew, see :func:`peach_trl.utils.statistics.interval`.

    Returns:
        the table, as Markdown.

    Raises:
        FileNotFoundError: for folders that are no finished runs.
        ValueError: for runs that cannot be compared, see :func:`peach_trl.utils.tables.read_methods`.
    """
    results = read_methods(methods)
    out.mkdir(parents=True, exist_ok=True)
    text = markdown(results, value, over)
    (out / "table.md").write_text(text + "\n")
    write_csv(results, out / "results.csv")
    curves = {name: np.array(intervals(runs, value, over)).T for name, runs in results.items()}
    bounds = _references(results) if value == "return" else {}  # which are returns
    plot_by_trajectory(out / "by_trajectory.png", curves, bounds, label=value)
    figures = ["by_trajectory", "curves", "profile"]
    _draw_curves(results, out / "curves.png")
    _draw_profiles(results, value, over, out / "profile.png")
    better = improvements(results, value, over)
    if len(results) > 1:
        _draw_improvements(better, out / "improvement.png")
        figures.append("improvement")
    about = f"{value}: interquartile mean [95 % bootstrap interval over {over}]"
    (out / "index.html").write_text(_page(text, results, out, figures, about, better))
    return text


def improvements(
    results: Mapping[str, Sequence[Result]], value: str = "return", over: Over = "whole seeds and tasks"
) -> list[tuple[str, str, Any]]:
    """For each pair of methods: the probability that the first is better in the sum over trajectories."""
    sums = {name: _sums(runs, value) for name, runs in results.items()}
    names = list(sums)
    pairs = [(one, other) for i, one in enumerate(names) for other in names[i + 1 :]]
    return [(one, other, probability_of_improvement(sums[one], sums[other], over=over)) for one, other in pairs]


def _sums(runs: Sequence[Result], value: str) -> np.ndarray:
    """[seeds, tasks], the sum over the trajectories of a meta-test."""
    return np.stack([run.scores[value].sum(-1) for run in runs])


def _references(results: Mapping[str, Sequence[Result]]) -> dict[str, list[float]]:
    """What can be had, where the first run says so, and all have the same."""
    first, *others = (run.manifest.get("references", {}) for runs in results.values() for run in runs)
    return first if all(other == first for other in others) else {}


def _figure(height: float = 4) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, height), layout="constrained")
    return figure, figure.add_subplot()


def _finish(figure: Any, axes: Any, png: Path, **labels: str) -> None:
    axes.set(**labels)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", fontsize="small")
    save(figure, png)


def _draw_band(axes: Any, number: int, name: str, x: Any, lines: Any) -> None:
    """A line, and the band between two others: ``lines`` are the three of them."""
    (middle, low, high), color = lines, LINE_COLORS[number % len(LINE_COLORS)]
    axes.plot(x, middle, color=color, label=name)
    axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)


def _draw_curves(results: Mapping[str, Sequence[Result]], png: Path) -> None:
    """The sum of the returns by trajectory in evaluations while training: interquartile means over seeds."""
    figure, axes = _figure()
    for number, (name, runs) in enumerate(results.items()):
        steps, sums = _training(runs)
        if not len(steps):
            continue
        means = np.array([interval(sums[:, [i]], over="seeds") for i in range(len(steps))]).T
        _draw_band(axes, number, name, steps, means)
    _finish(figure, axes, png, xlabel="environment steps", ylabel="return, all trajectories", title="while training")


def _training(runs: Sequence[Result]) -> tuple[list[float], np.ndarray]:
    """Steps at which all seeds were evaluated, and the sums of their returns there, [seeds, n]."""
    curves = []
    for run in runs:
        lines = read_metrics(run.folder / "metrics.csv") if (run.folder / "metrics.csv").is_file() else {}
        returns = [lines[name] for name in lines if name.startswith("eval/return/")]
        sums: dict[float, float] = {}
        for steps, values in returns:
            for step, value in zip(steps, values, strict=True):
                sums[step] = sums.get(step, 0.0) + value
        curves.append(sums)
    common = sorted(set.intersection(*(set(curve) for curve in curves)))
    return common, np.array([[curve[step] for step in common] for curve in curves])


def _draw_profiles(results: Mapping[str, Sequence[Result]], value: str, over: Over, png: Path) -> None:
    figure, axes = _figure()
    sums = {name: _sums(runs, value) for name, runs in results.items()}
    every = np.concatenate([scores.ravel() for scores in sums.values()])
    thresholds = np.linspace(every.min(), every.max(), 101)
    for number, (name, scores) in enumerate(sums.items()):
        _draw_band(axes, number, name, thresholds, performance_profile(scores, thresholds, over=over))
    labels = {"xlabel": f"{value}, all trajectories (t)", "ylabel": "share of seeds and tasks above t"}
    _finish(figure, axes, png, **labels, title="performance profile")


def _draw_improvements(better: Sequence[tuple[str, str, Any]], png: Path) -> None:
    figure, axes = _figure(height=1.5 + 0.5 * len(better))
    for row, (_, _, found) in enumerate(better):
        axes.plot([found.low, found.high], [row, row], color=LINE_COLORS[0], linewidth=4, alpha=0.4)
        axes.plot(found.iqm, row, MARKERS[0], color=LINE_COLORS[0])
    axes.axvline(0.5, color="0.5", linestyle="--")
    axes.set_yticks(range(len(better)), [f"{one}\nover {other}" for one, other, _ in better], fontsize="small")
    _finish(figure, axes, png, xlabel="probability of improvement", title="P(a seed of the first scores more)")


def _page(
    text: str,
    results: Mapping[str, Sequence[Result]],
    out: Path,
    figures: Sequence[str],
    about: str,
    better: Sequence[tuple[str, str, Any]],
) -> str:
    """One HTML page with all in it, pictures too, so that it can be sent to somebody."""
    first = next(iter(results.values()))[0]
    pictures = "".join(
        f'<figure><img alt="{name}" src="data:image/png;base64,'
        f'{base64.b64encode((out / f"{name}.png").read_bytes()).decode()}"></figure>'
        for name in figures
    )
    pairs = [["first", "second", "probability that the first is better"]]
    pairs += [[one, other, f"{p.iqm:.2f} [{p.low:.2f}, {p.high:.2f}]"] for one, other, p in better]
    runs = "".join(
        f"<details><summary>{html.escape(name)}: {len(found)} seeds</summary>"
        + "".join(f"<h4>{html.escape(str(run.folder))}</h4><pre>{_config_of(run)}</pre>" for run in found[:1])
        + "<ul>"
        + "".join(f"<li>{html.escape(str(run.folder))}</li>" for run in found)
        + "</ul></details>"
        for name, found in results.items()
    )
    tasks = f"{len(first.tasks)} tasks of the split “{first.split}”, fingerprint {first.fingerprint}"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Comparison of runs</title>\n'
        f"<style>{STYLE}</style></head><body>\n<h1>Comparison of runs</h1>\n"
        f"<p>{html.escape(about)} on {html.escape(tasks)}.</p>\n{_as_html(text)}\n{pictures}\n"
        f"<h2>Probability of improvement</h2>\n{_as_html(table(pairs)) if better else ''}\n"
        f"<h2>Configurations</h2>\n{runs}\n</body></html>\n"
    )


STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}table{border-collapse:collapse}"
    "td,th{border-bottom:1px solid #ccc;padding:.3em .8em;text-align:left}img{max-width:100%}figure{margin:1em 0}"
    "pre{background:#f5f5f5;padding:1em;overflow:auto;font-size:.8em}"
)


def _config_of(run: Result) -> str:
    path = run.folder / "config.yaml"
    return html.escape(path.read_text() if path.is_file() else "no config.yaml")


def _as_html(text: str) -> str:
    head, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    rows = [f"<tr>{''.join(f'<th>{html.escape(cell)}</th>' for cell in head)}</tr>"]
    rows += [f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in line)}</tr>" for line in lines]
    return f"<table>{''.join(rows)}</table>"
