"""The table of search tasks: what agents collect, as a share of what a searching policy does. A line a task.

    python benchmarks/search.py 'default task=runs/peach/a/*' 'wind=runs/peach/b/*' --csv docs/results/search_test.csv

Prints, for each task: the interquartile mean of the return / horizon by trajectory, the searching policy's, and the
share of its sum over a meta-test that agents have, as interquartile mean with its 95 % interval over whole seeds and
tasks, as mean over seeds, and of the worst one; how many seeds, minutes of a seed, and million environment steps. With
`--levels`, for studies of the hierarchy, also the share of its subgoals that each goal-reaching level reached in the
last iterations of training, bottom up. The CSV has a row for each task and seed. References are those that a run wrote
into its manifest: the searching policy has the run's own decision length and reach.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from peach_trl.utils.statistics import interval
from peach_trl.utils.tables import Result, find_runs, intervals, named, read_methods, read_metrics, table

HEAD = ["task", "by trajectory", "search", "share of the search", "mean (worst seed)", "seeds", "minutes", "M steps"]


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", metavar="NAME=FOLDERS", help="glob patterns with commas between them")
    parser.add_argument("--csv", help="write one row a task and seed to this file")
    parser.add_argument("--levels", action="store_true", help="how often goal-reaching levels reach their subgoals")
    return parser


def search(runs: Sequence[Result]) -> list[float]:
    """What the searching policy collects, by trajectory."""
    for run in runs:
        if "search" not in run.manifest.get("references", {}):
            raise ValueError(f"{run.folder}: its manifest has no searching policy; give runs on a search task")
    first, *others = (run.manifest["references"]["search"] for run in runs)
    if any(len(other) != len(first) or not np.allclose(other, first, atol=1e-3) for other in others):
        raise ValueError(f"{runs[0].folder} and others have different references; give runs of one decision length")
    return first


def shares(runs: Sequence[Result]) -> np.ndarray:
    """The sum of the returns of a meta-test / the searching policy's mean sum, [seeds, tasks]."""
    return np.stack([run.scores["return"].sum(1) for run in runs]) / sum(search(runs))


def reached(runs: Sequence[Result], last: int = 10) -> str:
    """Share of subgoals that each goal-reaching level reached in its ``last`` rows, bottom up; means over seeds."""
    of_seeds = [read_metrics(run.folder / "metrics.csv") for run in runs]
    names = sorted({name for metrics in of_seeds for name in metrics if name.startswith("train/success/level_")})
    means = [statistics.mean(statistics.mean(metrics[name][1][-last:]) for metrics in of_seeds) for name in names]
    return " ".join(f"{mean:.2f}" for mean in means)


def line(name: str, runs: Sequence[Result], share: np.ndarray) -> list[str]:
    """The cells of a task."""
    every, (iqm, low, high) = share.mean(1), interval(share, over="whole seeds and tasks")
    facts = {**runs[0].manifest, **runs[0].manifest.get("trained", {})}
    return [
        name,
        " / ".join(f"{value:.2f}" for value, _, _ in intervals(runs, over="whole seeds and tasks")),
        " / ".join(f"{value:.2f}" for value in search(runs)),
        f"{iqm:.2f} [{low:.2f}, {high:.2f}]",
        f"{every.mean():.2f} ({every.min():.2f})",
        str(len(runs)),
        f"{statistics.median(run.minutes for run in runs):.1f}",
        f"{facts.get('env_steps', math.nan) / 1e6:.2f}",
    ]


def write_csv(tasks: Mapping[str, tuple[Sequence[Result], np.ndarray]], path: str) -> None:
    """A row for each task and seed: its share, and its mean returns by trajectory."""
    most = max(run.scores["return"].shape[1] for runs, _ in tasks.values() for run in runs)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["task", "split", "seed", "share", *(f"return_{k + 1}" for k in range(most))])
        for name, (runs, share) in tasks.items():
            for run, its in zip(runs, share.mean(1), strict=True):
                means = run.scores["return"].mean(0)
                writer.writerow([name, run.split, run.seed, *(f"{x:.6g}" for x in (its, *means))])


def main(command: list[str] | None = None) -> None:
    """Prints the table, and writes what else is asked for."""
    args = arguments().parse_args(command)
    try:
        tasks = {}
        for name, folders in named(args.tasks).items():
            runs = read_methods({name: find_runs(folders)})[name]
            tasks[name] = runs, shares(runs)
        lines = [HEAD, *(line(name, *task) for name, task in tasks.items())]
        if args.levels:
            more = ["subgoals reached", *(reached(runs) for runs, _ in tasks.values())]
            lines = [[*cells, cell] for cells, cell in zip(lines, more, strict=True)]
        print(table(lines))
        if args.csv:
            write_csv(tasks, args.csv)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
