"""The table of results in the README, from the folders of the runs.

    python benchmarks/results.py 'PEACH=runs/peach/0*,runs/peach/1*' 'HAC=runs/hac/*'
    python benchmarks/results.py 'PEACH=runs/peach/*' --csv results.csv --figure results.png --reference oracle=0.88

Prints one line a method: the interquartile mean of the return / horizon by trajectory, with its 95 % interval, the
lowest and the highest mean of a seed in the last trajectory, the number of seeds, and the median minutes of a run.
Folders that cannot be compared are refused.
"""

from __future__ import annotations

import argparse
import sys
from typing import get_args

import numpy as np

from peach_trl.utils.plots import plot_by_trajectory
from peach_trl.utils.statistics import Over
from peach_trl.utils.tables import VALUES, find_runs, intervals, markdown, named, read_methods, write_csv

LABELS = {
    "return": "return / horizon",
    "success": "share of episodes that end in the goal",
    "found": "share of episodes that find the goal",
}


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="+", metavar="NAME=FOLDERS", help="glob patterns with commas between them")
    parser.add_argument("--value", choices=VALUES, default="return", help="what the table shows")
    parser.add_argument("--over", choices=get_args(Over), default="seeds and tasks", help="what is resampled")
    parser.add_argument("--csv", help="write one row a method, seed and trajectory, means over tasks, to this file")
    parser.add_argument("--figure", help="draw the table to this .png, and to a .pdf beside it")
    parser.add_argument("--reference", action="append", default=[], help="a line of the figure, such as oracle=0.88")
    return parser


def reference(value: str) -> float | list[float]:
    """A number, or several with commas between them, by trajectory."""
    numbers = [float(number) for number in value.split(",")]
    return numbers if len(numbers) > 1 else numbers[0]


def main(command: list[str] | None = None) -> None:
    """Prints the table, and writes what else is asked for."""
    args = arguments().parse_args(command)
    try:
        methods = read_methods({name: find_runs(folders) for name, folders in named(args.methods).items()})
        print(markdown(methods, args.value, args.over))
        first = next(iter(methods.values()))[0]
        tasks = f"the {len(first.tasks)} tasks of the split {first.split!r} (fingerprint {first.fingerprint})"
        print(f"\n{LABELS[args.value]}: interquartile mean [95 % interval over {args.over}] on {tasks}")
        if args.csv:
            write_csv(methods, args.csv)
        if args.figure:
            curves = {name: np.array(intervals(runs, args.value, args.over)).T for name, runs in methods.items()}
            references = {name: reference(value) for name, value in named(args.reference).items()}
            plot_by_trajectory(args.figure, curves, references, label=LABELS[args.value])
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
