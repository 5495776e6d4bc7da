"""How well goal-reaching levels reach their subgoals, without noise: a line a method, a number a seed.

    python benchmarks/levels.py 'td3=runs/a/seed_*' 'sac=runs/b/seed_*'

Proposals of the top level are uniform, and all are tested: so the levels below act greedily. Of the lowest level: the
share of its attempts that end at the subgoal, how far from it they end, and the share of episodes in which the body
failed. Tasks are those for validation; of each, five episodes.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics

import torch
from torchrl.envs.utils import ExplorationType, set_exploration_type

from peach_trl.collectors import rollout
from peach_trl.config import ConfigError
from peach_trl.experiment import load_agent, make_agent, make_env
from peach_trl.hierarchy.metrics import level_metrics
from peach_trl.utils.tables import find_runs, named, table

EPISODES = 5


def measured(run: str, seed: int = 0) -> dict[str, float]:
    """Metrics of the levels of a run's final agent."""
    config, library, trained = load_agent(run)
    greedy = dataclasses.replace(config.hierarchy, test_probability=1.0, top_random_hold=1)
    agent = make_agent(dataclasses.replace(config, hierarchy=greedy), library)
    agent.load_state_dict(trained.state_dict())
    policy = agent.make_policy().to("cpu")
    policy.explore(at_random=True)
    env = make_env(config, library, library.split("validation"), policy)
    torch.manual_seed(seed)
    with set_exploration_type(ExplorationType.RANDOM):
        return level_metrics(agent.hierarchy, rollout(env, policy, EPISODES * config.env.horizon))


def line(name: str, found: list[dict[str, float]]) -> list[str]:
    """The cells of a method."""
    reached = [of_seed["success/level_0"] for of_seed in found]
    away, failed = ([of_seed.get(key, 0.0) for of_seed in found] for key in ("distance/level_0", "failures"))
    cells = [" ".join(f"{value:.2f}" for value in reached), f"{statistics.mean(reached):.3f}"]
    return [name, *cells, f"{statistics.mean(away):.3f}", f"{100 * statistics.mean(failed):.1f} %"]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="+", metavar="NAME=FOLDERS", help="glob patterns with commas between them")
    lines = [["method", "reached, by seed", "mean", "distance left", "failed"]]
    try:
        for name, patterns in named(parser.parse_args().methods).items():
            lines.append(line(name, [measured(str(run)) for run in find_runs(patterns)]))
    except (ConfigError, FileNotFoundError, ValueError) as error:
        parser.exit(2, f"{error}\n")
    print(table(lines))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
