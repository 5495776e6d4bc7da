"""What the tests of agents and of runs share: a configuration that takes seconds, and data of its shapes."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

import torch
from tensordict import TensorDict
from torchrl.envs.utils import ExplorationType, set_exploration_type

from peach_trl.agent import Agent
from peach_trl.envs import PointEnv
from peach_trl.experiment import Config, PeachConfig, make_agent, make_env, make_library
from peach_trl.utils import load_config

ROOT = Path(__file__).parent.parent
torch.set_num_threads(1)  # as the recipes do: small networks want one

# The goals are near, so that a few steps meet rewards and a few subgoals are achieved.
TINY = [
    *("env.horizon=20", "env.radius=1.5", "env.goal_tolerance=1.4", "env.train_tasks=3", "env.validation_tasks=2"),
    *("env.test_tasks=2", "hierarchy.decision_steps=4", "replay.top_capacity=200", "replay.lower_capacity=1000"),
    *("train.iterations=2", "train.warmup=1", "train.prefill=1", "train.envs_per_task=1", "train.trajectories=2"),
    "train.prefill_met=0",
    *("train.warmup_updates=4", "train.lower_updates=4", "train.top_updates=2", "train.lower_batch=8"),
    *("train.meta_batch=2", "evaluation.every=2", "evaluation.rollouts=1"),
    *("evaluation.trajectories=2", "top.loss_test=1"),
]


class Ending(PointEnv):
    """Ends an episode for good where the point has moved ``limit`` metres to the right."""

    limit = 0.3

    def _terminated(self, observation):
        return observation[:, :1] > self.limit


@cache
def _tiny() -> PeachConfig:
    return load_config(PeachConfig, "peach", ROOT / "configs", [*TINY, "context.latent_dim=5"])


def tiny_config(**changes) -> Config:
    """The tiny configuration of PEACH; a change is ``group__key=value``."""
    config = _tiny()
    for name, value in changes.items():
        group, key = name.split("__")
        config = dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **{key: value})})
    return config


def tiny_agent(config: Config, seed: int = 0, encoder=None) -> Agent:
    torch.manual_seed(seed)
    return make_agent(config, make_library(config), encoder)


def record(config: Config, policy, tasks, steps: int, explore=ExplorationType.RANDOM) -> TensorDict:
    """A batch [len(tasks), steps] of the policy, from a reset on."""
    env = make_env(config, make_library(config), torch.as_tensor(tasks), policy)
    with set_exploration_type(explore), torch.no_grad():
        return env.rollout(steps, policy, break_when_any_done=False)


def random_transitions(shape, seed: int, proposal: int = 2, goal: bool = False, horizon: int = 4) -> TensorDict:
    """Transitions with every combination of terminated and done, and decisions of 1 to ``horizon`` steps."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*size):
        return torch.rand(*shape, *size, generator=generator) * 2 - 1

    terminated = uniform(1) > 0.5
    after = {"observation": uniform(4), "reward": 3 * uniform(1), "terminated": terminated}
    after["done"] = terminated | (uniform(1) > 0.5)
    rows = {"observation": uniform(4), "action": 0.98 * uniform(proposal)}
    rows["steps_to_next_obs"] = torch.randint(1, horizon + 1, (*shape, 1), generator=generator)
    if goal:
        rows["goal"] = after["goal"] = uniform(2)
    return TensorDict({**rows, "next": TensorDict(after, shape)}, shape)


def random_sequences(
    sequences: int, length: int, seed: int, parts: int = 2, horizon: int = 4, evidence: bool = True
) -> TensorDict:
    """Sequences of decisions of ``parts`` episodes each; the i-th is i decisions short of ``length``."""
    rows = random_transitions((sequences, length), seed, horizon=horizon)
    generator = torch.Generator().manual_seed(100 + seed)
    rows["missed"] = torch.rand(sequences, length, 1, generator=generator) < 0.3
    rows["proposal"] = torch.rand(sequences, length, 2, generator=generator) * 1.9 - 0.95
    rows["mask"] = torch.arange(length) < length - torch.arange(sequences).unsqueeze(-1)
    rows["part"] = (torch.arange(length) * parts // length).expand(sequences, -1)
    if evidence:  # of a decision's rewards: their sum, the highest one, and where that was
        reward = rows["next", "reward"]
        rows["next", "evidence"] = torch.cat([reward, reward, rows["next", "observation"]], -1)
    return rows


def random_context(tasks: int, length: int, seed: int, proposal: int = 2) -> TensorDict:
    """Contexts [tasks, length] of 0, 1, ... transitions."""
    context = random_transitions((tasks, length), seed, proposal)
    return context.set("mask", torch.arange(length) < torch.arange(tasks).unsqueeze(-1))
