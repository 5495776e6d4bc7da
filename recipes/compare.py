"""Runs side by side: table, learning curves, performance profile, probability of improvement, and one page of it.

    python recipes/compare.py runs/peach/sweep_*
    python recipes/compare.py 'PEACH=runs/peach/a/*' 'HAC=runs/hac/*' --out comparison

Folders may hold runs at any depth. Runs that differ in their seed only are one method, named by what it differs in;
NAME=FOLDERS names it. Open comparison/index.html.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

from peach_trl.utils.comparison import compare, group, runs_below
from peach_trl.utils.statistics import Over
from peach_trl.utils.tables import VALUES, find_runs, named


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", nargs="+", metavar="FOLDERS", help="glob patterns, with commas between them; or NAME=FOLDERS"
    )
    parser.add_argument("--out", default="comparison", help="folder that is written; files in it are written over")
    parser.add_argument("--value", choices=VALUES, default="return", help="what is compared")
    parser.add_argument("--over", choices=get_args(Over), default="whole seeds and tasks", help="what is resampled")
    return parser


def main(command: list[str] | None = None) -> None:
    """Prints the table, and says where the page is."""
    args = arguments().parse_args(command)
    try:
        if all("=" in text and not Path(text).exists() for text in args.runs):
            patterns = named(args.runs)
            methods = {name: _runs(find_runs(pattern)) for name, pattern in patterns.items()}
        else:
            methods = group(_runs([folder for pattern in args.runs for folder in find_runs(pattern)]))
        print(compare(methods, Path(args.out), args.value, args.over))
        print(f"\n{Path(args.out) / 'index.html'}")
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"Error: {error}")


def _runs(folders: list[Path]) -> list[Path]:
    found = [run for folder in folders for run in runs_below(folder)]
    if not found:
        raise FileNotFoundError(
            f"{', '.join(map(str, folders))}: no runs in there; give the folders that recipes wrote"
        )
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    main()
