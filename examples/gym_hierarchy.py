"""A hierarchy of two levels over a Gymnasium environment of one's own, in a TorchRL loop, without configuration files.

    python examples/gym_hierarchy.py

The lower level learns to give the pendulum a speed; the top level, which follows the environment's reward, says which,
every five steps. The return rises from -1400 to -200 within 120 episodes.
"""

from __future__ import annotations

import torch
from torchrl.collectors import Collector
from torchrl.envs import EnvBase, GymEnv, StepCounter, TransformedEnv

from peach_trl import Agent, GoalSpace, default
from peach_trl.context import SequenceSampler
from peach_trl.data import TaskReplayBuffer
from peach_trl.hierarchy import HierarchyConfig, LevelTransitions, TransitionsConfig
from peach_trl.levels import ReadingConfig


def make_env() -> EnvBase:
    """Any TorchRL environment with ``observation``, a bounded action, and episodes that end."""
    env = TransformedEnv(GymEnv("Pendulum-v1"), StepCounter(max_steps=200))
    env.subgoal_space = GoalSpace([2], -8.0, 8.0, tolerance=1.0)  # of cosine, sine and speed, the last
    return env


def train(env: EnvBase, frames: int, updates: int = 100, batch: int = 256) -> list[float]:
    """Trains both levels; returns the return of each episode."""
    hierarchy = default(HierarchyConfig, depth=2, decision_steps=5, subgoal="absolute")
    agent = Agent(env, hierarchy, default(ReadingConfig, latent_dim=0))  # one task: nothing to infer
    lower, top, policy = agent.levels[0], agent.top, agent.make_policy()
    transitions = LevelTransitions(agent.hierarchy, default(TransitionsConfig, reward_scale=0.05))
    decisions = TaskReplayBuffer(num_tasks=1, capacity=50_000, episodes=500)
    steps = TaskReplayBuffer(num_tasks=1, capacity=500_000)
    sequences, task = SequenceSampler(decisions, per_task=16, episodes=1), torch.tensor([0])
    returns = []
    for data in Collector(env, policy, frames_per_batch=200, total_frames=frames, auto_register_policy_transforms=True):
        returns.append(data["next", "reward"].sum().item())
        of_lower, of_top = transitions(data)
        steps.extend(of_lower)
        decisions.extend(of_top)
        policy.explore(warmup=len(returns) < 10)
        for rows in steps.batches(batch, updates):
            lower.update(rows)
        if len(returns) > 10:
            for _ in range(updates // 2):
                top.update(sequences(task))
    return returns


if __name__ == "__main__":
    torch.manual_seed(0)
    for number, total in enumerate(train(make_env(), frames=24_000)):
        print(f"episode {number}: return {total:.0f}")
