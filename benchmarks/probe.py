"""What beliefs know of their task, decision by decision, beside an ideal observer of the same paths.

    python benchmarks/probe.py 'product=runs/peach/a/seed_*' 'gru=runs/peach/b/seed_*' --csv probe.csv

The error of a linear probe from the belief to the parameters of the test tasks, as root mean square over tasks and as
share of what knowing nothing has: one line a method with means over its seeds, at the decisions where a tenth, a
quarter, ... of a meta-test is over; and at its end the smallest and largest of a seed. Below it the ideal observer's on
this method's own paths, where goals are hidden places. See :mod:`peach_trl.probe`. `pretrained` names the agent that
goes with the package. A run takes some seconds; the CSV has a row a method, seed and decision.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from peach_trl.experiment import load_agent
from peach_trl.probe import probe
from peach_trl.utils.plots import LINE_COLORS, save
from peach_trl.utils.tables import find_runs, named, table

SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
Curves = dict[str, list[np.ndarray]]  # of "belief" and "ideal observer", [N] a seed


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="+", metavar="NAME=FOLDERS", help="glob patterns with commas between them")
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--csv", help="write a row a method, seed and decision to this file")
    parser.add_argument("--figure", help="draw the curves to this .png, and to a .pdf beside it")
    return parser


def measured(runs: Sequence[str], split: str) -> tuple[list[int], Curves]:
    """The seeds of runs, and their curves."""
    seeds, curves = [], Curves()
    for run in runs:
        config, library, agent = load_agent(run)
        seeds.append(config.seed)
        for name, curve in probe(agent, config, library, split=split).curves().items():
            curves.setdefault(name, []).append(curve.numpy())
    return seeds, curves


def lines(name: str, curves: Curves) -> list[list[str]]:
    """The cells of a method, and of those who watch it."""
    found = []
    for who, of_seeds in curves.items():
        every = np.stack(of_seeds)
        cells = [f"{every[:, round(share * (every.shape[1] - 1))].mean():.2f}" for share in SHARES]
        ends = f"{every[:, -1].min():.2f} to {every[:, -1].max():.2f}"
        found.append([name if who == "belief" else f"*{who}*", *cells, ends, str(len(every))])
    return found


def write_csv(methods: Mapping[str, tuple[list[int], Curves]], path: str) -> None:
    """A row for each method, seed and decision, numbered from 0."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["method", "seed", "decision", "belief", "ideal observer"])
        for name, (seeds, curves) in methods.items():
            ideal = curves.get("ideal observer")
            for i, seed in enumerate(seeds):
                for decision, error in enumerate(curves["belief"][i]):
                    told = "" if ideal is None else f"{ideal[i][decision]:.5g}"
                    writer.writerow([name, seed, decision, f"{error:.5g}", told])


def draw(methods: Mapping[str, tuple[list[int], Curves]], path: str, columns: int = 3) -> None:
    """A panel a method: means over seeds, with the range of seeds; the ideal observer's dashed."""
    from matplotlib.figure import Figure

    rows = -(-len(methods) // columns)
    wide = min(columns, len(methods))
    figure = Figure(figsize=(2.9 * wide, 2.4 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, wide, sharey=True, squeeze=False).flatten()
    for axes, (name, (_, curves)) in zip(panels, methods.items(), strict=False):
        for (who, of_seeds), color, style in zip(curves.items(), LINE_COLORS, ("-", "--"), strict=False):
            every = np.stack(of_seeds)
            axes.plot(every.mean(0), color=color, ls=style, label=who)
            axes.fill_between(np.arange(every.shape[1]), every.min(0), every.max(0), color=color, alpha=0.15, lw=0)
        axes.set_title(name, fontsize=10)
        axes.set(ylim=(0, 1.1), xlabel="decisions seen")
        axes.grid(alpha=0.3)
    for axes in panels[len(methods) :]:
        axes.set_visible(False)
    figure.supylabel("error / error without knowledge", fontsize=10)
    first = figure.axes[0]
    figure.legend(*first.get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=9, frameon=False)
    save(figure, path)


def main() -> None:
    """Prints the table, and writes what else is asked for."""
    args = arguments().parse_args()
    methods = {}
    try:
        for name, patterns in named(args.methods).items():
            runs = ["pretrained"] if patterns == "pretrained" else [str(run) for run in find_runs(patterns)]
            methods[name] = measured(runs, args.split)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"Error: {error}")
    head = ["method", *(f"{share:.0%}" for share in SHARES), "seeds, at the end", "seeds"]
    print(table([head, *(line for name, (_, curves) in methods.items() for line in lines(name, curves))]))
    if args.csv:
        write_csv(methods, args.csv)
    if args.figure:
        draw(methods, args.figure)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
