"""Prioritised replay for a goal-reaching level: three lines that are others than with uniform draws.

    python examples/prioritized_level.py

The level's loss writes `td_error` into a batch, TorchRL's losses weigh rows by `priority_weight`, and the buffer takes
priorities from what comes back.
"""

from __future__ import annotations

from functools import partial

import torch
from torchrl.envs.utils import ExplorationType, set_exploration_type

from peach_trl import Agent, PeachConfig, load_config, make_env, make_library
from peach_trl.collectors import rollout
from peach_trl.data import PrioritizedTaskSampler, TaskReplayBuffer
from peach_trl.hierarchy import LevelTransitions, level_metrics


def train(passes: int, updates: int = 100, prioritized: bool = True) -> list[float]:
    """Trains the lower level of the default task alone; the share of its subgoals that it reached, by pass."""
    config = load_config(PeachConfig, "peach")
    library = make_library(config)
    agent = Agent(make_env(config, library, torch.tensor([0])))
    level, policy, transitions = agent.levels[0], agent.make_policy(), LevelTransitions(agent.hierarchy, seed=0)
    env = make_env(config, library, library.split("train"), policy)
    how = {"sampler": partial(PrioritizedTaskSampler, alpha=0.6, beta=0.4)} if prioritized else {}
    replay = TaskReplayBuffer(num_tasks=1, capacity=200_000, seed=0, **how)
    policy.explore(warmup=True, at_random=True)
    reached = []
    for _ in range(passes):
        with set_exploration_type(ExplorationType.RANDOM):
            batch = rollout(env, policy, config.env.horizon)
        reached.append(level_metrics(agent.hierarchy, batch)["success/level_0"])
        replay.extend(transitions(batch)[0])
        for _ in range(updates):
            rows = replay.sample_tasks(torch.tensor([0]), 256).reshape(-1)
            level.update(rows)
            replay.update_tensordict_priority(rows)  # which does nothing where draws are uniform
    return reached


if __name__ == "__main__":
    torch.manual_seed(0)
    print([round(share, 2) for share in train(passes=10)])
