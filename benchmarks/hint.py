"""Do agents of the treasure hunt fetch the hint first? Steps to the top of the mountain, and to the treasure.

    python benchmarks/hint.py 'treasure hunt=runs/search/TreasureHunt/seed_*' --split validation

One line a seed: returns / horizon; the share of the tasks in which it comes to the top, which shows the treasure,
before it comes to the treasure; the median of the environment steps to the top (10 will do), the mean of those to the
treasure, and the number of tasks in which it never comes to it. A run takes some seconds.
"""

from __future__ import annotations

import argparse
import sys

import torch
from torch import Tensor

from peach_trl.envs.families import FAMILIES, TreasureHunt
from peach_trl.evaluation import MetaTest
from peach_trl.experiment import load_agent
from peach_trl.meta_tests import run_meta_test
from peach_trl.utils.tables import find_runs, named, table

HEADINGS = ("method", "seed", "return / horizon", "hint first", "steps to the top", "to the treasure", "missed")


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="+", metavar="NAME=FOLDERS", help="glob patterns with commas between them")
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    return parser


def first(within: Tensor) -> Tensor:
    """The first step, from 1, that is one of ``within`` [R, T], and infinity in rows without one; [R]."""
    steps = torch.arange(1, within.shape[1] + 1.0)
    return torch.where(within, steps, torch.inf).amin(1)


def cells(result: MetaTest, family: type[TreasureHunt]) -> list[str]:
    """What the first trajectories of a meta-test show, in the order of ``HEADINGS`` from the third on."""
    path = result.positions[:, 0]
    top = first(path.norm(dim=-1) < family.near)
    treasure = first((path - result.goals.unsqueeze(1)).norm(dim=-1) <= family.near)
    met, hint = treasure.isfinite(), top < treasure
    numbers = result.returns[:, 0].mean(), hint.float().mean(), top.median(), treasure[met].mean(), (~met).sum()
    return [f"{number:{form}}" for number, form in zip(numbers, (".2f", ".0%", ".0f", ".1f", ".0f"), strict=True)]


def line(name: str, run: str, split: str) -> tuple[str, ...]:
    """The cells of a run."""
    config, library, agent = load_agent(run)
    family = FAMILIES.get(config.env.family, object)
    if not issubclass(family, TreasureHunt):
        raise ValueError(f"{run}: {config.env.family} has no hint; give runs of env=TreasureHunt")
    return name, str(config.seed), *cells(run_meta_test(agent, config, library, split, config.seed), family)


def main() -> None:
    """Prints the table."""
    args, lines = arguments().parse_args(), [HEADINGS]
    try:
        for name, patterns in named(args.methods).items():
            lines += [line(name, str(run), args.split) for run in find_runs(patterns)]
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"Error: {error}")
    print(table(lines))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
