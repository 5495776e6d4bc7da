"""The table of search tasks: what agents collect, as a share of what a searching policy does. A line a task.

    python benchmarks/search.py 'default task=runs/peach/a/*' 'wind=runs/peach/b/*' --csv docs/results/search_test.csv

Prints, for each task: the interquartile mean of the return / horizon by trajectory, the searching policy's, and the
share of its sum over a meta-test that agents have, as interquartile mean with its 95 % interval over whole seeds and
tasks, as mean over seeds, and of the worst one; how many seeds, minutes of a seed, and million environment steps. The
CSV has a row for each task and seed. References are those that a run wrote into its manifest.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from peach_trl.utils.statistics import interval
from peach_trl.utils.tables import Result, find_runs, intervals, named, read_methods

HEAD = ["task", "by trajectory", "search", "share of the search", "mean (worst seed)", "seeds", "minutes", "M steps"]


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", metavar="NAME=FOLDERS", help="glob patterns with commas between them")
    parser.add_argument("--csv", help="write one row a task and seed to this file")
    return parser


def manifest(run: Result) -> dict[str, Any]:
    """What a run wrote about itself."""
    found = json.loads((run.folder / "manifest.json").read_text())
    if "search" not in found.get("references", {}):
        raise ValueError(f"{run.folder}: its manifest has no searching policy; give runs on a search task")
    return found


def shares(runs: Sequence[Result]) -> np.ndarray:
    """The sum of the returns of a meta-test / the searching policy's mean sum, [seeds, tasks]."""
    searches = {tuple(round(value, 3) for value in manifest(run)["references"]["search"]) for run in runs}
    if len(searches) > 1:
        raise ValueError(f"{runs[0].folder} and others have different references; give runs of one decision length")
    search = sum(searches.pop())
    return np.stack([run.scores["return"].sum(1) for run in runs]) / search


def line(name: str, runs: Sequence[Result]) -> list[str]:
    """The cells of a task."""
    about, share = manifest(runs[0]), shares(runs)
    every, (iqm, low, high) = share.mean(1), interval(share, over="whole seeds and tasks")
    minutes = statistics.median(run.minutes / manifest(run).get("seeds_at_once", 1) for run in runs)
    return [
        name,
        " / ".join(f"{value:.2f}" for value, _, _ in intervals(runs, over="whole seeds and tasks")),
        " / ".join(f"{value:.2f}" for value in about["references"]["search"]),
        f"{iqm:.2f} [{low:.2f}, {high:.2f}]",
        f"{every.mean():.2f} ({every.min():.2f})",
        str(len(runs)),
        f"{minutes:.1f}",
        f"{about['env_steps'] / 1e6:.2f}",
    ]


def main(command: list[str] | None = None) -> None:
    """Prints the table, and writes what else is asked for."""
    args = arguments().parse_args(command)
    try:
        folders = {name: find_runs(text) for name, text in named(args.tasks).items()}
        tasks = {name: read_methods({name: found})[name] for name, found in folders.items()}
        lines = [HEAD, ["---"] * len(HEAD), *(line(name, runs) for name, runs in tasks.items())]
        print("\n".join(f"| {' | '.join(cells)} |" for cells in lines))
        if args.csv:
            with open(args.csv, "w", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                most = max(run.scores["return"].shape[1] for runs in tasks.values() for run in runs)
                writer.writerow(["task", "split", "seed", "share", *(f"return_{k + 1}" for k in range(most))])
                for name, runs in tasks.items():
                    for run, share in zip(runs, shares(runs).mean(1), strict=True):
                        means = run.scores["return"].mean(0)
                        writer.writerow([name, run.split, run.seed, *(f"{x:.6g}" for x in (share, *means))])
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
